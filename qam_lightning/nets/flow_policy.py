"""A policy that is one flow: its network, its action sampler and the loss that trains it."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from qam_lightning.core.draws import Draw
from qam_lightning.core.flow import flow_matching_loss, integrate
from qam_lightning.data.batch import Batch
from qam_lightning.nets.frozen import ema_copy
from qam_lightning.nets.mlp import VelocityField


def cloning_draws(dim: int) -> dict[str, Draw]:
    """Name what :func:`cloning_loss` takes per sample: x_0 (D,) and u (1,)."""
    return {"x_0": Draw((dim,)), "u": Draw((1,), uniform=True)}


def cloning_loss(
    field: VelocityField, batch: Batch, noise: Mapping[str, Tensor], weight: Tensor | None = None
) -> Tensor:
    """Return the flow matching loss of ``field`` on dataset chunks, a scalar (Eq. 17).

    Args:
        field: the velocity field to train.
        batch: B chunks; those cut short carry no weight.
        noise: the quantities of :func:`cloning_draws`, leading dimension B.
        weight: (B,) further weights of the chunks, held constant.
    """
    weights = batch.valid if weight is None else batch.valid * weight.detach()
    v = field.given(batch.observations)
    return flow_matching_loss(v, noise["x_0"], batch.actions, noise["u"], weights)


class FlowPolicy(nn.Module):
    """Acts with clip(ODE(v; s, z)).

    Args:
        obs_dim: O.
        dim: D.
        width: hidden width.
        depth: number of hidden layers.
        steps: T >= 1 flow steps.
        ema: whether to keep the moving average ``flow_ema`` and act with it instead of ``flow``.
    """

    def __init__(
        self, obs_dim: int, dim: int, width: int, depth: int, steps: int, *, ema: bool = False
    ) -> None:
        """Build the velocity field; the EMA starts as a copy."""
        super().__init__()
        self.flow = VelocityField(obs_dim, dim, width, depth)
        self.flow_ema = ema_copy(self.flow) if ema else None
        self.steps = steps

    @property
    def acting(self) -> VelocityField:
        """The field that actions are sampled from."""
        return self.flow if self.flow_ema is None else self.flow_ema

    def sample(self, s: Tensor, z: Tensor) -> Tensor:
        """Return clip(ODE(v; s, z)), (B, D), differentiable through all steps."""
        return integrate(self.acting.given(s), z, self.steps).clamp(-1.0, 1.0)

    @torch.no_grad()
    def act(self, s: Tensor, z: Tensor) -> Tensor:
        """Return the sample for z (B, D) at states (B, O), without gradient."""
        return self.sample(s, z)

    def draws(self) -> dict[str, Draw]:
        """Name what the loss takes per sample: flow matching's x_0 and u."""
        return cloning_draws(self.flow.dim)

    def cloning_loss(
        self, batch: Batch, noise: Mapping[str, Tensor], weight: Tensor | None = None
    ) -> Tensor:
        """Return the flow matching loss of ``flow`` (see :func:`cloning_loss`)."""
        return cloning_loss(self.flow, batch, noise, weight)


class ClonedFlow(FlowPolicy):
    """A flow policy trained by cloning alone: it is the behaviour policy."""

    def behavior_act(self, s: Tensor, z: Tensor) -> Tensor:
        """Return the clone's actions, (B, D)."""
        return self.act(s, z)
