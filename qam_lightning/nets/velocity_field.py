"""The velocity field of a flow, fast when a path evaluates it at one state and many points."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qam_lightning.nets.mlp import MLP


class VelocityField(nn.Module):
    """A velocity field f(s, x, u): an MLP on concat(s, x, u) with the raw flow time u.

    Args:
        obs_dim: O.
        dim: D, the size of a flattened action chunk.
        width: hidden width.
        depth: number of hidden layers.
    """

    def __init__(self, obs_dim: int, dim: int, width: int, depth: int) -> None:
        super().__init__()
        self.obs_dim, self.dim = obs_dim, dim
        self.mlp = MLP([obs_dim + dim + 1, *[width] * depth, dim])

    def forward(self, s: Tensor, x: Tensor, u: Tensor) -> Tensor:
        """Return f(s, x, u), (B, D)."""
        return self.at(s)(x, u)

    def at(self, s: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the field f(s, ., .) of points (..., B, D) and times that broadcast against them.

        The state's share of the first layer is computed once and reused for all points.
        """
        enter = self._first_layer(s)
        return lambda x, u: self.mlp.finish(enter(x, u))

    def linearize(
        self, s: Tensor, states: Tensor, times: Tensor
    ) -> Callable[[int, Tensor], Tensor]:
        """Return ``vjp(i, g)``, the product of g (B, D) with ∂f/∂x at (s, states[i], times[i]).

        One batched forward pass serves all T points; each call is then a few matrix products.

        Args:
            s: (B, O).
            states: (T, B, D).
            times: (T,).
        """
        with torch.no_grad():
            derivatives = self.mlp.derivatives(self._first_layer(s)(states, times[:, None, None]))
            weight = self.mlp.linears[0].weight[:, self.obs_dim : -1]
        return lambda i, g: self.mlp.vjp([layer[i] for layer in derivatives], g) @ weight

    def _first_layer(self, s: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        first = self.mlp.linears[0]
        w_s, w_x, w_u = first.weight.split([self.obs_dim, self.dim, 1], dim=1)
        from_s = F.linear(s, w_s, first.bias)
        return lambda x, u: F.linear(x, w_x) + (from_s + u * w_u[:, 0])
