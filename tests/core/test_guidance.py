"""Critic guidance and the losses of critics at noisy actions, in closed form."""

import math

import pytest
import torch
from torch import Tensor

from qam_lightning.core.flow import integrate
from qam_lightning.core.guidance import guided, integrate_guided, linex, squared_error

TAU, VARTHETA, CURVATURE, PEAK = 1.5, 0.2, 0.8, 0.4


def quadratic_slope(a: Tensor, u: Tensor) -> Tensor:
    """∇_a of Q(a) = -c/2 (a - m)²."""
    return -CURVATURE * (a - PEAK)


def behavior(a: Tensor, u: Tensor) -> Tensor:
    return torch.cos(a) - u


def test_guidance_by_a_quadratic_value_equals_a_loop() -> None:
    steps = 7
    x_0 = torch.randn(20, 2, generator=torch.Generator().manual_seed(0)).double()
    found = integrate_guided(behavior, quadratic_slope, x_0, steps, TAU, VARTHETA)
    for start, end in zip(x_0.flatten().tolist(), found.flatten().tolist(), strict=True):
        a = start
        for i in range(steps):
            u = i / steps
            velocity = math.cos(a) - u
            if i > 0:
                uphill = (1 - u) * TAU * -CURVATURE * (a - PEAK)
                velocity += VARTHETA * (uphill + a) / u
            a += velocity / steps
        assert end == pytest.approx(a)


def test_a_guided_flow_by_etd2_on_a_warped_grid_equals_a_loop() -> None:
    """The denoised point's change is read from the first guided step on."""
    steps, times = 6, [1 - (1 - i / 6) ** 2 for i in range(7)]
    x_0 = torch.randn(20, 2, generator=torch.Generator().manual_seed(0)).double()
    grid = {"sampler": "etd2", "power": 2.0}
    found = integrate_guided(behavior, quadratic_slope, x_0, steps, TAU, VARTHETA, **grid)
    for start, end in zip(x_0.flatten().tolist(), found.flatten().tolist(), strict=True):
        a, before = start, 0.0
        for i in range(steps):
            u, h = times[i], times[i + 1] - times[i]
            velocity = math.cos(a) - u
            if i > 0:
                uphill = (1 - u) * TAU * -CURVATURE * (a - PEAK)
                velocity += VARTHETA * (uphill + a) / u
            denoised = a + (1 - u) * velocity
            a += h * velocity
            if i > 1:
                r = (1 - times[i + 1]) / (1 - u)
                curved = (1 - u) * (1 - r + (r * math.log(r) if r else 0))
                a += curved * (denoised - before) / (u - times[i - 1])
            before = denoised
        assert end == pytest.approx(a)


def test_the_first_step_is_not_guided() -> None:
    x_0, asked = torch.randn(5, 2), []

    def slope(a: Tensor, u: Tensor) -> Tensor:
        asked.append(u.item())
        return torch.ones_like(a)

    torch.testing.assert_close(
        integrate_guided(behavior, slope, x_0, 1, TAU, VARTHETA), integrate(behavior, x_0, 1)
    )
    assert asked == []
    integrate_guided(behavior, slope, x_0, 4, TAU, VARTHETA)
    assert asked == [0.25, 0.5, 0.75]


def test_no_strength_is_no_guidance() -> None:
    x_0 = torch.randn(5, 2)
    free = integrate_guided(behavior, quadratic_slope, x_0, 6, TAU, 0.0)
    torch.testing.assert_close(free, integrate(behavior, x_0, 6))


def test_guidance_by_the_exact_score_is_the_velocity_of_its_flow() -> None:
    """With τ ∇Q the score of a_u for data N(m, s²), v̂ is E[a - z | a_u], linear in a_u."""
    m, s = 0.3, 0.5
    a = torch.linspace(-2, 2, 9).double()[:, None]
    for u in torch.tensor([0.1, 0.5, 0.9]).double():
        variance = u**2 * s**2 + (1 - u) ** 2

        def slope(x: Tensor, time: Tensor, variance: Tensor = variance) -> Tensor:
            return -(x - time * m) / variance / TAU

        zero = lambda x, time: torch.zeros_like(x)  # noqa: E731
        expected = m + (u * s**2 - (1 - u)) / variance * (a - u * m)
        torch.testing.assert_close(guided(zero, slope, TAU, 1.0)(a, u), expected)


def least(loss: torch.Tensor, grid: torch.Tensor) -> float:
    return grid[loss.argmin()].item()


@pytest.mark.parametrize("tau", [0.5, 2.0])
def test_minimisers_are_the_mean_and_the_soft_maximum(tau: float) -> None:
    y = torch.tensor([-0.4, 0.1, 0.2, 1.1]).double()
    grid = torch.linspace(-1, 2, 30_001).double()
    by_squares = squared_error(grid[:, None], y).mean(-1)
    assert least(by_squares, grid) == pytest.approx(y.mean().item(), abs=2e-4)
    soft = torch.logsumexp(tau * y, 0).sub(math.log(len(y))).div(tau).item()
    assert least(linex(grid[:, None], y, tau).mean(-1), grid) == pytest.approx(soft, abs=2e-4)
    assert soft > y.mean() + 0.01  # so that the two can be told apart


def test_linex_is_exponential_up_to_five_and_linear_beyond() -> None:
    tau = 2.0
    delta = torch.tensor([-30.0, 0.0, 4.999, 5.001, 6.0, 1e4]).double()
    q = torch.full_like(delta, 0.7).requires_grad_()
    loss = linex(q, 0.7 + delta / tau, tau)
    (slope,) = torch.autograd.grad(loss.sum(), q)
    for d, value, gradient in zip(*(x.tolist() for x in (delta, loss, slope)), strict=True):
        near = d < 5
        assert value == pytest.approx(math.exp(d) + tau * 0.7 if near else d, rel=1e-9)
        assert gradient == pytest.approx(tau * (1 - math.exp(d)) if near else -tau, rel=1e-9)


def test_linex_of_far_off_targets_has_a_finite_gradient_in_single_precision() -> None:
    q = torch.tensor([-1e3, 1e3], requires_grad=True)
    (slope,) = torch.autograd.grad(linex(q, torch.zeros(2), 1.0).sum(), q)
    assert slope.tolist() == [-1.0, 1.0]
