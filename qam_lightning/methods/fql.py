"""FQL: flow Q-learning, a one-step policy distilled from a cloned flow (Eq. 41-42).

Citation
    Park, Li, Levine, "Flow Q-learning", arXiv:2502.02538, 2025.

Trained by what
    critic Q_φ        TD with pessimistic EMA backup (Eq. 26), a' = clip Ω_ω(s', z)
    behaviour v_β     flow matching on dataset chunks (Eq. 17)
    one-step Ω_ω      α · distillation on ODE(v_β; s, z), and -mean Q(s, clip Ω_ω(s, z)) (Eq. 42)

Differences from the paper's text
    Eq. 42 distills at s' and feeds the critic an unclipped action: a misprint and an omission.
    The distillation is a mean over the chunk's dimensions where Eq. 42 writes a sum.
    Eq. 43 backs up Ω_ω(s', z) unclipped: an omission too.
"""

from typing import Any

from torch import Tensor

from qam_lightning.core.draws import Draw
from qam_lightning.data.batch import Batch
from qam_lightning.methods.base import Losses, Method, Noise
from qam_lightning.nets.flow_policy import ClonedFlow
from qam_lightning.nets.heads import OneStepPolicy
from qam_lightning.util.errors import require


class FQL(Method):
    """A cloned flow and the one-step policy that acts.

    Args:
        alpha: behaviour coefficient α >= 0 of the distillation.
        shared: what every method takes.
    """

    actor: ClonedFlow

    def __init__(self, alpha: float, **shared: Any) -> None:
        """Build the flow and the one-step policy."""
        super().__init__(**shared)
        require(0 <= alpha < float("inf"), type(self), "alpha", alpha, "at least 0 and finite")
        self.alpha = alpha
        self.actor = ClonedFlow(*self.sizes, self.flow_steps)
        self.one_step = OneStepPolicy(*self.sizes)

    def actor_draws(self) -> dict[str, Draw]:
        """The cloning loss's draws and the one-step policy's z."""
        return {**super().actor_draws(), "one_step/z": Draw((self.dim,))}

    def policy(self, s: Tensor, noise: Noise) -> Tensor:
        """Return clip Ω_ω(s, z)."""
        return self.one_step(s, noise["z"]).clamp(-1.0, 1.0)

    def actor_losses(self, batch: Batch, noise: Noise) -> tuple[Losses, dict[str, Tensor]]:
        """Flow matching for v_β, value and distillation for Ω_ω (Eq. 41)."""
        s, z = batch.observations, noise["one_step/z"]
        teacher = self.actor.act(s, z)
        one_step = self.one_step.losses(self.critic, s, z, teacher, self.alpha)
        return {"actor/flow_loss": self.actor.cloning_loss(batch, noise), **one_step}, {}
