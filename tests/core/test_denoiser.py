"""The denoiser scheme and the samplers where everything is known: Gaussians, linear Q."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from qam_lightning.core.adjoint import autograd_vjp
from qam_lightning.core.denoiser import Denoiser, Step
from qam_lightning.core.flow import Field, Sampler, TimeGrid, integrate
from qam_lightning.core.integrators import Integrator, scheme
from qam_lightning.core.memoryless import noise_scale
from tests.core.gaussian import gaussian_field, moments

MU, SHIFT = 0.3, 0.3  # of the behaviour; of the tilt
WIDTHS = (1.0, 0.5, 0.2, 0.05)
WIDE_GRIDS = [TimeGrid(5), TimeGrid(10), TimeGrid(10, 1.5), TimeGrid(7, 3.0)]


def optimal_control(kind: Integrator, grid: TimeGrid, width: float) -> Tensor:
    """Return f(u_i) = -σ_i² g_i / 2, (T,): of a linear Q, it does not depend on the path."""
    chosen, behavior = scheme(kind, grid), gaussian_field(MU, width**2)
    path = chosen.simulate(
        behavior, behavior, torch.zeros(1, 1).double(), torch.zeros(grid.steps - 1, 1, 1).double()
    )
    vjp = autograd_vjp(behavior, path.states, path.jacobian_times)
    adjoints = chosen.lean_adjoint(vjp, torch.full((1, 1), -SHIFT / width**2, dtype=torch.float64))
    return -0.5 * path.sigma**2 * adjoints[:, 0, 0]


def controlled(kind: Integrator, grid: TimeGrid, width: float) -> Field:
    """Return the behaviour's field with the optimal control."""
    behavior, control = gaussian_field(MU, width**2), optimal_control(kind, grid, width)
    times = grid.times(control)
    return lambda x, u: behavior(x, u) + control[(times - u).abs().argmin()]


def error(end: Callable[[Tensor, Tensor], Tensor], draws: int, width: float) -> list[float]:
    """Return the errors of where paths of so many draws end: mean in widths, variance relative."""
    mean, variance = moments(end, draws)
    return [(mean - MU - SHIFT) / width, variance / width**2 - 1.0]


def sde_error(kind: Integrator, grid: TimeGrid, width: float) -> list[float]:
    v = controlled(kind, grid, width)
    last = v if kind == "denoiser" else gaussian_field(MU, width**2)
    return error(lambda x, z: scheme(kind, grid).simulate(v, last, x, z).end, grid.steps, width)


def ode_error(kind: Integrator, grid: TimeGrid, width: float, sampler: Sampler) -> list[float]:
    v = controlled(kind, grid, width)
    return error(lambda x, z: integrate(v, x, grid.steps, sampler, grid.power), 1, width)


def errors(kind: Integrator, grid: TimeGrid, width: float, sampler: Sampler) -> list[float]:
    """Return the errors of the SDE's end and the ODE's: mean in widths, variance relative."""
    return [*sde_error(kind, grid, width), *ode_error(kind, grid, width, sampler)]


def order(coarse: float, fine: float) -> float:
    """Return the order of convergence, from the errors at T and at 2 T steps."""
    return math.log2(coarse / fine)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("grid", WIDE_GRIDS, ids=str)
def test_of_linear_values_the_control_is_exact_however_narrow(grid: TimeGrid, width: float) -> None:
    """The tilt moves the denoised action, so that f = (1 - u) τ ∇Q s² / ((1 - u)² + u² s²)."""
    control, u = optimal_control("denoiser", grid, width), grid.times(torch.zeros(0).double())
    exact = (1 - u) * SHIFT / ((1 - u) ** 2 + u**2 * width**2)
    torch.testing.assert_close(control[1:], exact[1:], rtol=1e-9, atol=0)
    share = grid.time(1) ** 2 * width**2  # of the variance, which the first step leaves out
    assert control[0] / exact[0] == pytest.approx(1 / (1 + share / grid.rest(1) ** 2))


@pytest.mark.parametrize(
    ("kind", "grid", "sampler", "width", "expected"),
    [
        # Mean in widths and variance of the SDE, then of the ODE.
        ("shifted_euler", TimeGrid(10), "euler", 0.5, (0.190, 0.263, 0.028, -0.258)),
        ("shifted_euler", TimeGrid(10), "euler", 0.2, (0.250, 0.529, 0.485, -0.406)),
        ("shifted_euler", TimeGrid(10), "euler", 0.05, (-30.446, -0.060, 35.636, -0.842)),
        ("denoiser", TimeGrid(10, 2.0), "etd2", 0.5, (0.000, 0.099, 0.000, 0.021)),
        ("denoiser", TimeGrid(10, 2.0), "etd2", 0.2, (0.000, 0.039, 0.000, 0.025)),
        ("denoiser", TimeGrid(10, 2.0), "etd2", 0.05, (0.000, -0.269, 0.000, -0.081)),
        ("denoiser", TimeGrid(5, 2.0), "etd2", 0.2, (0.001, -0.329, 0.000, -0.108)),
        ("denoiser", TimeGrid(10), "ab2", 0.5, (0.000, 0.033, 0.000, -0.033)),
    ],
)
def test_where_the_controlled_paths_end(
    kind: Integrator, grid: TimeGrid, sampler: Sampler, width: float, expected: tuple[float, ...]
) -> None:
    assert errors(kind, grid, width, sampler) == pytest.approx(expected, abs=6e-4)


STEPS = {1.0: 20, 0.5: 20, 0.2: 40, 0.05: 80}
"""T, by the behaviour's width, from which on an order shows."""


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("power", [1.0, 2.0])
@pytest.mark.parametrize(("sampler", "expected"), [("euler", 1), ("ab2", 2), ("etd2", 2)])
def test_orders_of_the_samplers(
    sampler: Sampler, expected: int, power: float, width: float
) -> None:
    """On a uniform grid, the order of `etd2` shows later."""
    late = 4 if (sampler, power) == ("etd2", 1.0) and width < 0.5 else 1
    coarse, fine = (
        ode_error("denoiser", TimeGrid(n * late * STEPS[width], power), width, sampler)[1]
        for n in (1, 2)
    )
    assert order(coarse, fine) == pytest.approx(expected, abs=0.3)


@pytest.mark.parametrize(
    ("power", "width", "steps"),
    [*((2.0, *x) for x in STEPS.items()), (1.0, 1.0, 20), (1.0, 0.5, 80), (1.0, 0.2, 160)],
)
def test_the_process_is_of_second_order(power: float, width: float, steps: int) -> None:
    """On a uniform grid it shows only for T far above 1 / width."""
    coarse, fine = (sde_error("denoiser", TimeGrid(n, power), width) for n in (steps, 2 * steps))
    assert order(coarse[1], fine[1]) == pytest.approx(2.0, abs=0.4)
    assert abs(fine[0]) < 1e-3


@pytest.mark.parametrize("width", WIDTHS)
def test_the_papers_scheme_is_of_first_order(width: float) -> None:
    """In the variance. The mean of a narrow behaviour is still far off there, that of D's not."""
    grids = [TimeGrid(n * STEPS[width]) for n in (1, 2)]
    coarse, fine = (sde_error("shifted_euler", grid, width) for grid in grids)
    assert order(coarse[1], fine[1]) == pytest.approx(1.0, abs=0.25)
    by_ode = [ode_error("shifted_euler", grid, width, "euler")[1] for grid in grids]
    assert order(*by_ode) == pytest.approx(1.0, abs=0.25)
    if width == 0.05:
        assert coarse[0] > 0.8 and fine[0] > 0.8
        assert abs(sde_error("denoiser", grids[0], width)[0]) < 1e-9
    else:
        assert order(coarse[0], fine[0]) == pytest.approx(1.0, abs=0.25)


def test_samplers_agree_in_the_first_step_and_where_nothing_changes() -> None:
    x_0 = torch.randn(5, 2).double()
    for sampler in ("ab2", "etd2"):
        one = integrate(curved, x_0, 1, sampler)
        torch.testing.assert_close(one, integrate(curved, x_0, 1))
        straight = integrate(lambda x, u: torch.ones_like(x), x_0, 7, "ab2", 2.0)
        torch.testing.assert_close(straight, x_0 + 1.0)
    point = integrate(lambda x, u: (0.4 - x) / (1.0 - u), x_0, 7, "etd2", 2.0)
    torch.testing.assert_close(point, torch.full_like(x_0, 0.4))


@pytest.mark.parametrize("sampler", ["euler", "ab2", "etd2"])
def test_a_sampler_evaluates_the_field_once_a_step(sampler: Sampler) -> None:
    times = list[float]()

    def noting(x: Tensor, u: Tensor) -> Tensor:
        times.append(u.item())
        return curved(x, u)

    integrate(noting, torch.randn(5, 2).double(), 7, sampler, 2.0)
    assert times == TimeGrid(7, 2.0).times(torch.zeros(0).double()).tolist()


def test_a_first_field_of_its_own_starts_the_sampler_anew() -> None:
    """What is left after it is two steps of Adams-Bashforth on their own."""
    x_0, h = torch.randn(5, 2).double(), 1.0 / 3.0
    jump = lambda x, u: torch.full_like(x, 100.0)  # noqa: E731
    x = x_0 + h * 100.0
    before = curved(x, torch.tensor(h).double())
    x = x + h * before
    x = x + h * (1.5 * curved(x, torch.tensor(2 * h).double()) - 0.5 * before)
    torch.testing.assert_close(integrate(curved, x_0, 3, "ab2", first=jump), x)


def curved(x: Tensor, u: Tensor) -> Tensor:
    """Return a field that is linear in nothing."""
    return torch.cos(2.0 * x) - u * x.flip(-1)


@pytest.mark.parametrize("grid", WIDE_GRIDS, ids=str)
def test_the_adjoint_is_the_gradient_through_the_path(grid: TimeGrid) -> None:
    """Of the path that holds D in every step, by autograd, in g = u w."""
    chosen, g = Denoiser(grid), torch.Generator().manual_seed(0)
    states = [torch.randn(4, 3, generator=g, dtype=torch.float64).requires_grad_()]
    times = grid.times(states[0])
    for step, u in zip(chosen.steps, times, strict=True):
        a = states[-1]
        denoised = a + step.rest * curved(a, u)
        z = torch.randn(4, 3, generator=g, dtype=torch.float64)
        states.append(step.keep * a + step.toward * denoised + step.noise * z)
    gradients = torch.autograd.grad(states[-1].square().sum(), states)
    vjp = autograd_vjp(curved, torch.stack(states[:-1]), times)
    found = chosen.lean_adjoint(vjp, gradients[-1])
    for i, step in enumerate(chosen.steps):
        w = 0.5 * step.sigma**2 / step.rest * found[i]
        if i > 0:
            torch.testing.assert_close(step.u * w, gradients[i], rtol=1e-9, atol=1e-12)
        else:  # what the behaviour forgets, and what it does not know
            ahead = gradients[1] / grid.time(1)
            torch.testing.assert_close(w, step.ratio**2 * ahead, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("grid", WIDE_GRIDS, ids=str)
def test_the_process_forgets_its_start_and_keeps_the_flows_marginals(grid: TimeGrid) -> None:
    """Towards one point, a_i is N(u_i m, (1 - u_i)²), and independent of a_0 from i = 1 on."""
    point: Field = lambda x, u: (MU - x) / (1.0 - u)  # noqa: E731
    chosen = Denoiser(grid)
    for i in range(1, grid.steps):

        def state(x_0: Tensor, z: Tensor, i: int = i) -> Tensor:
            return chosen.simulate(point, point, x_0, z).states[i]

        mean, variance = moments(state, grid.steps)
        assert mean == pytest.approx(grid.time(i) * MU)
        assert variance == pytest.approx(grid.rest(i) ** 2)
        x_0, z = torch.eye(2)[:, :1].double(), torch.zeros(grid.steps - 1, 2, 1).double()
        of_start = state(x_0, z)
        torch.testing.assert_close(of_start[0], of_start[1])


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_sigma_weighs_the_steps_by_the_papers_integral(power: float) -> None:
    """T h_i σ_i² is the paper's σ² at u_i; on a uniform grid, T h_i is 1."""
    grid = TimeGrid(1000, power)
    for i in (200, 500, 800, 999):
        share, sigma = grid.steps * grid.width(i), Step.of(grid, i).sigma
        exact = noise_scale(torch.tensor(grid.time(i), dtype=torch.float64), 0.0).item()
        assert share**0.5 * sigma == pytest.approx(exact, rel=6e-3)
    assert Step.of(TimeGrid(10), 0).sigma == pytest.approx(20.0**0.5)


def test_the_weights_of_the_steps_differ_less_than_what_they_add_to_the_divergence() -> None:
    """A control in a late step adds much to the divergence and says little of where a path goes."""
    steps = Denoiser(TimeGrid(10, 2.0)).steps
    weights = [4.0 / s.sigma**2 for s in steps]
    assert weights == sorted(weights)
    assert weights[-1] / weights[0] == pytest.approx(1.0 / 0.19**2)
    added = [(s.toward * s.rest / s.noise) ** 2 for s in steps[:-1]]
    assert added[-1] / added[0] > 250.0


def test_grids_are_uniform_or_denser_towards_the_data() -> None:
    like = torch.zeros(0)
    assert torch.equal(TimeGrid(7).times(like), torch.arange(7) / 7)
    assert [TimeGrid(7).width(i) for i in range(7)] == [1 / 7] * 7
    grid = TimeGrid(4, 2.0)
    assert grid.times(like).tolist() == [0.0, 0.4375, 0.75, 0.9375]
    assert [grid.width(i) for i in range(4)] == [0.4375, 0.3125, 0.1875, 0.0625]
    assert grid.time(4) == 1.0 and grid.rest(4) == 0.0
    assert TimeGrid(10_000, 3.0).rest(9_999) > 0.0
