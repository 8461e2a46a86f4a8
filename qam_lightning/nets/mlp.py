"""The multilayer perceptron every policy network is built from."""

from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qam_lightning.nets.gelu import gelu, gelu_and_slope


class MLP(nn.Module):
    """Linear layers with an activation between them; Xavier-uniform weights, zero biases.

    Args:
        sizes: layer widths from input to output.
        activate_last: whether the activation follows the last layer too.
        activation: the element-wise nonlinearity.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        activate_last: bool = False,
        activation: Callable[[Tensor], Tensor] = gelu,
    ) -> None:
        """Build and initialise the layers."""
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Linear(m, n) for m, n in zip(sizes[:-1], sizes[1:], strict=True)
        )
        self.activate_last, self.activation = activate_last, activation
        for layer in self.linears:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    @property
    def linears(self) -> Sequence[nn.Linear]:
        """The layers, from input to output."""
        return cast(Sequence[nn.Linear], self.layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., sizes[0]) to (..., sizes[-1])."""
        return self.finish(self.linears[0](x))

    def finish(self, x: Tensor) -> Tensor:
        """Continue from the first layer's pre-activation (..., sizes[1])."""
        for layer in self.linears[1:]:
            x = layer(self.activation(x))
        return self.activation(x) if self.activate_last else x

    @torch.no_grad()
    def slopes(self, x: Tensor) -> list[Tensor]:
        """Return GELU's slopes in all hidden layers, given the first pre-activation."""
        y, slope = gelu_and_slope(x)
        slopes = [slope]
        for layer in self.linears[1:-1]:
            y, slope = gelu_and_slope(layer(y))
            slopes.append(slope)
        return slopes

    @torch.no_grad()
    def pull_back(self, slopes: Sequence[Tensor], g: Tensor) -> Tensor:
        """Return the vector-Jacobian product of ``finish`` with g (B, sizes[-1])."""
        for layer, slope in zip(reversed(self.linears[1:]), reversed(slopes), strict=True):
            g = (g @ layer.weight).mul_(slope)
        return g


class VelocityField(nn.Module):
    """A velocity field f(s, x, u): an MLP on concat(s, x, u) with the raw flow time u.

    Args:
        obs_dim: O.
        dim: D, the size of a flattened action chunk.
        width: hidden width.
        depth: number of hidden layers.
    """

    def __init__(self, obs_dim: int, dim: int, width: int, depth: int) -> None:
        """Build the network."""
        super().__init__()
        self.obs_dim, self.dim = obs_dim, dim
        self.mlp = MLP([obs_dim + dim + 1, *[width] * depth, dim])

    def forward(self, s: Tensor, x: Tensor, u: Tensor) -> Tensor:
        """Return f(s, x, u), (B, D)."""
        return self.given(s)(x, u)

    def given(self, s: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the field f(s, ., .) of points (..., B, D) and times that broadcast against them.

        The state's share of the first layer is computed once for all the points it is asked about.
        """
        enter = self._first_layer(s)
        return lambda x, u: self.mlp.finish(enter(x, u))

    def linearized(
        self, s: Tensor, states: Tensor, times: Tensor
    ) -> Callable[[int, Tensor], Tensor]:
        """Return ``vjp(i, g)``, the product of g (B, D) with ∂f/∂x at (s, states[i], times[i]).

        One batched forward pass serves all T points; each product is then a few matrix products.

        Args:
            s: (B, O).
            states: (T, B, D).
            times: (T,).
        """
        with torch.no_grad():
            slopes = self.mlp.slopes(self._first_layer(s)(states, times[:, None, None]))
            weight = self.mlp.linears[0].weight[:, self.obs_dim : -1]
        return lambda i, g: self.mlp.pull_back([layer[i] for layer in slopes], g) @ weight

    def _first_layer(self, s: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        first = self.mlp.linears[0]
        w_s, w_x, w_u = first.weight.split([self.obs_dim, self.dim, 1], dim=1)
        from_s = F.linear(s, w_s, first.bias)
        return lambda x, u: F.linear(x, w_x) + (from_s + u * w_u[:, 0])
