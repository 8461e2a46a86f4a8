"""A report on a set of runs: a page, figures, and the numbers behind them as CSV files."""

import csv
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib

from qam_lightning.reports import figures, page
from qam_lightning.reports.beside import beside
from qam_lightning.reports.comparison import Comparison, compare
from qam_lightning.reports.results import Result, read_results
from qam_lightning.reports.sections import content
from qam_lightning.util.errors import UserError, shown
from qam_lightning.util.files import replacing, writing

_FIGURES = ("success", "curves", "sensitivity", "profile")
FILES = (
    *("index.html", "report.md", "runs.csv", "evaluations.csv", "published.csv"),
    *(f"{name}.{kind}" for name in _FIGURES for kind in ("png", "pdf")),
)
"""The names of a report's files; which of them there are depends on the runs."""


_TEXT: Any = {"encoding": "utf-8", "errors": "backslashreplace"}  # for names that are no UTF-8


def write_report(
    runs: Sequence[Path],
    output: Path,
    title: str,
    missing: Sequence[str] = (),
    axes: Sequence[str] | None = None,
    published: bool = False,
) -> list[Path]:
    """Write a report, in place of an earlier one.

    Args:
        runs: run folders, finished or not.
        output: the report's folder, which is made.
        title: the page's heading.
        missing: one line for each run that should be there and has no results.
        axes: the keys of the settings that vary; None finds them, see `comparison.compare`.
        published: show the published curves beside the runs.

    Returns:
        The files, `FILES` or some of them.

    Raises:
        UserError: a folder is no run's, no run has an evaluation, or ``output`` holds other files
            than a report's or cannot be written.
    """
    check_output(output)
    results, damaged = read_results(runs)
    lacking = [*missing, *damaged]
    if not results:
        first = f": {lacking[0]}" if lacking else ""
        raise UserError(f"report: no run has results yet, of {len(runs) + len(missing)}{first}")
    found = compare(results, axes)
    compared = beside(found) if published else None
    with matplotlib.rc_context(figures.PLAIN):
        sections, drawn = content(found, lacking, compared)
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
    written = [
        _write(output / "index.html", page.html(title, sections)),
        _write(output / "report.md", page.markdown(title, sections)),
        _write_rows(output / "runs.csv", map(_run_row, *_with_axes(found))),
        _write_rows(output / "evaluations.csv", _evaluation_rows(found)),
    ]
    if compared:
        written.append(_write_rows(output / "published.csv", (x.row() for x in compared)))
    for name, figure in drawn.items():
        written += figures.save(figure, output, name)
    with writing(output):
        for name in FILES:
            if output / name not in written:
                (output / name).unlink(missing_ok=True)
    return written


def check_output(output: Path) -> None:
    """Check that a folder is new, empty, or holds an earlier report; change nothing.

    Raises:
        UserError: it holds other files, is none, or is within a run's folder.
    """
    advice = "name another folder"
    for folder in Path(os.path.realpath(output)).parents:
        if (folder / "config.yaml").is_file() and (folder / "metrics").is_dir():
            raise UserError(f"{output}: is within a run's folder, {folder}; {advice}")
    if not output.is_dir():
        if output.exists() or output.is_symlink():
            raise UserError(f"{output}: is a file, expected a folder for the report; {advice}")
        return
    try:
        names = sorted(path.name for path in output.iterdir() if path.name[0] != ".")
        others = [name for name in names if name not in FILES or not (output / name).is_file()]
        index = output / "index.html"
        if not others and index.exists() and page.GENERATOR not in index.read_text("utf-8"):
            others = ["index.html"]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{output}: cannot be read: {error}; {advice}") from None
    if others:
        held = f"{shown(others[0])}, which is not of a report"
        raise UserError(f"{output}: holds {held}; nothing is overwritten: {advice}")


# -- files -----------------------------------------------------------------------------------------


def _with_axes(found: Comparison) -> tuple[list[Result], list[dict[str, Any]]]:
    """Return all runs, and what varies for each of them."""
    varied = [
        {key: variant.settings.get(key, "") for key in found.axes}
        for variant in found.variants
        for _ in variant.results
    ]
    return found.results, varied


def _run_row(result: Result, varied: dict[str, Any]) -> dict[str, Any]:
    scores = {
        name: getattr(result, name) for name in ("offline", "online", "final", "best", "last")
    }
    numbers = {
        column: value
        for name, score in scores.items()
        for column, value in zip((name, f"{name}_step"), score or ("", ""), strict=True)
    }
    return {
        "folder": result.folder,
        "method": result.method,
        "domain": result.domain,
        "dataset": result.settings.get("data.dataset", ""),
        "task": result.task,
        "seed": result.seed,
        **varied,
        "finished": result.finished,
        **numbers,
        "online_from": result.curve.online_from,
        "regret": result.regret,
        "updates_per_second": result.speed,
        "hours": result.hours,
        "device": result.device,
        "precision": result.settings.get("trainer.precision"),
        "config_hash": result.config_hash,
        **{f"version_{name}": value for name, value in result.versions.items()},
        "commit": result.commit,
    }


def _evaluation_rows(found: Comparison) -> Iterable[dict[str, Any]]:
    for result, varied in zip(*_with_axes(found), strict=True):
        label = {name: getattr(result, name) for name in ("folder", "method", "domain", "task")}
        for row, step in zip(result.rows, result.curve.steps.tolist(), strict=True):
            yield {**label, "seed": result.seed, **varied, "step": step, **row}


def _write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    rows = list(rows)
    names = list(dict.fromkeys(name for row in rows for name in row))
    with replacing(path, alone=True) as temporary:
        with temporary.open("w", newline="", **_TEXT) as file:
            writer = csv.DictWriter(file, names, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    return path


def _write(path: Path, text: str) -> Path:
    with replacing(path, alone=True) as temporary:
        temporary.write_text(text, **_TEXT)
    return path
