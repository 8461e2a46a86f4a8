"""Aggregates against rliable's values, brute force and hand-computed numbers.

rliable.json holds three small tables of scores, (seeds, tasks), and what rliable 1.2.0
(https://github.com/google-research/rliable) makes of them. Its intervals come from 4,000 resamples.
"""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from qam_lightning.evaluation.statistics import over_seeds, stratified_interval, t_interval
from qam_lightning.reports import estimates

RLIABLE = json.loads(Path(__file__).with_name("rliable.json").read_text())
STATISTICS = {
    "mean": estimates.task_mean,
    "median": estimates.median,
    "iqm": estimates.iqm,
    "optimality_gap": estimates.optimality_gap,
}


def table(name: str) -> list[list[float]]:
    return np.array(RLIABLE["scores"][name]).T.tolist()


@pytest.mark.parametrize("statistic", STATISTICS)
@pytest.mark.parametrize("name", RLIABLE["scores"])
def test_aggregates_are_those_of_rliable(name, statistic):
    found = estimates.estimate(table(name), STATISTICS[statistic])
    assert found.mean == pytest.approx(RLIABLE["point"][name][statistic], abs=1e-12)
    assert found[1:3] == pytest.approx(RLIABLE["interval_95"][name][statistic], abs=0.01)
    assert found.bounds == f"95% bootstrap, {len(RLIABLE['scores'][name])} seeds"


def test_the_probability_of_improvement_is_that_of_rliable():
    expected = RLIABLE["probability_of_improvement"]["first,second"]
    found = estimates.improvement(table("first"), table("second"))
    assert found.mean == pytest.approx(expected["point"], abs=1e-12)
    assert found[1:3] == pytest.approx(expected["interval_95"], abs=0.01)
    back = estimates.improvement(table("second"), table("first"))
    assert back.mean == pytest.approx(1 - found.mean)


def test_the_performance_profile_is_that_of_rliable():
    expected = RLIABLE["profile"]
    found = estimates.profile(table("first"), np.array(expected["thresholds"]))
    assert found[0] == pytest.approx(expected["first"], abs=1e-12)
    assert found[1:] == pytest.approx(np.array(expected["interval_95"]), abs=0.015)


def test_improvement_counts_pairs_and_half_of_equal_ones():
    first, second = [[0.1, 0.5, 0.5], [0.9]], [[0.5, 0.2], [0.9]]
    tasks = zip(first, second, strict=True)
    pairs = [[(x > y) + (x == y) / 2 for x, y in itertools.product(*task)] for task in tasks]
    expected = np.mean([np.mean(task) for task in pairs])  # (0 + 0 + .5 + 1 + .5 + 1) / 6, .5
    found = estimates.improvement(first, second)
    assert found.mean == pytest.approx(expected) == pytest.approx(0.5)
    assert found.bounds == "no interval, 1 to 3 seeds"


def test_complete_separation_has_no_interval():
    """A bootstrap of five seeds would claim certainty."""
    found = estimates.improvement([[0.1, 0.2, 0.3, 0.4, 0.5]], [[0.6, 0.7, 0.8, 0.9, 1.0]])
    assert found == (0.0, 0.0, 0.0, "no interval, 5 seeds")


def test_every_resample_draws_seeds_within_their_task():
    """Two tasks of constant, different scores: no draw can mix them."""
    scores = [[0.2] * 5, [0.8] * 7]
    for statistic in (estimates.task_mean, estimates.median, estimates.optimality_gap):
        found = estimates.estimate(scores, statistic)
        assert found[:3] == pytest.approx((0.5, 0.5, 0.5))


def test_the_bootstrap_of_a_mean_is_that_of_all_resamples():
    scores = [0.0, 0.1, 0.4, 0.5, 1.0]
    every = [np.mean(draw) for draw in itertools.product(scores, repeat=5)]
    found = estimates.estimate([scores], estimates.task_mean)
    assert found[1:3] == pytest.approx(np.percentile(every, [2.5, 97.5]), abs=0.02)


def test_iqm_of_unequal_tasks_pools_all_scores():
    scores = [[0.0, 0.1, 0.2], [0.3, 0.4, 0.5, 0.6, 1.0]]
    found = estimates.estimate(scores, estimates.iqm)
    assert found.mean == pytest.approx((0.2 + 0.3 + 0.4 + 0.5) / 4)
    assert found.bounds == "min–max of 3 to 5 seeds"


def test_few_seeds_have_the_smallest_and_the_largest_and_no_interval():
    scores = [[0.1, 0.5], [0.3, 0.9, 1.0]]
    found = estimates.mean(scores)
    assert found[:3] == pytest.approx(((0.3 + 2.2 / 3) / 2, 0.2, 0.7))
    assert found.bounds == "min–max of 2 to 3 seeds"
    assert estimates.estimate([[0.4], [0.6]], estimates.iqm) == (0.5, 0.5, 0.5, "1 seed")
    assert np.isnan(estimates.profile(scores, np.array([0.5]))[1:]).all()


@pytest.mark.parametrize(
    ("scores", "statistic", "expected"),
    [
        ([[0, 0, 1], [0, 0]], "mean", (1 / 6, 0, 0.5, "min–max of 2 to 3 seeds")),
        ([[0, 0, 0, 1], [0]], "mean", (1 / 8, 0, 0.5, "min–max of 1 to 4 seeds")),
        ([[0, 0, 1], [0, 0]], "optimality_gap", (5 / 6, 0.5, 1, "min–max of 2 to 3 seeds")),
        ([[0, 1], [0, 0], [1, 0]], "median", (0.5, 0, 0.5, "min–max of 2 seeds")),
        ([[1] * 7, [0] * 5], "iqm", (2 / 3, 0.5, 2 / 3, "min–max of 5 to 7 seeds")),
    ],
)
def test_no_seed_is_left_out_of_the_smallest_and_the_largest(scores, statistic, expected):
    found = estimates.estimate(scores, STATISTICS[statistic])
    assert found[:3] == pytest.approx(expected[:3]) and found.bounds == expected[3]
    if statistic == "mean":
        assert estimates.mean(scores) == found


def test_bounds_hold_their_value():
    """Of random tables: one to six tasks of one to seven seeds, of ten episodes each."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        most = rng.choice([2, 4, 7])
        counts = rng.integers(1, most + 1, rng.integers(1, 7))
        rates = rng.choice([0.02, 0.5, 0.98], len(counts))
        pairs = zip(rates, counts, strict=True)
        scores = [(rng.binomial(10, p, n) / 10).tolist() for p, n in pairs]
        found = [estimates.estimate(scores, statistic) for statistic in STATISTICS.values()]
        for value in (estimates.mean(scores), *found):
            assert value.low - 1e-12 <= value.mean <= value.high + 1e-12, (scores, value)


def test_the_mean_is_the_one_of_the_other_tables():
    scores = np.random.default_rng(0).random((6, 3))
    assert estimates.mean(scores.T.tolist()) == over_seeds(scores)


def test_unequal_numbers_of_seeds_have_an_interval():
    first, second = [0.1, 0.5, 0.6, 0.8, 0.9], [0.2, 0.3, 0.3, 0.4, 0.5, 0.4]
    found = estimates.mean([first, second])
    assert found[:3] == pytest.approx(stratified_interval([first, second]))
    assert found.bounds == "95% interval, 5 to 6 seeds"
    spread = np.var(first, ddof=1) / 5 + np.var(second, ddof=1) / 6
    freedom = spread**2 / (
        (np.var(first, ddof=1) / 5) ** 2 / 4 + (np.var(second, ddof=1) / 6) ** 2 / 5
    )
    assert int(freedom) == 4  # Welch and Satterthwaite; its 97.5% quantile is 2.776
    assert found.high - found.mean == pytest.approx(2.7764 * np.sqrt(spread) / 2, rel=1e-3)


def test_of_one_task_the_two_intervals_agree():
    scores = [0.1, 0.5, 0.6, 0.8, 0.9]
    assert stratified_interval([scores]) == t_interval(scores)


def test_equal_scores_have_no_interval():
    found = estimates.estimate([[0.0] * 6], estimates.iqm)
    assert found == (0.0, 0.0, 0.0, "min–max of 6 seeds")


@pytest.mark.parametrize("score", [1.0, 0.7])  # whose variance is 0, and not 0 but for rounding
def test_equal_scores_of_unequal_numbers_have_no_interval(score):
    found = estimates.mean([[score] * 5, [score] * 6])
    assert found[:3] == pytest.approx((score,) * 3, abs=1e-12)
    assert found.bounds == "min–max of 5 to 6 seeds"


def test_a_report_is_reproducible():
    estimates._draws.cache_clear()
    first = estimates.estimate(table("few"), estimates.iqm)
    estimates._draws.cache_clear()
    assert estimates.estimate(table("few"), estimates.iqm) == first
