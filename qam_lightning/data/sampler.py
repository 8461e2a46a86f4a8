"""Which chunks make the batch of a gradient step."""

from typing import Protocol

import numpy as np

from qam_lightning.data.batch import Batch
from qam_lightning.data.chunks import ChunkStorage
from qam_lightning.util.rng import Stream, numpy_generator


def sample_indices(
    seed: int, step: int, count: int, num: int, stream: Stream = Stream.DATASET_BATCH
) -> np.ndarray:
    """Draw the chunk indices of one gradient step, uniformly and with replacement.

    Args:
        seed: The run's seed, at least 0.
        step: The gradient step, at least 0.
        count: How many to draw, B.
        num: Number of chunks to draw from.
        stream: Tells several draws of the same step apart.

    Returns:
        (B,) int64 in [0, num), a function of the arguments alone.
    """
    return numpy_generator(seed, stream, step).integers(0, num, size=count)


class Sampler(Protocol):
    """Draws the batch of each gradient step; several threads may call it."""

    def indices(self, step: int) -> np.ndarray:
        """Return the chunks of a step's batch, (B,) int64, all ranks' shares together."""
        ...

    def gather(self, indices: np.ndarray) -> Batch:
        """Collect some of the chunks that `indices` returned, (b,), in their order."""
        ...

    def may_prefetch(self, step: int) -> bool:
        """Whether a step's batch is known before the steps ahead of it have been made."""
        ...


class OfflineSampler:
    """Draws uniformly from the chunks of a dataset."""

    def __init__(self, storage: ChunkStorage, batch_size: int, seed: int) -> None:
        """Take the dataset.

        Args:
            storage: The dataset's chunks.
            batch_size: Chunks per gradient step, B, all ranks' shares together.
            seed: Determines, with the gradient step, which chunks are drawn.
        """
        self.storage, self.batch_size, self.seed = storage, batch_size, seed

    def indices(self, step: int) -> np.ndarray:
        return sample_indices(self.seed, step, self.batch_size, self.storage.num_chunks)

    def gather(self, indices: np.ndarray) -> Batch:
        return self.storage.gather(indices)

    def may_prefetch(self, step: int) -> bool:
        return True
