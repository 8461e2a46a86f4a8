"""QSM: Q-score matching, a diffusion policy whose score is the critic's slope (Eq. 44-52).

Citation
    Psenka et al., "Learning a diffusion model policy from rewards via Q-score matching", ICML 2024.

Trained by what
    critic Q_φ      TD with pessimistic EMA backup (Eq. 26), a' sampled by Eq. 51
    predictor ε_θ   matches -τ ∇_a mean_K EMA-Q(s, a^i) (Eq. 48) and, times η, the noise (Eq. 49)

Differences from the paper's text
    Eq. 48 matches +τ ∇_a Q. What a sampler subtracts is ε_θ, which points against the score of
    exp(τ Q), hence the minus.
    Squared errors are means over the chunk's dimensions where Eq. 48-49 write sums.
    Chunks that run into the next trajectory carry no weight.
    The sampler adds no noise at its last step; Eq. 51 leaves that open.
    Steps are counted 1..T where Eq. 46-49 count 0..T-1; ε_θ reads that number.
"""

from typing import Any

from torch import Tensor

from qam_lightning.core.diffusion import ancestral_sample, prediction_loss
from qam_lightning.core.draws import Draw
from qam_lightning.data.batch import Batch
from qam_lightning.methods.base import Losses, Method, Noise
from qam_lightning.nets.diffusion import DiffusionPolicy
from qam_lightning.util.errors import require


class QSM(Method):
    """A diffusion policy drawn to the score of exp(τ Q) and to the data.

    Args:
        tau: inverse temperature τ >= 0 of the score.
        eta: weight η >= 0 of denoising dataset actions.
        shared: what every method takes; ``flow_steps`` counts diffusion steps.
    """

    actor: DiffusionPolicy

    def __init__(self, tau: float, eta: float, **shared: Any) -> None:
        """Build the diffusion policy."""
        super().__init__(**shared)
        require(0 <= tau < float("inf"), type(self), "tau", tau, "at least 0 and finite")
        require(0 <= eta < float("inf"), type(self), "eta", eta, "at least 0 and finite")
        self.tau, self.eta = tau, eta
        self.actor = DiffusionPolicy(*self.sizes, self.flow_steps, ancestral_sample)

    def policy_draws(self) -> dict[str, Draw]:
        """The sampler's noise."""
        return self.actor.policy_draws()

    def actor_losses(self, batch: Batch, noise: Noise) -> tuple[Losses, dict[str, Tensor]]:
        """Score matching (Eq. 48) and denoising (Eq. 49)."""
        at = self.actor.noised(batch, noise, self.critic_ema)
        losses = {
            "actor/score_loss": prediction_loss(at.predicted, -self.tau * at.slope, batch.valid),
            "actor/denoising_loss": self.eta * at.denoising_loss(batch.valid),
        }
        return losses, at.metrics()
