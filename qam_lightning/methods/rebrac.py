"""ReBRAC: TD3 with behaviour cloning (Sec. C.1, "Gaussian").

Citation
    Tarasov et al., "Revisiting the minimalist approach to offline reinforcement learning",
    NeurIPS 2023.

Trained by what
    critic Q_φ      TD with pessimistic EMA backup (Eq. 26), a' = EMA π(s') + clipped noise
    actor π         -λ mean pess Q(s, π(s)) + α ‖π(s) - a‖², λ = 1 / sg mean |pess Q(s, π(s))|

The actor and both moving averages are updated on every second gradient step: 2, 4, ...

Differences from the paper's text
    The paper gives the two hyperparameters, the noise's bound of 0.5 and the delay of 2; the losses
    are those of the work it cites, with the pessimistic value of Eq. 26 in place of a minimum.
    The noise that smooths the backup also disturbs the actions in the environment.
    Chunks that run into the next trajectory do not enter the cloning loss.
    λ takes a mean |Q| below 1e-6 for 1e-6: values of 0 do not end in a division by 0.
"""

from typing import Any

from torch import Tensor

from qam_lightning.core.critic import pessimistic
from qam_lightning.data.batch import Batch
from qam_lightning.methods.base import Losses, Method, Noise
from qam_lightning.nets.deterministic import DeterministicActor
from qam_lightning.nets.frozen import frozen
from qam_lightning.util.errors import require

LEAST_VALUE = 1e-6


class ReBRAC(Method):
    """A deterministic actor that is drawn to the data.

    Args:
        alpha: behaviour coefficient α >= 0.
        noise_scale: σ >= 0, standard deviation of the noise on actions; 0 is none.
        shared: what every method takes.
    """

    delay = 2
    actor: DeterministicActor

    def __init__(self, alpha: float, noise_scale: float, **shared: Any) -> None:
        """Build the actor."""
        super().__init__(**shared)
        require(0 <= alpha < float("inf"), type(self), "alpha", alpha, "at least 0 and finite")
        self.alpha = alpha
        self.actor = DeterministicActor(*self.sizes, noise_scale)

    def backup_value(self, s: Tensor, noise: Noise) -> Tensor:
        """Return pess EMA-Q(s, a') with the moving average's noisy action a'."""
        return pessimistic(self.critic_ema(s, self.actor.target_act(s, noise["z"])), self.rho)

    def actor_losses(self, batch: Batch, noise: Noise) -> tuple[Losses, dict[str, Tensor]]:
        """The scale-free value loss and the cloning loss, which cut chunks do not enter."""
        s = batch.observations
        action = self.actor(s)
        value = pessimistic(frozen(self.critic)(s, action), self.rho)
        scale = 1.0 / self.batch_mean(value.abs()).clamp(min=LEAST_VALUE)
        distance = (action - batch.actions).square().sum(-1)
        losses = {
            "actor/q_loss": -scale * value.mean(),
            "actor/bc_loss": self.alpha * (batch.valid * distance).mean(),
        }
        return losses, {"actor/q_scale": scale}
