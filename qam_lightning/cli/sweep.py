"""``eval`` with several settings of acting, or all tasks: one evaluation after another."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from qam_lightning.cli.evaluate import file_name, prepare, rollouts, warn, with_progress
from qam_lightning.envs.make import TASKS
from qam_lightning.evaluation.report import build_report, check_target, find_report, write_report
from qam_lightning.evaluation.sweep import Cell, draw_sweep, sweep_rows, sweep_table, write_sweep
from qam_lightning.util.arguments import spelled


def sweep(options: argparse.Namespace, checkpoint: Path, run: Path) -> int:
    """Evaluate every combination that is not in the run's folder yet; return the exit code."""
    folder = run / "eval"
    tasks: Sequence[int | None] = TASKS if options.task == "all" else [options.task]
    # A mistake in the last combination is better said before the first.
    subjects = [
        [prepare(options, checkpoint, acting, task)[1] for acting in options.grid] for task in tasks
    ]
    for subject in (x for row in subjects for x in row):
        check_target(folder / f"{target_name(checkpoint, subject, options)}.json")
    warn(subjects[0][0])

    cells: list[Cell] = []
    for task, row in zip(tasks, subjects, strict=True):
        with rollouts(options, row[0]) as pool:
            for acting, subject in zip(options.grid, row, strict=True):
                found = find_report(folder, subject, options.episodes)
                told = "found"
                if found is None:
                    method, _ = prepare(options, checkpoint, acting, task)
                    report = build_report(subject, with_progress(options, pool, method, acting))
                    target = folder / f"{target_name(checkpoint, subject, options)}.json"
                    found, told = (write_report(report, target), report), "wrote"
                cells.append(Cell(subject["task"], acting, *found))
                number = f"[{len(cells)}/{len(tasks) * len(options.grid)}]"
                rate = f"success {found[1]['success']['mean']:.1%}"
                print(f"{number} {cells[-1].label}: {rate}; {told} {found[0]}", flush=True)

    rows = sweep_rows(cells)
    Console(soft_wrap=True).print(sweep_table(rows))
    name = file_name(checkpoint, {**subjects[0][0], "task": options.task or subjects[0][0]["task"]})
    table = write_sweep(rows, folder / f"sweep-{'-'.join([name, *options.grid[0]])}.csv")
    print(f"wrote {table}")
    if picture := draw_sweep(rows, table.with_suffix(".png")):
        print(f"wrote {picture}")
    return 0


def target_name(checkpoint: Path, subject: dict[str, Any], options: argparse.Namespace) -> str:
    """Name the file of one combination: as of one evaluation, with what the command line gives."""
    given = [f"{name}{spelled(subject[name])}" for name in options.grid[0]]
    return "-".join([file_name(checkpoint, subject), *given])
