"""CGQL: a behaviour flow guided by the critic's slope at noisy actions (Eq. 60-62).

Citation
    The paper: Li, Levine, "Q-learning with adjoint matching", arXiv:2601.14234, 2026.
    Dhariwal, Nichol, "Diffusion models beat GANs on image synthesis", NeurIPS 2021: guidance.

Trained by what
    critic Q_φ        TD with pessimistic EMA backup (Eq. 26), a' from the guided flow
    behaviour v_β     flow matching on dataset chunks (Eq. 17)

Acts with v_β + ϑ ((1 - u) τ ∇_a mean_K Q(s, a_u) + a_u) / u, which no loss sees.

Differences from the paper's text
    v_β is the flow's EMA; Q is the online critic.
    The first step, at u = 0, is not guided: Eq. 60 is singular there.
    The critic also reads the flow time, as in CGQL-MSE and CGQL-Linex, and is always told u = 1.
"""

from typing import Any

from torch import Tensor

from qam_lightning.data.batch import Batch
from qam_lightning.methods.base import Losses, Method, Noise
from qam_lightning.nets.guided_flow import GuidedFlow, TimedCritic


class CGQL(Method):
    """A cloned flow, guided by a critic of clean actions.

    Args:
        tau: inverse temperature τ >= 0 of the guidance.
        vartheta: its strength ϑ >= 0; 0 is cloning.
        shared: what every method takes.
    """

    actor: GuidedFlow

    def __init__(self, tau: float, vartheta: float, **shared: Any) -> None:
        """Build the flow."""
        super().__init__(**shared)
        self.actor = GuidedFlow(*self.sizes, self.flow_steps, tau=tau, vartheta=vartheta)

    def make_critic(self, in_dim: int, width: int, depth: int, members: int) -> TimedCritic:
        """Build critics that also read the flow time."""
        return TimedCritic(in_dim, width, depth, members)

    def policy(self, s: Tensor, noise: Noise) -> Tensor:
        """Return clip(ODE(v; s, z)), guided by the values of clean actions."""
        return self.actor.guided_act(s, noise["z"], lambda a, u: self.critic(s, a).mean(0))

    def actor_losses(self, batch: Batch, noise: Noise) -> tuple[Losses, dict[str, Tensor]]:
        """Flow matching (Eq. 17)."""
        return {"actor/flow_loss": self.actor.cloning_loss(batch, noise)}, {}
