"""Observations with mean 0 and standard deviation 1."""

import torch
from torch import Tensor, nn


class Standardize(nn.Module):
    """Shifts and scales every dimension by constants that are part of the network's state.

    Args:
        obs_dim: O.
    """

    LEAST = 1e-2
    """Lower bound, so that near-constant dimensions are not amplified."""

    mean: Tensor
    std: Tensor

    def __init__(self, obs_dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(obs_dim))
        self.register_buffer("std", torch.ones(obs_dim))

    def fit(self, mean: Tensor, std: Tensor) -> None:
        """Take over the statistics (O,) of a dataset."""
        self.mean.copy_(mean)
        self.std.copy_(std.clamp(min=self.LEAST))

    def forward(self, s: Tensor) -> Tensor:
        """Map (..., O) to (..., O)."""
        return (s - self.mean) / self.std
