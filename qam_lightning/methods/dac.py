"""DAC: diffusion actor-critic, a diffusion policy that climbs the critic (Eq. 53-57).

Citation
    Fang et al., "Diffusion actor-critic: formulating constrained policy iteration as diffusion
    noise regression for offline reinforcement learning", ICLR 2025.

Trained by what
    critic Q_φ      TD with pessimistic EMA backup (Eq. 26), a' sampled by Eq. 55-56
    predictor ε_θ   turns against ∇_a mean_K EMA-Q(s, a^i) (Eq. 54) and, times η, predicts the
                    noise (Eq. 49)

Differences from the paper's text
    The first term of Eq. 54 is linear, as Eq. 53 derives it: no norm is taken. It is weighted with
    sqrt(1 - ᾱ_i), the scale between a score and ε.
    Eq. 53 holds with η = 1 / (2τ), not 2 / τ.
    Both terms are means over the chunk's dimensions where Eq. 49 and 54 write sums.
    Eq. 55 prints the mean of a^{i-1}; what the text calls the denoised action, and what is clipped,
    is (a^i - sqrt(1 - ᾱ_i) ε_θ) / sqrt(ᾱ_i). Eq. 56 drops a division by 1 - ᾱ_i.
    Chunks that run into the next trajectory carry no weight.
    The sampler adds no noise at its last step; Eq. 56 leaves that open.
    Steps are counted 1..T where Eq. 49 and 54 count 0..T-1; ε_θ reads that number.
"""

from typing import Any

from torch import Tensor

from qam_lightning.core.diffusion import ascent_loss, posterior_sample
from qam_lightning.core.draws import Draw
from qam_lightning.data.batch import Batch
from qam_lightning.methods.base import Losses, Method, Noise
from qam_lightning.nets.diffusion import DiffusionPolicy
from qam_lightning.util.errors import require


class DAC(Method):
    """A diffusion policy that denoises the data and follows the critic's slope.

    Args:
        eta: weight η >= 0 of denoising dataset actions; the policy tends to
            π_β exp(τ Q) with τ = 1 / (2η).
        shared: what every method takes; ``flow_steps`` counts diffusion steps.
    """

    actor: DiffusionPolicy

    def __init__(self, eta: float, **shared: Any) -> None:
        """Build the diffusion policy."""
        super().__init__(**shared)
        require(0 <= eta < float("inf"), type(self), "eta", eta, "at least 0 and finite")
        self.eta = eta
        self.actor = DiffusionPolicy(*self.sizes, self.flow_steps, posterior_sample)

    def policy_draws(self) -> dict[str, Draw]:
        """The sampler's noise."""
        return self.actor.policy_draws()

    def actor_losses(self, batch: Batch, noise: Noise) -> tuple[Losses, dict[str, Tensor]]:
        """Ascent along the critic's slope (Eq. 54) and denoising (Eq. 49)."""
        at = self.actor.noised(batch, noise, self.critic_ema)
        losses = {
            "actor/ascent_loss": ascent_loss(at.predicted, at.slope, at.alpha_bar, batch.valid),
            "actor/denoising_loss": self.eta * at.denoising_loss(batch.valid),
        }
        return losses, at.metrics()
