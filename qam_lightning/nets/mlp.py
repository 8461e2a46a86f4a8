"""The multilayer perceptron of policies and flows."""

from collections.abc import Callable, Sequence
from typing import Any, cast

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

    def outputs(self, x: Tensor) -> list[Tensor]:
        """Return what all layers but the first give, continuing from the first pre-activation."""
        found = []
        for layer in self.linears[1:]:
            x = layer(self.activation(x))
            found.append(x)
        return found

    def replay(self, x: Tensor, outputs: Sequence[Tensor]) -> Tensor:
        """Return the last of `outputs`, whose values are known, with its gradient.

        Only the backward pass has matrix products.
        """
        for layer, y in zip(self.linears[1:], outputs, strict=True):
            x = _KnownLinear.apply(self.activation(x), layer.weight, layer.bias, y)
        return x

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


class _KnownLinear(torch.autograd.Function):
    """A linear layer whose output y is known: its backward pass without its forward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(x.to(y.dtype), weight.to(y.dtype))  # y's is autocast's
        return y.view_as(y)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows = g.flatten(0, -2)
        return g @ weight, rows.T @ x.flatten(0, -2), rows.sum(0), None
