"""The problems' tilts against closed forms and against each other."""

import pytest
import torch

from qam_lightning.laboratory.problems import CURVATURE, PEAK, PROBLEMS, Mixture, Problem, grid


@pytest.fixture(params=PROBLEMS)
def problem(request: pytest.FixtureRequest) -> Problem:
    return PROBLEMS[request.param]


def points(problem: Problem) -> torch.Tensor:
    return grid(problem.dim, 2000 if problem.dim == 1 else 200)


def mean(density: torch.Tensor, values: torch.Tensor, dim: int) -> torch.Tensor:
    """Integrate values (N, ...) over the box under a density on its grid."""
    return (density.view(-1, *[1] * (values.ndim - 1)) * values).mean(0) * 2.0**dim


def mass_outside(mixture: Mixture) -> float:
    """Return the probability of lying outside the box [-1, 1]^D."""
    upper, lower = ((edge - mixture.means) / mixture.stds[:, None] for edge in (1.0, -1.0))
    normal = torch.special.ndtr
    inside = (normal(upper.double()) - normal(lower.double())).prod(-1)
    return (mixture.weights.double() * (1.0 - inside)).sum().item()


def test_the_grid_is_made_of_midpoints() -> None:
    assert grid(1, 4).flatten().tolist() == [-0.75, -0.25, 0.25, 0.75]
    assert grid(2, 2).tolist() == [[-0.5, -0.5], [-0.5, 0.5], [0.5, -0.5], [0.5, 0.5]]


def test_densities_integrate_to_one_inside_the_box(problem: Problem) -> None:
    a = points(problem)
    ones = torch.ones(len(a))
    inside = mean(problem.behavior.density(a), ones, problem.dim).item()
    assert inside == pytest.approx(1 - mass_outside(problem.behavior), abs=2e-5)
    assert mass_outside(problem.behavior) < 2e-4
    assert mean(problem.tilt_density(a), ones, problem.dim).item() == pytest.approx(1, abs=1e-5)


def test_velocity_minimises_flow_matching() -> None:
    """Against E[a - x_0 | x_u = x] by quadrature over a, x_0 = (x - u a) / (1 - u) being normal."""
    behavior = PROBLEMS["multimodal"].behavior
    a = torch.linspace(-2, 2, 8001)[:, None]
    x = torch.tensor([[-0.8], [0.1], [0.5]])
    for u in (0.0, 0.4, 0.8):
        x_0 = (x[:, None, 0] - u * a.T) / (1 - u)
        share = (behavior.density(a) * (-0.5 * x_0.square()).exp()).double()
        expected = (share * (a.T - x_0)).sum(-1) / share.sum(-1)
        found = behavior.velocity(x, torch.tensor(u))[:, 0].double()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_density_falls_with_value_as_the_tilt_says(problem: Problem) -> None:
    """By definition: log tilt - log π_β - τ Q is the same everywhere."""
    a = points(problem)
    behavior, tilt = problem.behavior.density(a).double(), problem.tilt_density(a).double()
    rest = (tilt.log() - behavior.log() - problem.tau * problem.q(a))[behavior > 1e-3]
    assert rest.std() < 1e-3


def test_exact_samples_have_the_tilts_moments(problem: Problem) -> None:
    a, n = points(problem), 40_000
    sample = problem.sample_tilt(n, torch.Generator().manual_seed(0))
    assert sample.shape == (n, problem.dim)
    for power in (1, 2, 3):
        exact = mean(problem.tilt_density(a), a**power, problem.dim)
        error = 4 * (sample**power).std(0) / n**0.5
        assert ((sample**power).mean(0) - exact).abs().le(error).all()


def test_behaviour_samples_have_the_mixtures_moments(problem: Problem) -> None:
    mixture, n = problem.behavior, 40_000
    sample = mixture.sample(n, torch.Generator().manual_seed(0))
    first = mixture.weights @ mixture.means
    second = mixture.weights @ (mixture.means.square() + mixture.stds.square()[:, None])
    assert (sample.mean(0) - first).abs().le(4 * sample.std(0) / n**0.5).all()
    assert (sample.square().mean(0) - second).abs().le(4 * sample.square().std(0) / n**0.5).all()


def test_quadratic_tilt_is_the_closed_mixture() -> None:
    problem = PROBLEMS["quadratic"]
    closed = problem.behavior.tilted(torch.tensor([PEAK]), problem.tau * CURVATURE)
    a = points(problem)
    torch.testing.assert_close(closed.density(a), problem.tilt_density(a), atol=2e-3, rtol=1e-3)
    # Typed in: a component N(m, v) becomes N((m/v + c p) / (1/v + c), 1 / (1/v + c)), c = 9.
    assert closed.means.flatten().tolist() == pytest.approx([-0.11939, 0.34515], abs=1e-4)
    assert closed.stds.tolist() == pytest.approx([0.15838, 0.15838], abs=1e-4)


def test_tilting_in_the_plane_agrees_with_the_grid() -> None:
    generator = torch.Generator().manual_seed(0)
    means = torch.rand(3, 2, generator=generator) - 0.5
    mixture = Mixture(torch.tensor([0.2, 0.3, 0.5]), means, torch.tensor([0.1, 0.14, 0.12]))
    peak = torch.tensor([0.2, -0.1])
    by_grid = Problem("", mixture, lambda a: -0.5 * (a - peak).square().sum(-1), tau=9.0)
    a = grid(2, 200)
    closed = mixture.tilted(peak, 9.0).density(a)
    torch.testing.assert_close(closed, by_grid.tilt_density(a), atol=2e-3, rtol=1e-3)
