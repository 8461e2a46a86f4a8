"""The endless stream of training batches, made ahead of time by other threads."""

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from qam_lightning.batch import Batch


class Batches:
    """Batches from the model's gradient step onwards, without end.

    Not a ``DataLoader``: a batch is a handful of look-ups, so worker processes would cost more than
    they save, and without a sampler there is nothing for Lightning to replace. As a batch is a
    function of its step, making some early changes nothing, and a resumed run needs no state.
    """

    def __init__(self, make: Callable[[int, int, int], Batch], trainer: Any, ahead: int, pin: bool):
        """Makes nothing yet.

        Args:
            make: ``make(step, rank, world_size)`` gives a batch; called from several threads.
            trainer: Lightning's trainer; knows the first step and the ranks.
            ahead: Batches to make ahead of the learner; 0 makes each when it is asked for.
            pin: Put them into page-locked memory, from which a GPU copies without waiting.
        """
        self._make, self._trainer, self._ahead, self._pin = make, trainer, ahead, pin

    def _batch(self, step: int) -> Batch:
        batch = self._make(step, self._trainer.global_rank, self._trainer.world_size)
        return Batch(*(field.pin_memory() for field in batch)) if self._pin else batch

    def __iter__(self) -> Iterator[Batch]:
        """Yields the batch of each gradient step in turn."""
        steps = itertools.count(self._trainer.lightning_module.gradient_step)
        if not self._ahead:
            yield from map(self._batch, steps)
        with ThreadPoolExecutor(self._ahead, "batches") as pool:
            coming = deque(pool.submit(self._batch, next(steps)) for _ in range(self._ahead))
            for step in steps:
                batch = coming.popleft().result()
                coming.append(pool.submit(self._batch, step))
                yield batch
