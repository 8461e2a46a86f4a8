"""Chunk arithmetic: action chunks of H steps out of stored trajectories.

A trajectory of n rows holds n - 1 transitions: its last row only supplies the next observation of
the row before it, so next observations need no storage of their own. Transitions are numbered
consecutively through the whole file, the last rows left out. A chunk starts at any transition
t with t + H - 1 still in storage; where a trajectory ends inside, the chunk's actions run on into
the next one and its ``valid`` is 0.
"""

import warnings
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from qam_lightning.data.batch import Batch
from qam_lightning.util.errors import ArgumentError, require

# Keeps arctanh and tanh-Gaussian log-probabilities of dataset actions finite.
ACTION_LIMIT = 1.0 - 1e-5


class Folded(NamedTuple):
    """Per-chunk return, mask and validity, (B,) float32 each; see `Batch`."""

    rewards: Tensor
    masks: Tensor
    valid: Tensor


def fold(alive: Tensor, rewards: Tensor, goals: Tensor) -> Folded:
    """Reduce the steps of B chunks to their returns, masks and validity.

    Args:
        alive: (H, B) bool, whether a step belongs to the trajectory in which its chunk starts.
        rewards: (H, B) double, each discounted by γ^i.
        goals: (H, B) bool, whether a step reached the goal.
    """
    # In double precision, and in order, so that the sum does not depend on where it is made.
    total, *later = (rewards * alive).unbind()
    for term in later:
        total = total + term
    return Folded(total.float(), (~(goals & alive).any(0)).float(), alive[-1].float())


class ChunkStorage:
    """Trajectories, in memory or mapped from disk, from which chunks are gathered on demand.

    Nothing is computed beforehand, so the memory taken does not grow with the dataset.
    """

    def __init__(
        self,
        observations: np.ndarray,
        actions: np.ndarray,
        ends: np.ndarray,
        rewards: np.ndarray,
        masks: np.ndarray,
        horizon: int,
        discount: float,
        sparse: bool = False,
        device: str | torch.device | None = None,
    ):
        """Wrap the arrays; they are copied only if a device is given.

        Args:
            observations: (T, O) float32, all rows.
            actions: (N, A) float32, of the N = T - (number of trajectories) transitions.
            ends: Last row of every trajectory, ascending, the last one T - 1.
            rewards: (N,).
            masks: (N,), 0 where a transition reached the goal, else 1.
            horizon: Steps per chunk, H.
            discount: γ.
            sparse: Map every reward but 0 to -1.
            device: The device to copy the arrays to and make batches on; None copies nothing.

        Raises:
            ArgumentError: Fewer than H transitions, or arrays whose lengths do not fit.
        """
        count = len(observations) - len(ends)
        for name, array in (("actions", actions), ("rewards", rewards), ("masks", masks)):
            if len(array) != count:
                problem = f"has {len(array)} rows, expected one for each of {count} transitions"
                raise ArgumentError(ChunkStorage, name, problem)
        expected = f"1 to the number of transitions, {count}"
        require(1 <= horizon <= count, ChunkStorage, "horizon", horizon, expected)
        self.num_transitions, self.horizon, self.discount = count, horizon, discount
        self.sparse = sparse
        self._observations = _tensor(observations, device)
        # Overlapping windows on the same memory: row t is the flattened chunk t..t+H-1.
        stored, width = _tensor(actions, device), actions.shape[1]
        self._actions = stored.as_strided((self.num_chunks, horizon * width), (width, 1))
        self._rewards, self._masks = _tensor(rewards, device), _tensor(masks, device)
        # For each trajectory the number of the first transition behind it.
        self._stops = _tensor(np.asarray(ends) - np.arange(len(ends)), device)
        self._steps = torch.arange(horizon, device=device)[:, None]
        powers = [[discount**i] for i in range(horizon)]
        self._weights = torch.tensor(powers, dtype=torch.float64, device=device)

    @property
    def num_chunks(self) -> int:
        """Number of chunks to draw from."""
        return self.num_transitions - self.horizon + 1

    @property
    def num_whole_chunks(self) -> int:
        """Number of chunks that lie within one trajectory."""
        lengths = torch.diff(self._stops, prepend=self._stops.new_zeros(1))
        return int((lengths - self.horizon + 1).clamp(min=0).sum())

    def observation_statistics(self, rows: int = 100_000) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation (O,) of the observations, from evenly spaced rows.

        Args:
            rows: About how many rows to read; all, if there are fewer.
        """
        every = max(1, len(self._observations) // rows)
        std, mean = torch.std_mean(self._observations[::every].double(), dim=0, correction=0)
        return mean.float(), std.float()

    def gather(self, indices: np.ndarray | Tensor) -> Batch:
        """Collect chunks.

        Args:
            indices: (B,) int64 in [0, num_chunks).

        Returns:
            The batch, sharing no memory with the storage.
        """
        start = torch.as_tensor(indices, device=self._steps.device)
        trajectory = self._trajectory(start)
        row = start + trajectory  # every earlier trajectory has one row more than transitions
        lengths = (self._stops[trajectory] - start).clamp(max=self.horizon)
        alive = self._steps < lengths
        steps = start + self._steps  # (H, B)
        rewards = self._rewards[steps].double()
        if self.sparse:
            rewards = -(rewards != 0).double()
        folded = fold(alive, rewards * self._weights, self._masks[steps] == 0)
        return Batch(
            observations=self._observations.index_select(0, row),
            actions=self._actions.index_select(0, start).clamp_(-ACTION_LIMIT, ACTION_LIMIT),
            next_observations=self._observations.index_select(0, row + lengths),
            **folded._asdict(),
        )

    def _trajectory(self, start: Tensor) -> Tensor:
        """Return the number of each transition's trajectory."""
        if start.device.type != "cpu":
            return torch.searchsorted(self._stops, start, right=True)
        # Torch would hand even these few numbers to all threads, at many times the cost.
        return torch.from_numpy(np.searchsorted(self._stops.numpy(), start.numpy(), side="right"))


def _tensor(array: np.ndarray, device: str | torch.device | None) -> Tensor:
    with warnings.catch_warnings():
        # Maps are read-only, and nothing here writes.
        warnings.filterwarnings("ignore", message=".*not writable.*")
        tensor = torch.from_numpy(np.asarray(array))
    return tensor if device is None else tensor.to(device, copy=True)
