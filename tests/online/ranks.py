"""What two ranks do for the tests beside it, all in one start, as starting them is slow.

torchrun --standalone --nproc-per-node 2 -m tests.online.ranks DATA FOLDER METHOD [METHOD ...]
"""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qam_lightning.util.imports import uncollected

with uncollected():
    import lightning.pytorch as pl
    import torch

    from qam_lightning.callbacks.base import Callback
    from qam_lightning.callbacks.evaluation import Evaluate
    from qam_lightning.cli import main
    from qam_lightning.data.datamodule import ChunkDataModule
    from qam_lightning.data.spaces import Spaces
    from qam_lightning.methods.base import Method
    from qam_lightning.online.actor import EnvActor
    from tests.conftest import SMALL
    from tests.methods.test_every_method import METHODS, make
    from tests.online.conftest import ENV, build

STEPS, CHUNK, CLIP = 20, 3, 0.05
ONLINE = {"online__num_envs": 2, "evaluation__every_n_steps": 6, "evaluation__episodes": 3}
CUTS = {"offline": 2, "online": 10}
"""Gradient steps of the checkpoints from which interrupted runs go on."""
REBRAC = ("--method=rebrac", "--model.alpha=1", "--model.noise_scale=0.1", "--online.steps=0")
ALONE = {"QAM": {}, "ReBRAC": {"noise_scale": 0.0}}
"""Methods to train with ranks that do not know of each other, and settings of theirs."""
OWN = {"TRQAM": {"budget": 4.0}}
"""Settings of methods: a budget above half of every divergence, so that none is clamped."""


class Notes(Callback):
    """Keeps what a run went through."""

    def __init__(self) -> None:
        self.norms: list[float] = []
        self.scores: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, method: Method, *args: Any) -> None:
        self.norms.append(float(method.metrics["grad_norm"]))

    def on_evaluation(self, trainer: pl.Trainer, method: Method, results: dict) -> None:
        self.scores.append({k: v for k, v in results.items() if k != "seconds"})


class Unaware(pl.Callback):
    """Has every rank take itself for the only one."""

    def on_train_start(self, trainer: pl.Trainer, method: Method) -> None:
        method.ranks, method.rank = 1, 0


def small(method: type[Method], **changes: Any) -> Method:
    torch.manual_seed(0)
    return method(**{**SMALL, **changes})


def fit(
    kind: type[Method], data: Path, devices: int, *callbacks: pl.Callback, **own: Any
) -> dict[str, Any]:
    """Train in double precision on 12 chunks a step, over all ranks; returns where it ended."""
    sizes = {"spaces": Spaces(3, 2, CHUNK), "width": 8, "depth": 1}
    rates = {"learning_rate": 0.01, "target_rate": 0.1, "grad_clip": CLIP}
    method, notes = make(kind, small, **sizes, **rates, **own), Notes()
    trainer = pl.Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        precision="64-true",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[
            *callbacks,
            Evaluate(every_n_steps=STEPS, episodes=3, workers=0, at_start=True),
            notes,
        ],
    )
    settings = {"horizon": CHUNK, "discount": SMALL["discount"], "batch_size": 12}
    chunks = ChunkDataModule(ENV, "none", path=str(data), **settings)
    trainer.fit(method, datamodule=chunks)
    adam = trainer.optimizers[0].state_dict()["state"]
    weights = method.state_dict()
    return {"weights": weights, "adam": adam, "norms": notes.norms, "scores": notes.scores}


def killed_at(step: int, *arguments: str) -> None:
    """Run until a step ends in an error, with nothing saved or closed."""
    train = Method.training_step

    def dying(self: Method, batch: Any, batch_idx: int) -> None:
        train(self, batch, batch_idx)
        if self.gradient_step == step:
            raise RuntimeError("killed")

    Method.training_step = dying  # type: ignore[method-assign]
    try:
        main(list(arguments))
    except RuntimeError as error:
        assert str(error) == "killed"
    finally:
        Method.training_step = train  # type: ignore[method-assign]
    torch.distributed.barrier()  # the first rank gives the checkpoint its name


def interrupted(data: Path, run: Path, cut: int, *flags: str, **changes: Any) -> None:
    """Run to two steps past a checkpoint, and go on from there."""
    arguments = build(data, run, *flags, f"--checkpoints.every_n_steps={cut}", **changes)
    killed_at(cut + 1, *arguments)
    if int(os.environ["RANK"]) == 0:
        (run / "checkpoints/last.ckpt").with_name("cut").write_bytes(
            (run / "checkpoints/last.ckpt").read_bytes()
        )
    assert main([*arguments, "--ckpt_path=last"]) == 0


def taken(monitor: list[int]) -> Any:
    """Count the environment steps that this rank takes."""
    take = EnvActor.take

    def counting(self: EnvActor, act: Any, step: int) -> Any:
        monitor.append(self._number)
        return take(self, act, step)

    return counting


def diverging(data: Path, run: Path, *flags: str) -> int:
    """Run with a loss that is not finite on the second rank alone; returns the exit status."""
    train = Method.training_step

    def poisoned(self: Method, batch: Any, batch_idx: int) -> None:
        train(self, batch, batch_idx)
        if self.rank == 1:
            self.metrics["loss"] = torch.tensor(float("nan"))

    Method.training_step = poisoned  # type: ignore[method-assign]
    try:
        return main(build(data, run, *flags))
    finally:
        Method.training_step = train  # type: ignore[method-assign]


def terminated(data: Path, run: Path, *flags: str) -> int:
    """Run until the second rank alone is told to stop; returns the exit status."""
    train = Method.training_step

    def stopping(self: Method, batch: Any, batch_idx: int) -> None:
        if self.rank == 1 and self.gradient_step == 20:
            os.kill(os.getpid(), signal.SIGTERM)
        train(self, batch, batch_idx)

    Method.training_step = stopping  # type: ignore[method-assign]
    try:
        return main(build(data, run, *flags, trainer__max_steps=150))
    finally:
        Method.training_step = train  # type: ignore[method-assign]


def run(data: Path, folder: Path, methods: Sequence[str]) -> None:
    """Everything; of training alone, these methods."""
    rank = int(os.environ["RANK"])
    for kind in (kind for kind in METHODS if kind.__name__ in methods):
        torch.save(
            fit(kind, data, 2, **OWN.get(kind.__name__, {})), folder / f"{kind.__name__}-{rank}.pt"
        )
        if kind.__name__ in ALONE:
            alone = fit(kind, data, 2, Unaware(), **ALONE[kind.__name__])
            torch.save(alone, folder / f"{kind.__name__}-alone-{rank}.pt")
    devices = "--trainer.devices=2"
    steps, take = list[int](), EnvActor.take
    EnvActor.take = taken(steps)  # type: ignore[method-assign]
    # A folder of its own shows what a rank writes.
    assert main(build(data, folder / f"whole-{rank}", devices, **ONLINE)) == 0
    (folder / f"steps-{rank}.txt").write_text(" ".join(map(str, steps)))
    EnvActor.take = take  # type: ignore[method-assign]
    for name, cut in CUTS.items():
        interrupted(data, folder / name, cut, devices, **ONLINE)
    assert main(build(data, folder / f"delayed-{rank}", devices, *REBRAC)) == 0
    interrupted(data, folder / "delayed", 2, devices, *REBRAC)
    status = [terminated(data, folder / "terminated", devices)]
    status += [diverging(data, folder / "diverged", devices)]
    (folder / f"status-{rank}.txt").write_text(" ".join(map(str, status)))


if __name__ == "__main__":
    torch.set_flush_denormal(True)
    torch.set_num_threads(1)
    run(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
