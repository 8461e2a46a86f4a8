"""Point estimates and intervals of evaluation results.

Two questions, two intervals. How good is *this policy*? Its episodes are independent coin flips:
`wilson_interval` over episodes. How good is *the method*? Policies from different training seeds
differ by much more than episodes do: `over_seeds`, of one number per seed.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import special

_Z95 = 1.959963984540054  # the 97.5% quantile of the standard normal


class Interval(NamedTuple):
    """A mean and the bounds of its 95% interval."""

    mean: float
    low: float
    high: float


def wilson_interval(successes: float, episodes: int) -> Interval:
    """Wilson's 95% score interval of one policy's success rate.

    Unlike mean ± 1.96 standard errors it stays inside [0, 1] and keeps a width at 0% and 100%,
    which small evaluations often show. It says nothing about other training seeds.

    Args:
        successes: number of successful episodes, 0 to ``episodes``.
        episodes: number of independent episodes, at least 1.

    Raises:
        ValueError: counts out of range.
    """
    if episodes < 1 or not 0 <= successes <= episodes:
        raise ValueError(
            f"expected 0 <= successes <= episodes, 1 <= episodes; got {successes=}, {episodes=}"
        )
    rate, z2 = successes / episodes, _Z95**2
    scale = 1 + z2 / episodes
    center = (rate + z2 / (2 * episodes)) / scale
    half = _Z95 / scale * math.sqrt(rate * (1 - rate) / episodes + z2 / (4 * episodes**2))
    # At 0 and 1 a bound equals the rate in exact arithmetic; rounding must not pass it.
    return Interval(rate, max(0.0, min(rate, center - half)), min(1.0, max(rate, center + half)))


MIN_SEEDS = 5
"""The fewest seeds whose mean is given with a 95% interval."""


def t_interval(scores: Sequence[Any] | np.ndarray) -> Interval:
    """Student's 95% interval of a mean over independent training seeds.

    Of several tasks it is the interval of the mean over these tasks: runs of different tasks are
    independent, and Satterthwaite's degrees of freedom, rounded down, count them. Exact for normal
    scores of one task. A percentile bootstrap over five seeds would be too narrow: it covers the
    mean of one to ten tasks 84 to 92 times in a hundred. Of equal seeds the interval has no width.

    Args:
        scores: (n,) one number per seed, or (n, tasks) one row per seed; n at least `MIN_SEEDS`.

    Raises:
        ValueError: fewer seeds, another shape, or a number that is not finite.
    """
    return stratified_interval(_table(scores, MIN_SEEDS).T)


def stratified_interval(tasks: Sequence[Any] | np.ndarray) -> Interval:
    """Like `t_interval`, of tasks with different numbers of seeds.

    Args:
        tasks: for every task, one number per seed; at least two.
    """
    scores = [np.asarray(task, np.float64) for task in tasks]
    mean = float(np.mean([x.mean() for x in scores]))
    variances = np.array([x.var(ddof=1) / len(x) for x in scores])
    total = variances.sum()
    if total == 0:
        return Interval(mean, mean, mean)
    parts = sum(v**2 / (len(x) - 1) for v, x in zip(variances, scores, strict=True))
    quantile = float(special.stdtrit(int(total**2 / parts + 1e-9), 0.975))
    half = quantile * math.sqrt(total) / len(scores)
    return Interval(mean, mean - half, mean + half)


class Estimate(NamedTuple):
    """A mean over training seeds, and what its bounds are.

    Attributes:
        mean: of all seeds.
        low: the lower bound.
        high: the upper bound.
        bounds: ``"95% interval, 7 seeds"`` or ``"min–max of 3 seeds"``.
    """

    mean: float
    low: float
    high: float
    bounds: str

    def percent(self) -> str:
        """Return a success rate in [0, 1] as ``83% (72–90)``, for a table that names `bounds`."""
        low, high = (min(1.0, max(0.0, bound)) for bound in (self.low, self.high))
        return f"{100 * self.mean:.0f}% ({100 * low:.0f}–{100 * high:.0f})"

    def __str__(self) -> str:
        """Return a success rate in words: ``83% (72–90, min–max of 3 seeds)``."""
        return f"{self.percent()[:-1]}, {self.bounds})"


def over_seeds(scores: Sequence[Any] | np.ndarray) -> Estimate:
    """Return the mean over training seeds with the bounds that their number allows.

    From `MIN_SEEDS` seeds up, that is `t_interval`. Fewer seeds, or equal ones, have no such
    interval: the bounds are the smallest and the largest seed (its mean over tasks).

    Args:
        scores: (n,) one number per seed, or (n, tasks) one row per seed; n at least 1.

    Raises:
        ValueError: no score, another shape, or a number that is not finite.
    """
    table = _table(scores, 1)
    seeds, means = len(table), table.mean(1)
    if seeds >= MIN_SEEDS and (table != table[0]).any():
        return Estimate(*t_interval(table), f"95% interval, {seeds} seeds")
    bounds = f"min–max of {seeds} seeds" if seeds > 1 else "1 seed"
    return Estimate(float(table.mean()), float(means.min()), float(means.max()), bounds)


def _table(scores: Sequence[Any] | np.ndarray, fewest: int) -> np.ndarray:
    """Return scores as (seeds, tasks)."""
    array = np.asarray(scores, np.float64)
    table = array[:, None] if array.ndim == 1 else array
    if table.ndim != 2 or len(table) < fewest or not table.size:
        raise ValueError(f"expected at least {fewest} seeds, got an array of shape {array.shape}")
    if not np.isfinite(table).all():
        raise ValueError(f"expected finite numbers, got {array.tolist()}")
    return table


def summarize(episodes: Sequence[Any]) -> Mapping[str, float]:
    """Means over episodes: ``success`` in [0, 1], ``return``, ``length`` in environment steps.

    Args:
        episodes: at least one `qam_lightning.envs.rollout.Episode`.
    """
    columns = ("success", "episode_return", "length")
    means = (float(np.mean([getattr(e, c) for e in episodes])) for c in columns)
    return dict(zip(("success", "return", "length"), means, strict=True))
