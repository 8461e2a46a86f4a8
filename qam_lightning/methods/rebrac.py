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
    In λ the mean |Q| is at least 1e-6, so values of 0 cause no division by 0.
"""

from typing import Any

from torch import Tensor

from qam_lightning.core.critic import pessimistic
from qam_lightning.data.batch import Batch
from qam_lightning.methods.base import Losses, Method, Metrics
from qam_lightning.methods.noise import PolicyNoise
from qam_lightning.methods.settings import setting
from qam_lightning.nets.frozen import ema_copy, frozen
from qam_lightning.nets.policies import DeterministicPolicy

MIN_VALUE = 1e-6
NOISE_BOUND = 0.5


class ReBRAC(Method):
    """A deterministic actor that is drawn to the data."""

    alpha: float = setting(at_least=0)
    """Behaviour coefficient α."""
    noise_scale: float = setting(at_least=0)
    """σ, standard deviation of the noise on actions; 0 is none."""

    actor_delay = 2

    def build(self) -> None:
        super().build()
        self.actor = DeterministicPolicy(self.spaces.obs_dim, self.dim, self.width, self.depth)
        self.actor_ema = ema_copy(self.actor)

    def next_value(self, s: Tensor, noise: PolicyNoise) -> Tensor:
        """Return pess EMA-Q(s, a') with the noisy action a' of the actor's moving average."""
        action = self.noisy_action(self.actor_ema(s), noise.z)
        return pessimistic(self.critic_ema(s, action), self.rho)

    def actor_losses(self, batch: Batch, noise: Any) -> tuple[Losses, Metrics]:
        s = batch.observations
        action = self.actor(s)
        value = pessimistic(frozen(self.critic)(s, action), self.rho)
        scale = 1.0 / self.batch_mean(value.abs()).clamp(min=MIN_VALUE)
        distance = (action - batch.actions).square().sum(-1)
        losses = {
            "actor/q_loss": -scale * value.mean(),
            "actor/bc_loss": self.alpha * (batch.valid * distance).mean(),
        }
        return losses, {"actor/q_scale": scale}

    def policy(self, s: Tensor, noise: PolicyNoise) -> Tensor:
        return self.noisy_action(self.actor(s), noise.z)

    def noisy_action(self, action: Tensor, z: Tensor) -> Tensor:
        """Return clip(a + clip(σ z, ±0.5), ±1), (B, D)."""
        noise = (self.noise_scale * z).clamp(-NOISE_BOUND, NOISE_BOUND)
        return (action + noise).clamp(-1.0, 1.0)
