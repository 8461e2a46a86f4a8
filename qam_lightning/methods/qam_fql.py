"""QAM-FQL: QAM with a one-step policy distilled from the fine-tuned flow (Eq. 29).

Citation
    The paper: Li, Levine, "Q-learning with adjoint matching", arXiv:2601.14234, 2026.
    Park, Li, Levine, "Flow Q-learning", arXiv:2502.02538, 2025.

Trained by what
    critic, f_β, f_θ    as in QAM, but a' = clip μ_ω(s', z)
    one-step μ_ω        -mean Q(s, clip μ_ω(s, z)) + α · distillation on ODE(f_β + f_θ; s, z)

Differences from the paper's text
    α = inf is plain QAM, as in Table 4: there is then no one-step policy.
    The distillation is a mean over the chunk's dimensions where Eq. 29 writes a sum.
    Eq. 29 feeds the critic an unclipped action, which the action box does not know.
    What differs in QAM differs here.
"""

import math
from typing import Any

from torch import Tensor

from qam_lightning.core.draws import Draw
from qam_lightning.data.batch import Batch
from qam_lightning.methods.base import Losses, Method, Noise
from qam_lightning.nets.flow_pair import FlowPair
from qam_lightning.nets.heads import OneStepPolicy
from qam_lightning.util.errors import require


class QAMFQL(Method):
    """QAM's flows, acting through a one-step policy.

    Args:
        tau: inverse temperature τ >= 0 of the flow's tilt.
        alpha: behaviour coefficient α >= 0; infinity, .inf, is plain QAM.
        residual: whether f_θ is a residual on f_β (the paper's choice) or the full velocity.
        shared: what every method takes.
    """

    actor: FlowPair

    def __init__(self, tau: float, alpha: float, residual: bool, **shared: Any) -> None:
        """Build the flows and, for finite α, the one-step policy."""
        super().__init__(**shared)
        require(alpha >= 0, type(self), "alpha", alpha, "at least 0, or .inf for plain QAM")
        self.alpha = alpha
        self.actor = FlowPair(*self.sizes, self.flow_steps, tau, residual)
        self.one_step = None if math.isinf(alpha) else OneStepPolicy(*self.sizes)

    def actor_draws(self) -> dict[str, Draw]:
        """The flows' draws and the one-step policy's z."""
        own = {} if self.one_step is None else {"one_step/z": Draw((self.dim,))}
        return {**super().actor_draws(), **own}

    def policy(self, s: Tensor, noise: Noise) -> Tensor:
        """Return clip μ_ω(s, z)."""
        if self.one_step is None:
            return super().policy(s, noise)
        return self.one_step(s, noise["z"]).clamp(-1.0, 1.0)

    def actor_losses(self, batch: Batch, noise: Noise) -> tuple[Losses, dict[str, Tensor]]:
        """QAM's losses and the one-step policy's (Eq. 29)."""
        losses, metrics = self.actor.matching_losses(batch, noise, self.critic_ema)
        if self.one_step is not None:
            s, z = batch.observations, noise["one_step/z"]
            teacher = self.actor.act(s, z)
            losses |= self.one_step.losses(self.critic, s, z, teacher, self.alpha)
        return losses, metrics
