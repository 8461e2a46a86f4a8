"""``study``: many runs from one file: run what is missing, see how far it is, report."""

import argparse
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from qam_lightning.cli.dispatch import called
from qam_lightning.studies.study import STUDIES, Study, read_study
from qam_lightning.util.arguments import Parser, at_least, path
from qam_lightning.util.errors import UserError
from qam_lightning.util.imports import uncollected

if TYPE_CHECKING:
    from qam_lightning.studies.plan import Planned
    from qam_lightning.studies.slurm import SlurmOptions


SLURM: dict[str, Any] = {
    **dict.fromkeys(("partition", "account", "memory"), str),
    **dict.fromkeys(("time", "warning", "cpus", "limit", "runs_per_gpu"), at_least(1)),
    "gpus": at_least(0),
}
"""Options of `studies.slurm.SlurmOptions` that are flags too."""


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(prog=called("study"), description=__doc__.partition(": ")[2])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    study: dict[str, Any] = {"metavar": "STUDY", "help": "file, or the name of a shipped study"}

    commands.add_parser("list", help="the studies that ship")
    add = commands.add_parser("status", help="how far the runs of a study are").add_argument
    add("study", **study)
    add(
        "--all",
        action="store_true",
        help="a line for every run, not only the running and the failed",
    )
    add = commands.add_parser(
        "run", help="check every configuration, then run what is not finished"
    ).add_argument
    add("study", **study)
    add("--jobs", type=at_least(1), metavar="N", help="runs at a time; default: what fits")
    add("--dry_run", action="store_true", help="check, and print what would run")
    add(
        "--any_version",
        action="store_true",
        help="continue runs that other versions of the software made",
    )
    add(
        "--slurm",
        type=path,
        nargs="?",
        const=Path(),
        metavar="FILE",
        help="submit to a cluster instead, with the options of a YAML file",
    )
    for name, kind in SLURM.items():
        add(f"--slurm.{name}", type=kind, metavar="X", help=f"overrides {name} of the file")
    add = commands.add_parser(
        "report", help="tables, intervals and figures of a study, or of any run folders"
    ).add_argument
    add("source", nargs="+", metavar="STUDY_OR_RUN", help="one study, or run folders")
    add(
        "--output",
        type=path,
        metavar="FOLDER",
        help="default: the study's folder/report, or ./report; an earlier report is replaced",
    )
    add("--published", action="store_true", help="beside the authors' published curves")
    add("--wandb", action="store_true", help="upload the report as an artifact of Weights & Biases")
    return parser.parse_args(list(arguments))


def main(arguments: Sequence[str]) -> int:
    """Run the command line; return the exit code."""
    options = parse(arguments)
    return {"list": shipped, "status": status, "run": run, "report": report}[options.command](
        options
    )


def shipped(options: argparse.Namespace) -> int:
    """Print the studies that ship, with the first comment of each."""
    for file in sorted(STUDIES.glob("*.yaml")):
        first = file.read_text("utf-8").partition("\n")[0].removeprefix("# ")
        print(f"{file.stem:<20} {len(read_study(str(file)).runs):>6,} runs  {first}")
    return 0


def status(options: argparse.Namespace) -> int:
    """Print how many runs are in which state, and what the failed ones said."""
    from qam_lightning.studies.begun import runs_of
    from qam_lightning.studies.slurm import queued
    from qam_lightning.studies.state import KINDS, told_state_of

    study = read_study(options.study)
    study = study._replace(runs=runs_of(study))
    states = [(run, told_state_of(run.run_dir)) for run in study.runs]
    table = Table(box=None, pad_edge=False, title=f"{study.name}: {study.folder}/",
                  title_justify="left")  # fmt: skip
    groups = list(dict.fromkeys(run.group for run in study.runs))
    table.add_column("group" if any(groups) else "")
    for kind in (*KINDS, "runs"):
        table.add_column(kind, justify="right")
    for group in groups or [""]:
        kinds = [state.kind for run, state in states if run.group == group]
        counts = [str(sum(kind == k for k in kinds) or "–") for kind in KINDS]
        table.add_row(group or "all", *counts, str(len(kinds)))
    console = Console(soft_wrap=True)
    console.print(table)
    for run, state in states:
        if options.all or state.kind in ("failed", "running"):
            share = f" {state.done / state.total:.0%}" if state.total else ""
            line = f": {state.line}" if state.line else ""
            console.print(f"{run.name} {state.kind}{share}{line}", markup=False, highlight=False)
    with suppress(UserError):  # no SLURM answers here
        for job, count in Counter(job.partition("_")[0] for job in queued(study).values()).items():
            print(f"job {job} holds {count} of the runs")
    for folder in strangers(study):
        console.print(f"{folder} is no run of the study", markup=False, highlight=False)
    return 0


def strangers(study: Study) -> list[Path]:
    """Return the folders of runs below the study's that the study does not name."""
    known = {run.run_dir for run in study.runs}
    found = {file.parent for file in study.folder.glob("**/config.yaml")}
    # What is within a run's folder is the run's: Weights & Biases keeps a config.yaml there.
    return sorted(folder for folder in found if known.isdisjoint([folder, *folder.parents]))


def run(options: argparse.Namespace) -> int:
    """Check every configuration, then run what is missing; return the exit code."""
    study = read_study(options.study)
    given = _slurm_flags(options)
    if given and options.slurm is None:
        raise UserError(f"--slurm.{next(iter(given))}: needs --slurm, which submits to a cluster")
    if options.slurm is not None and options.jobs is not None:
        raise UserError("--jobs: is of runs on this machine; with --slurm, say --slurm.limit")
    if options.slurm is not None and study.search is not None:
        raise UserError(f"{study.path}: a search runs here only, each run follows from the others")
    with uncollected():
        from qam_lightning.studies.begun import with_values
        from qam_lightning.studies.local import Listed
        from qam_lightning.studies.plan import counted, missing
        from qam_lightning.studies.search import Trials, as_configured, corners
    if study.search is None:
        planned = _planned(study, options)
        tried = missing(planned)
        source: Any = Listed(tried)
    else:
        tried = _planned(study._replace(runs=corners(study)), options)
        study = as_configured(study, tried)
        planned = _planned(study._replace(runs=with_values(study)), options)
        source = Trials(study, planned, options.any_version)
    asked = None if options.slurm is None else _slurm_options(options, given, missing(planned))
    print(f"{study.name}, {counted(planned)}")
    if options.dry_run:
        for item in missing(planned):
            print(called("fit"), shlex.join(item.run.arguments))
        return 0
    if asked is not None:
        return _submit(study, missing(planned), asked, options.study)
    return _run_here(study, source, tried, options)


def _run_here(
    study: Study, source: Any, tried: "list[Planned]", options: argparse.Namespace
) -> int:
    """Run what is missing on this machine; return the exit code.

    Args:
        study: the study.
        source: the runs that are missing.
        tried: runs like them, whose configurations say what each needs.
        options: the command line's.
    """
    from qam_lightning.studies.local import default_jobs, gpus_each, run_here

    todo = source.waiting
    if not todo:
        return _best(source, study)
    jobs = min(options.jobs or default_jobs(tried), todo)
    gpus = gpus_each(tried, jobs)
    print(f"{todo} to run, {jobs} at a time; Ctrl-C stops and saves all")
    outcome = run_here(source, jobs, gpus)
    for name, how in outcome.unfinished if outcome.signal is None else ():
        print(f"{name} {how}", file=sys.stderr)
    if outcome.signal is not None:
        print(f"stopped; `{called('study')} run {options.study}` continues", file=sys.stderr)
        return 128 + outcome.signal
    if outcome.refusal is not None:
        _best(source, study)
        raise outcome.refusal
    if outcome.unfinished:
        count = f"{len(outcome.unfinished)} of {todo} runs"
        raise UserError(f"{count} did not finish; the same command tries them again")
    return _best(source, study)


def _planned(study: Study, options: argparse.Namespace) -> "list[Planned]":
    """Check all runs of a study, and show how far it is."""
    from qam_lightning.studies.plan import Refused, plan

    try:
        with Console(stderr=True).status("") as shown:
            return plan(
                study, lambda n, of: shown.update(f"checked {n} of {of} runs"), options.any_version
            )
    except Refused as refused:
        for problem, name in refused.problems.items():
            print(f"error: {name}: {problem}", file=sys.stderr)
        raise


def _slurm_flags(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options of jobs that were given as flags."""
    flags = {name: vars(options)[f"slurm.{name}"] for name in SLURM}
    return {name: value for name, value in flags.items() if value is not None}


def _slurm_options(
    options: argparse.Namespace, given: dict[str, Any], todo: "list[Planned]"
) -> "SlurmOptions":
    """Read what jobs ask for, from the file and the flags, and check that it suits the runs."""
    from qam_lightning.studies.slurm import read_options, shape_of

    found = read_options(None if options.slurm == Path() else options.slurm, given)
    for item in todo:
        shape_of(item, found)
    return found


def _submit(study: Study, todo: "list[Planned]", options: "SlurmOptions", name: str) -> int:
    """Submit what is missing to a cluster; return the exit code."""
    from qam_lightning.studies.slurm import submit

    for job in submit(study, todo, options):
        print(f"submitted job {job}; `{called('study')} status {name}` says how far it is")
    return 0


def _best(source: Any, study: Study) -> int:
    """Print the best trial if the study is a search; return the exit code."""
    if study.search is not None and (found := source.best()) is not None:
        run, success = found
        print(f"best: {run.name}, success {success:.0%}: {shlex.join(run.arguments)}")
    return 0


def report(options: argparse.Namespace) -> int:
    """Write a report on a study, or on run folders; return the exit code."""
    from qam_lightning.reports.report import write_report
    from qam_lightning.studies.begun import runs_of

    folders = [Path(name) for name in options.source]
    study = None
    if not all(folder.is_dir() for folder in folders):
        if len(folders) > 1:
            wrong = next(folder for folder in folders if not folder.is_dir())
            raise UserError(f"{wrong}: no such run folder; expected one study, or run folders")
        study = read_study(options.source[0])
    if study is None:
        output, title = options.output or Path("report"), "Report"
        written = write_report(folders, output, title, published=options.published)
    else:
        study = study._replace(runs=runs_of(study))
        runs, missing = _with_results(study)
        axes = list(dict.fromkeys(key for run in study.runs for key in run.axes))
        axes += study.search.space if study.search is not None else ()
        output = options.output or study.folder / "report"
        written = write_report(runs, output, study.name, missing, axes, options.published)
    for file in written:
        print(f"wrote {file}")
    if options.wandb:
        from qam_lightning.loggers.wandb import upload_report

        print(f"uploaded to {upload_report(output, name=None if study is None else study.name)}")
    return 0


def _with_results(study: Study) -> tuple[list[Path], list[str]]:
    """Return the folders of a study's runs that have results, and a line for every other run."""
    from qam_lightning.studies.state import told_state_of

    found, missing = [], []
    for run in study.runs:
        if (run.run_dir / "metrics" / "eval.csv").exists():
            found.append(run.run_dir)
        else:
            state = told_state_of(run.run_dir)
            missing.append(f"{run.name}: {state.kind}{f': {state.line}' if state.line else ''}")
    return found, missing
