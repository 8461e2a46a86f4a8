"""The endless stream of training batches, which threads make ahead of time."""

import itertools
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from qam_lightning.data.batch import Batch


class Batches:
    """The batches of consecutive gradient steps, without end.

    This is no ``DataLoader``: a batch is a handful of look-ups, so worker processes would cost more
    than they save, and without a sampler there is nothing for Lightning to replace. A batch is a
    function of its step, so making it early changes nothing, and a resumed run needs no state.
    """

    def __init__(
        self,
        make: Callable[[int], Batch],
        first_step: Callable[[], int],
        prefetch: int = 0,
        may_prefetch: Callable[[int], bool] = lambda step: True,
        pin: bool = False,
    ):
        """Describe the stream.

        Args:
            make: ``make(step)`` gives a batch; called from several threads.
            first_step: Gives the gradient step at which an iteration starts.
            prefetch: Batches to make ahead of the learner; 0 makes each when it is asked for.
            may_prefetch: Whether a step's batch may be made early. From the first step whose batch
                may not, each is made when it is asked for.
            pin: Put batches into page-locked memory, from which a GPU copies without waiting.
        """
        self._make, self._first_step, self._pin = make, first_step, pin
        self._prefetch, self._may_prefetch = prefetch, may_prefetch

    def __len__(self) -> int:
        """A number beyond any run; without a length, Lightning would fetch one batch too many."""
        return 1 << 40

    def _batch(self, step: int) -> Batch:
        batch = self._make(step)
        return Batch(*(field.pin_memory() for field in batch)) if self._pin else batch

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batch of each gradient step in turn."""
        step = self._first_step()
        if self._prefetch:
            early = itertools.takewhile(self._may_prefetch, itertools.count(step))
            with ThreadPoolExecutor(self._prefetch, "batches") as pool:
                coming = deque(
                    pool.submit(self._batch, s) for s in itertools.islice(early, self._prefetch)
                )
                while coming:
                    batch = coming.popleft().result()
                    coming.extend(pool.submit(self._batch, s) for s in itertools.islice(early, 1))
                    yield batch
                    step += 1
        yield from map(self._batch, itertools.count(step))
