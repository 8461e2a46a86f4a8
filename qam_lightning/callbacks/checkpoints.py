"""Checkpoints of a run: written whole or not at all, read back with plain words for what is wrong.

A run folder holds ``checkpoints/last.ckpt`` and ``checkpoints/best.ckpt``. Both are Lightning
checkpoints of tensors and primitives only (they load with ``weights_only=True``) with one more
entry, ``"qam_lightning"``, which says how to rebuild the method and where it was trained.
"""

import hashlib
import importlib
import os
import pickle
import signal
import sys
import threading
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import torch

from qam_lightning.errors import UserError
from qam_lightning.methods.base import Method
from qam_lightning.provenance import versions

ENTRY = "qam_lightning"
_ENTRY_KEYS = frozenset(
    ("method", "model", "environment", "config", "config_hash", "versions", "run_dir")
    + ("gradient_step", "env_step", "phase")
)
_UNREADABLE = (RuntimeError, ValueError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile)


class Checkpoints(pl.Callback):
    """Keeps ``last.ckpt`` and ``best.ckpt`` of a run.

    ``last.ckpt`` is written every ``every`` gradient steps, at the end of training, on SIGINT or
    SIGTERM at the next step boundary, and when training fails, provided that the failure did not
    come in the middle of a step. ``best.ckpt`` follows the evaluated success rate; of equal rates
    the newer wins. Weights that are not finite are never written over good ones.

    Attributes:
        received_signal: Number of the signal that stopped training, if one did.
    """

    def __init__(self, run_dir: str, every: int = 50_000) -> None:
        """Notes the settings.

        Args:
            run_dir: Folder of the run; checkpoints go to its ``checkpoints`` folder.
            every: Gradient steps between two writes of ``last.ckpt``.

        Raises:
            UserError: ``every`` is below 1.
        """
        if every < 1:
            raise UserError(f"checkpoints.every: must be at least 1 gradient step, found {every}")
        self.run_dir = run_dir
        self.every = every
        self.received_signal: int | None = None
        self._best = float("-inf")
        self._boundary: int | None = None
        self._written: int | None = None
        self._handlers: dict[int, Any] = {}

    def path(self, name: str) -> Path:
        """Where the checkpoint ``"last"`` or ``"best"`` of this run lies."""
        return checkpoint_path(self.run_dir, name)

    # -- when ------------------------------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Notes where training starts and turns the first interrupt into an orderly stop."""
        self._boundary = cast(Method, pl_module).gradient_step
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) != signal.SIG_IGN:  # ignored e.g. in the background
                    self._handlers[number] = signal.signal(number, self._on_signal)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: object
    ) -> None:
        """Writes ``last.ckpt`` when it is due, and stops here after an interrupt."""
        step = cast(Method, pl_module).gradient_step
        self._boundary = step
        if self._stop_wanted(trainer, step):
            trainer.should_stop = True
        elif step % self.every == 0:
            self._write_last(trainer, step)

    def on_collection(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stops after an interrupt also where environment steps follow on each other."""
        self._written = None  # the state has moved on, although no update was made
        if self._stop_wanted(trainer, cast(Method, pl_module).env_step):
            trainer.should_stop = True

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
        if whole and trainer.world_size == 1 and _all_finite(pl_module):
            if self._written != self._boundary:
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
        self.received_signal = number
        print("stopping after this gradient step (interrupt again to abort)", file=sys.stderr)

    def _restore_handlers(self) -> None:
        while self._handlers:
            signal.signal(*self._handlers.popitem())

    def _stop_wanted(self, trainer: pl.Trainer, step: int) -> bool:
        wanted = self.received_signal is not None
        if trainer.world_size == 1:
            return wanted
        # Ranks must stop at the same step; asking costs a synchronisation, so ask seldom.
        return step % 100 == 0 and trainer.strategy.reduce_boolean_decision(wanted, all=False)

    # -- what ------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The best success rate, so that a resumed run does not overwrite a better checkpoint."""
        return {"best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the best success rate back."""
        self._best = state_dict["best"]

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Adds the entry that says how to rebuild the method."""
        method, kind = cast(Method, pl_module), type(pl_module)
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
        """Writes to a temporary name, flushes to disk, renames: a reader never sees half a file."""
        if not _all_finite(trainer.lightning_module):
            raise UserError(
                f"training diverged: weights are not finite at gradient step {self._boundary}; "
                f"{path} was left as it was; lower model.learning_rate or clip gradients"
            )
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            trainer.save_checkpoint(temporary)
            if trainer.is_global_zero:
                with temporary.open("rb+") as file:
                    os.fsync(file.fileno())
                os.replace(temporary, path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise UserError(f"{path}: cannot write the checkpoint: {error.strerror}") from error


def checkpoint_path(run_dir: str | Path, name: str) -> Path:
    """Path of the checkpoint ``name`` (``"last"`` or ``"best"``) in a run folder."""
    return Path(run_dir) / "checkpoints" / f"{name}.ckpt"


def config_text(run_dir: str | Path) -> str:
    """The resolved configuration saved in a run folder, or an empty string where there is none."""
    path = Path(run_dir) / "config.yaml"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _all_finite(module: torch.nn.Module) -> bool:
    finite = [tensor.isfinite().all() for tensor in module.parameters()]
    return not finite or bool(torch.stack(finite).all())


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
