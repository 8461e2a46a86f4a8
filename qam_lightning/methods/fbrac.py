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

from typing import Any

from torch import Tensor

from qam_lightning.core.draws import Draw
from qam_lightning.data.batch import Batch
from qam_lightning.methods.base import Losses, Method, Noise
from qam_lightning.nets.flow_policy import FlowPolicy
from qam_lightning.nets.frozen import frozen
from qam_lightning.util.errors import require


class FBRAC(Method):
    """Critic and one flow that clones and ascends the critic at once.

    Args:
        alpha: behaviour coefficient α > 0.
        shared: what every method takes.
    """

    actor: FlowPolicy

    def __init__(self, alpha: float, **shared: Any) -> None:
        """Build the flow."""
        super().__init__(**shared)
        require(0 < alpha < float("inf"), type(self), "alpha", alpha, "above 0 and finite")
        self.alpha = alpha
        self.actor = FlowPolicy(*self.sizes, self.flow_steps)

    def actor_draws(self) -> dict[str, Draw]:
        """The cloning loss's draws and the z of the actions to improve."""
        return {**super().actor_draws(), "sample/z": Draw((self.dim,))}

    def actor_losses(self, batch: Batch, noise: Noise) -> tuple[Losses, dict[str, Tensor]]:
        """Flow matching, and the critic's value by backpropagation through time (Eq. 36-37)."""
        s = batch.observations
        q = frozen(self.critic)(s, self.actor.sample(s, noise["sample/z"]))
        losses = {
            "actor/flow_loss": self.actor.cloning_loss(batch, noise),
            "actor/q_loss": -q.mean() / self.alpha,
        }
        return losses, {}
