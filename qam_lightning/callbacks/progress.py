"""How training is going: a live bar in a terminal, a line now and then anywhere else."""

import time
from datetime import timedelta
from typing import Any, cast

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as RichProgress

from qam_lightning.callbacks.base import Callback
from qam_lightning.callbacks.recorder import Recorder
from qam_lightning.methods.base import Method

# What the status shows of a training row: column -> label.
_SHOWN = {"loss": "loss", "critic/q_mean": "mean Q"}


class Progress(Callback, ProgressBar):
    """Shows phase, gradient steps, speed, time left, loss, mean Q and the last success rate.

    Metrics come from the recorder's latest row, so showing them costs no synchronisation. Being a
    Lightning progress bar, it takes the place of Lightning's own.
    """

    def __init__(self, every: float = 30.0) -> None:
        """Notes the settings.

        Args:
            every: Seconds between two lines where the output is not a terminal.
        """
        super().__init__()
        self.every = every
        self._enabled = True
        self._console = Console()
        self._live: RichProgress | None = None
        self._task: Any = None
        self._printed = 0.0

    def disable(self) -> None:
        """Shows nothing (Lightning calls this on all processes but the first)."""
        self._enabled = False

    def enable(self) -> None:
        """Shows progress again."""
        self._enabled = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the display."""
        self._printed = time.monotonic()
        if not self._enabled or not self._console.is_terminal:
            return
        bar, status = BarColumn(bar_width=24), TextColumn("{task.fields[status]}")
        self._live = RichProgress(bar, status, console=self._console, refresh_per_second=2)
        self._live.start()
        self._task = self._live.add_task("", total=trainer.max_steps, status="")
        self._show(trainer, pl_module)

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: object
    ) -> None:
        """Moves the bar, or prints a line when it is time."""
        if self._live is not None:
            self._show(trainer, pl_module)
        elif self._enabled and time.monotonic() - self._printed >= self.every:
            self._show(trainer, pl_module)

    def on_collection(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Shows that steps are taken in the environment, while there are no updates to show."""
        self.on_train_batch_end(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Shows the final state."""
        if self._enabled:
            self._show(trainer, pl_module)
        self._stop()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Frees the terminal for the error message."""
        self._stop()

    def _stop(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _show(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        recorder = next((c for c in trainer.callbacks if isinstance(c, Recorder)), None)  # type: ignore[attr-defined]
        method = cast(Method, pl_module)
        text = status(method, trainer.max_steps, recorder)
        if self._live is not None:
            self._live.update(self._task, completed=method.gradient_step, status=text)
        else:
            self._console.print(text, highlight=False, soft_wrap=True)
            self._printed = time.monotonic()


def status(method: Method, total: int, recorder: Recorder | None) -> str:
    """One line about a run.

    Args:
        method: For its counters.
        total: Gradient steps at which training ends.
        recorder: Source of speed, metrics and success; parts not known yet are left out.

    Returns:
        For example ``offline 4,000/20,000 · 61.2 steps/s · 0:04:21 left · loss 0.713 · mean Q -12.4
        · success 35%``.
    """
    step = method.gradient_step
    parts = [f"{method.phase} {step:,}/{total:,}"]
    if method.env_step:
        parts.append(f"environment {method.env_step:,}")
    latest = recorder.latest if recorder else {}
    speed = latest.get("steps_per_second", 0.0)
    if speed > 0:
        left = timedelta(seconds=round(max(0, total - step) / speed))
        parts += [f"{speed:.3g} steps/s", f"{left} left"]
    parts += [f"{label} {latest[key]:.3g}" for key, label in _SHOWN.items() if key in latest]
    if recorder and recorder.success is not None:
        parts.append(f"success {recorder.success:.0%}")
    return " · ".join(parts)
