"""Chunk arithmetic: action chunks of H steps out of stored trajectories, and which ones to draw.

A trajectory of n rows holds n - 1 transitions: its last row only supplies the next observation of
the row before it, so next observations need no storage of their own. Transitions are numbered
consecutively through the whole file, the last rows left out. A chunk starts at any transition
t with t + H - 1 still in storage; where a trajectory ends inside, the chunk's actions run on into
the next one and its ``valid`` is 0.
"""

import numpy as np
import torch
from torch import Tensor

from qam_lightning.batch import Batch

# Keeps arctanh and tanh-Gaussian log-probabilities of dataset actions finite.
ACTION_LIMIT = 1.0 - 1e-5


def sample_indices(seed: int, step: int, batch_size: int, num: int) -> np.ndarray:
    """Draws the chunk indices of one training step, uniformly and with replacement.

    A pure function: the generator is counter-based, keyed on ``seed`` with ``step`` in its counter,
    so a resumed run draws what it would have drawn, and no state needs saving.

    Args:
        seed: The run's seed, at least 0.
        step: The gradient step, at least 0.
        batch_size: How many to draw, B: all ranks' share together.
        num: Number of indices to draw from.

    Returns:
        (B,) int64 in [0, num).
    """
    # The lowest counter word counts blocks within a step, so steps can never overlap.
    bits = np.random.Philox(key=[seed, 0], counter=[0, step, 0, 0])
    return np.random.Generator(bits).integers(0, num, size=batch_size)


class ChunkStorage:
    """Trajectories in memory with everything about each possible chunk worked out beforehand."""

    def __init__(
        self,
        observations: np.ndarray,
        actions: np.ndarray,
        terminals: np.ndarray,
        rewards: np.ndarray,
        masks: np.ndarray,
        chunk: int,
        discount: float,
    ):
        """Works out reward, mask, next observation and validity of every chunk.

        Args:
            observations: (T, O), all rows.
            actions: (T, A), all rows; those of last rows are never used.
            terminals: (T,), true in the last row of each trajectory, so also in the file's last.
            rewards: (N,), of the N = T - (number of trajectories) transitions.
            masks: (N,), 0 where a transition reached the goal, else 1.
            chunk: Steps per chunk, H.
            discount: γ.

        Raises:
            ValueError: Fewer than H transitions, or arrays whose lengths do not fit.
        """
        rows = np.flatnonzero(~terminals.astype(bool))
        if not len(rows) == len(rewards) == len(masks):
            raise ValueError(
                f"{len(rows)} transitions, {len(rewards)} rewards and {len(masks)} masks"
            )
        if not 1 <= chunk <= len(rows):
            raise ValueError(f"chunk of {chunk} steps from {len(rows)} transitions")
        count = len(rows) - chunk + 1
        ended = terminals.astype(bool)[rows + 1]  # the transition leads to a last row

        alive = np.ones(count, bool)
        reward, mask, following = np.zeros(count), np.ones(count), np.zeros(count, np.int64)
        for i in range(chunk):
            here = slice(i, i + count)
            reward += np.where(alive, discount**i * rewards[here].astype(np.float64), 0.0)
            mask = np.where(alive, np.minimum(mask, masks[here]), mask)
            following = np.where(alive, rows[here] + 1, following)
            valid = alive
            alive = alive & ~ended[here]

        self.num_transitions = len(rows)
        self._observations = torch.from_numpy(np.ascontiguousarray(observations, np.float32))
        limited = np.clip(actions[rows].astype(np.float32), -ACTION_LIMIT, ACTION_LIMIT)
        # Overlapping windows on the same memory: row t is the flattened chunk t..t+H-1.
        self._actions = torch.from_numpy(limited).as_strided(
            (count, chunk * limited.shape[1]), (limited.shape[1], 1)
        )
        self._first = torch.from_numpy(rows[:count])
        self._following = torch.from_numpy(following)
        # One row a chunk, so that one lookup fetches the three numbers.
        self._scalars = torch.from_numpy(np.stack([reward, mask, valid], 1).astype(np.float32))

    @property
    def num_chunks(self) -> int:
        """How many chunks there are to draw from."""
        return len(self._first)

    def gather(self, indices: np.ndarray | Tensor) -> Batch:
        """Collects chunks.

        Args:
            indices: (B,) int64 in [0, num_chunks).

        Returns:
            The batch, on the CPU, sharing no memory with the storage.
        """
        chosen = torch.as_tensor(indices)
        first, following = self._first[chosen], self._following[chosen]
        rewards, masks, valid = self._scalars[chosen].T.contiguous()
        return Batch(
            observations=self._observations.index_select(0, first),
            actions=self._actions.index_select(0, chosen),
            rewards=rewards,
            next_observations=self._observations.index_select(0, following),
            masks=masks,
            valid=valid,
        )
