"""A memoryless process and its lean adjoint in terms of the denoised action (not in the paper).

The field f of a narrow behaviour is stiff near u = 1: f = (D - x) / (1 - u), with the denoiser
D(x, u) = x + (1 - u) f(x, u) = E[a_1 | x]. D itself stays in the box and changes little. So each
step treats D as constant or as a straight line in u, and solves everything else exactly.

Let r_i = (1 - u_{i+1}) / (1 - u_i) and q_i = r_i u_i / u_{i+1}. Given a_i and the denoised action,
the next point of the straight path is Gaussian (`Step`). As q_0 = 0, the process forgets where it
starts, exactly and without the paper's shift of u by a step.
"""

import math
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from qam_lightning.core.adjoint import VJP
from qam_lightning.core.flow import Field, TimeGrid
from qam_lightning.core.memoryless import Path


class Step(NamedTuple):
    """The coefficients of a_{i+1} = keep · a_i + toward · D_i + bend · (D_i - D_{i-1}) + noise · z.

    Attributes:
        u: u_i.
        rest: 1 - u_i.
        ratio: r_i.
        keep: q_i r_i.
        toward: u_{i+1} - u_i q_i r_i = u_{i+1} (1 - q_i²).
        bend: for D that changes during the step as since the step before; 0 in the first and the
            last step.
        noise: (1 - u_{i+1}) sqrt(1 - q_i²).
        sigma: σ_i of the regression, with which the loss, a sum over the steps, tends to T times
            the integral of Eq. 21. Of Eq. 7's σ, 1 / u is shifted by the step.
    """

    u: float
    rest: float
    ratio: float
    keep: float
    toward: float
    bend: float
    noise: float
    sigma: float

    @classmethod
    def of(cls, grid: TimeGrid, i: int) -> "Step":
        """Return the coefficients of step i, 0 to T - 1."""
        u, ahead, h = grid.time(i), grid.time(i + 1), grid.width(i)
        rest, left = grid.rest(i), grid.rest(i + 1)
        ratio = left / rest
        q = ratio * u / ahead
        toward = ahead * (1.0 - q * q)
        noise = left * math.sqrt(1.0 - q * q)
        sigma = math.sqrt(2.0 * rest / (grid.steps * h * ahead))
        bend = 0.0
        if 0 < i < grid.steps - 1:
            passed = 1.0 / left - 1.0 / rest + 2.0 * math.log(ratio) + h  # ∫ u² / (1 - u)² du
            bend = left**2 / ahead * (h * (ahead / left) ** 2 - passed) / grid.width(i - 1)
        return cls(u, rest, ratio, q * ratio, toward, bend, noise, sigma)


@cache
def all_steps(grid: TimeGrid) -> tuple[Step, ...]:
    """Return the coefficients of all T steps."""
    return tuple(Step.of(grid, i) for i in range(grid.steps))


class Denoiser(NamedTuple):
    """The scheme on a grid of at least two steps.

    Attributes:
        grid: the flow times.
    """

    grid: TimeGrid

    @property
    def steps(self) -> tuple[Step, ...]:
        """The coefficients of all T steps."""
        return all_steps(self.grid)

    def simulate(self, v: Field, last: Field, x_0: Tensor, z: Tensor) -> Path:
        """Simulate the process of ``v`` and return its path.

        Each step continues the denoised action in a straight line through D_{i-1} and D_i. The
        first and the last step hold it constant. The last step has no noise.

        Args:
            v: the combined velocity f_β + f_θ.
            last: the velocity of the last step.
            x_0: (B, D) standard normal starting points.
            z: (T - 1, B, D) standard normal increments.
        """
        times = self.grid.times(x_0)
        states, before = [x_0], None
        for step, u, z_i in zip(self.steps[:-1], times, z, strict=False):
            a = states[-1]
            denoised = a + step.rest * v(a, u)
            ahead = step.keep * a + step.toward * denoised + step.noise * z_i
            if before is not None:
                ahead = ahead + step.bend * (denoised - before)
            states.append(ahead)
            before = denoised
        end = states[-1] + self.steps[-1].rest * last(states[-1], times[-1])
        sigma = torch.stack([x_0.new_full((), step.sigma) for step in self.steps])
        return Path(torch.stack(states), end, times, sigma, times)

    def lean_adjoint(self, behavior_vjp: VJP, terminal: Tensor) -> Tensor:
        """Return the lean adjoint states g_0..g_{T-1}, (T, B, D).

        From w_T = g_T: w_i = r² w_{i+1} + (toward · u_{i+1} / u_i) D'ᵀ w_{i+1}, where
        D'ᵀ w = w + (1 - u_i) (∂f_β/∂a)ᵀ w at (a_i, u_i). Of u w this is the derivative of the mean
        of a_{i+1}, without the term of `Step.bend`. At u = 0 the state says nothing about the
        action: D' = 0. If Q is linear, w_i is exact for i >= 1 and Gaussian behaviours, however
        narrow. Then g_i = T h_i u_{i+1} w_i = 2 (1 - u_i) w_i / σ_i², with which the regression's
        minimiser -σ_i² g_i / 2 is -(1 - u_i) w_i.

        Args:
            behavior_vjp: product with the Jacobian of f_β(., u_i) at a_i.
            terminal: (B, D), g_T = -τ ∇_a Q at the path's end.
        """
        w, adjoints = terminal, list[Tensor]()
        for i, step in reversed(list(enumerate(self.steps))):
            kept = step.ratio**2 * w
            if i > 0:
                passed = step.toward * self.grid.time(i + 1) / step.u
                kept = kept + passed * (w + step.rest * behavior_vjp(i, w))
            w = kept
            adjoints.append(2.0 * step.rest / step.sigma**2 * w)
        return torch.stack(adjoints[::-1])

    def control_cost(self, control: Tensor, path: Path) -> Tensor:
        """Return T times the KL divergence of a path from the behaviour's, per sample, (B,).

        Each of the T - 1 steps with noise adds the KL of two Gaussians of variance noise². Their
        means differ because the control moves the denoised action in this step and the last one.

        Args:
            control: (N, B, D), the residual velocity at a_0..a_{N-1}, N >= T - 1; that at a_{T-1}
                is not read.
            path: from `simulate`.
        """
        total, before = torch.zeros_like(path.end[:, 0]), None  # of full precision, as the path
        for step, f in zip(self.steps[:-1], control.to(path.end.dtype), strict=False):
            moved = step.rest * f
            shift = step.toward * moved
            if before is not None:
                shift = shift + step.bend * (moved - before)
            total = total + shift.square().sum(-1) / (2.0 * step.noise**2)
            before = moved
        return self.grid.steps * total
