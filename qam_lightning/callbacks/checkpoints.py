"""Checkpoints of a run: written whole or not at all, read back with plain words for what is wrong.

A run folder holds ``checkpoints/last.ckpt``, those before it, ``last-1.ckpt`` and so on, and
``checkpoints/best.ckpt``. They are Lightning checkpoints of tensors and primitives only (they load
with ``weights_only=True``) with one more entry, ``"qam_lightning"``, which says how to rebuild the
method and where it was trained.
"""

import contextlib
import errno
import hashlib
import importlib
import io
import math
import os
import pickle
import random
import signal
import sys
import threading
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only

from qam_lightning.data.atomic import checksum, sync
from qam_lightning.errors import UserError
from qam_lightning.methods.base import Method
from qam_lightning.provenance import versions

ENTRY = "qam_lightning"
_ENTRY_KEYS = frozenset(
    ("method", "model", "environment", "config", "config_hash", "versions", "run_dir")
    + ("gradient_step", "env_step", "phase")
)
_UNREADABLE = (RuntimeError, ValueError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile)
# The last one is what SLURM is mostly asked to send before a job's time is up.
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Checkpoints(pl.Callback):
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
        whole &= not any(getattr(c, "busy", False) for c in trainer.callbacks)  # type: ignore[attr-defined]
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
        self._restore_handlers()  # a second interrupt takes effect at once
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
                _rename_before(newer, self.path(f"last-{age}"))

    def _check_finite(self, trainer: pl.Trainer, path: Path) -> None:
        """Sees that nothing in a checkpoint is infinite or not a number, on any device."""
        found = not_finite(trainer, self._losses)
        if not trainer.strategy.reduce_boolean_decision(found is None):
            raise UserError(
                f"training diverged: {found or 'something on another device'} is not finite at "
                f"gradient step {self._boundary}; {path} was left as it was; lower "
                "model.learning_rate or clip gradients"
            )


class SafeFile(TorchCheckpointIO):
    """Writes a checkpoint to its place, waits until it is on disk, and reads it back.

    Lightning's own way leads through the system's folder for temporary files, which is another
    disk, full at other times, and keeps what a kill left there.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Writes a checkpoint.

        Raises:
            OSError: It cannot be written, or did not arrive.
        """
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        with open(path, "wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        if checksum(Path(path)) != zlib.crc32(buffer.getbuffer()):
            raise OSError(errno.EIO, "the disk does not give back what was written")


def _rename_before(newer: Path, older: Path) -> None:
    """Renames, with both names there all the time where the file system has links."""
    spare = older.with_name(f".{older.name}.tmp")
    spare.unlink(missing_ok=True)
    try:
        os.link(newer, spare)
    except OSError:
        os.replace(newer, spare)
    os.replace(spare, older)
    spare.unlink(missing_ok=True)  # it is still there if both names were of the same file


def checkpoint_path(run_dir: str | Path, name: str) -> Path:
    """Path of the checkpoint ``name`` (``"last"`` or ``"best"``) in a run folder."""
    return Path(run_dir) / "checkpoints" / f"{name}.ckpt"


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


# -- reading -------------------------------------------------------------------------------------


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint of this project onto the CPU, without running any code from it.

    Args:
        path: A file that `Checkpoints` wrote.

    Returns:
        The Lightning checkpoint; ``["state_dict"]`` holds the weights, ``["qam_lightning"]`` the
        description of method, environment, configuration and progress.

    Raises:
        UserError: The file is missing, unreadable, damaged, or a checkpoint of something else.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint file")
    try:
        with zipfile.ZipFile(path) as archive:  # torch itself does not look at checksums
            if (name := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"{name} is damaged")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise UserError(
            f"{path}: not a readable checkpoint; it is damaged, cut short or another kind of file"
        ) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise UserError(f"{path}: holds no training checkpoint (no 'state_dict' in it)")
    entry = checkpoint.get(ENTRY)
    missing = _ENTRY_KEYS - set(entry) if isinstance(entry, dict) else _ENTRY_KEYS
    if missing:
        raise UserError(
            f"{path}: a checkpoint of another program or version: "
            f"'{ENTRY}' lacks {', '.join(sorted(missing))}"
        )
    return checkpoint


def newest(run_dir: str | Path) -> Path:
    """The newest of a run's last checkpoints that can be read; says so if one before is taken.

    Raises:
        UserError: There is none, or none that can be read.
    """
    if not last_checkpoints(run_dir):
        path = checkpoint_path(run_dir, "last")
        raise UserError(f"--ckpt_path last: there is no {path}; leave it out to start anew")
    problems = []
    for path in dict.fromkeys([checkpoint_path(run_dir, "last"), *last_checkpoints(run_dir)]):
        try:
            step = read_checkpoint(path)[ENTRY]["gradient_step"]
        except UserError as error:
            problems.append(str(error))
            continue
        if problems:
            rank_zero_only(print)(
                f"{problems[0]}: falling back to {path}, of gradient step {step}", file=sys.stderr
            )
        return path
    raise UserError(problems[0])


def last_checkpoints(run_dir: str | Path) -> list[Path]:
    """A run's ``last.ckpt``, ``last-1.ckpt`` and so on, as far as they exist."""
    paths = checkpoint_path(run_dir, "last").parent.glob("last*.ckpt")
    ages = {path: path.stem.removeprefix("last").removeprefix("-") or "0" for path in paths}
    return sorted((p for p, age in ages.items() if age.isdigit()), key=lambda p: int(ages[p]))


def check_newest(path: Path, run_dir: str | Path) -> None:
    """Sees that going on from a checkpoint in a run's folder overwrites nothing that came after.

    Raises:
        UserError: The run has got further.
    """
    found = {}
    for candidate in (path, *last_checkpoints(run_dir)):
        with contextlib.suppress(UserError):  # what cannot be read is no loss
            found[candidate] = read_checkpoint(candidate)[ENTRY]["gradient_step"]
    furthest = max(found, key=lambda p: found[p], default=path)
    if path in found and found[path] < found[furthest]:
        raise UserError(
            f"{path} is of gradient step {found[path]}, but {furthest} of {found[furthest]}, which "
            "would be overwritten; choose another --run_dir, or resume from last"
        )


def set_aside(run_dir: str | Path, resumed: Path) -> None:
    """Renames what a run fell back from, so that it takes no sound checkpoint's place.

    Args:
        run_dir: Folder of the run.
        resumed: The checkpoint that it goes on from; only one of its older last ones matters.
    """
    paths = last_checkpoints(run_dir)
    places = [path.resolve() for path in paths]
    if resumed.resolve() in places:
        for path in paths[: places.index(resumed.resolve())]:
            os.replace(path, path.with_name(f"{path.name}.aside"))


def load_method(path: str | Path, **overrides: Any) -> tuple[Method, dict[str, Any]]:
    """Rebuilds a trained method from a checkpoint.

    Args:
        path: A checkpoint file, or a run folder, whose ``last.ckpt`` is then taken.
        **overrides: Constructor arguments to replace, e.g. ``best_of_n=4``.

    Returns:
        The method on the CPU in evaluation mode, and the checkpoint's ``"qam_lightning"`` entry.

    Raises:
        UserError: See `read_checkpoint`; also when the method's class cannot be imported or built,
            or when the weights do not fit it.
    """
    path = Path(path)
    if path.is_dir():
        path = checkpoint_path(path, "last")
    checkpoint = read_checkpoint(path)
    entry = checkpoint[ENTRY]
    kind = _method_class(entry["method"], path)
    try:
        method = kind(**{**entry["model"], **overrides})
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: cannot build {entry['method']}: {error}") from error
    try:
        method.load_state_dict(checkpoint["state_dict"], strict=True)
    except RuntimeError as error:
        raise UserError(
            f"{path}: its weights do not fit {entry['method']}: {_first_detail(error)}"
        ) from error
    return method.eval(), entry


def _method_class(name: str, path: Path) -> type[Method]:
    module, _, attribute = name.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{path}: its method {name} cannot be imported: {error}") from error
    if not (isinstance(kind, type) and issubclass(kind, Method)):
        raise UserError(f"{path}: {name} is not a method")
    return kind


def _first_detail(error: RuntimeError) -> str:
    """The first difference from torch's many-line list of state-dict differences."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[1] if len(lines) > 1 else lines[0]
