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
    where it is, but weighs this cost T times: BAM tends to the tilt of temperature τ / T.
    Of QAM's differences, those in the SDE and in clipping gradients are BAM's too.
"""

from typing import Any

from torch import Tensor

from qam_lightning.core.critic import pessimistic
from qam_lightning.core.memoryless import control_cost
from qam_lightning.data.batch import Batch
from qam_lightning.methods.base import Losses, Method, Noise
from qam_lightning.nets.flow_pair import FlowPair
from qam_lightning.nets.frozen import frozen
from qam_lightning.util.errors import require


class BAM(Method):
    """QAM's networks, trained by backpropagation through the SDE.

    Args:
        tau: inverse temperature τ >= 0 of the flow's tilt.
        residual: whether f_θ is a residual on f_β (the paper's choice) or the full velocity.
        shared: what every method takes.
    """

    actor: FlowPair

    def __init__(self, tau: float, residual: bool, **shared: Any) -> None:
        """Build the flows."""
        super().__init__(**shared)
        # The last step is the behaviour flow's alone: a single one would leave f_θ untrained.
        require(
            self.flow_steps >= 2, type(self), "flow_steps", self.flow_steps, "at least 2 for BAM"
        )
        self.actor = FlowPair(*self.sizes, self.flow_steps, tau, residual)

    def actor_losses(self, batch: Batch, noise: Noise) -> tuple[Losses, dict[str, Tensor]]:
        """Flow matching for f_β, the control objective for f_θ."""
        s = batch.observations
        path = self.actor.path(s, noise)
        value = pessimistic(frozen(self.critic)(s, path.end), self.rho)
        cost = control_cost(self.actor.control(s), path)
        losses = {
            "actor/flow_loss": self.actor.cloning_loss(batch, noise),
            "actor/control_cost": cost.mean(),
            "actor/value_loss": -self.actor.tau * value.mean(),
        }
        return losses, {}
