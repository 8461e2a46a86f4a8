"""Target networks: exponential moving averages that follow the trained networks."""

from typing import TYPE_CHECKING

import lightning.pytorch as pl
import torch
from torch import Tensor

from qam_lightning.callbacks.base import Callback
from qam_lightning.util.errors import require

if TYPE_CHECKING:
    from qam_lightning.methods.base import Method


class EmaTargets(Callback):
    """Moves every target network a little towards its online network after a gradient step.

    ``target <- (1 - rate) * target + rate * online`` for the pairs in ``Method.ema_pairs()``, after
    every actor step. Ready-made EMA callbacks average the whole module for validation; here the
    targets take part in the losses and belong to the method's state.

    Args:
        rate: λ in (0, 1]; 1 copies the online networks.
    """

    def __init__(self, rate: float) -> None:
        require(0.0 < rate <= 1.0, type(self), "rate", rate, "above 0 and at most 1")
        self.rate = rate
        self._online: list[Tensor] = []
        self._target: list[Tensor] = []

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Collect the tensors anew: they may have moved to another device."""
        self._online, self._target = [], []

    def on_gradient_step(self, trainer: pl.Trainer, method: "Method") -> None:
        """Move the targets if this step trained the actor."""
        if method.is_actor_step(method.gradient_step):
            self.move_targets(method)

    @torch.no_grad()
    def move_targets(self, method: "Method") -> None:
        """Apply one update to all pairs of the method."""
        if not self._target:
            pairs = method.ema_pairs()
            self._online = [p for online, _ in pairs for p in online.parameters()]
            self._target = [p for _, target in pairs for p in target.parameters()]
        if self._target:
            torch._foreach_lerp_(self._target, self._online, self.rate)
