"""Target networks: exponential moving averages that follow the trained networks."""

from collections.abc import Sequence

import torch
from torch import Tensor

from qam_lightning.callbacks.base import Callback
from qam_lightning.util.errors import require


class EmaTargets(Callback):
    """Moves every target network a little towards its online network in an actor step.

    The pairs are those of ``Method.ema_pairs()``. The paper writes φ̄_{i+1} = (1 - λ) φ̄_i + λ φ_i
    (below Eq. 23): a step moves the targets by the weights that it starts from, not by those that
    Adam makes of them. The move is part of a method's update, so that it is compiled with it.
    Ready-made EMA callbacks average the whole module for validation; here the targets take part in
    the losses and belong to the method's state.

    Args:
        rate: λ in (0, 1]; 1 copies the online networks.
    """

    def __init__(self, rate: float) -> None:
        require(0.0 < rate <= 1.0, type(self), "rate", rate, "above 0 and at most 1")
        self.rate = rate

    @torch.no_grad()
    def move(self, targets: Sequence[Tensor], online: Sequence[Tensor]) -> None:
        """Set every target to ``(1 - rate) * target + rate * online``, in place."""
        if targets:
            torch._foreach_lerp_(list(targets), list(online), self.rate)
