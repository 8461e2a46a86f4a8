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

import torch
from torch import Tensor

from qam_lightning.core.critic import expectile_loss, pessimistic
from qam_lightning.data.batch import Batch
from qam_lightning.methods.base import Losses, Metrics
from qam_lightning.methods.flow import FlowMethod
from qam_lightning.methods.noise import CloningNoise, NoiseSource, PolicyNoise
from qam_lightning.methods.settings import setting
from qam_lightning.nets.critic import ValueNetwork


class IFQL(FlowMethod):
    """A cloned flow; critic and value network learn from dataset actions alone."""

    kappa: float = setting(above=0, below=1)
    """κ, the expectile: 0.5 evaluates the behaviour, near 1 the best in the data."""
    best_of_n: int = setting(default=32, at_least=1)
    """Candidate chunks when acting; the one of largest value is taken."""

    def build(self) -> None:
        super().build()
        self.behavior = self.velocity_field()
        self.value = ValueNetwork(self.spaces.obs_dim, self.width, self.depth)

    def candidate_score(self, q: Tensor) -> Tensor:
        """Return min_K q."""
        return q.amin(0)

    def next_noise(self, draw: NoiseSource) -> None:
        """Draw nothing: the target samples no action."""

    def next_value(self, s: Tensor, noise: None) -> Tensor:
        """Return V(s) (Eq. 84)."""
        return self.value(s)

    def actor_noise(self, draw: NoiseSource) -> CloningNoise | None:
        return self.behavior_noise(draw)

    def actor_losses(self, batch: Batch, noise: CloningNoise | None) -> tuple[Losses, Metrics]:
        s, a = batch.observations, batch.actions
        value = self.value(s)
        with torch.no_grad():
            target = pessimistic(self.critic_ema(s, a), self.rho)
        losses = {
            **self.behavior_losses(self.behavior.at(s), batch, noise),
            "value/loss": expectile_loss(value, target, self.kappa),  # Eq. 85
        }
        return losses, {"value/mean": value.detach().mean()}

    def policy(self, s: Tensor, noise: PolicyNoise) -> Tensor:
        return self.sample(self.behavior.at(s), noise.z)

    def behavior_policy(self, s: Tensor, noise: PolicyNoise) -> Tensor:
        return self.policy(s, noise)
