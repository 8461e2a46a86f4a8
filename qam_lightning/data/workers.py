"""Worker processes that collect episodes, and their progress bar."""

import contextlib
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text


def steps_bar() -> Progress:
    """A progress bar that counts environment steps."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.1f}%"),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} steps"),
        _SpeedColumn(),
        TimeRemainingColumn(),
        speed_estimate_period=300,
    )


class _SpeedColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} steps/s" if task.speed else "")


@contextlib.contextmanager
def worker_pool(
    workers: int, start: Callable[..., None], arguments: tuple[Any, ...]
) -> Iterator[ProcessPoolExecutor]:
    """Start processes that each call ``start(*arguments)`` first and use one numerical thread."""
    # A new interpreter each: a forked copy of a process with threads (torch, rich) may hang.
    context = multiprocessing.get_context("spawn")
    # Set before a worker imports numpy and mujoco, which read them on import.
    inherited = {key: "1" for key in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    inherited["MUJOCO_GL"] = "disabled"  # nothing is rendered: no need for a display
    saved = {key: os.environ.get(key) for key in inherited}
    os.environ.update(inherited)
    try:
        with ProcessPoolExecutor(workers, context, _start_worker, (start, arguments)) as pool:
            yield pool
    finally:
        for key, value in saved.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def abandon(pool: ProcessPoolExecutor) -> None:
    """Stop the workers at once; an unfinished episode leaves no part behind."""
    processes = list((pool._processes or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()


def _start_worker(start: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    warnings.filterwarnings("ignore", message=".*precision lowered by casting")
    parent = multiprocessing.parent_process()
    if parent is not None:
        # A worker whose parent was killed would wait for its next episode for ever.
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    start(*arguments)


def _end_with(process: Any) -> None:
    process.join()
    os._exit(1)
