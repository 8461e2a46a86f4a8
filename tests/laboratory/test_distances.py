"""Distances against their closed forms."""

import math

import pytest
import torch

from qam_lightning.laboratory.distances import energy_distance, sliced_wasserstein


def normal(n: int, dim: int, seed: int) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


def test_w1_of_a_shift_is_the_shift_and_order_is_irrelevant() -> None:
    a = normal(500, 1, 0)
    assert sliced_wasserstein(a, a.flip(0) - 0.7) == pytest.approx(0.7, abs=1e-6)
    assert sliced_wasserstein(a, a.flip(0)) == 0


def test_w1_between_small_samples_is_the_best_matching() -> None:
    a, b = torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([[4.0], [0.5], [2.0]])
    matchings = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]]
    best = min((a - b[m]).abs().mean().item() for m in matchings)
    assert sliced_wasserstein(a, b) == pytest.approx(best)


def test_w1_between_gaussians_of_one_mean() -> None:
    """W1 of N(0, 1) and N(0, s²) is |1 - s| E|Z| = |1 - s| sqrt(2 / π)."""
    found = sliced_wasserstein(normal(20_000, 1, 0), 0.4 * normal(20_000, 1, 1))
    assert found == pytest.approx(0.6 * math.sqrt(2 / math.pi), abs=0.02)


def test_sliced_w1_of_a_shift_in_the_plane() -> None:
    """The mean over directions of |shift · direction| is |shift| 2 / π, whatever its angle."""
    a = normal(300, 2, 0)
    for angle in (0.0, 0.4, 2.0):
        shift = 0.5 * torch.tensor([math.cos(angle), math.sin(angle)])
        assert sliced_wasserstein(a, a + shift) == pytest.approx(1.0 / math.pi, rel=1e-3)


def test_energy_distance_of_one_sample_is_zero_and_it_is_symmetric() -> None:
    a, b = normal(200, 2, 0), normal(200, 2, 1) + 1
    assert energy_distance(a, a.flip(0)) == pytest.approx(0, abs=1e-3)
    assert energy_distance(a, b) == pytest.approx(energy_distance(b, a))


def test_energy_distance_of_two_points() -> None:
    a, b = torch.zeros(1, 2), torch.tensor([[3.0, 4.0]])
    assert energy_distance(a, b) == pytest.approx(math.sqrt(10.0))


def test_energy_distance_between_shifted_gaussians() -> None:
    """As Y - X ~ N(m, 2), E|X - Y| = sqrt(4/π) exp(-m²/4) + m erf(m / 2)."""
    m = 1.5
    apart = math.sqrt(4 / math.pi) * math.exp(-m * m / 4) + m * math.erf(m / 2)
    expected = math.sqrt(2 * apart - 2 * math.sqrt(4 / math.pi))
    found = energy_distance(normal(4000, 1, 0), normal(4000, 1, 1) + m)
    assert found == pytest.approx(expected, rel=0.03)
