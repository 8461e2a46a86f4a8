"""Lean adjoint states and the adjoint matching loss (Eq. 13-14, 21-22, 25)."""

from collections.abc import Callable

import torch
from torch import Tensor

from qam_lightning.core.flow import Field

VJP = Callable[[int, Tensor], Tensor]
"""``vjp(i, g)`` returns J_iᵀ g, (B, D); J_i is a field's Jacobian at the path's i-th state."""


def autograd_vjp(field: Field, states: Tensor, times: Tensor) -> VJP:
    """Return the vector-Jacobian product of any differentiable ``field`` along a path.

    It works for every field. A network that linearises itself once for the whole path is faster,
    see `VelocityField.linearize`.

    Args:
        field: a velocity field.
        states: (T, B, D) points.
        times: (T,) flow times at which the field is evaluated at these points.
    """

    def vjp(i: int, g: Tensor) -> Tensor:
        with torch.enable_grad():
            a = states[i].detach().requires_grad_()
            (out,) = torch.autograd.grad(field(a, times[i]), a, g)
        return out

    return vjp


def lean_adjoint(behavior_vjp: VJP, terminal: Tensor, steps: int) -> Tensor:
    """Return the lean adjoint states g_0..g_{T-1}, (T, B, D), by the reverse recursion of Eq. 25.

    g_i = g_{i+1} + h J_iᵀ g_{i+1} with J_i = ∂/∂a [2 f_β(a, u_i + h) - a / (u_i + h)] at a_i.

    Args:
        behavior_vjp: product with the Jacobian of f_β(., u_i + h) at a_i.
        terminal: (B, D), g_T = -τ ∇_a Q at the path's end.
        steps: T.
    """
    h, g, adjoints = 1.0 / steps, terminal, []
    for i in reversed(range(steps)):
        u_next = (i + 1) * h
        g = (1.0 - h / u_next) * g + 2.0 * h * behavior_vjp(i, g)
        adjoints.append(g)
    return torch.stack(adjoints[::-1])


def adjoint_matching_loss(control: Tensor, adjoints: Tensor, sigma: Tensor) -> Tensor:
    """Return mean_B Σ_i Σ_D (2 f_θ(a_i, u_i) / σ_i + σ_i g_i)², a scalar (Eq. 21).

    Its pointwise minimiser is f_θ = -σ² g / 2.

    Args:
        control: (T, B, D), the residual velocity f_θ (or v - f_β) at the path's states.
        adjoints: (T, B, D), constants here.
        sigma: (T,) noise scales.
    """
    sigma = sigma[:, None, None]
    return (2.0 * control / sigma + sigma * adjoints).square().sum((0, 2)).mean()


def action_gradient(q: Callable[[Tensor], Tensor], actions: Tensor) -> Tensor:
    """Return ∇_a q(a), (B, D), for a critic that treats samples independently.

    Args:
        q: maps (B, D) to values (B,).
        actions: (B, D).
    """
    with torch.enable_grad():
        a = actions.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(q(a).sum(), a)
    return gradient
