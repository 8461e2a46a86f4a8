"""What the CGQL methods are made of: a flow guided by a critic that also reads the flow time."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from qam_lightning.core.adjoint import action_gradient
from qam_lightning.core.draws import Draw
from qam_lightning.core.flow import interpolate
from qam_lightning.core.guidance import integrate_guided
from qam_lightning.data.batch import Batch
from qam_lightning.nets.ensemble import CriticEnsemble
from qam_lightning.nets.flow_policy import ClonedFlow
from qam_lightning.util.errors import require

Error = Callable[[Tensor, Tensor], Tensor]


class TimedCritic(CriticEnsemble):
    """K critics Q_k(s, a, u) of actions at flow time u, which is 1 for clean ones.

    Args:
        in_dim: total size of state and action.
        width: hidden width.
        depth: number of hidden layers.
        members: K.
    """

    def __init__(self, in_dim: int, width: int, depth: int, members: int) -> None:
        """Build the layers, with one input more for u."""
        super().__init__(in_dim + 1, width, depth, members)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the values (K, B) of s (B, O), a (B, D), and u, (B, 1) or (); 1 if left out."""
        s, a, *time = inputs
        u = time[0] if time else s.new_ones(())
        return super().forward(s, a, u.expand(len(s), 1))


class GuidedFlow(ClonedFlow):
    """A cloned flow that acts under a critic's guidance; both follow its EMA.

    Args:
        sizes: as every flow policy takes them: O, D, hidden width, hidden layers, T.
        tau: inverse temperature τ >= 0 of the guidance.
        vartheta: its strength ϑ >= 0; 0 is cloning.
    """

    def __init__(self, *sizes: int, tau: float, vartheta: float) -> None:
        """Build the flow."""
        super().__init__(*sizes, ema=True)
        require(0 <= tau < float("inf"), type(self), "tau", tau, "at least 0 and finite")
        require(
            0 <= vartheta < float("inf"), type(self), "vartheta", vartheta, "at least 0 and finite"
        )
        self.tau, self.vartheta = tau, vartheta

    @torch.no_grad()
    def guided_act(self, s: Tensor, z: Tensor, value: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Return clip(ODE(v_β + ϑ v̂; s, z)), (B, D) (Eq. 61, 72).

        Args:
            s: (B, O).
            z: (B, D) standard normal.
            value: actions (B, D) and flow time () to the values (B,) whose slope guides.
        """
        v = self.acting.given(s)

        def slope(a: Tensor, u: Tensor) -> Tensor:
            return action_gradient(lambda x: value(x, u), a)

        return integrate_guided(v, slope, z, self.steps, self.tau, self.vartheta).clamp(-1.0, 1.0)


class TimeGuidedFlow(GuidedFlow):
    """A guided flow whose critic learns the values of noisy actions from those of clean ones.

    Args:
        sizes: as every flow policy takes them.
        varrho: weight ϱ >= 0 of the critic's regression at noisy actions.
        error: element-wise loss of a prediction and its target.
        guidance: τ and ϑ.
    """

    def __init__(self, *sizes: int, varrho: float, error: Error, **guidance: float) -> None:
        """Build the flow."""
        super().__init__(*sizes, **guidance)
        require(0 <= varrho < float("inf"), type(self), "varrho", varrho, "at least 0 and finite")
        self.varrho, self.error = varrho, error

    def draws(self) -> dict[str, Draw]:
        """Name what the losses take: flow matching's x_0 and u, the noisy action's z and u."""
        noisy = {"noisy/u": Draw((1,), uniform=True), "noisy/z": Draw((self.flow.dim,))}
        return {**super().draws(), **noisy}

    def losses(
        self,
        batch: Batch,
        noise: Mapping[str, Tensor],
        critic: CriticEnsemble,
        critic_ema: CriticEnsemble,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return flow matching (Eq. 17), the noisy critic's regression (Eq. 63-71), and metrics.

        Args:
            batch: B chunks.
            noise: the quantities of :meth:`draws`, leading dimension B.
            critic: learns Q_k(s, a_u, u), a_u = (1 - u) z + u a.
            critic_ema: gives each member its target Q_k(s, a, 1).
        """
        s, a, u = batch.observations, batch.actions, noise["noisy/u"]
        predicted = critic(s, interpolate(noise["noisy/z"], a, u), u)
        target = critic_ema(s, a).detach()
        regression = (batch.valid * self.error(predicted, target)).mean()
        losses = {
            "actor/flow_loss": self.cloning_loss(batch, noise),
            "critic/noisy_loss": self.varrho * regression,
        }
        return losses, {"critic/noisy_gap": (target - predicted.detach()).mean()}
