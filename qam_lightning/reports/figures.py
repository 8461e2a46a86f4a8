"""The figures of a report, each as PNG and as PDF."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from qam_lightning.evaluation.plots import INK, dress, short
from qam_lightning.evaluation.statistics import Estimate
from qam_lightning.reports import estimates
from qam_lightning.reports.comparison import Comparison, Task, Variant
from qam_lightning.reports.published import EVERY, published, published_step, tasks_of, title, unit
from qam_lightning.reports.results import Result
from qam_lightning.util.files import replacing

PLAIN: Any = {"text.parse_math": False}
"""matplotlib's settings for figures whose labels may hold a dollar sign."""

# Okabe and Ito's colours for the colour-blind, without yellow, which is faint on white.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
_MARKERS = "os^Dv"
_ACROSS = 4  # panels side by side
MOST_BANDS = len(_COLOURS)
"""Panels with more curves show no bands."""


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
    overall = means.get(None) or list(means.values())[-1]
    order = sorted(
        range(len(found.variants)), key=lambda i: x.mean if (x := overall[i]) is not None else -1.0
    )
    numbers = list(range(len(found.variants)))
    if len(numbers) > len(_COLOURS):  # then a colour is a method's
        methods = list(dict.fromkeys(variant.method for variant in found.variants))
        numbers = [methods.index(variant.method) for variant in found.variants]
    height = 0.27 * len(order) + 0.75
    longest = max(len(variant.label) for variant in found.variants)
    figure, panels = _panels(len(means), 2.6, height, longest / 14, legend=0.0, sharey=True)
    for axes, (domain, values) in zip(panels, means.items(), strict=False):
        for place, i in enumerate(order):
            value = values[i]
            if value is None:
                axes.text(0.01, place, "–", va="center", fontsize=8, color=INK)
                continue
            low, high = max(0.0, value.low), min(1.0, value.high)
            axes.barh(place, value.mean, 0.7, color=_style(numbers[i])["color"], alpha=0.55)
            axes.plot([low, high], [place, place], color=INK, lw=1.2, solid_capstyle="butt")
            axes.text(max(high, value.mean) + 0.02, place, f"{100 * value.mean:.0f}",
                      va="center", fontsize=8, color=INK)  # fmt: skip
        axes.set_title(domain or "all tasks", loc="left", fontsize=9, color=INK)
        axes.set(xlim=(0, 1.12), ylim=(-0.6, len(order) - 0.4), xticks=[0, 0.5, 1])
        axes.set_yticks(range(len(order)), [found.variants[i].label for i in order])
        dress(axes, "x", 8)
    return figure


# -- learning curves -------------------------------------------------------------------------------


def curves(found: Comparison, with_published: bool) -> Figure:
    """Draw success over both phases of training, a panel per domain.

    A dotted line marks where the online phase begins. A method without an offline phase begins
    there, too. Dashed lines are published. Many variants get a panel per method and domain.
    """
    kinds = _kinds(found)
    figure, panels = _panels(len(kinds) * len(found.domains), 3.4, 2.5)
    wanted = [(domain, *kind) for domain in found.domains for kind in kinds.items()]
    styles: dict[str, int] = {}
    for axes, (domain, kind, named) in zip(panels, wanted, strict=True):
        lines = {}
        for label, variant in named:
            runs = shown(variant, domain)
            lines[label] = (variant, runs, mean_curve(runs))
        starts = {r.curve.online_from or 0 for _, runs, _ in lines.values() for r in runs} - {0}
        for label, (variant, runs, line) in lines.items():
            number = styles.setdefault(label, len(styles))
            if line is None:
                continue
            shift = max(starts, default=0) if runs[0].curve.online_from == 0 else 0
            _draw(axes, line._replace(x=line.x + shift), number, label, len(lines) <= MOST_BANDS)
            if with_published:
                steps, means = published_curve(variant, domain, runs)
                colour = _style(number)["color"]
                axes.plot(steps + shift, means, color=colour, ls=(0, (4, 2)), lw=1.2)
        for start in starts:
            axes.axvline(start, color=INK, lw=0.8, ls=":")
            axes.text(start, 0.02, " online", color=INK, fontsize=7)
        axes.set_title(f"{domain}{kind and f', {kind}'}", loc="left", fontsize=9, color=INK)
        axes.set(ylim=(0, 1.03))
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: short(step)))
        dress(axes, "y", 8)
    online = ", then environment steps" if found.has_online else ""
    _name_x(panels, f"gradient steps{online}")
    _legend(figure, panels)
    return figure


def _kinds(found: Comparison) -> dict[str, list[tuple[str, Variant]]]:
    """Return the lines of every panel of a domain, by the panel's name, with their labels."""
    variants = found.variants
    methods = list(dict.fromkeys(variant.method for variant in variants))
    if len(variants) <= len(_COLOURS) or len(methods) == len(variants):
        return {"": [(variant.label, variant) for variant in variants]}
    return {
        title(method): [(v.setting or v.label, v) for v in variants if v.method == method]
        for method in methods
    }


def shown(variant: Variant, domain: str) -> list[Result]:
    """Return the runs whose curve is drawn: the finished ones, or all before the first is."""
    runs = [result for result in variant.results if result.domain == domain]
    return [run for run in runs if run.finished] or runs


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
) -> tuple[np.ndarray, list[float]]:
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
    return np.array(list(ours), int), means


# -- one setting -----------------------------------------------------------------------------------


def sensitive(found: Comparison) -> str | None:
    """Return the setting whose effect can be drawn: the only one that varies, over numbers."""
    if len(found.axes) != 1:
        return None
    (key,) = found.axes
    values = [variant.settings.get(key) for variant in found.variants]
    values = [value for value in values if value is not None]
    return key if all(map(_is_number, values)) and len(set(values)) > 1 else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


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
                if variant.method == method and value and variant.settings.get(key) is not None
            )
            if points:
                _draw(axes, Line(*np.array(points).T), number, title(method))
        settings = [variant.settings.get(key) for variant in found.variants]
        xs = sorted({float(value) for value in settings if value is not None})
        if xs[0] > 0 and xs[-1] / xs[0] >= 8:
            axes.set_xscale("log")
        axes.set_xticks(xs, [f"{x:g}" for x in xs])
        axes.minorticks_off()
        axes.set_title(domain or "all tasks", loc="left", fontsize=9, color=INK)
        axes.set(ylim=(0, 1.03))
        dress(axes, "y", 8)
    _name_x(panels, key)
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
            dashes = ("-", "-.", ":")[number // len(_COLOURS) % 3]
            axes.step(thresholds, share, where="post", color=colour, ls=dashes, lw=1.6,
                      label=variant.label)  # fmt: skip
            axes.fill_between(thresholds, low, high, step="post", color=colour, alpha=0.15, lw=0)
    axes.set(xlim=(0, 1), ylim=(0, 1.03))
    axes.set_ylabel("share of runs with more success", fontsize=8, color=INK)
    _name_x([axes], "success")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    dress(axes, "y", 8)
    _legend(figure, [axes])
    return figure


# -- parts -----------------------------------------------------------------------------------------


def _panels(
    count: int, width: float, height: float, left: float = 1.2, legend: float = 0.5, **more: Any
) -> tuple[Figure, list[Axes]]:
    """Return a figure and its panels; sizes are inches, of a panel and of what is beside them."""
    across = min(_ACROSS, count)
    down = -(-count // across)
    size = (width * across + left, height * down + legend)
    figure = Figure(figsize=size, dpi=150, layout="constrained", facecolor="white")
    panels = list(figure.subplots(down, across, squeeze=False, **more).flat)
    for axes in panels[count:]:
        axes.set_visible(False)
    return figure, panels[:count]


def _style(number: int) -> dict[str, Any]:
    return {
        "color": _COLOURS[number % len(_COLOURS)],
        "marker": _MARKERS[number // len(_COLOURS) % len(_MARKERS)],
    }


def _draw(axes: Axes, line: Line, number: int, label: str, band: bool = True) -> None:
    style = _style(number)
    axes.plot(line.x, line.mean, lw=1.8, ms=3.5, label=label, clip_on=False, zorder=3, **style)
    if band:
        low, high = line.low.clip(0, 1), line.high.clip(0, 1)
        axes.fill_between(line.x, low, high, color=style["color"], alpha=0.15, lw=0)


def _name_x(panels: Sequence[Axes], name: str) -> None:
    """Name the x axis of the panels that have none below them."""
    for axes in panels[-_ACROSS:]:
        axes.set_xlabel(name, fontsize=8, color=INK)


def _legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """Name every line once, below the panels, for which the figure grows."""
    named: dict[str, Any] = {}
    for axes in panels:
        named |= dict(_labels(axes))
    inches = 0.6 + 0.065 * max(map(len, named), default=0)  # of an entry
    columns = max(1, min(len(named), int(figure.get_figwidth() / inches)))
    rows = -(-len(named) // columns)
    figure.set_figheight(figure.get_figheight() + 0.17 * max(0, rows - 1))
    figure.legend(list(named.values()), list(named), loc="outside lower center", ncols=columns,
                  fontsize=8, frameon=False)  # fmt: skip


def _labels(axes: Axes) -> Iterator[tuple[str, Any]]:
    handles, labels = axes.get_legend_handles_labels()
    return zip(labels, handles, strict=True)
