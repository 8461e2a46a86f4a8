"""BAM: QAM's ablation that backpropagates through the memoryless SDE (Eq. 12, 18).

Trained by what
    critic, f_β     as in QAM
    residual f_θ    Σ_{i<T-1} 2 ‖f_θ‖² / σ_i² - τ pess Q(s, a_T) along the SDE, by backpropagation

Differences from the paper's text
    Eq. 12 is stated with the full adjoint; its gradient is that of the control problem of Eq. 18,
    which is differentiated directly here. The value at the end is the online critic's, pessimistic
    over its members, and is not clipped to the action box.
"""

from typing import Any

from torch import Tensor

from qam_lightning.batch import Batch
from qam_lightning.core.critic import pessimistic
from qam_lightning.core.memoryless import control_cost
from qam_lightning.methods.base import Losses, Method, Noise
from qam_lightning.nets.flow_pair import FlowPair
from qam_lightning.nets.frozen import frozen


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
