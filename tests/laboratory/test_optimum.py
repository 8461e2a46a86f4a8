"""The minimisers against closed forms for Gaussians."""

import pytest
import torch

from qam_lightning.laboratory import optimum
from qam_lightning.laboratory.problems import Mixture, Problem

TAU, MEAN, STD, SLOPE = 1.5, 0.05, 0.1, 4.0
GAUSSIAN = Problem(
    "linear Q",
    Mixture(torch.tensor([1.0]), torch.tensor([[MEAN]]), torch.tensor([STD])),
    lambda a: SLOPE * a[..., 0],
    TAU,
)


def test_of_linear_values_the_minimiser_does_not_depend_on_the_action() -> None:
    """J and the adjoint are then constants: g_i = -τ c Π_{j >= i} (1 + h J_j), as in the core."""
    steps, h = 8, 1 / 8
    found = optimum.residual(GAUSSIAN, steps)
    g = -TAU * SLOPE
    for i in reversed(range(steps)):
        u = (i + 1) * h
        variance = (1 - u) ** 2 + (u * STD) ** 2
        g *= 1 + h * (2 * (u * STD**2 - (1 - u)) / variance - 1 / u)
        sigma2 = 2 * (1 - i * h + h) / (i * h + h)
        # The middle of the axis, from where no path leaves the box in which Q has a slope.
        middle = found[i][optimum.POINTS // 2]
        assert middle.item() == pytest.approx(-sigma2 * g / 2, rel=0.05)


def test_the_minimiser_nears_the_tilt_with_the_number_of_steps() -> None:
    (ode, far), (finer, near) = (optimum.distances(GAUSSIAN, steps) for steps in (5, 20))
    assert finer < ode / 3 and near < far / 3


def test_samplers_of_second_order_miss_less_of_the_behaviour() -> None:
    euler, ab2, etd2 = (
        optimum.behavior_distance(GAUSSIAN, 10, sampler, power)
        for sampler, power in (("euler", 1.0), ("ab2", 1.0), ("etd2", 2.0))
    )
    assert etd2 < ab2 < euler and etd2 < euler / 10


def test_weights_of_linear_values_have_a_log_normals_spread() -> None:
    """Those of exp(τ c (a - m)) have effective share exp(-(τ c s)²)."""
    found = optimum.weighting(GAUSSIAN)
    lift = TAU * SLOPE * STD
    assert found.effective == pytest.approx(torch.tensor(-(lift**2)).exp().item(), rel=1e-3)
    assert found.clipped < 1e-9 and found.w1 == pytest.approx(0, abs=1e-9)
    steep = optimum.weighting(GAUSSIAN._replace(tau=8.0))  # exp(32 · 0.144) = 100: past 1.44 s
    assert steep.effective == pytest.approx(torch.tensor(-(3.2**2)).exp().item(), rel=1e-2)
    assert steep.clipped == pytest.approx(0.961, abs=0.01)  # of N(3.2, 1), what is above 1.44
    assert steep.w1 is not None and steep.w1 > 0.1


def test_a_mean_settles_at_the_first_solution_on_its_way() -> None:
    """Of m - s + 2 sin(4 m) = 0, followed in small steps from m = s."""
    axis = torch.linspace(-optimum.REACH, optimum.REACH, optimum.POINTS, dtype=torch.float64)
    table = torch.sin(4.0 * axis)
    start = torch.linspace(-2.0, 2.0, 41, dtype=torch.float64)
    pull = torch.full_like(start, 2.0)
    m = start.clone()
    for _ in range(4000):
        m = m + 0.01 * (start - m - pull * optimum.interpolated(table, m))
    found = optimum.settled(start, pull, table)
    torch.testing.assert_close(found, m, rtol=0, atol=1e-6)
    beyond = torch.tensor([8.0], dtype=torch.float64)  # where the table is constant
    settled = optimum.settled(beyond, torch.ones_like(beyond), table)
    assert settled.item() == pytest.approx(8.0 - table[-1].item())
