"""Intervals against closed forms and published values."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from qam_lightning.evaluation.statistics import (
    over_seeds,
    stratified_interval,
    summarize,
    t_interval,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("successes", "episodes", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (0, 50, 0.0, 0.0713), (50, 50, 0.9287, 1.0), (1, 1, 0.2065, 1.0)],
)
def test_wilson_known_values(successes, episodes, low, high):
    interval = wilson_interval(successes, episodes)
    assert interval.mean == successes / episodes
    assert interval[1:] == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize(("successes", "episodes"), [(3, 17), (25, 50), (49, 50)])
def test_wilson_bounds_solve_the_score_equation(successes, episodes):
    rate = successes / episodes
    for bound in wilson_interval(successes, episodes)[1:]:
        score = (rate - bound) / math.sqrt(bound * (1 - bound) / episodes)
        assert abs(score) == pytest.approx(1.959964, abs=1e-5)


@pytest.mark.parametrize(("successes", "episodes"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_impossible_counts(successes, episodes):
    with pytest.raises(ValueError, match="successes <= episodes"):
        wilson_interval(successes, episodes)


QUANTILES = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 9: 2.262, 10: 2.228}
QUANTILES |= {15: 2.131, 20: 2.086, 29: 2.045, 30: 2.042, 60: 2.000, 120: 1.980}


@pytest.mark.parametrize(("freedom", "quantile"), QUANTILES.items())
def test_quantiles_of_students_t_are_those_of_tables(freedom, quantile):
    values = np.arange(freedom + 1)
    mean, _, high = stratified_interval([values])
    error = np.std(values, ddof=1) / math.sqrt(len(values))
    assert (high - mean) / error == pytest.approx(quantile, abs=6e-4)


def test_t_interval_is_mean_plus_minus_quantile_standard_errors():
    values = [0.1, 0.5, 0.6, 0.8, 0.9]
    error = np.std(values, ddof=1) / math.sqrt(5)
    assert t_interval(values) == pytest.approx(
        (0.58, 0.58 - 2.7764451 * error, 0.58 + 2.7764451 * error)
    )


def test_of_several_tasks_the_seeds_of_every_task_count():
    """Two tasks of equal spread have twice the degrees of freedom; one without spread adds none."""
    one = np.array([0.1, 0.5, 0.6, 0.8, 0.9])
    error = np.std(one, ddof=1) / math.sqrt(5)
    mean, low, high = t_interval(np.stack([one, one[::-1] + 1.0], 1))
    half = 2.3060 * error / math.sqrt(2)  # 8 degrees of freedom
    assert (mean, low, high) == pytest.approx((1.08, 1.08 - half, 1.08 + half), rel=1e-4)
    mean, low, high = t_interval(np.stack([one, np.full(5, 1.0)], 1))
    half = 2.7764 * error / 2
    assert (mean, low, high) == pytest.approx((0.79, 0.79 - half, 0.79 + half), rel=1e-4)


@pytest.mark.parametrize("shape", [(5,), (5, 4), (8, 2)])
def test_t_interval_covers_the_mean_95_times_in_a_hundred(shape):
    rng = np.random.default_rng(0)
    spread = np.arange(1, shape[-1] + 1) if len(shape) == 2 else 1  # tasks differ
    intervals = [t_interval(0.3 + spread * rng.normal(size=shape)) for _ in range(2000)]
    covered = np.mean([low <= 0.3 <= high for _, low, high in intervals])
    assert covered == pytest.approx(0.95, abs=0.015)  # three standard errors


def test_equal_seeds_have_no_spread():
    assert t_interval([0.4] * 5) == pytest.approx((0.4, 0.4, 0.4))


@pytest.mark.parametrize("values", [[], 1.0, [[[1.0]] * 5], [0.1] * 4, [[]] * 5, [[0.1, 0.2]] * 4])
def test_t_interval_refuses_few_seeds(values):
    with pytest.raises(ValueError, match="at least 5 seeds, got an array of shape"):
        t_interval(values)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_refused(bad):
    for function in (t_interval, over_seeds):
        with pytest.raises(ValueError, match="finite"):
            function([0.1, 0.2, bad, 0.3, 0.4])


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ([0.72, 0.90, 0.88], "83% (72–90, min–max of 3 seeds)"),
        ([0.5], "50% (50–50, 1 seed)"),
        ([0.72, 0.90, 0.88, 0.8, 0.7], "80% (69–91, 95% interval, 5 seeds)"),
        ([0.9, 1.0, 1.0, 1.0, 1.0], "98% (92–100, 95% interval, 5 seeds)"),  # a rate's bounds
        ([0.0] * 6, "0% (0–0, min–max of 6 seeds)"),  # no interval is as narrow as that
        ([[0.2, 0.4], [0.6, 0.8]], "50% (30–70, min–max of 2 seeds)"),
        ([[0.2, 0.4]] * 4 + [[0.6, 0.6]], "36% (25–47, 95% interval, 5 seeds)"),
    ],
)
def test_what_a_mean_over_seeds_is_called(scores, words):
    assert str(over_seeds(scores)) == words
    assert over_seeds(scores).percent() == words.split(",")[0] + ")"


def test_nothing_has_no_mean():
    with pytest.raises(ValueError, match="at least 1 seeds"):
        over_seeds([])


def test_summarize():
    episodes = [
        SimpleNamespace(success=1.0, episode_return=-10.0, length=11),
        SimpleNamespace(success=0.0, episode_return=-20.0, length=20),
    ]
    assert summarize(episodes) == {"success": 0.5, "return": -15.0, "length": 15.5}
