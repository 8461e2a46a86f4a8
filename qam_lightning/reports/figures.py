"""The figures of a report, each as PNG and as PDF."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from qam_lightning.evaluation.plots import short
from qam_lightning.evaluation.statistics import Estimate
from qam_lightning.reports import estimates
from qam_lightning.reports.comparison import Comparison, Task, Variant
from qam_lightning.reports.published import EVERY, published, published_step, tasks_of, unit
from qam_lightning.reports.results import Result
from qam_lightning.util.files import replacing

matplotlib.use("Agg")  # files only; needs no display

_INK, _GRID = "#333333", "#e6e6e6"
# Okabe and Ito's colours for the colour-blind, without yellow, which is faint on white.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_MARKERS = "os^Dv"
_ACROSS = 4  # panels side by side


class Line(NamedTuple):
    """A mean and its bounds over some axis, each (n,)."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write a figure's PNG and PDF, without the time: equal reports have equal files."""
    paths = []
    for suffix, metadata in ((".png", {"Software": None}), (".pdf", {"CreationDate": None})):
        path = folder / f"{name}{suffix}"
        with replacing(path, alone=True) as temporary:
            figure.savefig(temporary, format=suffix[1:], metadata=metadata)
        paths.append(path)
    return paths


# -- success by method -----------------------------------------------------------------------------


def bars(found: Comparison, means: Mapping[str | None, Sequence[Estimate | None]]) -> Figure:
    """Draw success by method, a panel per domain.

    Args:
        found: the results.
        means: domain, or None for all tasks, to one mean per variant; None where there is none.
    """
    order = sorted(
        range(len(found.variants)),
        key=lambda i: max((m[i].mean for m in means.values() if m[i]), default=-1.0),
    )
    if all(None not in m for m in means.values()):
        last = list(means.values())[-1]
        order.sort(key=lambda i: last[i].mean)  # type: ignore[union-attr]
    height = 0.27 * len(order) + 0.75
    figure, panels = _panels(len(means), 2.6, height, sharey=True, legend=0.0)
    for axes, (domain, values) in zip(panels, means.items(), strict=False):
        for place, i in enumerate(order):
            value = values[i]
            if value is None:
                axes.text(0.01, place, "–", va="center", fontsize=8, color=_INK)
                continue
            low, high = max(0.0, value.low), min(1.0, value.high)
            axes.barh(place, value.mean, 0.7, color=_style(i)["color"], alpha=0.85)
            axes.plot([low, high], [place, place], color=_INK, lw=1.2, solid_capstyle="butt")
            axes.text(max(high, value.mean) + 0.02, place, f"{100 * value.mean:.0f}",
                      va="center", fontsize=8, color=_INK)  # fmt: skip
        axes.set_title(domain or "all tasks", loc="left", fontsize=9, color=_INK)
        axes.set(xlim=(0, 1.12), ylim=(-0.6, len(order) - 0.4), xticks=[0, 0.5, 1])
        axes.set_yticks(range(len(order)), [found.variants[i].label for i in order])
        _finish(axes, "x")
    return figure


# -- learning curves -------------------------------------------------------------------------------


def curves(found: Comparison, with_published: bool) -> Figure:
    """Draw success over both phases of training, a panel per domain.

    A dotted line marks where the online phase begins. Dashed lines are published.
    """
    figure, panels = _panels(len(found.domains), 3.4, 2.5)
    for axes, domain in zip(panels, found.domains, strict=False):
        starts: set[int] = set()
        for number, variant in enumerate(found.variants):
            runs = [r for r in shown(variant) if r.domain == domain]
            starts |= {r.curve.online_from for r in runs if r.curve.online_from}
            line = mean_curve(runs)
            if line is not None:
                _draw(axes, line, number, variant.label)
            if with_published and line is not None:
                theirs = published_curve(variant, domain, runs)
                axes.plot(*theirs, color=_style(number)["color"], ls=(0, (4, 2)), lw=1.2)
        for start in starts:
            axes.axvline(start, color=_INK, lw=0.8, ls=":")
            axes.annotate(" online", (start, 1.03), color=_INK, fontsize=7, va="top")
        axes.set_title(domain, loc="left", fontsize=9, color=_INK)
        axes.set(ylim=(0, 1.03))
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: short(step)))
        _finish(axes, "y")
    both = " offline, then environment steps online" if found.has_online else ""
    figure.supxlabel(f"gradient steps{both}", fontsize=9, color=_INK)
    _legend(figure, panels)
    return figure


def shown(variant: Variant) -> list[Result]:
    """Return the runs whose curves are drawn: the finished ones, or all before the first is."""
    return [result for result in variant.results if result.finished] or variant.results


def mean_curve(runs: Sequence[Result]) -> Line | None:
    """Return the mean over tasks and seeds at the steps that all runs evaluated; None without."""
    at = [dict(zip(r.curve.steps.tolist(), r.curve.success.tolist(), strict=True)) for r in runs]
    common = sorted(set.intersection(*map(set, at))) if at else []
    if not common:
        return None
    found = []
    for step in common:
        tasks: dict[Task, list[float]] = {}
        for run, values in zip(runs, at, strict=True):
            tasks.setdefault((run.domain, run.task), []).append(values[step])
        found.append(estimates.mean(list(tasks.values()))[:3])
    return Line(np.array(common), *np.array(found).T)


def published_curve(
    variant: Variant, domain: str, runs: Sequence[Result]
) -> tuple[list[int], list[float]]:
    """Return the published curve up to the last step of ``runs``: of their tasks' mean."""
    tasks = sorted({(r.domain, r.task) for r in runs})
    names = [unit(domain, runs[0].settings, number) for _, number in tasks]
    if tasks == tasks_of(domain):
        names = [unit(domain, runs[0].settings)]
    theirs = [published(variant.method, name) for name in names]
    start, last = runs[0].curve.online_from, int(runs[0].curve.steps[-1])
    ours = {step: published_step(step, start) for step in range(EVERY, last + 1, EVERY)}
    ours = {step: at for step, at in ours.items() if all(at in points for points in theirs)}
    means = [float(np.mean([points[at].mean for points in theirs])) for at in ours.values()]
    return list(ours), means


# -- one setting -----------------------------------------------------------------------------------


def sensitive(found: Comparison) -> str | None:
    """Return the setting whose effect can be drawn: the only one that varies, over numbers."""
    if len(found.axes) != 1:
        return None
    (key,) = found.axes
    values = {variant.settings.get(key) for variant in found.variants}
    numbers = {x for x in values if isinstance(x, int | float) and not isinstance(x, bool)}
    return key if len(numbers) > 1 and numbers == values - {None} else None


def sensitivity(
    found: Comparison, key: str, means: Mapping[str | None, Sequence[Estimate | None]]
) -> Figure:
    """Draw success over the values of a setting, a panel per domain."""
    figure, panels = _panels(len(means), 3.0, 2.5)
    methods = list(dict.fromkeys(variant.method for variant in found.variants))
    for axes, (domain, values) in zip(panels, means.items(), strict=False):
        for number, method in enumerate(methods):
            points = sorted(
                (float(variant.settings[key]), *value[:3])
                for variant, value in zip(found.variants, values, strict=True)
                if variant.method == method and value and key in variant.settings
            )
            if points:
                label = Variant(method, {}, []).label
                _draw(axes, Line(*np.array(points).T), number, label)
        xs = sorted({float(v.settings[key]) for v in found.variants if key in v.settings})
        if xs[0] > 0 and xs[-1] / xs[0] >= 8:
            axes.set_xscale("log")
        axes.set_xticks(xs, [f"{x:g}" for x in xs])
        axes.minorticks_off()
        axes.set_title(domain or "all tasks", loc="left", fontsize=9, color=_INK)
        axes.set(ylim=(0, 1.03))
        _finish(axes, "y")
    figure.supxlabel(key, fontsize=9, color=_INK)
    _legend(figure, panels)
    return figure


# -- performance profile ---------------------------------------------------------------------------


def profiles(named: Sequence[tuple[Variant, estimates.Scores | None]]) -> Figure:
    """Draw the share of runs that score above every threshold."""
    figure, (axes,) = _panels(1, 5.0, 3.0)
    thresholds = np.linspace(0, 1, 101)
    for number, (variant, scores) in enumerate(named):
        if scores:
            share, low, high = estimates.profile(scores, thresholds)
            colour = _style(number)["color"]
            axes.step(thresholds, share, where="post", color=colour, lw=1.6,
                      ls=("-", "-.", ":")[number // len(_COLOURS) % 3], label=variant.label)  # fmt: skip
            axes.fill_between(thresholds, low, high, step="post", color=colour, alpha=0.15, lw=0)
    axes.set(xlim=(0, 1), ylim=(0, 1.03), xlabel="success τ", ylabel="share of runs above τ")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    _finish(axes, "y")
    _legend(figure, [axes])
    return figure


# -- parts -----------------------------------------------------------------------------------------


def _panels(
    count: int, width: float, height: float, sharey: bool = False, legend: float = 0.5
) -> tuple[Figure, list[Axes]]:
    across = min(_ACROSS, count)
    down = -(-count // across)
    size = (width * across + 1.2, height * down + legend)
    figure = Figure(figsize=size, dpi=150, layout="constrained", facecolor="white")
    panels = list(figure.subplots(down, across, squeeze=False, sharey=sharey).flat)
    for axes in panels[count:]:
        axes.set_visible(False)
    return figure, panels[:count]


def _style(number: int) -> dict[str, Any]:
    return {
        "color": _COLOURS[number % len(_COLOURS)],
        "marker": _MARKERS[number // len(_COLOURS) % len(_MARKERS)],
    }


def _draw(axes: Axes, line: Line, number: int, label: str) -> None:
    style = _style(number)
    axes.plot(line.x, line.mean, lw=1.8, ms=3.5, label=label, clip_on=False, zorder=3, **style)
    low, high = line.low.clip(0, 1), line.high.clip(0, 1)
    axes.fill_between(line.x, low, high, color=style["color"], alpha=0.15, lw=0)


def _finish(axes: Axes, grid: str) -> None:
    for name, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
        if name == grid:
            axis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(axis=grid, color=_GRID, lw=0.8)  # type: ignore[arg-type]
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_INK, labelsize=8)


def _legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """Name every line once, below the panels."""
    named: dict[str, Any] = {}
    for axes in panels:
        named |= dict(_labels(axes))
    columns = max(1, min(len(named), int(figure.get_figwidth() / 1.5)))
    figure.legend(list(named.values()), list(named), loc="outside lower center", ncols=columns,
                  fontsize=8, frameon=False)  # fmt: skip


def _labels(axes: Axes) -> Iterator[tuple[str, Any]]:
    handles, labels = axes.get_legend_handles_labels()
    return zip(labels, handles, strict=True)
