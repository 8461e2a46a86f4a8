"""Random draws as a function of a counter: no generator state has to survive a crash."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

_MASK = (1 << 64) - 1


class Draw(NamedTuple):
    """One random quantity per sample: its ``shape`` and whether it is uniform on [0, 1)."""

    shape: tuple[int, ...]
    uniform: bool = False


def mix(*keys: int) -> int:
    """Hash integers into one 64-bit seed (the SplitMix64 finaliser, folded over the keys)."""
    state = 0
    for key in keys:
        state = (state + (key & _MASK) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


def draw(
    spec: Mapping[str, Draw], leading: tuple[int, ...], generator: torch.Generator
) -> dict[str, Tensor]:
    """Draw every quantity of ``spec`` with the given leading shape, on the generator's device.

    All normals come from one call and all uniforms from another, whatever their number.

    Returns:
        name -> (*leading, *shape), standard normal or uniform on [0, 1).
    """
    out: dict[str, Tensor] = {}
    for uniform, sample in ((False, torch.randn), (True, torch.rand)):
        names = [name for name, d in spec.items() if d.uniform == uniform]
        if not names:
            continue
        sizes = [torch.Size(spec[name].shape).numel() for name in names]
        flat = sample(*leading, sum(sizes), generator=generator, device=generator.device)
        for name, part in zip(names, flat.split(sizes, dim=-1), strict=True):
            out[name] = part.reshape(*leading, *spec[name].shape)
    return out
