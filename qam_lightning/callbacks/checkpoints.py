"""When a run's checkpoints are written, and what goes into them."""

import contextlib
import hashlib
import math
import os
import random
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import numpy as np
import torch

from qam_lightning.callbacks.base import Callback, ours
from qam_lightning.callbacks.checkpoint_files import (
    ENTRY,
    SafeFile,
    checkpoint_path,
    last_checkpoints,
    read_checkpoint,
    rename_before,
    set_aside,
)
from qam_lightning.methods.base import Method
from qam_lightning.util.errors import UserError
from qam_lightning.util.files import sync
from qam_lightning.util.provenance import versions

# The last one is what SLURM is mostly asked to send before a job's time is up.
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Checkpoints(Callback):
    """Keeps ``last.ckpt``, some before it, and ``best.ckpt`` of a run.

    ``last.ckpt`` is written every ``every`` gradient steps, at the end of training, on SIGINT,
    SIGTERM or SIGUSR1 at the next step boundary, and when training fails, provided that the failure
    did not come in the middle of a step. It takes the place of the one before when what arrived on
    disk has been read back. ``best.ckpt`` follows the evaluated success rate; of equal rates the
    newer wins. Nothing is written when a loss, a weight or the optimizer's state is not finite.

    Attributes:
        received_signal: Number of the signal that stopped training, if one did.
    """

    def __init__(self, run_dir: str, every: int = 50_000, keep: int = 2) -> None:
        """Notes the settings.

        Args:
            run_dir: Folder of the run; checkpoints go to its ``checkpoints`` folder.
            every: Gradient steps between two writes of ``last.ckpt``.
            keep: How many of these to keep: ``last.ckpt``, and those before it as ``last-1.ckpt``,
                ``last-2.ckpt`` and so on. With 1 there is none to fall back to.

        Raises:
            UserError: ``every`` or ``keep`` is below 1.
        """
        if every < 1:
            raise UserError(f"checkpoints.every: must be at least 1 gradient step, found {every}")
        if keep < 1:
            raise UserError(f"checkpoints.keep: must be at least 1, found {keep}")
        self.run_dir = run_dir
        self.every = every
        self.keep = keep
        self.received_signal: int | None = None
        self._signal: int | None = None
        self._best = float("-inf")
        self._losses: torch.Tensor | None = None
        self._random: dict[str, Any] | None = None
        self._boundary: int | None = None
        self._written: int | None = None
        self._handlers: dict[int, Any] = {}

    def path(self, name: str) -> Path:
        """Where the checkpoint ``"last"``, ``"last-1"`` or ``"best"`` of this run lies."""
        return checkpoint_path(self.run_dir, name)

    # -- when ------------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Has checkpoints written by `SafeFile`."""
        trainer.strategy.checkpoint_io = SafeFile()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Notes where training starts and turns the first interrupt into an orderly stop."""
        self._boundary = cast(Method, pl_module).gradient_step
        if trainer.is_global_zero:
            set_aside(self.run_dir, Path(trainer.ckpt_path or ""))
        if self._random is not None:
            restore_random_states(self._random, pl_module.device)
        if threading.current_thread() is threading.main_thread():
            for number in _STOPPING:
                if signal.getsignal(number) != signal.SIG_IGN:  # ignored e.g. in the background
                    self._handlers[number] = signal.signal(number, self._on_signal)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: object
    ) -> None:
        """Writes ``last.ckpt`` when it is due, and stops here after an interrupt."""
        method = cast(Method, pl_module)
        step, loss = method.gradient_step, method.metrics["loss"]
        self._boundary = step
        # A loss that is not finite stays visible in the sum, which costs no synchronisation.
        self._losses = loss if self._losses is None else self._losses + loss
        if step == trainer.max_steps:
            return  # the final evaluation belongs to the final state
        if self._stop_wanted(trainer, step):
            self._stop(trainer)
        elif step % self.every == 0:
            self._write_last(trainer, step)

    def on_collection(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stops after an interrupt also where environment steps follow on each other."""
        self._written = None  # the state has moved on, although no update was made
        if self._stop_wanted(trainer, cast(Method, pl_module).env_step):
            self._stop(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Writes the final state, also that of a run stopped by an interrupt."""
        if self._written != self._boundary:
            self._write_last(trainer, self._boundary)
        # Not in ``teardown``: the trainer takes its own handlers away before that is called.
        self._restore_handlers()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Saves what a failure would lose, unless the failure left a step half done."""
        self._restore_handlers()
        whole = self._boundary is not None and self._boundary == pl_module.gradient_step
        whole &= not isinstance(exception, KeyboardInterrupt)  # which may have come anywhere
        whole &= not any(callback.mid_step for callback in ours(trainer))
        # On several devices the other ranks may be gone, and saving would wait for them for ever.
        if whole and trainer.world_size == 1 and self._written != self._boundary:
            with contextlib.suppress(UserError):  # what failed first is what is to be told
                self._write_last(trainer, self._boundary)

    def on_evaluation(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, result: Mapping[str, Any]
    ) -> None:
        """Writes ``best.ckpt`` when ``result["success"]`` is at least the best so far."""
        if result["success"] >= self._best:
            self._best = float(result["success"])
            self._write(trainer, self.path("best"))

    def _on_signal(self, number: int, frame: object) -> None:
        # A second one takes effect at once. The trainer's own handlers would not see to that.
        for handled in self._handlers:
            at_once = signal.default_int_handler if handled == signal.SIGINT else signal.SIG_DFL
            signal.signal(handled, at_once)
        self._signal = number
        print("stopping after this gradient step (interrupt again to abort)", file=sys.stderr)

    def _restore_handlers(self) -> None:
        while self._handlers:
            signal.signal(*self._handlers.popitem())

    def _stop(self, trainer: pl.Trainer) -> None:
        self.received_signal = self._signal or signal.SIGTERM  # another rank's, if not this one's
        trainer.should_stop = True

    def _stop_wanted(self, trainer: pl.Trainer, step: int) -> bool:
        wanted = self._signal is not None
        if trainer.world_size == 1:
            return wanted
        # Ranks must stop at the same step; asking costs a synchronisation, so ask seldom.
        return step % 100 == 0 and trainer.strategy.reduce_boolean_decision(wanted, all=False)

    # -- what ------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The best success rate; that of ``best.ckpt`` stands in it."""
        return {"best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the best success rate from this run's ``best.ckpt``.

        It may be newer than the checkpoint that the run goes on from, and is not to be replaced by
        a worse one; a branch of another run starts without.
        """
        with contextlib.suppress(UserError):  # none yet, or damaged
            best = read_checkpoint(self.path("best"))
            self._best = best["callbacks"][self.state_key]["best"]

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Notes the states of the random generators, to be restored when training starts."""
        self._random = checkpoint.get("random")

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds the random generators, and the entry that says how to rebuild the method."""
        method, kind = cast(Method, pl_module), type(pl_module)
        checkpoint["random"] = random_states(method.device)
        config = config_text(self.run_dir)
        checkpoint[ENTRY] = {
            "method": f"{kind.__module__}.{kind.__qualname__}",
            "model": dict(method.hparams),
            "environment": _environment(trainer),
            "config": config,
            "config_hash": hashlib.sha256(config.encode()).hexdigest()[:16],
            "versions": versions(),
            "run_dir": str(self.run_dir),
            "gradient_step": method.gradient_step,
            "env_step": method.env_step,
            "phase": method.phase,
        }

    def _write_last(self, trainer: pl.Trainer, step: int | None) -> None:
        self._write(trainer, self.path("last"))
        self._written = step

    def _write(self, trainer: pl.Trainer, path: Path) -> None:
        """Writes to a temporary name, verifies, renames: a reader never sees half a file."""
        self._check_finite(trainer, path)
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            trainer.save_checkpoint(temporary)
            if trainer.is_global_zero:
                if path == self.path("last"):
                    self._keep_before()
                os.replace(temporary, path)
                sync(path.parent)
        except OSError as error:
            raise UserError(
                f"{path}: cannot write the checkpoint: {error.strerror}; those written before are "
                "whole"
            ) from error
        finally:
            if trainer.is_global_zero:
                temporary.unlink(missing_ok=True)
        self._losses = None

    def _keep_before(self) -> None:
        """Gives each of the last checkpoints the name of the one before it."""
        names = enumerate(last_checkpoints(self.run_dir)[: self.keep - 1], 1)
        for age, newer in reversed(list(names)):
            if self.path("last").exists() and newer != self.path(f"last-{age}"):
                rename_before(newer, self.path(f"last-{age}"))

    def _check_finite(self, trainer: pl.Trainer, path: Path) -> None:
        """Sees that nothing in a checkpoint is infinite or not a number, on any device."""
        found = not_finite(trainer, self._losses)
        if not trainer.strategy.reduce_boolean_decision(found is None):
            raise UserError(
                f"training diverged: {found or 'something on another device'} is not finite at "
                f"gradient step {self._boundary}; {path} was left as it was; lower "
                "model.learning_rate or clip gradients"
            )


def config_text(run_dir: str | Path) -> str:
    """The resolved configuration saved in a run folder, or an empty string where there is none."""
    path = Path(run_dir) / "config.yaml"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def not_finite(trainer: pl.Trainer, losses: torch.Tensor | None) -> str | None:
    """Names something infinite or not a number in a run's state; None if there is no such thing.

    Args:
        trainer: For the method, whose weights and latest metrics are looked at, and its optimizers.
        losses: The sum of the losses since somebody looked.

    Returns:
        What says most about where it began: a metric, else a tensor of the state.
    """
    method = cast(Method, trainer.lightning_module)
    state = {} if losses is None else {"loss": losses}
    state |= {f"the weight {name}": x for name, x in method.state_dict().items()}
    for optimizer in trainer.optimizers:
        for number, moments in enumerate(optimizer.state.values()):
            kept = {name: x for name, x in moments.items() if torch.is_tensor(x) and x.ndim}
            state |= {f"the optimizer's {name} {number}": x for name, x in kept.items()}
    finite = [x.isfinite().all() for x in state.values()]
    if not finite or torch.stack(finite).all():
        return None
    found = [name for name, fine in zip(state, finite, strict=True) if not fine]
    return culprit({name: float(x) for name, x in method.metrics.items()}) or found[0]


def culprit(metrics: Mapping[str, float]) -> str | None:
    """Names the first metric that is infinite or not a number; the sum of the losses only if alone.

    Args:
        metrics: Name -> value.
    """
    found = [name for name, value in metrics.items() if not math.isfinite(value)]
    return next((name for name in found if name != "loss"), found[0] if found else None)


def random_states(device: torch.device) -> dict[str, Any]:
    """The states of the global random generators of python, numpy and torch, as primitives.

    Nothing here draws from them, as noise and batches follow from counters; but what a user adds
    may.

    Args:
        device: The one that trains.
    """
    name, keys, *rest = cast(tuple[Any, ...], np.random.get_state())
    states: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states | {"numpy": [name, keys.tolist(), *rest]}


def restore_random_states(states: Mapping[str, Any], device: torch.device) -> None:
    """Puts the generators back to what `random_states` returned."""
    random.setstate(states["python"])
    np.random.set_state(tuple(states["numpy"]))
    torch.set_rng_state(states["torch"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def _environment(trainer: pl.Trainer) -> dict[str, Any]:
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    return {key: getattr(data, key) for key in ("env", "dataset", "task", "sparse")} if data else {}
