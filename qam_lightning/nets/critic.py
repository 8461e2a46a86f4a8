"""Critics: K members in every matrix product, no loop."""

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qam_lightning.nets.gelu import gelu

LAYER_NORM_EPS = 1e-6


class BatchedLinear(nn.Module):
    """K independent linear layers: (K, B, m) -> (K, B, n), initialised as `MLP` layers are."""

    def __init__(self, members: int, m: int, n: int) -> None:
        super().__init__()
        bound = (6.0 / (m + n)) ** 0.5
        self.weight = nn.Parameter(torch.empty(members, m, n).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(members, 1, n))

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)


class BatchedLayerNorm(nn.Module):
    """K independent layer normalisations of (K, B, n), each with its own scale and bias."""

    def __init__(self, members: int, n: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(members, 1, n))
        self.bias = nn.Parameter(torch.zeros(members, 1, n))

    def forward(self, x: Tensor) -> Tensor:
        normed = F.layer_norm(x, x.shape[-1:], eps=LAYER_NORM_EPS)
        return torch.addcmul(self.bias, normed, self.scale)


class CriticEnsemble(nn.Module):
    """K critics Q_k(s, a): hidden layers with GELU followed by LayerNorm, one output each.

    Args:
        in_dim: total size of the inputs.
        width: hidden width.
        depth: number of hidden layers.
        members: K.
    """

    def __init__(self, in_dim: int, width: int, depth: int, members: int) -> None:
        super().__init__()
        sizes = [in_dim, *[width] * depth]
        self.members = members
        self.hidden = nn.ModuleList(
            BatchedLinear(members, m, n) for m, n in zip(sizes[:-1], sizes[1:], strict=True)
        )
        self.norms = nn.ModuleList(BatchedLayerNorm(members, n) for n in sizes[1:])
        self.out = BatchedLinear(members, width, 1)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the values (K, B) of concat(inputs), each input (B, .)."""
        x = inputs[0] if len(inputs) == 1 else torch.cat(inputs, dim=-1)
        return self.finish(self.hidden[0](x.expand(self.members, -1, -1)))

    def at(self, s: Tensor) -> Callable[..., Tensor]:
        """Return the values (K, B) at states s (B, O) as a function of the other inputs (B, .).

        The state's share of the first layer is computed once and reused for all actions, and an
        action's gradient does not pass through it.
        """
        first = cast(BatchedLinear, self.hidden[0])
        w_s, w_a = first.weight.tensor_split([s.shape[-1]], dim=1)
        from_s = torch.baddbmm(first.bias, s.expand(self.members, -1, -1), w_s)

        def values(*inputs: Tensor) -> Tensor:
            a = torch.cat(inputs, dim=-1).expand(self.members, -1, -1)
            return self.finish(torch.baddbmm(from_s, a, w_a))

        return values

    def finish(self, x: Tensor) -> Tensor:
        """Continue from the first layer's pre-activation (K, B, width)."""
        x = self.norms[0](gelu(x))
        for linear, norm in zip(self.hidden[1:], self.norms[1:], strict=True):
            x = norm(gelu(linear(x)))
        return self.out(x).squeeze(-1)


class TimeConditionedCritic(CriticEnsemble):
    """K critics Q_k(s, a, u) of actions at flow time u; clean actions have u = 1.

    Args:
        in_dim: total size of state and action.
        width: hidden width.
        depth: number of hidden layers.
        members: K.
    """

    def __init__(self, in_dim: int, width: int, depth: int, members: int) -> None:
        super().__init__(in_dim + 1, width, depth, members)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the values (K, B) of s (B, O), a (B, D), and u, (B, 1) or (); 1 if left out."""
        s, a, *time = inputs
        u = time[0] if time else s.new_ones(())
        return super().forward(s, a, u.expand(s.shape[0], 1))

    def at(self, s: Tensor) -> Callable[..., Tensor]:
        """Return the values (K, B) at s (B, O) as a function of a and u, with u as in `forward`."""
        values = super().at(s)
        clean = s.new_ones(())
        return lambda a, u=clean: values(a, u.expand(a.shape[0], 1))


class ValueNetwork(nn.Module):
    """V(s): a single critic without an action.

    Args:
        obs_dim: O.
        width: hidden width.
        depth: number of hidden layers.
    """

    def __init__(self, obs_dim: int, width: int, depth: int) -> None:
        super().__init__()
        self.net = CriticEnsemble(obs_dim, width, depth, members=1)

    def forward(self, s: Tensor) -> Tensor:
        """Return V(s), (B,), at states (B, O)."""
        return self.net(s).squeeze(0)
