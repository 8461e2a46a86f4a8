"""CGQL-MSE: CGQL with a critic of noisy actions, learned by regression (Eq. 63, 71-72).

Citation
    The paper: Li, Levine, "Q-learning with adjoint matching", arXiv:2601.14234, 2026.
    Dhariwal, Nichol, "Diffusion models beat GANs on image synthesis", NeurIPS 2021: guidance.

Trained by what
    critic Q_φ(s, a, u)   at u = 1 TD with pessimistic EMA backup (Eq. 26), a' from the guided flow;
                          at other u, times ϱ, squared error of Q(s, a_u, u) to EMA-Q(s, a, 1)
    behaviour v_β         flow matching on dataset chunks (Eq. 17)

Acts with v_β + ϑ ((1 - u) τ ∇_a mean_K Q(s, a_u, u) + a_u) / u, which no loss sees.

Differences from the paper's text
    v_β is the flow's EMA; the guiding Q is the online critic.
    The first step, at u = 0, is not guided: Eq. 72 is singular there.
    Each member regresses on its own EMA. Chunks that run into the next trajectory carry no weight.
"""

from typing import Any

from torch import Tensor

from qam_lightning.core.guidance import squared_error
from qam_lightning.data.batch import Batch
from qam_lightning.methods.base import Losses, Method, Noise
from qam_lightning.nets.guided_flow import TimedCritic, TimeGuidedFlow


class CGQLMSE(Method):
    """A cloned flow, guided by a critic that regresses on the mean value at noisy actions.

    Args:
        tau: inverse temperature τ >= 0 of the guidance.
        vartheta: its strength ϑ >= 0; 0 is cloning.
        varrho: weight ϱ >= 0 of the critic's regression at noisy actions.
        shared: what every method takes.
    """

    actor: TimeGuidedFlow

    def make_critic(self, in_dim: int, width: int, depth: int, members: int) -> TimedCritic:
        """Build critics that also read the flow time."""
        return TimedCritic(in_dim, width, depth, members)

    def __init__(self, tau: float, vartheta: float, varrho: float, **shared: Any) -> None:
        """Build the flow."""
        super().__init__(**shared)
        own = {"tau": tau, "vartheta": vartheta, "varrho": varrho}
        self.actor = TimeGuidedFlow(*self.sizes, self.flow_steps, error=squared_error, **own)

    def policy(self, s: Tensor, noise: Noise) -> Tensor:
        """Return clip(ODE(v; s, z)), guided by the values of noisy actions."""
        return self.actor.guided_act(s, noise["z"], lambda a, u: self.critic(s, a, u).mean(0))

    def actor_losses(self, batch: Batch, noise: Noise) -> tuple[Losses, dict[str, Tensor]]:
        """Flow matching (Eq. 17) and the critic's regression at noisy actions (Eq. 71)."""
        return self.actor.losses(batch, noise, self.critic, self.critic_ema)
