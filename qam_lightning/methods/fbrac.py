"""FBRAC: a flow policy trained by backpropagation through its sampler (Eq. 36-40).

Citation
    Park, Li, Levine, "Flow Q-learning", arXiv:2502.02538, 2025, where it is a baseline.
    Wang, Hunt, Zhou, "Diffusion policies as an expressive policy class for offline
    reinforcement learning", ICLR 2023, whose flow counterpart it is.

Trained by what
    critic Q_φ   TD with pessimistic EMA backup (Eq. 26, 40), a' = ODE(v; s', z)
    flow v_θ     flow matching on dataset chunks, and -mean Q(s, ODE(v; s, z)) / α through all T
                 steps

Differences from the paper's text
    Eq. 36 multiplies the flow matching loss by α. Dividing the other term by α differs by the scale
    of the loss alone, which Adam all but undoes, and is what the published scores were made with.
    Eq. 37-39 evaluate v at a^{i-1}, a misprint of a^i.
"""

from typing import NamedTuple

from torch import Tensor

from qam_lightning.core.flow import flow_matching_loss
from qam_lightning.data.batch import Batch
from qam_lightning.methods.base import Losses, Metrics
from qam_lightning.methods.flow import FlowMethod
from qam_lightning.methods.noise import CloningNoise, NoiseSource, PolicyNoise
from qam_lightning.methods.settings import setting
from qam_lightning.nets.frozen import frozen


class FBRACNoise(NamedTuple):
    """What FBRAC's actor losses draw.

    Attributes:
        cloning: x_0 and u of flow matching.
        z: (B, D) standard normal, for the actions whose value the flow ascends.
    """

    cloning: CloningNoise
    z: Tensor


class FBRAC(FlowMethod):
    """Critic and one flow that clones and ascends the critic at once."""

    alpha: float = setting(above=0)
    """Behaviour coefficient α."""

    def build(self) -> None:
        super().build()
        self.flow = self.velocity_field()

    def actor_noise(self, draw: NoiseSource) -> FBRACNoise:
        cloning = self.cloning_noise(draw)
        return FBRACNoise(cloning, z=draw.normal(self.dim))

    def actor_losses(self, batch: Batch, noise: FBRACNoise) -> tuple[Losses, Metrics]:
        s, x_0, u = batch.observations, *noise.cloning
        field = self.flow.at(s)
        # Backpropagation through all T steps of the sampler (Eq. 36-37).
        action = self.sample(field, noise.z)
        losses = {
            "actor/flow_loss": flow_matching_loss(field, x_0, batch.actions, u, batch.valid),
            "actor/q_loss": -frozen(self.critic)(s, action).mean() / self.alpha,
        }
        return losses, {}

    def policy(self, s: Tensor, noise: PolicyNoise) -> Tensor:
        return self.sample(self.flow.at(s), noise.z)
