"""One method in one mode, measured in a process of its own; `update.py` starts it.

python benchmarks/update_cell.py '{"method": "qam", "size": "paper", "mode": "eager",
                                   "device": "cpu", "seconds": 2}'

Trains with the project's trainer on synthetic data. Writes a line of JSON when the run is warm, and
one for every turn of timing, which a line ``go`` on the standard input begins. Any other line ends
the run; a last line then gives memory, floating-point operations and matrix products.
"""

import contextlib
import json
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry
from workload import CUBE_TRIPLE, build

from qam_lightning.callbacks.metrics import MetricsLogger
from qam_lightning.cli.trainer import Trainer
from qam_lightning.data.batch import Batch
from qam_lightning.data.chunks import ChunkStorage
from qam_lightning.data.sampler import sample_indices
from qam_lightning.loggers import CsvLogger
from qam_lightning.methods.base import Method
from qam_lightning.util.arguments import answered

COMPILE = {
    "eager": "off",
    "bf16": "off",
    "compiled": "default",
    "compiled-bf16": "default",
    "graph": "graph",
}
"""Mode -> the method's setting ``compile``."""

BATCH, TRANSITIONS = 256, 300_000
LEAST = 5  # timed updates of a turn


class Task(NamedTuple):
    """What to measure.

    Attributes:
        method: a file of ``configs/methods``.
        size: one of `workload.SIZES`.
        mode: one of `COMPILE`; ``bf16`` in its name stands for mixed precision.
        device: ``cpu`` or ``cuda``.
        seconds: how long a turn takes, at least; it has `LEAST` updates at least.
    """

    method: str
    size: str
    mode: str
    device: str
    seconds: float

    @property
    def dtype(self) -> torch.dtype:
        """The number format of matrix products."""
        return torch.bfloat16 if "bf16" in self.mode else torch.float32


class Channel:
    """Lines of JSON to the process that started this one; what others print goes elsewhere."""

    def __init__(self) -> None:
        """Take the standard output for this alone."""
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def send(self, **values: float) -> None:
        """Write a line."""
        print(json.dumps(values), file=self._out, flush=True)

    def told_to_go(self) -> bool:
        """Wait for a line; whether it asks for another turn."""
        return sys.stdin.readline().strip() == "go"


class Feed:
    """Endless batches from trajectories of random numbers, 1,000 steps each."""

    def __init__(self) -> None:
        """Create the trajectories, in the dimensions of the cube-triple task."""
        rng = np.random.default_rng(0)
        ends = np.arange(999, TRANSITIONS, 1000)
        kept = TRANSITIONS - len(ends)
        self._storage = ChunkStorage(
            observations=rng.standard_normal((TRANSITIONS, CUBE_TRIPLE.obs_dim), np.float32),
            actions=rng.uniform(-1, 1, (kept, CUBE_TRIPLE.action_dim)).astype(np.float32),
            ends=ends,
            rewards=-rng.random(kept, np.float32),
            masks=np.ones(kept, np.float32),
            horizon=CUBE_TRIPLE.horizon,
            discount=0.99,
        )

    def __iter__(self) -> Iterator[Batch]:
        """Yield a batch per step."""
        step = 0
        while True:
            yield self._storage.gather(sample_indices(0, step, BATCH, self._storage.num_chunks))
            step += 1


class Turns(pl.Callback):
    """Times whole updates of a run, from the end of one to the end of the next, by turns."""

    def __init__(self, task: Task, channel: Channel) -> None:
        """Start the clock of the first update."""
        self.task, self.channel = task, channel
        self.resident, self.memory_mb = resident_mb("VmRSS"), 0.0
        self.marks, self.warm = [time.perf_counter()], False

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: pl.Trainer, pl_module: Method, *args: object
    ) -> None:
        """Note the time; report, and wait, where a turn or the warm-up ends."""
        wait(self.task.device)
        self.marks.append(time.perf_counter())
        delay = pl_module.actor_delay  # updates with and without the actor take different times
        done = (len(self.marks) - 1) // delay
        if not self.warm:
            if done < 4:
                return
            self.channel.send(compile_seconds=self.marks[delay] - self.marks[0])
        elif done < LEAST + 1 or self.marks[-1] - self.marks[delay] < self.task.seconds:
            return
        else:  # the first after the pause is left out
            ms = np.diff(self.marks[delay::delay]) / delay * 1e3
            self.channel.send(ms=float(np.median(ms)), ms_min=float(ms.min()))
        if self.channel.told_to_go():
            self.warm, self.marks = True, [time.perf_counter()]
        else:
            trainer.should_stop = True
            self.memory_mb = self._memory_mb()

    def _memory_mb(self) -> float:
        if self.task.device == "cuda":
            return torch.cuda.max_memory_allocated() / 1e6
        return resident_mb("VmHWM") - self.resident


def resident_mb(name: str) -> float:
    """Return this process's memory as Linux tells it, now (VmRSS) or at its peak (VmHWM)."""
    status = Path("/proc/self/status")
    found = re.search(rf"{name}:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) * 1024 / 1e6 if found else float("nan")


def wait(device: str) -> None:
    """Wait until the device has done everything."""
    if device == "cuda":
        torch.cuda.synchronize()


def train(task: Task, method: Method, feed: Feed, turns: Turns) -> None:
    """Run training with the callbacks of every run, until told to stop."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_steps=10**9,
            accelerator=task.device,
            precision="bf16-mixed" if "bf16" in task.mode else "32-true",
            callbacks=[MetricsLogger(), turns],
            logger=CsvLogger(folder),
        )
        trainer.progress_bar_callback.disable()  # type: ignore[union-attr]
        trainer.fit(method, train_dataloaders=feed)


class Products(TorchDispatchMode):
    """Records the matrix products of what runs inside, and can repeat them alone."""

    def __init__(self) -> None:
        """Start empty."""
        super().__init__()
        self._calls: list[tuple[Callable[..., Tensor], list[Any], dict[str, Any]]] = []
        self._operands: dict[Any, Tensor] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Pass every operation on."""
        if func._overloadpacket in flop_registry:  # mm, addmm, bmm, baddbmm; convolutions, ...
            operands = [
                self._like(place, x) if isinstance(x, Tensor) else x for place, x in enumerate(args)
            ]
            self._calls.append((func, operands, kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _like(self, place: int, x: Tensor) -> Tensor:
        """Return random numbers laid out like ``x``; equal layouts share them."""
        key = place, x.shape, x.stride(), x.dtype
        if key not in self._operands:
            extent = 1 + sum((n - 1) * step for n, step in zip(x.shape, x.stride(), strict=True))
            numbers = torch.randn(extent, device=x.device).to(x.dtype)
            self._operands[key] = numbers.as_strided(x.shape, x.stride())
        return self._operands[key]

    def repeat(self) -> None:
        """Compute all recorded products."""
        for func, operands, kwargs in self._calls:
            func(*operands, **kwargs)


def one_cycle(task: Task, method: Method, batch: Batch) -> None:
    """Differentiate the losses of ``actor_delay`` updates, uncompiled."""
    noise = method.step_noise(BATCH)
    half = torch.autocast(task.device, torch.bfloat16, enabled=task.dtype == torch.bfloat16)
    for step in range(1, method.actor_delay + 1):
        with half:
            losses, _ = method.losses(batch, noise, method.is_actor_step(step))
        torch.stack(list(losses.values())).sum().backward()


def milliseconds(function: Callable[[], Any], task: Task, seconds: float) -> list[float]:
    """Return the times of at least three calls, after one that is not timed."""
    times, start = list[float](), time.perf_counter()
    while len(times) < 4 or time.perf_counter() - start < seconds:
        wait(task.device)
        begun = time.perf_counter()
        function()
        wait(task.device)
        times.append(1e3 * (time.perf_counter() - begun))
    return times[1:]


def without_launches(function: Callable[[], Any], task: Task) -> Callable[[], Any]:
    """Return ``function`` as a CUDA graph on a GPU, whose kernels need no time of the CPU."""
    if task.device == "cpu":
        return function
    function()
    wait(task.device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


def operations(task: Task, method: Method, batch: Batch) -> dict[str, float]:
    """Return GFLOP, the time of the matrix products alone, and this machine's best product."""
    with Products() as products:
        one_cycle(task, method, batch)
    # Not around the update: it follows modules, and fails where a loss differentiates one.
    with FlopCounterMode(display=False) as counter:
        products.repeat()
    a, b = torch.randn(2, 1536, 1536, device=task.device).to(task.dtype)
    best = min(milliseconds(without_launches(lambda: a @ b, task), task, task.seconds / 4))
    alone = milliseconds(without_launches(products.repeat, task), task, task.seconds / 2)
    return {
        "gflop": counter.get_total_flops() / method.actor_delay / 1e9,
        "products_ms": statistics.median(alone) / method.actor_delay,
        "matmul_gflop_per_second": 2 * 1536**3 / best / 1e6,
    }


def measure(task: Task, channel: Channel) -> int:
    """Measure, by turns; return the exit code."""
    torch.set_flush_denormal(True)  # as a run does
    feed = Feed()
    turns = Turns(task, channel)  # from here on, memory and the first update's time count
    method = build(task.method, task.size, compile=COMPILE[task.mode])
    train(task, method, feed, turns)
    method.to(task.device)  # the trainer leaves it on the CPU
    batch = Batch(*(x.to(task.device) for x in next(iter(feed))))
    channel.send(memory_mb=turns.memory_mb, **operations(task, method, batch))
    return 0


if __name__ == "__main__":
    _channel = Channel()
    with contextlib.suppress(BrokenPipeError):  # nobody listens any more
        raise SystemExit(answered(lambda: measure(Task(**json.loads(sys.argv[1])), _channel)))
