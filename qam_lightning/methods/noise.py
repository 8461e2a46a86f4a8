"""The random draws of training and acting, typed per method.

A method's noise is a NamedTuple of tensors, one row per sample. It nests where one method extends
another; a part that a setting switches off is None.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class PolicyNoise(NamedTuple):
    """What most policies draw at a state.

    Attributes:
        z: (B, D) standard normal.
    """

    z: Tensor


class CloningNoise(NamedTuple):
    """What the flow matching loss draws (Eq. 17).

    Attributes:
        x_0: (B, D) standard normal, where the straight path starts.
        u: (B, 1) flow times, uniform on [0, 1).
    """

    x_0: Tensor
    u: Tensor


class EditNoise(NamedTuple):
    """What a policy that edits a flow's actions draws at a state.

    Attributes:
        z: (B, D) standard normal, where the flow starts.
        edit: (B, D) standard normal, of the edit; None where no edit policy is in use.
    """

    z: Tensor
    edit: Tensor | None


class DiffusionNoise(NamedTuple):
    """What the losses of a diffusion policy draw.

    Attributes:
        epsilon: (B, D) standard normal, the noise added to dataset actions.
        u: (B, 1) uniform on [0, 1), picks the diffusion step.
    """

    epsilon: Tensor
    u: Tensor


class StepNoise(NamedTuple):
    """All that one training step draws.

    Attributes:
        next: the noise of the TD target's value, mostly the policy's at next states.
        actor: the noise of the actor's losses.
    """

    next: Any
    actor: Any


class NoiseSource:
    """Draws rows of noise from a generator, on its device.

    Args:
        size: B >= 1 rows to return.
        generator: where they come from.
        ranks: processes that share a batch. Every process draws the rows of all, so that R ranks
            with B / R rows see what one rank with B rows sees.
        rank: whose rows to return.
    """

    def __init__(self, size: int, generator: torch.Generator, ranks: int = 1, rank: int = 0):
        self._rows, self._mine = size * ranks, slice(rank * size, (rank + 1) * size)
        self._generator = generator

    def normal(self, *shape: int) -> Tensor:
        """Return standard normal numbers, (B, *shape)."""
        return self._draw(torch.randn, shape)

    def uniform(self, *shape: int) -> Tensor:
        """Return numbers uniform on [0, 1), (B, *shape)."""
        return self._draw(torch.rand, shape)

    def _draw(self, sample: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
        device = self._generator.device
        return sample(self._rows, *shape, generator=self._generator, device=device)[self._mine]


def map_noise(function: Callable[..., Tensor], *noises: Any) -> Any:
    """Apply a function to corresponding tensors of noises of one type.

    Args:
        function: takes one tensor of each noise.
        noises: nested NamedTuples of tensors and None, all alike.
    """
    first = noises[0]
    if first is None:
        return None
    if isinstance(first, Tensor):
        return function(*noises)
    return type(first)(*(map_noise(function, *parts) for parts in zip(*noises, strict=True)))
