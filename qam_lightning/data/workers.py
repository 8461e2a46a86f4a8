"""Worker processes that collect episodes."""

from collections.abc import Iterable, Iterator
from multiprocessing.connection import wait
from typing import cast

from qam_lightning.envs.worker import ProcessWorker, Request, Settings


def work_off(settings: Settings, requests: Iterable[Request], workers: int) -> Iterator[None]:
    """Let processes serve requests, one at a time each; yield whenever one is done.

    Args:
        settings: From which each process makes what serves the requests.
        requests: Read as processes become free. Each has one answer.
        workers: Processes, at least 1.

    Raises:
        UserError: As the work in a process raised it.
        WorkerError: The work failed, or the process died.
    """
    waiting = iter(requests)
    # Nothing is rendered: no need for a display.
    pool = [ProcessWorker(settings, MUJOCO_GL="disabled") for _ in range(workers)]
    try:
        busy: dict[int, ProcessWorker] = {}
        for worker, request in zip(pool, waiting, strict=False):
            worker.send([request])
            busy[worker.fileno()] = worker
        while busy:
            for number in cast(list[int], wait(busy)):
                busy[number].receive()
                if following := next(waiting, None):
                    busy[number].send([following])
                else:
                    del busy[number]
                yield
    finally:
        for worker in pool:
            worker.close(patience=0.0)  # an unfinished episode leaves no part behind
