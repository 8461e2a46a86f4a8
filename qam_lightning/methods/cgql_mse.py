"""CGQL-MSE: CGQL with a critic of noisy actions, learned by regression (Eq. 63, 71-72).

Citation
    The paper: Li, Levine, "Q-learning with adjoint matching", arXiv:2601.14234, 2026.
    Dhariwal, Nichol, "Diffusion models beat GANs on image synthesis", NeurIPS 2021: guidance.

Trained by what
    critic Q_φ(s, a, u)   at u = 1 TD with pessimistic EMA backup (Eq. 26), a' from the guided flow;
                          at other u, times ϱ, squared error of Q(s, a_u, u) to EMA-Q(s, a, 1)
    behaviour v_β         flow matching on dataset chunks (Eq. 17)

Acts with v_β + ϑ ((1 - u) τ ∇_a mean_K Q(s, a_u, u) + a_u) / u.
No gradient passes through the guidance. It changes the acting policy and the TD target.

Differences from the paper's text
    v_β is the flow's EMA; the guiding Q is the online critic.
    The first step, at u = 0, is not guided: Eq. 72 is singular there.
    Each member regresses on its own EMA. Chunks that run into the next trajectory carry no weight.
"""

from typing import NamedTuple

from torch import Tensor

from qam_lightning.core.flow import Field, interpolate
from qam_lightning.core.guidance import squared_error
from qam_lightning.data.batch import Batch
from qam_lightning.methods.base import Losses, Metrics
from qam_lightning.methods.cgql import CGQL
from qam_lightning.methods.noise import CloningNoise, NoiseSource
from qam_lightning.methods.settings import setting


class NoisyCriticNoise(NamedTuple):
    """What the actor losses of CGQL-MSE and CGQL-Linex draw.

    Attributes:
        cloning: x_0 and u of flow matching; None where the behaviour flow is frozen.
        u: (B, 1) flow times of the noisy actions, uniform on [0, 1).
        z: (B, D) standard normal, their noise.
    """

    cloning: CloningNoise | None
    u: Tensor
    z: Tensor


class CGQLMSE(CGQL):
    """A cloned flow, guided by a critic that regresses on the mean value at noisy actions."""

    varrho: float = setting(at_least=0)
    """Weight ϱ of the critic's regression at noisy actions."""

    def actor_noise(self, draw: NoiseSource) -> NoisyCriticNoise:
        cloning = super().actor_noise(draw)
        return NoisyCriticNoise(cloning, u=draw.uniform(1), z=draw.normal(self.dim))

    def actor_losses(self, batch: Batch, noise: NoisyCriticNoise) -> tuple[Losses, Metrics]:
        losses, _ = super().actor_losses(batch, noise.cloning)
        # The critic at noisy actions learns from its target at clean ones (Eq. 71).
        s, a, u = batch.observations, batch.actions, noise.u
        predicted = self.critic(s, interpolate(noise.z, a, u), u)
        target = self.critic_ema(s, a).detach()
        error = (batch.valid * self.error(predicted, target)).mean()
        losses["critic/noisy_loss"] = self.varrho * error
        return losses, {"critic/noisy_gap": (target - predicted.detach()).mean()}

    def error(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Return the element-wise error of Q(s, a_u, u) against Q(s, a, 1) (Eq. 63)."""
        return squared_error(predicted, target)

    def guiding_value(self, s: Tensor) -> Field:
        """Return (a, u) to the value (B,) of noisy actions (Eq. 72)."""
        q = self.critic.at(s)
        return lambda a, u: q(a, u).mean(0)
