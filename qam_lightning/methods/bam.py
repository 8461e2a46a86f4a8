"""BAM: QAM's ablation that backpropagates through the memoryless SDE (Eq. 12, 18).

Citation
    The paper: Li, Levine, "Q-learning with adjoint matching", arXiv:2601.14234, 2026.
    Domingo-Enrich et al., "Adjoint matching: fine-tuning flow and diffusion generative models
    with memoryless stochastic optimal control", ICLR 2025.

Trained by what
    critic, f_β     as in QAM
    residual f_θ    Σ_{i<T-1} 2 ‖f_θ‖² / σ_i² - τ pess Q(s, a_T) along the SDE, by backpropagation

Differences from the paper's text
    Eq. 12 is stated with the full adjoint; its gradient is that of the control problem of Eq. 18,
    which is differentiated directly here. The value at the end is the online critic's, pessimistic
    over its members, and is not clipped to the action box.
    Eq. 18 prints ½ ‖f_θ‖² du. What the tilt costs under this SDE is ½ ‖2 f_θ / σ‖², here summed
    over the steps without the factor h, as Algorithm 1 sums QAM's loss. That leaves QAM's minimiser
    where it is, but weighs this cost T times: BAM tends to the tilt of temperature τ / T. In each
    discretisation, the cost is T times the KL divergence of its path from the behaviour's.
    Of QAM's differences, those in the SDE and in clipping gradients are BAM's too.
"""

from qam_lightning.core.critic import pessimistic
from qam_lightning.data.batch import Batch
from qam_lightning.methods.base import Losses, Metrics
from qam_lightning.methods.qam import QAM, QAMNoise
from qam_lightning.methods.settings import setting
from qam_lightning.nets.frozen import frozen


class BAM(QAM):
    """QAM's networks, trained by backpropagation through the SDE."""

    # The last step is the behaviour flow's alone: a single one would leave f_θ untrained.
    flow_steps: int = setting(default=10, at_least=2, at_most=10_000)
    """T, integration steps of the flow."""

    controls_last_step = False  # without noise, its control would have no cost

    def actor_losses(self, batch: Batch, noise: QAMNoise) -> tuple[Losses, Metrics]:
        s = batch.observations
        behavior, fine_tuned = self.recorded(s)
        path = self.sample_path(behavior, fine_tuned, noise)
        value = pessimistic(frozen(self.critic)(s, path.end), self.rho)
        cost = self.scheme.control_cost(self.control(path, behavior, fine_tuned), path)
        losses = {
            **self.behavior_losses(self.behavior.at(s), batch, noise.cloning),
            "actor/control_cost": cost.mean(),
            "actor/value_loss": -self.tau * value.mean(),
        }
        return losses, {}
