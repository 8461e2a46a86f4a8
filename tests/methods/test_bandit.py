"""Every method learns a one-step bandit whose best action is known."""

from collections.abc import Callable, Iterator
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from qam_lightning.core.adjoint import action_gradient
from qam_lightning.core.diffusion import ancestral_sample, variance_preserving
from qam_lightning.core.guidance import integrate_guided
from qam_lightning.data.batch import Batch
from qam_lightning.methods.base import Method
from tests.methods.test_every_method import EXAMPLE, PAPER, settings

BEST, STEPS, SIZE = 0.5, 400, 128
BANDIT: dict[str, Any] = {
    "obs_dim": 1,
    "action_dim": 1,
    "horizon": 1,
    "rho": 0.0,
    "num_critics": 1,
    "flow_steps": 5,
    "learning_rate": 1e-2,
    "lr_decay_steps": STEPS,
    "target_rate": 0.2,
}
GREEDY: dict[str, Any] = {"tau": 2.0, "alpha": 0.1, "edit_scale": 1.0}
"""Hyperparameters that let the critic rule over the behaviour."""
OF_ITS_OWN: dict[str, dict[str, Any]] = {
    "DAC": {"eta": 1.0},
    "CGQLMSE": {"tau": 5.0, "varrho": 1.0},
    "CGQLLinex": {"tau": 5.0, "varrho": 1.0},
    "QSM": {"tau": 1.0, "eta": 5.0},
    "DSRL": {"noise_scale": 2.0},
    "ReBRAC": {"noise_scale": 0.0},
    "IFQL": {"best_of_n": 32},
}
"""What one method needs otherwise than the rest."""
TARGETS = torch.linspace(-1, 1, 801, dtype=torch.float64)
"""Actions of the behaviour, for integrals over it."""


def reward(actions: Tensor) -> Tensor:
    """Smooth, with its one maximum at BEST; uniform actions earn -7/3 on average."""
    return -4.0 * (actions.squeeze(-1) - BEST).square()


class UniformActions(IterableDataset[Batch]):
    """Endless batches of uniform actions in one state; each ends the episode."""

    def __iter__(self) -> Iterator[Batch]:
        g = torch.Generator().manual_seed(0)
        nothing, everything = torch.zeros(SIZE, 1), torch.ones(SIZE)
        while True:
            a = torch.rand(SIZE, 1, generator=g) * 2 - 1
            yield Batch(nothing, a, reward(a), nothing, 0 * everything, everything)


def posterior(x: Tensor, scale: Tensor | float, spread: Tensor | float) -> Tensor:
    """Return the weights (B, 801) of the actions a given scale · a + spread · z = x, (B, 1)."""
    return (-0.5 * ((x - scale * TARGETS) / spread).square()).softmax(-1)


def guided_optimum(tau: float, vartheta: float, soft: bool) -> Tensor:
    """Return what CGQL-Linex (``soft``) or CGQL-MSE does with the minimisers of all its losses.

    They are the behaviour's exact flow, and at flow time u the (soft) mean of the rewards of the
    actions that a noisy one may have come from.
    """
    z = torch.special.ndtri((torch.arange(500, dtype=torch.float64) + 0.5) / 500)[:, None]

    def v(x: Tensor, u: Tensor) -> Tensor:
        return ((posterior(x, u, 1 - u) * TARGETS).sum(-1, keepdim=True) - x) / (1 - u)

    def value(x: Tensor, u: Tensor) -> Tensor:
        weights, rewards = posterior(x, u, 1 - u), reward(TARGETS[:, None])
        if not soft:
            return (weights * rewards).sum(-1)
        return ((weights + 1e-300).log() + tau * rewards).logsumexp(-1) / tau

    def slope(x: Tensor, u: Tensor) -> Tensor:
        return action_gradient(lambda y: value(y, u), x)

    return integrate_guided(v, slope, z, BANDIT["flow_steps"], tau, vartheta).clamp(-1, 1)


def diffused_optimum(tau: float, eta: float) -> Tensor:
    """Return what QSM does with the minimiser of its losses, (-τ ∇Q + η E[ε | a^i]) / (1 + η)."""
    schedule = variance_preserving(BANDIT["flow_steps"])

    def epsilon(a: Tensor, i: int) -> Tensor:
        kept, noise = schedule.alpha_bar[i] ** 0.5, (1 - schedule.alpha_bar[i]) ** 0.5
        clean = (posterior(a, kept, noise) * TARGETS).sum(-1, keepdim=True)
        return (8.0 * tau * (a - BEST) + eta * (a - kept * clean) / noise) / (1 + eta)

    shape = (schedule.steps, 2000, 1)
    z = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return ancestral_sample(epsilon, schedule, z)


OPTIMA: dict[str, Callable[[], Tensor]] = {
    "CGQLMSE": lambda: guided_optimum(5.0, EXAMPLE["vartheta"], soft=False),
    "CGQLLinex": lambda: guided_optimum(5.0, EXAMPLE["vartheta"], soft=True),
    "QSM": lambda: diffused_optimum(1.0, 5.0),
}
"""Actions of methods that, however long they train, do not reach the best one. Guidance by a soft
mean, above all, hardly climbs: uniform actions leave it a high value almost everywhere."""


@pytest.mark.slow
@pytest.mark.parametrize("kind", PAPER, ids=lambda m: m.__name__)
def test_bandit_is_learned(kind: type[Method], build: Callable[..., Method]) -> None:
    values = {**EXAMPLE, **GREEDY, **OF_ITS_OWN.get(kind.__name__, {})}
    own = {name: value for name, value in values.items() if name in settings(kind)}
    method = build(kind, **BANDIT, **own)
    trainer = L.Trainer(accelerator="cpu", max_steps=STEPS, barebones=True)
    trainer.fit(method, DataLoader(UniformActions(), batch_size=None))

    noise = method.acting_noise(500, torch.Generator().manual_seed(1))
    actions = method.act(torch.zeros(500, 1), noise).flatten(1)
    if kind.__name__ in OPTIMA:
        optimum = OPTIMA[kind.__name__]()
        assert actions.mean().item() == pytest.approx(optimum.mean().item(), abs=0.15)
        assert reward(actions).mean() == pytest.approx(reward(optimum).mean().item(), abs=0.35)
    else:
        assert actions.mean().item() == pytest.approx(BEST, abs=0.2)
        assert reward(actions).mean() > -0.6  # a quarter of what uniform actions lose
