"""The typed batch that data produces and methods consume."""

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """Action chunks of ``H`` environment steps, all float32.

    Attributes:
        observations: (B, O), the state ``s`` at the chunk's start.
        actions: (B, D) with D = H * A, the flattened chunk, inside ±(1 - 1e-5).
        rewards: (B,), Σ γ^i r_{t+i} over the valid steps i of the chunk.
        next_observations: (B, O), the state after the chunk's last valid step.
        masks: (B,), 0 where a valid step reached the goal (no bootstrap), else 1.
        valid: (B,), 1 where all H steps belong to one trajectory, else 0 (the chunk has no weight).
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    next_observations: Tensor
    masks: Tensor
    valid: Tensor
