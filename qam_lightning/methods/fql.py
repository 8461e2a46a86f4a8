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

from typing import NamedTuple

import torch
from torch import Tensor

from qam_lightning.data.batch import Batch
from qam_lightning.methods.base import Losses, Metrics
from qam_lightning.methods.flow import FlowMethod
from qam_lightning.methods.losses import one_step_losses
from qam_lightning.methods.noise import CloningNoise, NoiseSource, PolicyNoise
from qam_lightning.methods.settings import setting
from qam_lightning.nets.policies import OneStepPolicy


class FQLNoise(NamedTuple):
    """What FQL's actor losses draw.

    Attributes:
        cloning: x_0 and u of flow matching; None where the behaviour flow is frozen.
        z: (B, D) standard normal, of the one-step policy and its teacher.
    """

    cloning: CloningNoise | None
    z: Tensor


class FQL(FlowMethod):
    """A cloned flow and the one-step policy that acts."""

    alpha: float = setting(at_least=0)
    """Behaviour coefficient α of the distillation."""

    acting_settings = ("best_of_n", "temperature")

    def build(self) -> None:
        super().build()
        self.behavior = self.velocity_field()
        self.one_step = OneStepPolicy(self.spaces.obs_dim, self.dim, self.width, self.depth)

    def actor_noise(self, draw: NoiseSource) -> FQLNoise:
        cloning = self.behavior_noise(draw)
        return FQLNoise(cloning, z=draw.normal(self.dim))

    def actor_losses(self, batch: Batch, noise: FQLNoise) -> tuple[Losses, Metrics]:
        s = batch.observations
        field = self.behavior.at(s)
        with torch.no_grad():
            teacher = self.sample(field, noise.z)
        losses = {
            **self.behavior_losses(field, batch, noise.cloning),
            **one_step_losses(self.one_step, self.critic, s, noise.z, teacher, self.alpha),
        }
        return losses, {}

    def policy(self, s: Tensor, noise: PolicyNoise) -> Tensor:
        return self.one_step(s, noise.z).clamp(-1.0, 1.0)

    def behavior_policy(self, s: Tensor, noise: PolicyNoise) -> Tensor:
        return self.sample(self.behavior.at(s), noise.z)
