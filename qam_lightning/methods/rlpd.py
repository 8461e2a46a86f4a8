"""RLPD: soft actor-critic from scratch online, on offline and online data (Sec. 5, App. C.1).

Citation
    Ball et al., "Efficient online reinforcement learning with offline data", ICML 2023.

Trained by what
    critic Q_φ          TD with pessimistic EMA backup (Eq. 26), a' ~ π(s'), no entropy bonus
    Gaussian π          -pess Q(s, a) + ent_coef · log π(a | s), a ~ π(s)
    entropy coefficient its log, towards entropy -D/2

It has no offline phase: actions are random until training starts, and every batch is then half
offline, half online data.

Differences from the paper's text
    The paper names the algorithm only. Its actor ascends the pessimistic value that the backup
    uses, where soft actor-critic takes the members' minimum.
"""

from typing import Any

from torch import Tensor

from qam_lightning.core.critic import pessimistic
from qam_lightning.data.batch import Batch
from qam_lightning.methods.base import Losses, Method, Noise
from qam_lightning.nets.frozen import frozen
from qam_lightning.nets.soft_policy import SoftPolicy


class RLPD(Method):
    """Soft actor-critic with an ensemble of pessimistic critics.

    Args:
        shared: what every method takes.
    """

    offline_phase = False
    actor: SoftPolicy

    def __init__(self, **shared: Any) -> None:
        """Build the policy."""
        super().__init__(**shared)
        self.actor = SoftPolicy(*self.sizes)

    def actor_losses(self, batch: Batch, noise: Noise) -> tuple[Losses, dict[str, Tensor]]:
        """Soft actor-critic's losses."""
        s, critic = batch.observations, frozen(self.critic)
        return self.actor.losses(s, noise, lambda a: pessimistic(critic(s, a), self.rho))
