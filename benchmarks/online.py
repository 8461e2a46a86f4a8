"""What an online step costs, in milliseconds.

python benchmarks/online.py                                   QAM at the quickstart's size, scene
python benchmarks/online.py --domain cube_single --size paper --steps 400

Trains for some steps on a small dataset collected for the purpose, then online, by turns with an
environment that runs ahead in a process of its own (A) and with one stepped by this process (B).
What is compared was measured side by side (A, B, A, B, ...), and ratios are those of neighbours: so
a machine that is busy for a while touches both sides. benchmarks/acting.py measures evaluations.
"""

import argparse
import logging
import tempfile
import time
import warnings
from collections.abc import Sequence

import lightning.pytorch as pl
import numpy as np
import torch
from workload import SIZES

from qam_lightning.callbacks.evaluation import Evaluate
from qam_lightning.cli.training import FitCLI
from qam_lightning.data.generate import generate
from qam_lightning.methods.base import Method
from qam_lightning.util.devices import available_cores
from qam_lightning.util.provenance import versions_line

WARM_UP = 10  # steps of each phase that are not timed


class Stopwatch(pl.Callback):
    """Times every update with all that belongs to it, by phase; the last callback to be called."""

    def __init__(self) -> None:
        """Start empty."""
        self.marks: dict[str, list[float]] = {}

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: pl.Trainer, pl_module: Method, *args: object
    ) -> None:
        """Note the time at the end of an update."""
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()
        phase = "online" if pl_module.env_step else "offline"
        self.marks.setdefault(phase, []).append(time.perf_counter())

    def mean(self, phase: str) -> float:
        """Return the mean milliseconds from update to update; chunks begin only now and then."""
        return 1e3 * float(np.diff(self.marks[phase][WARM_UP:]).mean())


def train(options: argparse.Namespace, data: str, ahead: bool) -> Stopwatch:
    """Run both phases."""
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "domain": options.domain,
            "method": options.method,
            "run_dir": folder,
            "data.directory": data,
            "trainer.max_steps": options.steps,
            "online.steps": options.steps + 50,
            "online.learning_starts": 50,
            "online.async_env": str(ahead).lower(),
            "evaluation.every_n_steps": 10**9,
            "evaluation.episodes": 1,
            "evaluation.workers": 0,
            "checkpoints.every_n_steps": 10**9,
            **{f"model.{key}": value for key, value in SIZES[options.size].items()},
            "model.compile": "default" if options.compile else "off",
        }
        cli = FitCLI([f"--{key}={value}" for key, value in settings.items()])
        kept = [c for c in cli.trainer.callbacks if not isinstance(c, Evaluate)]  # type: ignore[attr-defined]
        cli.trainer.callbacks = [*kept, watch]  # type: ignore[attr-defined]
        cli.trainer.progress_bar_callback.disable()  # type: ignore[union-attr]
        cli.fit()
    return watch


def row(name: str, a: Sequence[float], b: Sequence[float]) -> str:
    """Return a line of the table: medians, and the ratio a / b with its range over the pairs."""
    ratios = np.divide(a, b)
    ratio = f"{np.median(ratios):.2f} ({ratios.min():.2f} – {ratios.max():.2f})"
    return f"| {name} | {np.median(a):.3g} | {np.median(b):.3g} | {ratio} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--domain", default="scene", help="a manipulation domain of configs")
    parser.add_argument("--method", default="qam", help="a file of configs/methods")
    parser.add_argument("--size", choices=SIZES, default="quickstart")
    parser.add_argument("--steps", type=int, default=200, help="updates of each phase")
    parser.add_argument("--rounds", type=int, default=3, help="how often A and B take turns")
    parser.add_argument("--compile", action="store_true", help="compile the update")
    options = parser.parse_args(arguments)
    torch.set_flush_denormal(True)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    watches: dict[bool, list[Stopwatch]] = {True: [], False: []}
    with tempfile.TemporaryDirectory() as folder:
        env = options.domain.replace("_", "-")
        generate(env, "play", folder, episodes=2, workers=1, episode_steps=60)
        for ahead in (True, False) * options.rounds:
            watches[ahead].append(train(options, folder, ahead))
    offline, online = ([w.mean(p) for w in watches[True]] for p in ("offline", "online"))
    here, base = ([w.mean(p) for w in watches[False]] for p in ("online", "offline"))
    print(f"{options.method}, {options.size} size, {env}, {available_cores()} cores,", end=" ")
    print(f"{torch.get_num_threads()} threads, {options.rounds} rounds of {options.steps} updates")
    print(versions_line())
    print("\n| A against B | A | B | A / B (range over pairs) |\n|---|---|---|---|")
    print(row("ms per step: online with `async_env` true (A), offline (B)", online, offline))
    print(row("ms per step: online with `async_env` false (A), offline (B)", here, base))
    print(row("ms per online step: `async_env` true (A), false (B)", online, here))


if __name__ == "__main__":
    main()
