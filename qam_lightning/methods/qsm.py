"""QSM: a diffusion policy whose score is the critic's action gradient (Eq. 44-52).

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

from qam_lightning.core.adjoint import action_gradient
from qam_lightning.core.diffusion import ancestral_sample, diffuse, prediction_loss
from qam_lightning.data.batch import Batch
from qam_lightning.methods.base import Losses, Metrics
from qam_lightning.methods.diffusion import DiffusionMethod
from qam_lightning.methods.noise import DiffusionNoise
from qam_lightning.methods.settings import setting


class QSM(DiffusionMethod):
    """A diffusion policy drawn to the score of exp(τ Q) and to the data."""

    tau: float = setting(at_least=0)
    """Inverse temperature τ of the score."""
    sampler = staticmethod(ancestral_sample)

    def actor_losses(self, batch: Batch, noise: DiffusionNoise) -> tuple[Losses, Metrics]:
        s, epsilon = batch.observations, noise.epsilon
        i, alpha_bar = self.actor.step_of(noise.u)
        a = diffuse(batch.actions, epsilon, alpha_bar)
        dq_da = action_gradient(lambda x: self.critic_ema(s, x).mean(0), a)
        predicted = self.actor(s, a, i)
        losses = {
            # Eq. 48, then Eq. 49.
            "actor/score_loss": prediction_loss(predicted, -self.tau * dq_da, batch.valid),
            "actor/denoising_loss": self.eta * prediction_loss(predicted, epsilon, batch.valid),
        }
        return losses, {"actor/q_grad_rms": dq_da.square().mean().sqrt()}
