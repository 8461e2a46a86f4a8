"""The multilayer perceptron of policies and flows."""

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from qam_lightning.nets.gelu import gelu, gelu_and_derivative


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
    def derivatives(self, x: Tensor) -> list[Tensor]:
        """Return GELU's derivatives in all hidden layers, given the first pre-activation."""
        y, derivative = gelu_and_derivative(x)
        found = [derivative]
        for layer in self.linears[1:-1]:
            y, derivative = gelu_and_derivative(layer(y))
            found.append(derivative)
        return found

    @torch.no_grad()
    def vjp(self, derivatives: Sequence[Tensor], g: Tensor) -> Tensor:
        """Return the vector-Jacobian product of `finish` with g (B, sizes[-1])."""
        for layer, d in zip(reversed(self.linears[1:]), reversed(derivatives), strict=True):
            g = (g @ layer.weight).mul_(d)
        return g
