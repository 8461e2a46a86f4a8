"""The discretisations of the memoryless process and its lean adjoint, by name."""

from typing import Literal, NamedTuple, Protocol

from torch import Tensor

from qam_lightning.core.adjoint import VJP, lean_adjoint
from qam_lightning.core.denoiser import Denoiser
from qam_lightning.core.flow import Field, TimeGrid
from qam_lightning.core.memoryless import Path, control_cost, simulate

Integrator = Literal["shifted_euler", "denoiser"]


class Scheme(Protocol):
    """A discretisation. `adjoint_matching_loss` takes the σ_i of its path."""

    def simulate(self, v: Field, last: Field, x_0: Tensor, z: Tensor) -> Path:
        """Return the path of ``v`` from x_0 (B, D) by increments z (T - 1, B, D).

        Its last step has no noise and follows the field ``last``.
        """
        ...

    def lean_adjoint(self, behavior_vjp: VJP, terminal: Tensor) -> Tensor:
        """Return g_0..g_{T-1}, (T, B, D), from g_T (B, D).

        ``behavior_vjp`` is the product with the behaviour's Jacobian at the path's states and its
        ``jacobian_times``.
        """
        ...

    def control_cost(self, control: Tensor, path: Path) -> Tensor:
        """Return T times the KL divergence of a path from the behaviour's, per sample, (B,).

        ``control`` is v - f_β at the path's states, (T, B, D), or without the last.
        """
        ...


class ShiftedEuler(NamedTuple):
    """The paper's scheme: uniform steps, with u shifted by one step (Eq. 24-25).

    Attributes:
        grid: the flow times, uniform.
    """

    grid: TimeGrid

    def simulate(self, v: Field, last: Field, x_0: Tensor, z: Tensor) -> Path:
        """Return :func:`qam_lightning.core.memoryless.simulate`."""
        return simulate(v, last, x_0, z)

    def lean_adjoint(self, behavior_vjp: VJP, terminal: Tensor) -> Tensor:
        """Return :func:`qam_lightning.core.adjoint.lean_adjoint`."""
        return lean_adjoint(behavior_vjp, terminal, self.grid.steps)

    def control_cost(self, control: Tensor, path: Path) -> Tensor:
        """Return Σ_i (2 / σ_i²) ‖v - f_β‖²: each step compares Gaussians of variance h σ_i².

        The last step counts too: the SDE takes it without control, but the sampler with control.
        """
        return control_cost(control, path.sigma)


def scheme(integrator: Integrator, grid: TimeGrid) -> Scheme:
    """Return a discretisation on a grid."""
    return ShiftedEuler(grid) if integrator == "shifted_euler" else Denoiser(grid)
