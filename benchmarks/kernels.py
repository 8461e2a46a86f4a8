"""Where the time of a compiled update goes: its kernels on a CPU, the slowest first.

python benchmarks/kernels.py bam --size paper --threads 2

Trains on synthetic data as `update.py` does, with a profiler around some updates. The profiler
itself takes some per cent. Products of matrices are calls of a library, and named by their
operation (mm, bmm, addmm); all other kernels are the compiler's, named by what is fused in them.
Measure on an idle machine.
"""

import argparse
from collections.abc import Sequence

import lightning.pytorch as pl
import torch
from rich.console import Console
from rich.table import Table
from torch._inductor import config as compiler
from torch.profiler import ProfilerActivity, profile
from update import CORE_COUNT
from update_cell import Feed, Task, train
from workload import KNOWN, SIZES, build

from qam_lightning.util.arguments import Parser, answered, at_least

CALLED = "aoti_torch_cpu_"  # a library's operation
COMPILED = "graph_"  # a kernel of the compiler's
WARM_UP = 4  # updates before the profile


class Profiled(pl.Callback):
    """Profiles whole updates of a run and stops it.

    Args:
        updates: how many.
    """

    def __init__(self, updates: int) -> None:
        self.updates, self._done = updates, 0
        self._profile = profile(activities=[ProfilerActivity.CPU])

    def on_train_batch_end(self, trainer: pl.Trainer, *args: object) -> None:
        """Begin after the warm-up."""
        self._done += 1
        if self._done == WARM_UP:
            self._profile.start()
        elif self._done == WARM_UP + self.updates:
            self._profile.stop()
            trainer.should_stop = True

    def kernels(self) -> list[tuple[str, float, float]]:
        """Return the name, calls and milliseconds per update of every kernel, slowest first."""
        found = [
            (event.key.removeprefix(CALLED), event.count, event.self_cpu_time_total / 1e3)
            for event in self._profile.key_averages()
            if event.key.startswith((CALLED, COMPILED))
        ]
        each = [(name, count / self.updates, ms / self.updates) for name, count, ms in found]
        return sorted(each, key=lambda kernel: -kernel[2])


def main(arguments: Sequence[str] | None = None) -> int:
    """Profile and print; return the exit code."""
    return answered(lambda: show(parse(arguments)))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(description=(__doc__ or "").split("\n\n")[0])
    add = parser.add_argument
    add("method", choices=KNOWN, metavar="METHOD", help=f"of {', '.join(KNOWN)}")
    add("--size", choices=SIZES, default="paper", help="default: %(default)s")
    add("--threads", type=at_least(1), default=CORE_COUNT, help="default: all cores")
    add("--updates", type=at_least(1), default=10, help="to profile; default: %(default)s")
    add("--rows", type=at_least(1), default=12, help="to print; default: %(default)s")
    add("--bf16", action="store_true", help="products in bfloat16")
    return parser.parse_args(arguments)


def show(options: argparse.Namespace) -> int:
    """Profile a method and print its kernels; return the exit code."""
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)  # as a run does
    mode = "compiled-bf16" if options.bf16 else "compiled"
    profiled = Profiled(options.updates)
    method = build(options.method, options.size, compile="default")
    with compiler.patch("cpp.enable_kernel_profile", True):
        train(Task(options.method, options.size, mode, "cpu", 0), method, Feed(), profiled)
    kernels = profiled.kernels()
    total = sum(ms for _, _, ms in kernels)
    products = sum(ms for name, _, ms in kernels if not name.startswith(COMPILED))
    table = Table(title=f"{options.method}, per update")
    table.add_column("kernel", overflow="ellipsis", no_wrap=True, max_width=64)
    for heading in ("calls", "ms", "share"):
        table.add_column(heading, justify="right")
    rows = [(name, f"{calls:.0f}", ms) for name, calls, ms in kernels[: options.rows]]
    rest = sum(ms for *_, ms in kernels[options.rows :])
    for name, calls, ms in [
        *rows,
        ("others", "", rest),
        ("all", "", total),
        ("products", "", products),
    ]:
        table.add_row(name, calls, f"{ms:.2f}", f"{ms / total:.0%}")
    Console(width=100).print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
