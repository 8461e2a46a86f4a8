"""Flows, memoryless SDE and adjoint matching where everything is known: Gaussians, linear Q."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from qam_lightning.core.adjoint import adjoint_matching_loss, autograd_vjp, lean_adjoint
from qam_lightning.core.flow import Field, TimeGrid, flow_matching_loss, integrate, interpolate
from qam_lightning.core.memoryless import Path, noise_scale, simulate
from tests.core.gaussian import gaussian_field, moments

MU, VARIANCE, SLOPE, TAU = 0.3, 0.25, 0.8, 1.5
TILTED_MEAN = MU + TAU * VARIANCE * SLOPE


def optimal_control(steps: int) -> tuple[Field, Tensor]:
    """Return f = -σ² g / 2 for the linear Q, whose adjoints do not depend on the path."""
    behavior = gaussian_field(MU, VARIANCE)
    times = TimeGrid(steps).times(torch.zeros(1).double())
    states = torch.zeros(steps, 1, 1).double()
    vjp = autograd_vjp(behavior, states, times + 1 / steps)
    adjoints = lean_adjoint(vjp, torch.full((1, 1), -TAU * SLOPE).double(), steps)
    values = -0.5 * noise_scale(times, 1 / steps) ** 2 * adjoints[:, 0, 0]
    return (lambda x, u: values[(u * steps).round().long()] + 0 * x), adjoints


def sde_end(v: Field, behavior: Field) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x_0, z: simulate(v, behavior, x_0, z).end


@pytest.mark.parametrize("sampler", ["ode", "sde"])
def test_behaviour_flow_ends_at_its_gaussian(sampler: str) -> None:
    v = gaussian_field(MU, VARIANCE)
    errors = []
    for steps in (10, 100, 1000):
        end = sde_end(v, v) if sampler == "sde" else lambda x, z, n=steps: integrate(v, x, n)
        mean, variance = moments(end, steps)
        errors.append(abs(mean - MU) + abs(variance - VARIANCE))
    assert errors[2] < 2e-3
    # First order in the step: ten times the steps, about a tenth of the error.
    assert errors[1] < errors[0] / 5 and errors[2] < errors[1] / 5


@pytest.mark.parametrize(
    ("steps", "sde", "ode"),
    [(10, (0.6951, 0.3157), (0.6140, 0.1856)), (1000, (0.6015, 0.2510), (0.5995, 0.2493))],
)
def test_optimum_for_a_linear_value(
    steps: int, sde: tuple[float, float], ode: tuple[float, float]
) -> None:
    behavior = gaussian_field(MU, VARIANCE)
    control, _ = optimal_control(steps)

    def v(x: Tensor, u: Tensor) -> Tensor:
        return behavior(x, u) + control(x, u)

    assert moments(sde_end(v, behavior), steps) == pytest.approx(sde, abs=5e-5)
    assert moments(lambda x, z: integrate(v, x, steps), steps) == pytest.approx(ode, abs=5e-5)
    if steps == 1000:
        assert sde[0] == pytest.approx(TILTED_MEAN, abs=2e-3)
        assert ode[0] == pytest.approx(TILTED_MEAN, abs=2e-3)


def test_loss_is_zero_at_its_optimum_and_nowhere_near() -> None:
    steps, behavior = 10, gaussian_field(MU, VARIANCE)
    control, adjoints = optimal_control(steps)
    g = torch.Generator().manual_seed(0)
    x_0 = torch.randn(32, 1, generator=g, dtype=torch.float64)
    z = torch.randn(steps - 1, 32, 1, generator=g, dtype=torch.float64)
    path = simulate(lambda x, u: behavior(x, u) + control(x, u), behavior, x_0, z)
    values = control(path.states, path.times[:, None, None])
    assert adjoint_matching_loss(values, adjoints, path.sigma).item() == pytest.approx(0, abs=1e-24)
    assert adjoint_matching_loss(values + 0.1, adjoints, path.sigma).item() > 1e-2


def test_lean_adjoint_is_a_product_of_matrices() -> None:
    steps, dim, h = 7, 4, 1 / 7
    g = torch.Generator().manual_seed(0)
    matrix = torch.randn(dim, dim, generator=g, dtype=torch.float64)
    terminal = torch.randn(3, dim, generator=g, dtype=torch.float64)
    states = torch.randn(steps, 3, dim, generator=g, dtype=torch.float64)
    times = TimeGrid(steps).times(states)

    def field(x: Tensor, u: Tensor) -> Tensor:
        return (1 + u) * (x @ matrix.T)

    adjoints = lean_adjoint(autograd_vjp(field, states, times + h), terminal, steps)
    expected, eye = terminal, torch.eye(dim, dtype=torch.float64)
    for i in reversed(range(steps)):
        u_next = (i + 1) / steps
        jacobian = 2 * (1 + u_next) * matrix - eye / u_next
        expected = expected @ (eye + h * jacobian)
        torch.testing.assert_close(adjoints[i], expected, rtol=1e-12, atol=1e-12)


def test_path_shapes_and_last_step_is_the_behaviour_flow_alone() -> None:
    behavior = gaussian_field(MU, VARIANCE)
    x_0, z = torch.randn(5, 2), torch.randn(3, 5, 2)
    path = simulate(lambda x, u: behavior(x, u) + 7.0, behavior, x_0, z)
    assert isinstance(path, Path) and path.states.shape == (4, 5, 2) and path.end.shape == (5, 2)
    last = path.states[-1]
    torch.testing.assert_close(path.end, last + behavior(last, torch.tensor(0.75)) / 4)
    torch.testing.assert_close(path.states[0], x_0)
    assert path.sigma[0].item() == pytest.approx(math.sqrt(2 * 1.25 / 0.25))


def test_one_flow_step_is_the_behaviour_flow() -> None:
    behavior = gaussian_field(MU, VARIANCE)
    x_0 = torch.randn(5, 1)
    path = simulate(lambda x, u: behavior(x, u) + 7.0, behavior, x_0, torch.empty(0, 5, 1))
    torch.testing.assert_close(path.end, x_0 + behavior(x_0, torch.tensor(0.0)))


def test_flow_matching_loss_is_smallest_at_the_true_field() -> None:
    g = torch.Generator().manual_seed(0)
    n = 200_000
    x_0 = torch.randn(n, 1, generator=g)
    x_1 = MU + math.sqrt(VARIANCE) * torch.randn(n, 1, generator=g)
    u, weight = torch.rand(n, 1, generator=g), torch.ones(n)

    def loss(mu: float, variance: float) -> float:
        return flow_matching_loss(gaussian_field(mu, variance), x_0, x_1, u, weight).item()

    best = loss(MU, VARIANCE)
    for mu, variance in ((MU + 0.1, VARIANCE), (MU - 0.1, VARIANCE), (MU, 0.15), (MU, 0.4)):
        assert loss(mu, variance) > best


def test_flow_matching_weights_divide_by_the_batch() -> None:
    x_0, x_1, u = torch.randn(4, 3), torch.randn(4, 3), torch.rand(4, 1)
    weight = torch.tensor([1.0, 0.0, 1.0, 0.0])
    loss = flow_matching_loss(lambda x, _: 0 * x, x_0, x_1, u, weight)
    expected = (x_1 - x_0).square().mean(1)[[0, 2]].sum() / 4
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(interpolate(x_0, x_1, u), (1 - u) * x_0 + u * x_1)
