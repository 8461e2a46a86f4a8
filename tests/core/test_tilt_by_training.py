"""Adjoint matching, trained, reaches π_β exp(τ Q) where that is known: Proposition 1."""

import torch
from torch import Tensor

from qam_lightning.core.adjoint import (
    action_gradient,
    adjoint_matching_loss,
    autograd_vjp,
    lean_adjoint,
)
from qam_lightning.core.memoryless import simulate
from qam_lightning.nets.mlp import MLP

WEIGHTS, MEANS, VARIANCES = (torch.tensor(x) for x in ((0.5, 0.5), (-0.6, 0.5), (0.04, 0.09)))
TAU, PEAK = 2.0, 0.8  # Q(a) = -(a - PEAK)² / 2


def mixture_field(x: Tensor, u: Tensor) -> Tensor:
    """Return the exact velocity from N(0, 1) to the mixture: components by responsibility."""
    u = u.expand_as(x)[..., None]
    spread = u.square() * VARIANCES + (1 - u).square()
    offset = x[..., None] - u * MEANS
    log_weight = WEIGHTS.log() - 0.5 * (spread.log() + offset.square() / spread)
    speed = MEANS + (u * VARIANCES - (1 - u)) / spread * offset
    return (log_weight.softmax(-1) * speed).sum(-1)


def tilted_samples(n: int, generator: torch.Generator) -> Tensor:
    """Sample the mixture times exp(τ Q), again a mixture: each component times a Gaussian."""
    precision = 1 / VARIANCES + TAU
    means = (MEANS / VARIANCES + TAU * PEAK) / precision
    overlap = 1 / TAU + VARIANCES
    log_weight = WEIGHTS.log() - 0.5 * (overlap.log() + (MEANS - PEAK).square() / overlap)
    k = torch.multinomial(log_weight.softmax(0), n, replacement=True, generator=generator)
    return means[k] + torch.randn(n, generator=generator) / precision[k].sqrt()


def wasserstein(a: Tensor, b: Tensor) -> float:
    """Return W1 between two samples of one size, the mean gap of their order statistics."""
    return (a.flatten().sort().values - b.flatten().sort().values).abs().mean().item()


def test_trained_residual_reaches_the_tilt() -> None:
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(1)
    steps, batch, updates = 40, 256, 300
    net = MLP([2, 64, 64, 1])
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)

    def control(x: Tensor, u: Tensor) -> Tensor:
        return net(torch.cat([x, u.expand_as(x)], -1))

    def combined(x: Tensor, u: Tensor) -> Tensor:
        return mixture_field(x, u) + control(x, u)

    def paths(n: int):  # noqa: ANN202
        z = torch.randn(steps - 1, n, 1, generator=g)
        with torch.no_grad():
            return simulate(combined, mixture_field, torch.randn(n, 1, generator=g), z)

    for _ in range(updates):
        path = paths(batch)
        slope = action_gradient(lambda a: -0.5 * (a[:, 0] - PEAK).square(), path.end)
        vjp = autograd_vjp(mixture_field, path.states, path.times + 1 / steps)
        adjoints = lean_adjoint(vjp, -TAU * slope, steps)
        values = control(path.states, path.times[:, None, None])
        optimizer.zero_grad()
        adjoint_matching_loss(values, adjoints, path.sigma).backward()
        optimizer.step()
        schedule.step()

    n = 1000
    target = tilted_samples(n, g)
    # What two exact samples of this size differ by: the error of sampling alone.
    floor = torch.tensor([wasserstein(tilted_samples(n, g), target) for _ in range(40)])
    reached = wasserstein(paths(n).end, target)
    z = torch.randn(steps - 1, n, 1, generator=g)
    behavior = simulate(mixture_field, mixture_field, torch.randn(n, 1, generator=g), z).end
    assert reached < (floor.mean() + 4 * floor.std()).item()
    assert wasserstein(behavior, target) > 5 * reached
