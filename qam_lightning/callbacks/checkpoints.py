"""When a run's checkpoints are written, and what goes into them."""

import contextlib
import hashlib
import os
import random
import signal
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import lightning.pytorch as pl
import numpy as np
import torch

from qam_lightning.callbacks.base import Callback, Order, ours
from qam_lightning.callbacks.checkpoint_files import SafeFile, keep_last, move, set_aside
from qam_lightning.callbacks.divergence import not_finite
from qam_lightning.checkpoints import checkpoint_path, describe
from qam_lightning.methods.base import ENTRY, Method
from qam_lightning.util.errors import UserError, require
from qam_lightning.util.files import replacing, sync

# A closed terminal sends SIGHUP; SLURM is mostly asked to send SIGUSR1 before a job's time is up.
_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)


class Checkpoints(Callback):
    """Writes ``last.ckpt`` and ``best.ckpt``, and turns signals into an orderly stop.

    ``last.ckpt`` is written before the first gradient step, so that a run can always be resumed,
    then every ``every_n_steps`` gradient steps, at the end of training, at the next step boundary
    after SIGINT, SIGTERM, SIGUSR1 or SIGHUP, and when training fails, unless it failed mid-step or
    after its last step: the final state is saved only after the final evaluation. ``last.ckpt``
    replaces the older one only after its bytes were read back from disk.
    ``best.ckpt`` follows the evaluated success rate; of equal rates the newer wins. Nothing is
    written when a loss, a weight or the optimizer's state is not finite.

    Lightning's ``ModelCheckpoint`` has none of this: an atomic write that is verified, older
    checkpoints to fall back to, the refusal of a state that is not finite, a stop by any of the
    four signals. A plain trainer may have both.

    Attributes:
        received_signal: number of the signal that stopped training, None if none did.
    """

    order = Order.CHECKPOINTS

    def __init__(self, run_dir: str, every_n_steps: int = 50_000, keep_last: int = 2) -> None:
        """Check the settings.

        Args:
            run_dir: folder of the run; checkpoints go to its ``checkpoints`` folder.
            every_n_steps: gradient steps between two writes of ``last.ckpt``.
            keep_last: how many of these to keep: ``last.ckpt``, and older ones as
                ``last-1.ckpt``, ``last-2.ckpt`` and so on. With 1 there is none to fall back to.

        Raises:
            ArgumentError: a number is out of range.
        """
        require(every_n_steps >= 1, Checkpoints, "every_n_steps", every_n_steps, "at least 1")
        require(keep_last >= 1, Checkpoints, "keep_last", keep_last, "at least 1")
        self.run_dir = run_dir
        self.every_n_steps, self.keep_last = every_n_steps, keep_last
        self.received_signal: int | None = None
        self._signal: int | None = None
        self._handlers: dict[int, Any] = {}
        self._best = float("-inf")
        self._losses: torch.Tensor | None = None  # their sum since the last check
        self._random: dict[str, Any] | None = None
        self._boundary: int | None = None  # the last gradient step that is complete
        self._written: int | None = None  # the gradient step of last.ckpt

    def path(self, name: str) -> Path:
        """Return the path of this run's checkpoint ``"last"``, ``"last-1"`` or ``"best"``."""
        return checkpoint_path(self.run_dir, name)

    # -- when ------------------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Install `SafeFile` as the reader and writer of checkpoints."""
        super().setup(trainer, pl_module, stage)
        self._boundary = None  # a fit that was interrupted left it, and this one may be refused
        trainer.strategy.checkpoint_io = SafeFile()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Claim the folder.

        Raises:
            UserError: see `Callback.claim`.
        """
        self.claim(trainer, self.run_dir)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore the random generators, and turn the first signal into an orderly stop.

        Write the run's first checkpoint, then its ``config.yaml``: a refused run leaves neither.

        Raises:
            UserError: they cannot be written.
        """
        self._boundary = cast(Method, pl_module).gradient_step
        if trainer.is_global_zero:
            set_aside(self.run_dir, Path(trainer.ckpt_path or ""))
        states, self._random = self._random, None
        if states is not None:
            restore_random_states(states, pl_module.device)
        if threading.current_thread() is threading.main_thread():
            for number in _STOPPING:
                if signal.getsignal(number) != signal.SIG_IGN:  # ignored e.g. in the background
                    self._handlers[number] = signal.signal(number, self._on_signal)
        if not trainer.strategy.broadcast(self.path("last").exists()):
            self._write_last(trainer)
        if self.config and trainer.is_global_zero:
            with replacing(Path(self.run_dir) / "config.yaml", alone=True) as temporary:
                temporary.write_text(self.config, encoding="utf-8")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: object
    ) -> None:
        """Stop after a signal; write ``last.ckpt`` when it is due."""
        method = cast(Method, pl_module)
        step, loss = method.gradient_step, method.metrics["loss"]
        self._boundary = step
        # A loss that is not finite stays visible in the sum, which costs no synchronisation.
        self._losses = loss if self._losses is None else self._losses + loss
        if step == trainer.max_steps:
            return  # `on_train_end` writes, after the final evaluation
        if self._stop_wanted(trainer, step):
            self._stop(trainer)
        elif step % self.every_n_steps == 0:
            self._write_last(trainer)

    def on_collection(self, trainer: pl.Trainer, method: Method) -> None:
        """Stop after a signal, also while environment steps follow on each other."""
        self._written = None  # the state has moved on, although no gradient step was taken
        if self._stop_wanted(trainer, method.env_step):
            self._stop(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the final state, also that of a stopped run."""
        if self._written != self._boundary:
            self._write_last(trainer)
        # Not in ``teardown``: the trainer takes its own handlers away before that is called.
        self._restore_handlers()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Forget what belongs to the fit that ends."""
        self._random = None
        super().teardown(trainer, pl_module, stage)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Save what a failure would lose, unless training failed mid-step or after its last."""
        self._restore_handlers()
        whole = self._boundary is not None and self._boundary == pl_module.gradient_step
        whole &= not isinstance(exception, KeyboardInterrupt)  # which may have come anywhere
        whole &= not any(callback.mid_step for callback in ours(trainer))
        # Lightning does nothing when it resumes from the last step: a final evaluation that failed
        # would never be repeated.
        whole &= self._boundary != trainer.max_steps
        # On several devices the other ranks may be gone, and saving would wait for them for ever.
        if whole and trainer.world_size == 1 and self._written != self._boundary:
            with contextlib.suppress(UserError):  # the first failure is the one to report
                self._write_last(trainer)
        super().on_exception(trainer, pl_module, exception)

    def on_evaluation(
        self, trainer: pl.Trainer, method: Method, result: Mapping[str, float]
    ) -> None:
        """Write ``best.ckpt`` when the success rate is at least the best so far."""
        if result["success"] >= self._best:
            self._best = float(result["success"])
            self._write(trainer, self.path("best"))

    def _on_signal(self, number: int, frame: object) -> None:
        # Ctrl-C now takes effect at once. Of the others more may come: SLURM, which preempts a job,
        # sends SIGTERM twice.
        if signal.SIGINT in self._handlers:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if self._signal is None:
            with contextlib.suppress(OSError):  # not print, which may itself have been interrupted
                os.write(2, b"stopping after this gradient step (Ctrl-C aborts)\n")
        self._signal = number

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
        """Return the best success rate so far, which is that of ``best.ckpt``."""
        return {"best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the best success rate from this run's ``best.ckpt``, not from ``state_dict``.

        ``best.ckpt`` may be newer than the checkpoint that the run resumes from, and a worse one
        must not replace it. A branch of another run has none yet.
        """
        with contextlib.suppress(UserError):  # none yet, or damaged
            best = describe(self.path("best")).best
            self._best = self._best if best is None else best

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the states of the random generators until training starts."""
        self._random = checkpoint.get("random")

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the random generators, and the run to the method's entry."""
        checkpoint["random"] = random_states(cast(Method, pl_module).device)
        checkpoint[ENTRY] = {
            "config": self.config,
            "config_hash": hashlib.sha256(self.config.encode()).hexdigest()[:16],
            "run_dir": str(self.run_dir),
        }

    def _write_last(self, trainer: pl.Trainer) -> None:
        self._write(trainer, self.path("last"))
        self._written = self._boundary

    def _write(self, trainer: pl.Trainer, path: Path) -> None:
        """Write to a temporary name, verify, rename: a reader never sees half a file."""
        self._check_finite(trainer, path)
        temporary = path.with_name(f".{path.name}.tmp")
        try:
            trainer.save_checkpoint(temporary)
            if trainer.is_global_zero:
                if path == self.path("last"):
                    keep_last(self.run_dir, self.keep_last)
                move(temporary, path)
                sync(path.parent)
        except OSError as error:
            problem = f"cannot be written: {error.strerror or error}"
            raise UserError(f"{path}: {problem}; older checkpoints are intact") from error
        finally:
            trainer.strategy.remove_checkpoint(temporary)
        self._losses = None

    def _check_finite(self, trainer: pl.Trainer, path: Path) -> None:
        """Raise a `UserError` if anything on any rank is infinite or not a number."""
        found = not_finite(trainer, self._losses)
        if not trainer.strategy.reduce_boolean_decision(found is None):
            raise UserError(
                f"training diverged: {found or 'something on another device'} is not finite at "
                f"gradient step {self._boundary}; {path} was not written; lower "
                "learning_rate or grad_clip"
            )


def random_states(device: torch.device) -> dict[str, Any]:
    """Return the states of the global random generators of Python, NumPy and torch as primitives.

    This project draws nothing from them: noise and batches follow from counters. A user's
    additions may.

    Args:
        device: the one that trains.
    """
    name, keys, *rest = cast(tuple[Any, ...], np.random.get_state())
    states: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states | {"numpy": [name, keys.tolist(), *rest]}


def restore_random_states(states: Mapping[str, Any], device: torch.device) -> None:
    """Restore what `random_states` returned."""
    random.setstate(states["python"])
    np.random.set_state(tuple(states["numpy"]))
    torch.set_rng_state(states["torch"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
