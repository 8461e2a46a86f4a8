"""The minimisers of QAM's and FAWAC's losses themselves, without networks and training.

Adjoint matching reaches the tilt as T grows; how far its minimiser is at a given T separates the
error of discretisation from that of learning. In one dimension that minimiser,
f(a, u_i) = -σ_i² E[g_i | a_i = a] / 2, follows from i = T - 1 down to 0:
g_i = (1 + h J_i(a_i)) g_{i+1}, and a_{i+1} is Gaussian given a_i, with a mean that depends
on f(a_i, u_i) itself: an equation for this mean. Where it has several solutions, so does the loss;
`residual` takes the one that gradient flow reaches from f = 0.

Weighted regression has the clipped weights times the behaviour for its minimiser: the tilt, where
no weight is clipped. How many samples the weights leave is a matter of their spread.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from qam_lightning.core.adjoint import action_gradient
from qam_lightning.core.critic import advantage_weight
from qam_lightning.core.flow import Sampler, TimeGrid, integrate
from qam_lightning.core.memoryless import noise_scale
from qam_lightning.laboratory.distances import wasserstein
from qam_lightning.laboratory.problems import Mixture, Problem, grid

REACH, POINTS, NODES = 6.0, 2401, 33


def _double(problem: Problem) -> Problem:
    return problem._replace(behavior=Mixture(*(x.double() for x in problem.behavior)))


def _axis() -> Tensor:
    return torch.linspace(-REACH, REACH, POINTS, dtype=torch.float64)


def interpolated(table: Tensor, x: Tensor) -> Tensor:
    """Return the values (POINTS,) of a function on the axis, at points x of any shape."""
    place = (x + REACH) * ((POINTS - 1) / (2.0 * REACH))
    left = place.floor().clamp(0, POINTS - 2).long()
    return torch.lerp(table[left], table[left + 1], (place - left).clamp(0.0, 1.0))


def residual(problem: Problem, steps: int) -> list[Tensor]:
    """Return the residual f(., u_i) that minimises QAM's loss, on the axis, for i = 0..T-1.

    Args:
        problem: one-dimensional.
        steps: T.
    """
    problem = _double(problem)
    a, h, field = _axis(), 1.0 / steps, problem.behavior.velocity
    times = TimeGrid(steps).times(a)
    z, weight = (torch.from_numpy(x) for x in np.polynomial.hermite_e.hermegauss(NODES))
    weight = weight / weight.sum()

    def v(x: Tensor, u: Tensor) -> Tensor:
        return field(x[:, None], u)[:, 0]

    def steepness(u: Tensor) -> Tensor:
        return action_gradient(lambda x: v(x[:, 0], u), a[:, None])[:, 0]

    end = a + h * v(a, times[-1])
    dq_da = action_gradient(lambda x: problem.q(x.clamp(-1.0, 1.0)), end[:, None])[:, 0]
    found: list[Tensor] = []
    ahead = -problem.tau * dq_da  # the last step has no noise: g_T at the end of each a_{T-1}
    for u, sigma in zip(times.flip(0), noise_scale(times, h).flip(0), strict=True):
        back = 1.0 + h * (2.0 * steepness(u + h) - 1.0 / (u + h))
        if not found:
            g = back * ahead
        else:
            start, spread = a + h * (2.0 * v(a, u) - a / (u + h)), h**0.5 * sigma * z
            pulled, g_mean = h * sigma**2 * back, interpolated(ahead, a[:, None] + spread) @ weight
            g = (start - settled(start, pulled, g_mean)) / (h * sigma**2)
        found.append(-0.5 * sigma**2 * g)
        ahead = g
    return found[::-1]


def settled(start: Tensor, pull: Tensor, table: Tensor) -> Tensor:
    """Return where dm/dt = start - m - pull · G(m) ends that begins at m = start, (N,).

    Args:
        start: (N,).
        pull: (N,).
        table: (POINTS,), G on the axis, constant beyond it; straight lines between.
    """
    down = pull * interpolated(table, start) > 0.0
    found = torch.empty_like(start)
    found[down] = _settled_below(start[down], pull[down], table)
    found[~down] = -_settled_below(-start[~down], pull[~down], -table.flip(0))
    return found


def _settled_below(start: Tensor, pull: Tensor, table: Tensor) -> Tensor:
    """Return the largest m <= start with m - start + pull · G(m) = 0, for starts that fall."""
    m = _axis()
    excess = m - start[:, None] + pull[:, None] * table
    places = torch.arange(1, POINTS + 1, dtype=torch.int16)
    crossed = ((m <= start[:, None]) & (excess <= 0.0)).mul(places).amax(1).long() - 1
    left = crossed.clamp(0, POINTS - 2)
    high = torch.minimum(m[left + 1], start)
    at = high - start + pull * interpolated(table, high)
    low, rows = m[left], torch.arange(len(start))
    under = excess[rows, left]
    share = (-under / (at - under)).clamp(0.0, 1.0)
    return torch.where(crossed < 0, start - pull * table[0], torch.lerp(low, high, share))


POINTS_OF_ODE = 20_000


def quantiles(density: Callable[[Tensor], Tensor]) -> Tensor:
    """Return evenly spread quantiles of a density on the box, (N, 1)."""
    a = grid(1, POINTS_OF_ODE)
    law = density(a).double().cumsum(0)
    place = torch.searchsorted(law / law[-1], shares()).clamp(max=POINTS_OF_ODE - 1)
    return a[place].double()


def shares() -> Tensor:
    """Return the midpoints of N equal parts of [0, 1]."""
    return (torch.arange(POINTS_OF_ODE, dtype=torch.float64) + 0.5) / POINTS_OF_ODE


def behavior_distance(
    problem: Problem, steps: int, sampler: Sampler = "euler", power: float = 1.0
) -> float:
    """Return W1 of the behaviour's ODE samples to the behaviour: the sampler's error alone.

    The flow is exact, the noise is the normal's quantiles.

    Args:
        problem: one-dimensional.
        steps: T.
        sampler: see :func:`qam_lightning.core.flow.integrate`.
        power: see :class:`qam_lightning.core.flow.TimeGrid`.
    """
    z, exact = torch.special.ndtri(shares())[:, None], _double(problem).behavior.velocity
    found = integrate(exact, z, steps, sampler, power).clamp(-1.0, 1.0)
    return wasserstein(found, quantiles(problem.behavior.density)).item()


def distances(problem: Problem, steps: int) -> tuple[float, float]:
    """Return W1 of Euler's ODE samples: the behaviour's to the behaviour, the minimiser's to tilt.

    Both are of discretisation alone, see `behavior_distance`.

    Args:
        problem: one-dimensional.
        steps: T.
    """
    exact, table = _double(problem).behavior.velocity, residual(problem, steps)
    z = torch.special.ndtri(shares())[:, None]

    def v(x: Tensor, u: Tensor) -> Tensor:
        return exact(x, u) + interpolated(table[round(u.item() * steps)], x)

    found = integrate(v, z, steps).clamp(-1.0, 1.0)
    tilted = wasserstein(found, quantiles(problem.tilt_density)).item()
    return behavior_distance(problem, steps), tilted


class Weighting(NamedTuple):
    """What FAWAC's weights do on a problem.

    Attributes:
        effective: effective share of the samples, (E w)² / E w², in (0, 1].
        clipped: the tilt's mass where the weight exceeds its bound.
        w1: W1 from the clipped weights' law to the tilt; None in the plane.
    """

    effective: float
    clipped: float
    w1: float | None


def weighting(problem: Problem) -> Weighting:
    """Evaluate the minimiser of FAWAC's losses, V = E Q, on a grid over the box."""
    a = grid(problem.dim, 4000 if problem.dim == 1 else 300)
    behavior, q = problem.behavior.density(a).double(), problem.q(a).double()
    behavior = behavior / behavior.sum()
    advantage = q - (behavior * q).sum()
    weight = (problem.tau * advantage).exp()
    used = advantage_weight(advantage, problem.tau)
    effective = (behavior @ weight).square() / (behavior @ weight.square())
    tilt, reached = (behavior * w / (behavior @ w) for w in (weight, used))
    w1 = (tilt - reached).cumsum(0).abs().mean().item() * 2.0 if problem.dim == 1 else None
    return Weighting(effective.item(), tilt[weight > used].sum().item(), w1)
