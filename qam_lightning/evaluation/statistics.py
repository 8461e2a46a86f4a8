"""Point estimates and 95% intervals of evaluation results.

Two questions, two intervals. How good is *this policy*? Its episodes are independent coin flips:
`wilson_interval` over episodes. How good is *the method*? Policies from different training seeds
differ by much more than episodes do: `bootstrap_interval` over one number per seed.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

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
"""The fewest seeds whose mean has a bootstrap interval."""


def bootstrap_interval(
    values: Sequence[float] | np.ndarray,
    rng: np.random.Generator | int = 0,
    resamples: int = 10_000,
) -> Interval:
    """95% percentile bootstrap interval of the mean over independent training seeds.

    Args:
        values: (n,) one number per seed, n at least `MIN_SEEDS`. Of fewer seeds the interval is
            just the smallest and the largest value, which is no 95% interval.
        rng: generator or seed of the resampling.
        resamples: number of resamples.

    Raises:
        ValueError: ``values`` has fewer numbers, is not one-dimensional or not finite.
    """
    sample = np.asarray(values, np.float64)
    if sample.ndim != 1 or sample.size < MIN_SEEDS or not np.isfinite(sample).all():
        raise ValueError(f"expected a list of at least {MIN_SEEDS} finite numbers, got {values!r}")
    picks = np.random.default_rng(rng).integers(sample.size, size=(resamples, sample.size))
    low, high = np.percentile(sample[picks].mean(1), [2.5, 97.5])
    return Interval(float(sample.mean()), float(low), float(high))


def summarize(episodes: Sequence[Any]) -> Mapping[str, float]:
    """Means over episodes: ``success`` in [0, 1], ``return``, ``length`` in environment steps.

    Args:
        episodes: at least one `qam_lightning.envs.rollout.Episode`.
    """
    columns = ("success", "episode_return", "length")
    means = (float(np.mean([getattr(e, c) for e in episodes])) for c in columns)
    return dict(zip(("success", "return", "length"), means, strict=True))
