"""Aggregates over tasks and seeds: the definitions of rliable, with honest bounds.

Scores are lists of tasks, and every task is a list of its seeds' scores: ``scores[task][seed]``.
Tasks may have different numbers of seeds. With equal numbers, all values are those of rliable
(Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice", 2021).

The stratified bootstrap draws seeds with replacement within every task. The draws come from fixed
seeds, so equal scores give equal intervals. With fewer than `MIN_SEEDS` seeds in a task there is no
interval. Then the bounds are the smallest and the largest value of single seeds and of all seeds.
"""

import functools
from collections.abc import Callable, Sequence

import numpy as np

from qam_lightning.evaluation.statistics import MIN_SEEDS, Estimate, over_seeds, stratified_interval

Scores = Sequence[Sequence[float]]
"""``scores[task][seed]``; at least one task, and one seed in each."""

Statistic = Callable[[Sequence[np.ndarray]], np.ndarray]
"""Of one array (..., seeds) per task to an array (...)."""

RESAMPLES = 2_000
"""Bootstrap resamples: the ends of an interval are exact to about a hundredth."""

_NO_WIDTH = 1e-9  # an interval of equal scores is this narrow, but for rounding


def task_mean(tasks: Sequence[np.ndarray]) -> np.ndarray:
    """Return the mean over tasks of the mean over seeds."""
    return np.mean([x.mean(-1) for x in tasks], 0)


def median(tasks: Sequence[np.ndarray]) -> np.ndarray:
    """Return the median over tasks of the mean over seeds."""
    return np.median([x.mean(-1) for x in tasks], 0)


def iqm(tasks: Sequence[np.ndarray]) -> np.ndarray:
    """Return the interquartile mean: of all n scores together, without the n // 4 at either end.

    A task with more seeds weighs more.
    """
    pooled = np.sort(np.concatenate(tasks, -1), -1)
    cut = pooled.shape[-1] // 4
    return pooled[..., cut : pooled.shape[-1] - cut].mean(-1)


def optimality_gap(tasks: Sequence[np.ndarray]) -> np.ndarray:
    """Return how far scores fall short of 1 on average; for success rates, 1 minus the mean."""
    return 1 - task_mean([np.minimum(x, 1.0) for x in tasks])


def mean(scores: Scores) -> Estimate:
    """Return the mean over tasks of the mean over seeds, with Student's 95% interval."""
    if len({len(task) for task in scores}) == 1:
        return over_seeds(np.array(scores).T)
    if _fewest(scores) < MIN_SEEDS:
        return _without_interval(scores, task_mean)
    interval = stratified_interval(scores)
    if interval.high - interval.low < _NO_WIDTH:
        return _without_interval(scores, task_mean)
    return Estimate(*interval, f"95% interval, {_seeds(scores)}")


def estimate(scores: Scores, statistic: Statistic) -> Estimate:
    """Return a statistic with its 95% interval, by percentiles of the stratified bootstrap."""
    if _fewest(scores) < MIN_SEEDS:
        return _without_interval(scores, statistic)
    tasks = _arrays(scores)
    drawn = [x[_draws(len(x), number)] for number, x in enumerate(tasks)]
    low, high = _percentiles(statistic(drawn))
    if high - low < _NO_WIDTH:
        return _without_interval(scores, statistic)
    return Estimate(float(statistic(tasks)), low, high, f"95% bootstrap, {_seeds(scores)}")


def improvement(first: Scores, second: Scores) -> Estimate:
    """Return the probability that a run of ``first`` scores above one of ``second``.

    It is the mean over tasks of P(X > Y) + P(X = Y) / 2, over all pairs of seeds (the Mann-Whitney
    statistic). The same tasks must be in both, in the same order. There is no interval with fewer
    than `MIN_SEEDS` seeds, or where every resample gives the same.
    """
    value, resampled = 0.0, np.zeros(RESAMPLES)
    enough = min(_fewest(first), _fewest(second)) >= MIN_SEEDS
    for number, (x, y) in enumerate(zip(_arrays(first), _arrays(second), strict=True)):
        wins = (np.sign(x[:, None] - y) + 1) / 2  # (seeds of x, seeds of y)
        value += wins.mean() / len(first)
        if enough:
            of_x, of_y = _shares(len(x), 2 * number), _shares(len(y), 2 * number + 1)
            resampled += ((of_x @ wins) * of_y).sum(1) / len(first)
    seeds = _seeds([*first, *second])
    low, high = _percentiles(resampled)
    if not enough or high - low < _NO_WIDTH:
        return Estimate(value, value, value, f"no interval, {seeds}")
    return Estimate(value, low, high, f"95% bootstrap, {seeds}")


def profile(scores: Scores, thresholds: np.ndarray) -> np.ndarray:
    """Return the performance profile: the share of runs that score above every threshold.

    Args:
        scores: of every task.
        thresholds: (n,) scores.

    Returns:
        (3, n): the mean over tasks of their shares, and the bounds of its pointwise 95% bootstrap
        interval; these are NaN with fewer than `MIN_SEEDS` seeds.
    """
    above = [(x[:, None] > thresholds).astype(float) for x in _arrays(scores)]  # (seeds, n)
    share = np.mean([x.mean(0) for x in above], 0)
    if _fewest(scores) < MIN_SEEDS:
        return np.stack([share, *np.full((2, len(share)), np.nan)])
    resampled = np.mean([_shares(len(x), n) @ x for n, x in enumerate(above)], 0)
    return np.stack([share, *np.percentile(resampled, [2.5, 97.5], axis=0)])


def _arrays(scores: Scores) -> list[np.ndarray]:
    return [np.asarray(task, np.float64) for task in scores]


def _fewest(scores: Scores) -> int:
    return min(len(task) for task in scores)


def _seeds(scores: Scores) -> str:
    """Say how many seeds a task has: ``5 seeds``, ``3 to 5 seeds``."""
    counts = sorted({len(task) for task in scores})
    many = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
    return f"{many} seed{'s' if many != '1' else ''}"


def _without_interval(scores: Scores, statistic: Statistic) -> Estimate:
    """Bound a statistic by its values of single seeds, and by that of all seeds.

    The k-th value is that of the k-th seed of every task, k = 1, 2, ..., up to the most seeds of a
    task. A task with fewer seeds begins again with its first. The value of all seeds can lie beyond
    these: the median of tasks (0, 1), (0, 0), (1, 0) is 0.5, and 0 for either seed alone.
    """
    longest = max(map(len, scores))
    rows = ([[task[k % len(task)]] for task in scores] for k in range(longest))
    value, *single = (float(statistic(_arrays(x))) for x in (scores, *rows))
    bounds = min(value, *single), max(value, *single)
    return Estimate(value, *bounds, f"min–max of {_seeds(scores)}" if longest > 1 else "1 seed")


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


@functools.lru_cache(maxsize=1_000)
def _draws(count: int, stream: int) -> np.ndarray:
    """Return (RESAMPLES, count) indices below ``count``, with replacement."""
    return np.random.default_rng((count, stream)).integers(count, size=(RESAMPLES, count))


@functools.lru_cache(maxsize=1_000)
def _shares(count: int, stream: int) -> np.ndarray:
    """Return (RESAMPLES, count): how often every one of ``count`` was drawn, over ``count``."""
    return (_draws(count, stream)[:, :, None] == np.arange(count)).mean(1)
