"""BC: flow behaviour cloning, and nothing else (Eq. 17).

Citation
    Lipman et al., "Flow matching for generative modeling", ICLR 2023.

Trained by what
    behaviour f_β    flow matching on dataset chunks (Eq. 17)

BC is not a method of the paper, but a part of most of its methods. It has no critic, so an update
costs only what cloning costs. With ``pretrained``, other methods start from its flow and the flow's
moving average.
"""

from torch import Tensor

from qam_lightning.data.batch import Batch
from qam_lightning.methods.base import Losses, Metrics
from qam_lightning.methods.flow import FlowMethod
from qam_lightning.methods.noise import CloningNoise, NoiseSource, PolicyNoise
from qam_lightning.nets.frozen import ema_copy
from qam_lightning.util.errors import require


class BC(FlowMethod):
    """A cloned flow, which acts as it is."""

    has_critic = False
    acting_settings = behavior_settings = ("flow_steps", "temperature", "sampler")

    def _check_settings(self) -> None:
        super()._check_settings()
        expected = "False: cloning is all that it trains"
        require(not self.freeze_behavior, type(self), "freeze_behavior", True, expected)

    def build(self) -> None:
        super().build()
        self.behavior = self.velocity_field()
        self.behavior_ema = ema_copy(self.behavior)

    def actor_noise(self, draw: NoiseSource) -> CloningNoise | None:
        return self.behavior_noise(draw)

    def actor_losses(self, batch: Batch, noise: CloningNoise | None) -> tuple[Losses, Metrics]:
        return self.behavior_losses(self.behavior.at(batch.observations), batch, noise), {}

    def policy(self, s: Tensor, noise: PolicyNoise) -> Tensor:
        return self.sample(self.behavior.at(s), noise.z)

    def behavior_policy(self, s: Tensor, noise: PolicyNoise) -> Tensor:
        return self.policy(s, noise)
