"""Where the time of an update goes.

python benchmarks/update.py                         QAM at the paper's and the quickstart's size
python benchmarks/update.py --method qam_edit --size paper --precision bf16

Prints milliseconds per update, the median of many, separately for the noise, loss and backward,
clipping and optimizer, EMA targets, data, and what a training run through Lightning with the
callbacks of every run adds to their sum; the floating-point operations of the step, and the share
of this machine's best measured float32 matrix product that they come to.
"""

import argparse
import contextlib
import importlib
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
import yaml
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from qam_lightning.callbacks.ema import EmaTargets
from qam_lightning.callbacks.metrics import MetricsLogger
from qam_lightning.cli.trainer import Trainer
from qam_lightning.data.batch import Batch
from qam_lightning.data.chunks import ChunkStorage
from qam_lightning.data.sampler import sample_indices
from qam_lightning.data.spaces import Spaces
from qam_lightning.loggers import CsvLogger
from qam_lightning.methods.base import Method
from qam_lightning.methods.optimization import clip_gradients
from qam_lightning.util.arguments import Parser, answered, at_least, closest
from qam_lightning.util.configs import METHODS
from qam_lightning.util.errors import UserError, shown
from qam_lightning.util.provenance import versions_line

OBS_DIM, ACTION_DIM, CHUNK, BATCH, TRANSITIONS = 46, 5, 5, 256, 300_000
SIZES: dict[str, dict[str, int]] = {
    "paper": {"width": 512, "depth": 4, "num_critics": 10, "flow_steps": 10},
    "quickstart": {"width": 128, "depth": 3, "num_critics": 5, "flow_steps": 5},
}


class Part(NamedTuple):
    """One measured part of an update."""

    name: str
    ms: float


def build(name: str, size: str, compiled: bool) -> Method:
    """Create a method of the given size with its values for cube-triple, if it has any."""
    own = yaml.safe_load((METHODS / f"{name}.yaml").read_text())
    module, kind = own["model"]["class_path"].rsplit(".", 1)
    tuned = own.get("tuned", {}).get("cube-triple", {})
    settings = {**own["model"].get("init_args", {}), **tuned, **SIZES[size], "compile": compiled}
    torch.manual_seed(0)
    spaces = Spaces(OBS_DIM, ACTION_DIM, CHUNK)
    return getattr(importlib.import_module(module), kind)(spaces, **settings)


def synthetic_storage() -> ChunkStorage:
    """Return random trajectories of the cube-triple task's dimensions, 1,000 steps each."""
    rng = np.random.default_rng(0)
    ends = np.arange(999, TRANSITIONS, 1000)
    kept = TRANSITIONS - len(ends)
    return ChunkStorage(
        observations=rng.standard_normal((TRANSITIONS, OBS_DIM), np.float32),
        actions=rng.uniform(-1, 1, (kept, ACTION_DIM)).astype(np.float32),
        ends=ends,
        rewards=-rng.random(kept, np.float32),
        masks=np.ones(kept, np.float32),
        horizon=CHUNK,
        discount=0.99,
    )


def milliseconds(function: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Return the median time of ``function`` after a warm-up."""
    times = []
    for i in range(repeats + 3):
        _wait(device)
        start = time.perf_counter()
        function()
        _wait(device)
        if i >= 3:
            times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def matmul_peak(device: torch.device) -> float:
    """Return the best float32 matrix product seen here, in GFLOP/s."""
    a, b = torch.randn(2, 1536, 1536, device=device)
    return max(2 * 1536**3 / milliseconds(lambda: a @ b, device, 10) / 1e6 for _ in range(3))


class Feed:
    """An endless iterable of batches, as a run's DataModule provides."""

    def __init__(self, draw: Callable[[int], Batch]) -> None:
        """Remember where batches come from."""
        self.draw = draw

    def __iter__(self) -> Iterator[Batch]:
        """Yield a batch per step."""
        step = 0
        while True:
            yield self.draw(step)
            step += 1


class Stopwatch(pl.Callback):
    """Times whole training batches of a run, the last callback to be called."""

    def __init__(self, device: torch.device) -> None:
        """Start empty."""
        self.device, self.marks = device, list[float]()

    def on_train_batch_end(self, *args: object) -> None:
        """Note the time after a batch."""
        _wait(self.device)
        self.marks.append(time.perf_counter())

    def median(self) -> float:
        """Return the median time from batch to batch in ms."""
        gaps = np.diff(self.marks[3:])
        return 1e3 * float(np.median(gaps))


def measure(method: Method, precision: str, repeats: int) -> tuple[list[Part], float]:
    """Measure the parts of an update and count its operations.

    Returns:
        The parts, and GFLOP per update.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    method.to(device)
    storage = synthetic_storage()

    def draw_batch(step: int) -> Batch:
        indices = sample_indices(0, step, BATCH, storage.num_chunks)
        return storage.gather(indices)

    batch = Batch(*(x.to(device) for x in draw_batch(0)))
    noise = method.step_noise(BATCH)
    optimizer = method.configure_optimizers()
    half = torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else None
    losses_of = torch.compile(method.losses) if method.compile else method.losses
    targets = EmaTargets(method.target_rate)

    def backward() -> None:
        optimizer.zero_grad()
        with half or contextlib.nullcontext():
            losses, _ = losses_of(batch, noise)
            loss = torch.stack(list(losses.values())).sum()
        loss.backward()

    def update() -> None:
        clip_gradients(list(method.parameters()), method.grad_clip, method.grad_clip_mode)
        optimizer.step()

    backward()  # compiles, where asked for
    with FlopCounterMode(display=False) as counter, torch.compiler.set_stance("force_eager"):
        backward()
    parts = [
        Part("noise", milliseconds(lambda: method.step_noise(BATCH), device, repeats)),
        Part("loss and backward", milliseconds(backward, device, repeats)),
        Part("clip and optimizer", milliseconds(update, device, repeats)),
        Part("EMA targets", milliseconds(lambda: targets.move_targets(method), device, repeats)),
        Part("data", milliseconds(lambda: draw_batch(7), device, repeats)),
    ]
    whole = run_through_lightning(method, Feed(draw_batch), precision, device, repeats)
    parts.append(Part("Lightning, callbacks", whole - sum(part.ms for part in parts)))
    return [*parts, Part("whole update", whole)], counter.get_total_flops() / 1e9


def run_through_lightning(
    method: Method, feed: Feed, precision: str, device: torch.device, repeats: int
) -> float:
    """Return the median ms of a batch in a real training run with the usual callbacks."""
    watch = Stopwatch(device)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_steps=repeats + 5,
            accelerator=device.type,
            precision="bf16-mixed" if precision == "bf16" else "32-true",
            callbacks=[MetricsLogger(), watch],
            logger=CsvLogger(folder),
        )
        trainer.progress_bar_callback.disable()  # type: ignore[union-attr]
        trainer.fit(method, train_dataloaders=feed)
    return watch.median()


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; return the exit code."""
    return answered(lambda: benchmark(parse(arguments)))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--method", default="qam", help="a file of configs/methods")
    parser.add_argument("--size", choices=[*SIZES, "all"], default="all")
    parser.add_argument("--precision", choices=["32", "bf16"], default="32")
    parser.add_argument("--compile", action="store_true", help="compile the losses")
    parser.add_argument("--repeats", type=at_least(1), default=30)
    parser.add_argument("--threads", type=at_least(1), help="CPU threads of torch")
    return parser.parse_args(arguments)


def benchmark(options: argparse.Namespace) -> int:
    """Measure and print; return the exit code."""
    known = sorted(path.stem for path in METHODS.glob("*.yaml"))
    if options.method not in known:
        problem = f"no such method; {closest(options.method, known)}"
        raise UserError(f"--method {shown(options.method)}: {problem}")
    torch.set_flush_denormal(True)
    if options.threads:
        torch.set_num_threads(options.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(versions_line())
    peak = matmul_peak(device)
    for size in SIZES if options.size == "all" else [options.size]:
        method = build(options.method, size, options.compile)
        parts, gflop = measure(method, options.precision, options.repeats)
        whole = parts[-1].ms
        table = Table(title=f"{options.method}, {size} size, {options.precision}, {device}")
        table.add_column("part")
        table.add_column("ms", justify="right")
        table.add_column("share", justify="right")
        for part in parts:
            table.add_row(part.name, f"{part.ms:.2f}", f"{100 * part.ms / whole:.0f}%")
        Console().print(table)
        speed = gflop / whole * 1e3
        print(
            f"{gflop:.2f} GFLOP per update, {speed:.0f} GFLOP/s: {100 * speed / peak:.0f}% of this "
            f"machine's float32 matrix product ({peak:.0f} GFLOP/s, "
            f"{torch.get_num_threads()} threads)\n"
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
