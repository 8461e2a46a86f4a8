"""What acting costs: milliseconds per online step, and evaluation episodes per minute.

python benchmarks/online.py                                   QAM at the quickstart's size, scene
python benchmarks/online.py --domain cube_single --size paper --steps 400

Trains for some steps on a small dataset collected for the purpose, then online, with the
environment stepped by this process and with one that runs ahead in its own; and rolls the policy
out as evaluations do, all environments at once and one policy call per chunk for all of them,
against one environment with a policy call at every step.
"""

import argparse
import logging
import os
import tempfile
import time
import warnings

import lightning.pytorch as pl
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from qam_lightning.callbacks.evaluation import EpisodePolicy
from qam_lightning.cli import FitCLI
from qam_lightning.data.generate import generate
from qam_lightning.envs.make import make_env
from qam_lightning.envs.rollout import ChunkedEnv, RolloutPool
from qam_lightning.methods.base import Method

SIZES: dict[str, dict[str, int]] = {
    "paper": {"width": 512, "depth": 4, "ensemble": 10, "flow_steps": 10},
    "quickstart": {"width": 128, "depth": 3, "ensemble": 5, "flow_steps": 5},
}
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


def train(options: argparse.Namespace, data: str, ahead: bool) -> tuple[FitCLI, Stopwatch]:
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
            "online.start": 50,
            "online.ahead": str(ahead).lower(),
            "evaluation.every": 10**9,
            "evaluation.episodes": 1,
            "evaluation.workers": 0,
            "checkpoints.every": 10**9,
            **{f"model.{key}": value for key, value in SIZES[options.size].items()},
            "model.compile": str(options.compile).lower(),
        }
        cli = FitCLI([f"--{key}={value}" for key, value in settings.items()])
        cli.trainer.callbacks.append(watch)  # type: ignore[attr-defined]
        cli.trainer.progress_bar_callback.disable()  # type: ignore[union-attr]
        cli.fit()
    return cli, watch


def episodes_per_minute(cli: FitCLI, episodes: int) -> tuple[float, float]:
    """Return the rate of evaluations, and that of one environment asked for every action."""
    data, policy = cli.datamodule, EpisodePolicy(cli.model, 0)
    with RolloutPool(data.env, data.task, data.sparse) as pool:
        pool.run(policy, 1, 1)  # starts the processes
        start = time.perf_counter()
        pool.run(policy, episodes, 0)
        together = 60 * episodes / (time.perf_counter() - start)
    env = ChunkedEnv(make_env(data.env, data.task, data.sparse))
    observation, _ = env.reset(0)
    start, done = time.perf_counter(), False
    while not done:
        step = env.execute(policy(observation[None], [0])[0, :1])
        observation, done = step.observations[-1], step.done
    alone = 60 / (time.perf_counter() - start)
    env.close()
    return together, alone


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--domain", default="scene", help="a manipulation domain of configs")
    parser.add_argument("--method", default="qam", help="a file of configs/methods")
    parser.add_argument("--size", choices=SIZES, default="quickstart")
    parser.add_argument("--steps", type=int, default=200, help="updates of each phase")
    parser.add_argument("--episodes", type=int, default=8, help="evaluation episodes")
    parser.add_argument("--compile", action="store_true", help="compile the losses")
    options = parser.parse_args()
    torch.set_flush_denormal(True)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as folder:
        env = options.domain.replace("_", "-")
        generate(env, "play", folder, episodes=2, workers=1, episode_steps=60)
        cli, serial = train(options, folder, ahead=False)
        _, ahead = train(options, folder, ahead=True)
    together, alone = episodes_per_minute(cli, options.episodes)
    table = Table(title=f"{options.method}, {options.size} size, {env}, {os.cpu_count()} cores")
    table.add_column("what")
    table.add_column("value", justify="right")
    for name, value in (
        ("offline update, ms", ahead.mean("offline")),
        ("online update, ms, environment ahead in its own process", ahead.mean("online")),
        ("online update, ms, environment in this process", serial.mean("online")),
        ("evaluation episodes a minute, batched, a call per chunk", together),
        ("evaluation episodes a minute, one environment, a call per step", alone),
    ):
        table.add_row(name, f"{value:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
