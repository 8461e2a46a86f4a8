"""Evaluations of one checkpoint that acts in several ways: their table and their curve."""

import csv
import io
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from matplotlib.transforms import ScaledTranslation
from rich.table import Table

from qam_lightning.evaluation.plots import INK, dress
from qam_lightning.evaluation.statistics import wilson_interval
from qam_lightning.util.arguments import spelled
from qam_lightning.util.files import replacing

MEAN = "mean"
"""What stands for the task in a row over all tasks."""

_FAINT = "#b8b8b8"
_COLOURS = ("#2a6fbb", "#e08a2e", "#2b8a4b", "#7b4fa3", "#c0392b", "#5f6a72")
_MARKERS = "osD^vP"


class Cell(NamedTuple):
    """One evaluation of a sweep.

    Attributes:
        task: the task.
        acting: the settings of acting that the sweep gives, name -> value.
        path: the record's file.
        report: the record, see `qam_lightning.evaluation.report.build_report`.
    """

    task: int
    acting: Mapping[str, float | str]
    path: Path
    report: Mapping[str, Any]

    @property
    def label(self) -> str:
        """What is evaluated: ``task 1, best_of_n 4``."""
        return ", ".join(
            [f"task {self.task}", *(f"{n} {spelled(x)}" for n, x in self.acting.items())]
        )


class Row(NamedTuple):
    """One line of a sweep's table.

    Attributes:
        task: its number, or `MEAN`.
        acting: settings of acting, name -> value.
        success: rate in [0, 1].
        low: lower bound of its 95% Wilson interval.
        high: upper bound.
        episode_return: mean over episodes.
        length: mean over episodes, in environment steps.
        episodes: their number, of all tasks together in a row of `MEAN`.
        record: name of the record's file, empty in a row of `MEAN`.
        report: the record, of the first task in a row of `MEAN`.
    """

    task: int | str
    acting: Mapping[str, float | str]
    success: float
    low: float
    high: float
    episode_return: float
    length: float
    episodes: int
    record: str
    report: Mapping[str, Any]


def sweep_rows(cells: Sequence[Cell]) -> list[Row]:
    """Return a row per evaluation, by combination; after several tasks, one of their mean.

    All tasks have as many episodes, so their mean is the rate of all episodes. Its interval is
    Wilson's of all episodes, as if they were alike: it is wider than it need be where tasks differ.

    Args:
        cells: every combination on every task, at least one.
    """
    combinations: dict[tuple[float | str, ...], list[Cell]] = {}
    for cell in cells:
        combinations.setdefault(tuple(cell.acting.values()), []).append(cell)
    rows = list[Row]()
    for part in combinations.values():
        rows += map(_row, part)
        if len(part) > 1:
            rows.append(_mean([_row(cell) for cell in part]))
    return rows


def _row(cell: Cell) -> Row:
    report = cell.report
    bounds = report["success"]
    return Row(
        task=cell.task,
        acting=cell.acting,
        success=bounds["mean"],
        low=bounds["low"],
        high=bounds["high"],
        episode_return=report["return"]["mean"],
        length=report["length"]["mean"],
        episodes=report["episodes"],
        record=cell.path.name,
        report=report,
    )


def _mean(rows: Sequence[Row]) -> Row:
    episodes = sum(row.episodes for row in rows)
    rate = wilson_interval(sum(row.success * row.episodes for row in rows), episodes)
    return rows[0]._replace(
        task=MEAN,
        success=rate.mean,
        low=rate.low,
        high=rate.high,
        episode_return=float(np.mean([row.episode_return for row in rows])),
        length=float(np.mean([row.length for row in rows])),
        episodes=episodes,
        record="",
    )


def sweep_table(rows: Sequence[Row]) -> Table:
    """A table for the terminal, a line per row."""
    report = rows[0].report
    table = Table(
        title=f"{str(report['method']).rsplit('.', 1)[-1]} on {report['env']}",
        title_justify="left",
        caption=f"{report['policy']} policy after {report['gradient_step']:,} gradient steps, "
        f"{report['episodes']} episodes each, seed {report['seed']}",
        caption_justify="left",
    )
    for name in ("task", *rows[0].acting, "success %", "95% Wilson", "return", "length"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            str(row.task),
            *map(spelled, row.acting.values()),
            f"{100 * row.success:.1f}",
            f"{100 * row.low:.1f} – {100 * row.high:.1f}",
            f"{row.episode_return:.1f}",
            f"{row.length:.1f}",
            style="bold" if row.task == MEAN else None,
        )
    return table


def write_sweep(rows: Sequence[Row], path: Path) -> Path:
    """Write the rows as CSV, never over another table.

    Args:
        rows: see `sweep_rows`.
        path: where to; ``-2``, ``-3`` ... is added to its stem where another table is.

    Returns:
        The path written, or the one that held the same table already.

    Raises:
        UserError: it cannot be written.
    """
    columns = ["task", *rows[0].acting, "success", "low", "high", "return", "length", "episodes"]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*columns, "seed", "policy", "gradient_step", "record"])
    for row in rows:
        about = (row.report[name] for name in ("seed", "policy", "gradient_step"))
        numbers = row.success, row.low, row.high, row.episode_return, row.length, row.episodes
        table.writerow([row.task, *row.acting.values(), *numbers, *about, row.record])
    for number in itertools.count(1):
        target = path.with_stem(f"{path.stem}-{number}") if number > 1 else path
        if not target.exists():
            with replacing(target) as temporary:
                temporary.write_text(text.getvalue(), encoding="utf-8")
            return target
        if target.is_file() and target.read_bytes() == text.getvalue().encode():
            return target
    raise AssertionError


def draw_sweep(rows: Sequence[Row], path: Path) -> Path | None:
    """Draw success against the setting that varies, with a line for each value of a second one.

    Numbers go along the axis rather than names.
    Of several tasks, the mean is drawn, and every task faintly if only one setting varies.

    Args:
        rows: see `sweep_rows`.
        path: the PNG file to write.

    Returns:
        ``path``; None, and no file, where no setting varies or more than two.
    """
    values = {n: list(dict.fromkeys(row.acting[n] for row in rows)) for n in rows[0].acting}
    varying = [n for n in values if len(values[n]) > 1]
    varying.sort(key=lambda n: (isinstance(values[n][0], str), -len(values[n])))
    if not 1 <= len(varying) <= 2:
        return None
    along, *beside = varying
    places = {x: i if isinstance(x, str) else x for i, x in enumerate(values[along])}
    whole = [row for row in rows if row.task == MEAN] or list(rows)
    figure = Figure(figsize=(7, 4.2), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    report = rows[0].report
    method, tasks = str(report["method"]).rsplit(".", 1)[-1], len({row.task for row in rows})
    what = f"mean of {tasks - 1} tasks" if tasks > 1 else f"task {report['task']}"
    title = f"{method} on {report['env']}, {what}"
    axes.set_title(title, loc="left", fontsize=12, color=INK, fontweight="bold")
    if tasks > 1 and not beside:
        for task in sorted({row.task for row in rows} - {MEAN}, key=str):
            x, y = _points([row for row in rows if row.task == task], along, places)[:2]
            label = "one task" if task == rows[0].task else None
            axes.plot(x, y, color=_FAINT, lw=0.9, zorder=1, clip_on=False, label=label)
    lines = values[beside[0]] if beside else [None]
    for i, value in enumerate(lines):
        part = [row for row in whole if value is None or row.acting[beside[0]] == value]
        x, y, bounds = _points(part, along, places)
        aside = ScaledTranslation((i - (len(lines) - 1) / 2) / 15, 0, figure.dpi_scale_trans)
        axes.errorbar(
            *(x, y, bounds), lw=2, ms=5, elinewidth=1, capsize=3, clip_on=False,
            color=_COLOURS[i % len(_COLOURS)], marker=_MARKERS[i % len(_MARKERS)],
            label="mean" if value is None else spelled(value),
            transform=axes.transData + aside,  # bars of several lines stand side by side
        )  # fmt: skip
    if beside or tasks > 1:
        axes.legend(
            loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False,
            title=beside[0] if beside else None,
        )  # fmt: skip
    _name_axes(axes, along, places, whole[0].episodes)
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
    return path


def _points(
    rows: Sequence[Row], along: str, places: Mapping[Any, float]
) -> tuple[list[float], np.ndarray, np.ndarray]:
    """Return the places (n,) of a setting's values, success (n,), and the bars' lengths (2, n)."""
    rows = sorted(rows, key=lambda row: places[row.acting[along]])
    success = np.array([row.success for row in rows])
    bounds = np.array([[row.low for row in rows], [row.high for row in rows]])
    return [places[row.acting[along]] for row in rows], success, np.abs(bounds - success)


def _name_axes(axes: Axes, along: str, places: Mapping[Any, float], episodes: int) -> None:
    values = list(places.values())
    if min(values) > 0 and max(values) / min(values) >= 8:
        axes.set_xscale("log")
    axes.plot(values, np.zeros(len(values)), ls="")  # what is set aside does not count for limits
    axes.set_xticks(values, [spelled(value) for value in places])
    axes.xaxis.set_minor_locator(NullLocator())
    about = f"bars: 95% Wilson interval of {episodes} episodes"
    axes.set(xlabel=f"{along}\n{about}", ylabel="success", ylim=(0, 1))
    dress(axes)
