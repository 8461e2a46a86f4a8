"""Every method learns a one-step bandit whose best action is known."""

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from qam_lightning.batch import Batch
from qam_lightning.callbacks.ema import EmaTargets
from qam_lightning.methods.base import Method
from tests.methods.test_every_method import EXAMPLE, METHODS

BEST, STEPS, SIZE = 0.5, 200, 64
BANDIT: dict[str, Any] = {
    "obs_dim": 1,
    "action_dim": 1,
    "chunk": 1,
    "rho": 0.0,
    "ensemble": 1,
    "flow_steps": 5,
    "learning_rate": 1e-2,
}
GREEDY: dict[str, Any] = {"tau": 2.0, "alpha": 0.1, "edit_scale": 1.0}
"""Hyperparameters that let the critic rule over the behaviour."""
OF_ITS_OWN: dict[str, dict[str, Any]] = {
    "DAC": {"eta": 1.0},
    "CGQLMSE": {"tau": 5.0, "varrho": 1.0},
    "CGQLLinex": {"tau": 5.0, "varrho": 1.0},
    "DSRL": {"noise_scale": 2.0},
    "ReBRAC": {"noise_scale": 0.0},
    "IFQL": {"best_of_n": 32},
}
"""What one method needs otherwise than the rest."""
SLOW_LEARNERS = {"CGQLMSE", "CGQLLinex", "QSM"}
"""With these settings and so few updates they leave uniform actions well behind, no more."""


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


@pytest.mark.slow
@pytest.mark.parametrize("kind", METHODS, ids=lambda m: m.__name__)
def test_bandit_is_learned(kind: type[Method], build: Callable[..., Method]) -> None:
    values = {**EXAMPLE, **GREEDY, **OF_ITS_OWN.get(kind.__name__, {})}
    names = {*inspect.signature(kind.__init__).parameters, "best_of_n"}
    method = build(kind, **BANDIT, **{k: v for k, v in values.items() if k in names})
    trainer = L.Trainer(
        accelerator="cpu", max_steps=STEPS, barebones=True, callbacks=[EmaTargets(0.2)]
    )
    trainer.fit(method, DataLoader(UniformActions(), batch_size=None))

    noise = method.policy_noise(500, torch.Generator().manual_seed(1))
    actions = method.act(torch.zeros(500, 1), noise).flatten(1)
    if kind.__name__ in SLOW_LEARNERS:
        assert reward(actions).mean() > -1.75  # three quarters of what uniform actions lose
    else:
        assert actions.mean().item() == pytest.approx(BEST, abs=0.2)
        assert reward(actions).mean() > -0.6  # a quarter
