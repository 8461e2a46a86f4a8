"""RLPD: soft actor-critic from scratch online, on offline and online data (Sec. 5, App. C.1).

Citation
    Ball et al., "Efficient online reinforcement learning with offline data", ICML 2023.

Trained by what
    critic Q_φ          TD with pessimistic EMA backup (Eq. 26), a' ~ π(s'), no entropy bonus
    Gaussian π          -pess Q(s, a) + c · log π(a | s), a ~ π(s); c is the entropy coefficient
    coefficient c       its log, towards entropy -D/2

It has no offline phase: actions are random until training starts, and every batch is then half
offline, half online data.

Differences from the paper's text
    The paper names the algorithm only. Its actor ascends the pessimistic value that the backup
    uses, where soft actor-critic takes the members' minimum.
"""

from torch import Tensor

from qam_lightning.core.critic import pessimistic
from qam_lightning.data.batch import Batch
from qam_lightning.methods.base import Losses, Method, Metrics
from qam_lightning.methods.losses import soft_actor_losses
from qam_lightning.methods.noise import NoiseSource, PolicyNoise
from qam_lightning.nets.frozen import frozen
from qam_lightning.nets.policies import EntropyCoefficient, TanhGaussian


class RLPD(Method):
    """Soft actor-critic with an ensemble of pessimistic critics."""

    offline_phase = False

    def build(self) -> None:
        super().build()
        self.actor = TanhGaussian(self.spaces.obs_dim, self.dim, self.width, self.depth)
        self.entropy_coefficient = EntropyCoefficient()

    def actor_noise(self, draw: NoiseSource) -> PolicyNoise:
        return self.policy_noise(draw)

    def actor_losses(self, batch: Batch, noise: PolicyNoise) -> tuple[Losses, Metrics]:
        s, critic = batch.observations, frozen(self.critic)
        action, log_prob = self.actor(s, noise.z)
        return soft_actor_losses(
            self.entropy_coefficient,
            action,
            log_prob,
            value=lambda a: pessimistic(critic(s, a), self.rho),
        )

    def policy(self, s: Tensor, noise: PolicyNoise) -> Tensor:
        return self.actor(s, noise.z)[0]
