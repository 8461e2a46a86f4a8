"""The endless stream of training batches, made ahead of time by other threads."""

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from qam_lightning.data.batch import Batch


class Batches:
    """Batches from the model's gradient step onwards, without end.

    Up to the first online step they are made early; from there on each is made when it is asked
    for, as the environment steps it may see have not been taken before.

    Not a ``DataLoader``: a batch is a handful of look-ups, so worker processes would cost more than
    they save, and without a sampler there is nothing for Lightning to replace. As a batch is a
    function of its step, making some early changes nothing, and a resumed run needs no state.
    """

    def __init__(
        self,
        make: Callable[[int, int, int], Batch],
        trainer: Any,
        ahead: int,
        pin: bool,
        until: float = math.inf,
    ):
        """Makes nothing yet.

        Args:
            make: ``make(step, rank, world_size)`` gives a batch; called from several threads.
            trainer: Lightning's trainer; knows the first step and the ranks.
            ahead: Batches to make ahead of the learner; 0 makes each when it is asked for.
            pin: Put them into page-locked memory, from which a GPU copies without waiting.
            until: The first step whose batch cannot be made ahead.
        """
        self._make, self._trainer, self._ahead, self._pin = make, trainer, ahead, pin
        self._until = until

    def __len__(self) -> int:
        """More than any run takes; of an iterable without length, Lightning takes one too many."""
        return 1 << 40

    def _batch(self, step: int) -> Batch:
        batch = self._make(step, self._trainer.global_rank, self._trainer.world_size)
        return Batch(*(field.pin_memory() for field in batch)) if self._pin else batch

    def __iter__(self) -> Iterator[Batch]:
        """Yields the batch of each gradient step in turn."""
        step = self._trainer.lightning_module.gradient_step
        if self._ahead:
            early = itertools.takewhile(lambda s: s < self._until, itertools.count(step))
            with ThreadPoolExecutor(self._ahead, "batches") as pool:
                coming = deque(
                    pool.submit(self._batch, s) for s in itertools.islice(early, self._ahead)
                )
                while coming:
                    batch = coming.popleft().result()
                    coming.extend(pool.submit(self._batch, s) for s in itertools.islice(early, 1))
                    yield batch
                    step += 1
        yield from map(self._batch, itertools.count(step))
