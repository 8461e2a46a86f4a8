"""DAC: diffusion actor-critic, a diffusion policy that ascends the critic (Eq. 53-57).

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

from qam_lightning.core.adjoint import action_gradient
from qam_lightning.core.diffusion import ascent_loss, diffuse, posterior_sample, prediction_loss
from qam_lightning.data.batch import Batch
from qam_lightning.methods.base import Losses, Metrics
from qam_lightning.methods.diffusion import DiffusionMethod
from qam_lightning.methods.noise import DiffusionNoise


class DAC(DiffusionMethod):
    """A diffusion policy that denoises the data and ascends the critic.

    The policy tends to π_β exp(τ Q) with τ = 1 / (2η).
    """

    sampler = staticmethod(posterior_sample)

    def actor_losses(self, batch: Batch, noise: DiffusionNoise) -> tuple[Losses, Metrics]:
        s, epsilon = batch.observations, noise.epsilon
        i, alpha_bar = self.actor.step_of(noise.u)
        a = diffuse(batch.actions, epsilon, alpha_bar)
        dq_da = action_gradient(lambda x: self.critic_ema(s, x).mean(0), a)
        predicted = self.actor(s, a, i)
        losses = {
            # Eq. 54, then Eq. 49.
            "actor/ascent_loss": ascent_loss(predicted, dq_da, alpha_bar, batch.valid),
            "actor/denoising_loss": self.eta * prediction_loss(predicted, epsilon, batch.valid),
        }
        return losses, {"actor/q_grad_rms": dq_da.square().mean().sqrt()}
