"""Behaviour and fine-tuned flow of the adjoint-matching family, with the losses that train them."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from qam_lightning.core.adjoint import action_gradient, adjoint_matching_loss, lean_adjoint
from qam_lightning.core.draws import Draw
from qam_lightning.core.flow import Field, integrate
from qam_lightning.core.memoryless import Path, simulate
from qam_lightning.data.batch import Batch
from qam_lightning.nets.ensemble import CriticEnsemble
from qam_lightning.nets.flow_policy import cloning_draws, cloning_loss
from qam_lightning.nets.frozen import ema_copy
from qam_lightning.nets.mlp import VelocityField
from qam_lightning.util.errors import require


class FlowPair(nn.Module):
    """f_β, its EMA, and f_θ, with combined velocity v = f_β + f_θ (or v = f_θ).

    Args:
        obs_dim: O.
        dim: D.
        width: hidden width.
        depth: number of hidden layers.
        steps: T >= 1 flow steps.
        tau: inverse temperature τ >= 0 of the tilt π_β exp(τ Q); at 0 f_θ is drawn to zero.
        residual: whether f_θ is a residual on f_β; otherwise f_θ is the full velocity v and
            v - f_β stands in its place in the losses.
    """

    def __init__(
        self, obs_dim: int, dim: int, width: int, depth: int, steps: int, tau: float, residual: bool
    ) -> None:
        """Build the networks; the EMA starts as a copy."""
        super().__init__()
        require(0 <= tau < float("inf"), type(self), "tau", tau, "at least 0 and finite")
        self.behavior = VelocityField(obs_dim, dim, width, depth)
        self.behavior_ema = ema_copy(self.behavior)
        self.fine = VelocityField(obs_dim, dim, width, depth)
        self.steps, self.tau, self.residual = steps, tau, residual

    @torch.no_grad()
    def act(self, s: Tensor, z: Tensor) -> Tensor:
        """Return clip(ODE(v; s, z)) with the online networks, (B, D)."""
        v = self._combined(self.behavior.given(s), self.fine.given(s))
        return integrate(v, z, self.steps).clamp(-1.0, 1.0)

    @torch.no_grad()
    def behavior_act(self, s: Tensor, z: Tensor) -> Tensor:
        """Return clip(ODE(f_β; s, z)), the cloned behaviour, (B, D)."""
        return integrate(self.behavior.given(s), z, self.steps).clamp(-1.0, 1.0)

    def draws(self) -> dict[str, Draw]:
        """Name what the losses take per sample: flow matching's x_0, u, the SDE's start and z."""
        dim, steps = self.behavior.dim, self.steps
        return {
            **cloning_draws(dim),
            "path/x_0": Draw((dim,)),
            "path/z": Draw((steps - 1, dim)),
        }

    def cloning_loss(self, batch: Batch, noise: Mapping[str, Tensor]) -> Tensor:
        """Return the flow matching loss of f_β on dataset chunks (Eq. 17)."""
        return cloning_loss(self.behavior, batch, noise)

    def matching_losses(
        self, batch: Batch, noise: Mapping[str, Tensor], critic: CriticEnsemble
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return flow matching of f_β and adjoint matching of f_θ (Algorithm 1), and metrics.

        Args:
            batch: B chunks.
            noise: the quantities of :meth:`draws`, leading dimension B.
            critic: its mean over members is the Q whose tilt is sought; never trained here.
        """
        s = batch.observations
        with torch.no_grad():
            path = self.path(s, noise)
            slope = action_gradient(lambda a: critic(s, a.clamp(-1.0, 1.0)).mean(0), path.end)
            ahead = path.times + 1.0 / self.steps
            vjp = self.behavior_ema.linearized(s, path.states, ahead)
            adjoints = lean_adjoint(vjp, -self.tau * slope, self.steps)
        control = self.control(s)(path.states, path.times[:, None, None])
        losses = {
            "actor/flow_loss": self.cloning_loss(batch, noise),
            "actor/adjoint_loss": adjoint_matching_loss(control, adjoints, path.sigma),
        }
        metrics = {
            "actor/adjoint_rms": adjoints.square().mean().sqrt(),
            "actor/control_rms": control.detach().square().mean().sqrt(),
            "actor/q_slope_rms": slope.square().mean().sqrt(),
        }
        return losses, metrics

    def path(self, s: Tensor, noise: Mapping[str, Tensor]) -> Path:
        """Simulate the memoryless SDE of v with the EMA behaviour flow (Eq. 24)."""
        behavior = self.behavior_ema.given(s)
        v = self._combined(behavior, self.fine.given(s))
        return simulate(v, behavior, noise["path/x_0"], noise["path/z"].transpose(0, 1))

    def control(self, s: Tensor) -> Field:
        """Return the field v - f_β: f_θ itself where it is a residual."""
        fine = self.fine.given(s)
        if self.residual:
            return fine
        behavior = self.behavior_ema.given(s)
        return lambda x, u: fine(x, u) - behavior(x, u)

    def _combined(self, behavior: Field, fine: Field) -> Field:
        return (lambda x, u: behavior(x, u) + fine(x, u)) if self.residual else fine
