"""Intervals against closed forms and published values."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from qam_lightning.evaluation.statistics import bootstrap_interval, summarize, wilson_interval


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


def test_bootstrap_of_equal_values_has_no_width():
    assert bootstrap_interval([0.4] * 5) == pytest.approx((0.4, 0.4, 0.4))


def test_bootstrap_of_many_values_is_the_normal_interval():
    values = np.random.default_rng(0).normal(3.0, 2.0, size=400)
    half = 1.96 * values.std() / math.sqrt(values.size)
    mean, low, high = bootstrap_interval(values)
    assert mean == pytest.approx(values.mean())
    assert (mean - low, high - mean) == pytest.approx((half, half), rel=0.05)


def test_bootstrap_is_decided_by_its_generator():
    values = [0.1, 0.5, 0.6, 0.8, 0.9]
    assert bootstrap_interval(values, 1, 200) == bootstrap_interval(values, 1, 200)
    assert bootstrap_interval(values, 1, 200) != bootstrap_interval(values, 2, 200)


@pytest.mark.parametrize("values", [[], [[1.0] * 5], [0.5, math.nan, 0.1, 0.2, 0.3], [0.1] * 4])
def test_bootstrap_refuses_what_it_cannot_average(values):
    with pytest.raises(ValueError, match="at least 5 finite numbers"):
        bootstrap_interval(values)


def test_summarize():
    episodes = [
        SimpleNamespace(success=1.0, episode_return=-10.0, length=11),
        SimpleNamespace(success=0.0, episode_return=-20.0, length=20),
    ]
    assert summarize(episodes) == {"success": 0.5, "return": -15.0, "length": 15.5}
