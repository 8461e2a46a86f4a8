"""Progress of training: a live bar in a terminal, a line at intervals anywhere else."""

import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, cast

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from rich import progress
from rich.console import Console

from qam_lightning.callbacks.base import Callback, Order
from qam_lightning.methods.base import Method
from qam_lightning.util.errors import require

# What the status shows of a row of metrics: column -> label.
_SHOWN = {"loss": "loss", "critic/q_mean": "mean Q"}


class Progress(Callback, ProgressBar):
    """Shows phase, gradient steps, speed, time left, loss, mean Q and the latest success rate.

    Metrics come from the latest row, so showing them costs no synchronisation. Lightning's own
    bars count batches of an epoch, which is endless here, and print nothing useful to a log file;
    this one takes their place.
    """

    order = Order.PROGRESS

    def __init__(self, every_seconds: float = 30.0) -> None:
        """Check the setting.

        Args:
            every_seconds: seconds between two lines where the output is not a terminal.

        Raises:
            ArgumentError: it is negative.
        """
        require(every_seconds >= 0, Progress, "every_seconds", every_seconds, "at least 0")
        super().__init__()
        self.every_seconds = every_seconds
        self._enabled = True
        self._console = Console()
        self._live: progress.Progress | None = None
        self._task: Any = None
        self._printed = 0.0
        self._row: Mapping[str, Any] = {}
        self._success: float | None = None

    def disable(self) -> None:
        """Show nothing (Lightning calls this on all ranks but 0)."""
        self._enabled = False

    def enable(self) -> None:
        """Show progress again."""
        self._enabled = True

    def on_metrics(self, trainer: pl.Trainer, method: Method, row: Mapping[str, Any]) -> None:
        """Keep the latest row."""
        self._row = row

    def on_evaluation(
        self, trainer: pl.Trainer, method: Method, result: Mapping[str, float]
    ) -> None:
        """Keep the latest success rate."""
        self._success = result["success"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the display."""
        self._printed = time.monotonic()
        if self._enabled and self._console.is_terminal:
            bar = progress.BarColumn(bar_width=24)
            text = progress.TextColumn("{task.fields[status]}")
            self._live = progress.Progress(bar, text, console=self._console, refresh_per_second=2)
            self._live.start()
            self._task = self._live.add_task("", total=trainer.max_steps, status="")
            self._show(trainer, cast(Method, pl_module))

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: object
    ) -> None:
        """Move the bar, or print a line when it is time."""
        due = self._enabled and time.monotonic() - self._printed >= self.every_seconds
        if self._live is not None or due:
            self._show(trainer, cast(Method, pl_module))

    def on_collection(self, trainer: pl.Trainer, method: Method) -> None:
        """Show that environment steps are taken while no gradient step follows."""
        self.on_train_batch_end(trainer, method)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the final state."""
        if self._enabled:
            self._show(trainer, cast(Method, pl_module))

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Free the terminal, after a failure for the error message."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        super().teardown(trainer, pl_module, stage)

    def _show(self, trainer: pl.Trainer, method: Method) -> None:
        text = status(method, trainer.max_steps, self._row, self._success)
        if self._live is not None:
            self._live.update(self._task, completed=method.gradient_step, status=text)
        else:
            self._console.print(text, highlight=False, soft_wrap=True)
            self._printed = time.monotonic()


def status(method: Method, total: int, row: Mapping[str, Any], success: float | None) -> str:
    """Return one line about a run.

    Args:
        method: its counters are shown.
        total: gradient steps at which training ends.
        row: the latest row of metrics; what it lacks is left out.
        success: the latest success rate in [0, 1], None before the first evaluation.

    Returns:
        For example ``offline 4,000/20,000 · 61.2 steps/s · 0:04:21 left · loss 0.713 · mean Q -12.4
        · success 35%``.
    """
    step = method.gradient_step
    parts = [f"{method.phase} {step:,}/{total:,}"]
    if method.env_step:
        parts.append(f"environment {method.env_step:,}")
    speed = row.get("steps_per_second", 0.0)
    if speed > 0:
        left = timedelta(seconds=min(round(max(0, total - step) / speed), 10**10))
        parts += [f"{speed:.3g} steps/s", f"{left} left"]
    parts += [f"{label} {row[key]:.3g}" for key, label in _SHOWN.items() if key in row]
    if success is not None:
        parts.append(f"success {success:.0%}")
    return " · ".join(parts)
