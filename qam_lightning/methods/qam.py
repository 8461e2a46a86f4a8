"""QAM: Q-learning with Adjoint Matching (Algorithm 1, Eq. 17, 21-26).

Citation
    The paper: Li, Levine, "Q-learning with adjoint matching", arXiv:2601.14234, 2026.
    Domingo-Enrich et al., "Adjoint matching: fine-tuning flow and diffusion generative models
    with memoryless stochastic optimal control", ICLR 2025.

Trained by what
    critic Q_φ       TD with pessimistic EMA backup (Eq. 26), a' = ODE(f_β + f_θ; s', z)
    behaviour f_β    flow matching on dataset chunks (Eq. 17)
    residual f_θ     adjoint matching against τ ∇_a mean_K EMA-Q (Eq. 21)

Differences from the paper's text
    f_β in the SDE and the adjoint is its EMA; ODE sampling uses the online networks.
    σ and 1/u are shifted by the step h and the SDE's last step is a plain Euler step of f_β,
    which keeps Eq. 24 finite at u = 0 and free of noise at u = 1.
    The adjoint starts at the gradient of Q(s, clip a): it vanishes outside the action box.
    Gradients are clipped by joint norm, as the published scores were made; the text says
    element-wise, which is ``clip_mode: value``.
    Eq. 25 takes the Jacobian at the state and time after a step; here it is the state before it,
    a_i, at time u_i + h, as for the published scores.
    The Q of the adjoint is the mean of the EMA critics where Eq. 22 onwards writes Q_φ; the loss
    is Algorithm 1's sum over the steps, without the h of Eq. 21's integral.
"""

from typing import Any

from torch import Tensor

from qam_lightning.data.batch import Batch
from qam_lightning.methods.base import Losses, Method, Noise
from qam_lightning.nets.flow_pair import FlowPair


class QAM(Method):
    """Critic, behaviour flow and a fine-tuned flow trained by adjoint matching.

    Args:
        tau: inverse temperature τ >= 0; the policy tends to π_β exp(τ Q), 0 is cloning.
        residual: whether f_θ is a residual on f_β (the paper's choice) or the full velocity.
        shared: what every method takes.
    """

    actor: FlowPair

    def __init__(self, tau: float, residual: bool, **shared: Any) -> None:
        """Build the flows."""
        super().__init__(**shared)
        self.actor = FlowPair(*self.sizes, self.flow_steps, tau, residual)

    def actor_losses(self, batch: Batch, noise: Noise) -> tuple[Losses, dict[str, Tensor]]:
        """Flow matching for f_β (Eq. 17), adjoint matching for f_θ (Eq. 21)."""
        return self.actor.matching_losses(batch, noise, self.critic_ema)
