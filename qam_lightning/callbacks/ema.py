"""Target networks: exponential moving averages that follow the trained networks."""

from typing import cast

import lightning.pytorch as pl
import torch
from torch import Tensor

from qam_lightning.methods.base import Method
from qam_lightning.util.errors import UserError


class EmaTargets(pl.Callback):
    """Moves every target network a little towards its online network after a gradient step.

    ``target <- (1 - rate) * target + rate * online`` for the pairs that the method names in
    ``ema_pairs()``, after every step that the method calls due. Averaging the whole module, as
    ready-made EMA callbacks do, would be wrong: the targets take part in the losses and are part of
    the method's state.
    """

    def __init__(self, rate: float) -> None:
        """Notes the rate.

        Args:
            rate: λ in (0, 1]; 1 copies the online networks.

        Raises:
            UserError: The rate is out of range.
        """
        if not 0.0 < rate <= 1.0:
            raise UserError(f"ema.rate: must lie in (0, 1], found {rate}")
        self.rate = rate
        self._online: list[Tensor] = []
        self._target: list[Tensor] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Collects the tensors once, now that they are on their device."""
        pairs = cast(Method, pl_module).ema_pairs()
        self._online = [p for online, _ in pairs for p in online.parameters()]
        self._target = [p for _, target in pairs for p in target.parameters()]

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: object
    ) -> None:
        """Applies the update, before all other callbacks: they see a whole step."""
        method = cast(Method, pl_module)
        if self._target and method.due(method.gradient_step):
            torch._foreach_lerp_(self._target, self._online, self.rate)
