"""PyTorch's standard normal numbers without PyTorch.

A policy's noise comes from PyTorch's generator on the CPU. `Normal` repeats it in numpy, up to the
last bits of a number, so that a policy acts alike where PyTorch is not installed.
"""

import math
from typing import Any

import numpy as np


class Normal:
    """``torch.Generator().manual_seed(seed)``, as far as ``torch.randn`` goes.

    Args:
        seed: at least 0; PyTorch uses its lower 32 bits.
    """

    def __init__(self, seed: int) -> None:
        self._bits = np.random.MT19937()
        state: Any = np.random.RandomState(seed % 2**32).get_state(legacy=False)
        self._bits.state = state
        self._spare: float | None = None

    def __call__(self, count: int) -> np.ndarray:
        """Return what ``torch.randn(count)`` returns next, float32."""
        if count < 16:
            return np.array([self._single() for _ in range(count)], np.float32)
        uniform = self._uniform(count)
        whole = count - count % 16
        numbers = np.empty(count, np.float32)
        numbers[:whole] = _box_muller(uniform[:whole])
        if whole < count:
            numbers[-16:] = _box_muller(self._uniform(16))
        return numbers

    def _uniform(self, count: int) -> np.ndarray:
        """Return numbers of 24 bits in [0, 1)."""
        return (self._bits.random_raw(count) & 0xFFFFFF) / 2.0**24

    def _single(self) -> float:
        """Return one number; each pair of draws makes two."""
        if self._spare is not None:
            number, self._spare = self._spare, None
            return number
        high_low = self._bits.random_raw(4).astype(object)
        first, second = (
            ((high << 32 | low) & (2**53 - 1)) / 2.0**53
            for high, low in (high_low[:2], high_low[2:])
        )
        radius, angle = math.sqrt(-2.0 * math.log1p(-second)), 2.0 * math.pi * first
        self._spare = radius * math.sin(angle)
        return radius * math.cos(angle)


def _box_muller(uniform: np.ndarray) -> np.ndarray:
    """Turn uniform numbers (16 n,) into normal ones: in each 16, the first 8 pair with the rest."""
    first, second = uniform.reshape(-1, 2, 8).transpose(1, 0, 2)
    radius, angle = np.sqrt(-2.0 * np.log(1.0 - first)), 2.0 * np.pi * second
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1).reshape(-1)
