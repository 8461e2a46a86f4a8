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
    Eq. 29 gives the critic an unclipped action; here it is clipped to the action box.
    All differences of QAM apply here too.
"""

import math
from typing import NamedTuple

from torch import Tensor

from qam_lightning.data.batch import Batch
from qam_lightning.methods.base import Losses, Metrics
from qam_lightning.methods.losses import one_step_losses
from qam_lightning.methods.noise import NoiseSource, PolicyNoise
from qam_lightning.methods.qam import QAM, QAMNoise
from qam_lightning.methods.settings import setting
from qam_lightning.nets.policies import OneStepPolicy


class QAMFQLNoise(NamedTuple):
    """What QAM-FQL's actor losses draw.

    Attributes:
        qam: QAM's draws.
        z: (B, D) standard normal for the one-step policy; None where there is none.
    """

    qam: QAMNoise
    z: Tensor | None


class QAMFQL(QAM):
    """QAM's flows, acting through a one-step policy."""

    alpha: float = setting(at_least=0, infinite=True)
    """Behaviour coefficient α; infinity, .inf in YAML, is plain QAM."""

    def build(self) -> None:
        super().build()
        sizes = self.spaces.obs_dim, self.dim
        off = math.isinf(self.alpha)
        self.one_step = None if off else OneStepPolicy(*sizes, self.width, self.depth)

    def actor_noise(self, draw: NoiseSource) -> QAMFQLNoise:
        qam = super().actor_noise(draw)
        return QAMFQLNoise(qam, None if self.one_step is None else draw.normal(self.dim))

    def actor_losses(self, batch: Batch, noise: QAMFQLNoise) -> tuple[Losses, Metrics]:
        losses, metrics = super().actor_losses(batch, noise.qam)
        if self.one_step is not None and noise.z is not None:
            s, z = batch.observations, noise.z
            teacher = self.flow_action(s, z)
            losses |= one_step_losses(self.one_step, self.critic, s, z, teacher, self.alpha)
        return losses, metrics

    @property
    def acting_settings(self) -> tuple[str, ...]:  # type: ignore[override]
        """Without the steps of the flow where the one-step policy acts."""
        if self.one_step is None:
            return super().acting_settings
        return ("best_of_n", "temperature")

    def policy(self, s: Tensor, noise: PolicyNoise) -> Tensor:
        if self.one_step is None:
            return super().policy(s, noise)
        return self.one_step(s, noise.z).clamp(-1.0, 1.0)
