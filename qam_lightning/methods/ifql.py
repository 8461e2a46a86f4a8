"""IFQL: implicit Q-learning with a cloned flow, acting with the best of N (Eq. 84-86).

Citation
    Park, Li, Levine, "Flow Q-learning", arXiv:2502.02538, 2025, where it is a baseline.
    Hansen-Estruch et al., "IDQL: implicit Q-learning as an actor-critic method with diffusion
    policies", arXiv:2304.10573, 2023, whose flow counterpart it is.
    Kostrikov, Nair, Levine, "Offline reinforcement learning with implicit Q-learning",
    arXiv:2110.06169, 2021.

Trained by what
    value V_ξ        expectile κ of pess EMA-Q(s, a) at dataset actions (Eq. 26, 85)
    critic Q_φ       squared error on reward + γ^H · mask · V(s') (Eq. 84)
    behaviour v_β    flow matching on dataset chunks (Eq. 17)

Acts with the candidate of largest min_K Q among ``best_of_n`` from v_β (Eq. 86), 32 in the paper.

Differences from the paper's text
    Eq. 86 leaves open which value of the ensemble ranks the candidates: it is their minimum.
    Chunks that were cut short take part in V's loss, as they did for the published scores.
"""

from typing import Any

import torch
from torch import Tensor

from qam_lightning.core.critic import expectile_loss, pessimistic
from qam_lightning.core.draws import Draw
from qam_lightning.data.batch import Batch
from qam_lightning.methods.base import Losses, Method, Noise
from qam_lightning.nets.flow_policy import ClonedFlow
from qam_lightning.nets.value import ValueNetwork
from qam_lightning.util.errors import require


class IFQL(Method):
    """Critic and value network that never ask about actions outside the data, and a cloned flow.

    Args:
        kappa: κ in (0, 1), the expectile: 0.5 evaluates the behaviour, near 1 the best in the data.
        shared: what every method takes.
    """

    actor: ClonedFlow

    def __init__(self, kappa: float, **shared: Any) -> None:
        """Build the flow and the value network."""
        super().__init__(**shared)
        require(0 < kappa < 1, type(self), "kappa", kappa, "strictly between 0 and 1")
        self.kappa = kappa
        obs_dim, _, width, depth = self.sizes
        self.actor = ClonedFlow(*self.sizes, self.flow_steps)
        self.value = ValueNetwork(obs_dim, width, depth)

    def merit(self, q: Tensor) -> Tensor:
        """Return min_K q."""
        return q.amin(0)

    def backup_draws(self) -> dict[str, Draw]:
        """Nothing: the backup samples no action."""
        return {}

    def backup_value(self, s: Tensor, noise: Noise) -> Tensor:
        """Return V(s) (Eq. 84)."""
        return self.value(s)

    def actor_losses(self, batch: Batch, noise: Noise) -> tuple[Losses, dict[str, Tensor]]:
        """Flow matching for v_β (Eq. 17), expectile regression for V_ξ (Eq. 85)."""
        s = batch.observations
        value = self.value(s)
        with torch.no_grad():
            target = pessimistic(self.critic_ema(s, batch.actions), self.rho)
        losses = {
            "actor/flow_loss": self.actor.cloning_loss(batch, noise),
            "value/loss": expectile_loss(value, target, self.kappa),
        }
        return losses, {"value/mean": value.detach().mean()}
