"""One picture of a run: how success grew with training, and what the policy does now."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from qam_lightning.evaluation.statistics import MIN_SEEDS, t_interval
from qam_lightning.util.errors import UserError
from qam_lightning.util.metrics_csv import read_metrics

INK = "#333333"
_LINE, _FAINT = "#2a6fbb", "#9db8d6"


class Curve(NamedTuple):
    """A learning curve through both phases.

    Attributes:
        steps: (n,) gradient steps of the offline phase, plus the environment steps of the online
            phase; increasing.
        success: (n,) success rates in [0, 1].
        online_from: where the online phase begins, None if there is none.
    """

    steps: np.ndarray
    success: np.ndarray
    online_from: int | None


def read_curve(run: Path) -> Curve:
    """Read a run's learning curve from its ``metrics/eval.csv``.

    Raises:
        UserError: the file is missing, empty or not such a file.
    """
    path = run / "metrics" / "eval.csv"
    if not path.exists():
        raise UserError(f"{path}: no such file; the learning curve is read from it")
    _, rows = read_metrics(path, ("gradient_step", "env_step", "phase", "success"))
    if not rows:
        raise UserError(f"{path}: holds no evaluation yet; train for longer")
    gradient, env = (np.array([int(r[k]) for r in rows]) for k in ("gradient_step", "env_step"))
    online = np.array([row["phase"] == "online" for row in rows])
    success = np.array([float(row["success"]) for row in rows])
    if not np.all((success >= 0) & (success <= 1)):  # NaN is not, either
        raise UserError(f"{path}: success holds other numbers than those from 0 to 1")
    if not online.any():
        return Curve(gradient, success, None)
    # Rows of training come more often than evaluations, so they know the last offline step better.
    train = path.with_name("train.csv")
    known = [*rows, *(read_metrics(train, ("gradient_step", "phase"))[1] if train.exists() else [])]
    start = max((int(r["gradient_step"]) for r in known if r["phase"] == "offline"), default=0)
    return Curve(np.where(online, start + env, gradient), success, start)


def draw_picture(
    path: Path,
    runs: Sequence[Path],
    title: str,
    frames: Sequence[np.ndarray] = (),
    frame_steps: Sequence[int] = (),
) -> Path:
    """Draw success over both phases of training, above a strip of rollout frames, as a PNG file.

    A dotted line marks where the online phase begins. Several runs (seeds of one configuration)
    are drawn faintly, with their mean at the steps that all evaluated. The band is the mean's 95%
    interval by Student's t or, with fewer than five runs, reaches from the smallest to the largest;
    the picture says which.

    Args:
        path: the file to write; its folder is made, an older file replaced.
        runs: run folders, at least one.
        title: heading.
        frames: (height, width, 3) uint8 pictures, shown left to right; none for no strip.
        frame_steps: the environment step of every frame.

    Returns:
        ``path``.

    Raises:
        UserError: a run has no learning curve, or the runs share no step.
    """
    curves = [read_curve(run) for run in runs]
    height = 3.4 + (1.75 if len(frames) else 0)
    figure = Figure(figsize=(8, height), dpi=150, layout="constrained")
    grid = figure.add_gridspec(
        2 if len(frames) else 1, max(1, len(frames)), height_ratios=[3, 1.3] if len(frames) else [1]
    )
    axes = figure.add_subplot(grid[0, :])
    axes.set_title(title, loc="left", fontsize=12, color=INK, fontweight="bold")
    _draw_curves(axes, curves)
    for column, (frame, step) in enumerate(zip(frames, frame_steps, strict=True)):
        cell = figure.add_subplot(grid[1, column])
        cell.imshow(frame, interpolation="antialiased")
        cell.set_xlabel(f"step {step}", fontsize=8, color=INK, labelpad=3)
        cell.set(xticks=[], yticks=[])
        cell.spines[:].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    return path


def _draw_curves(axes: Axes, curves: Sequence[Curve]) -> None:
    if len(curves) == 1:
        steps, success, _ = curves[0]
        axes.plot(steps, success, "-o", color=_LINE, lw=2, ms=4, zorder=3, clip_on=False)
    else:
        steps, success = _draw_mean(axes, curves)
    for start in {curve.online_from for curve in curves if curve.online_from is not None}:
        axes.axvline(start, color=INK, lw=0.8, ls=":")
        axes.annotate(" online", (start, 1.0), color=INK, fontsize=8, va="top")
    both = any(curve.online_from is not None for curve in curves)
    axes.annotate(
        f"{success[-1]:.0%}",
        (steps[-1], success[-1]),
        xytext=(8, 3),
        textcoords="offset points",
        color=_LINE,
        fontsize=10,
        va="center",
        annotation_clip=False,
    )
    label = "gradient steps offline, then environment steps" if both else "gradient steps"
    axes.set(xlabel=label, ylabel="success", ylim=(0, 1))
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: short(step)))
    dress(axes)


def dress(axes: Axes, percent: Literal["x", "y"] = "y", labelsize: int = 9) -> None:
    """Give axes the look of all figures here: one axis in percent with a grid, and two spines."""
    axis = axes.yaxis if percent == "y" else axes.xaxis
    axis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(axis=percent, color="#e6e6e6", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK, labelsize=labelsize)


def _draw_mean(axes: Axes, curves: Sequence[Curve]) -> tuple[np.ndarray, np.ndarray]:
    """Every run faintly; mean and band at common steps, which are returned with the mean."""
    common = sorted(set.intersection(*(set(curve.steps.tolist()) for curve in curves)))
    if not common:
        raise UserError("picture: the runs were not evaluated at any common gradient step")
    for curve in curves:
        axes.plot(curve.steps, curve.success, color=_FAINT, lw=0.8)
    at = [dict(zip(curve.steps.tolist(), curve.success, strict=True)) for curve in curves]
    values = np.array([[c[s] for s in common] for c in at])  # (runs, steps)
    if len(curves) < MIN_SEEDS:
        mean, low, high = values.mean(0), values.min(0), values.max(0)
        band = "smallest to largest run"
    else:
        mean, low, high = np.array([t_interval(column) for column in values.T]).T
        low, high = low.clip(0, 1), high.clip(0, 1)
        band = "95% interval of the mean at each step"
    axes.fill_between(common, low, high, color=_LINE, alpha=0.2, lw=0)
    axes.plot(common, mean, "-o", color=_LINE, lw=2, ms=4, zorder=3, clip_on=False)
    axes.text(
        0.01, 0.97, f"mean of {len(curves)} runs; band: {band}", transform=axes.transAxes,
        fontsize=8, color=INK, va="top",
    )  # fmt: skip
    return np.array(common), mean


def short(step: float) -> str:
    """Format a step count briefly: 500, 20k, 1.5M."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(step) >= size:
            return f"{step / size:g}{unit}"
    return f"{step:g}"
