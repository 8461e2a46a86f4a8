"""Batches of the online phase: chunks of the dataset and of the replay."""

from collections.abc import Callable

import numpy as np
import torch

from qam_lightning.data.batch import Batch
from qam_lightning.data.sampler import OfflineSampler, sample_indices
from qam_lightning.online.replay import Replay
from qam_lightning.online.schedule import Schedule
from qam_lightning.util.rng import Stream


class MixedSampler:
    """Draws from the dataset alone in the offline phase, then from the dataset and the replay.

    Chunks of the replay are numbered after those of the dataset.
    """

    def __init__(
        self,
        offline: OfflineSampler,
        schedule: Schedule,
        replay: Replay,
        half: bool,
        wait: Callable[[int], None],
    ) -> None:
        """Take the two sources.

        Args:
            offline: Draws from the dataset; its seed and batch size hold for all batches.
            schedule: Which rows of the replay each update may see.
            replay: The rows.
            half: Draw half of every online batch from each source, instead of uniformly from both
                together.
            wait: ``wait(count)`` returns when the replay holds ``count`` rows.
        """
        self.offline, self.schedule, self.replay = offline, schedule, replay
        self.half, self.wait = half, wait

    def may_prefetch(self, step: int) -> bool:
        """Whether a step is offline: an online batch may hold rows that do not exist earlier."""
        return step < self.schedule.offline

    def indices(self, step: int) -> np.ndarray:
        """Draw a batch, and wait for the rows of its chunks.

        Returns:
            (B,) int64. Halves alternate, so that every rank's share has the same mixture.
        """
        if self.may_prefetch(step):
            return self.offline.indices(step)
        seed, size = self.offline.seed, self.offline.batch_size
        known = self.offline.storage.num_chunks
        own = self.replay.num_chunks(self.schedule.visible(step))
        if self.half:
            halves = (
                sample_indices(seed, step, size // 2, known),
                sample_indices(seed, step, size // 2, own, Stream.REPLAY_BATCH) + known,
            )
            drawn = np.stack(halves, 1).ravel()
        else:
            drawn = sample_indices(seed, step, size, known + own)
        # The environment may still be busy with the latest step. All ranks wait for the rows of the
        # whole batch, as they receive rows together.
        if (latest := int(drawn.max())) >= known:
            self.wait(latest - known + self.replay.reach + 1)
        return drawn

    def gather(self, indices: np.ndarray) -> Batch:
        """Collect chunks of both sources, on the dataset's device."""
        storage = self.offline.storage
        online = indices >= storage.num_chunks
        known = storage.gather(indices[~online])
        if not online.any():
            return known
        own = self.replay.gather(indices[online] - storage.num_chunks)
        # Where each drawn chunk lies in (known, own).
        places = np.concatenate([np.flatnonzero(~online), np.flatnonzero(online)]).argsort()
        order = torch.from_numpy(places)
        return Batch(
            *(
                torch.cat((a, b.to(a.device)))[order.to(a.device)]
                for a, b in zip(known, own, strict=True)
            )
        )
