"""The rows of metrics that the trainer's loggers get."""

import math
import os
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, cast

import lightning.pytorch as pl
import torch

from qam_lightning.callbacks.base import Callback, Order, begins_anew, ours
from qam_lightning.callbacks.divergence import culprit
from qam_lightning.loggers import CsvLogger, WandbLogger
from qam_lightning.loggers.base import PREFIX, RunLogger
from qam_lightning.methods.base import Method
from qam_lightning.util.errors import UserError, require

_LIGHTNINGS = {"step", "epoch"}


class MetricsLogger(Callback):
    """Sends a row of metrics to every logger of the trainer, and every evaluation's results.

    A row holds ``gradient_step``, ``env_step``, ``phase``, ``steps_per_second`` (gradient steps,
    without the time of evaluations and of environment steps that no gradient step follows), the
    method's metrics, averaged over ranks, and what was given to ``self.log``. Loggers that are not
    of this project get its numbers, without the text ``phase``. The results of an evaluation are
    sent under ``evaluation/``.

    Given a run's folder, it adds a `CsvLogger` to the trainer's loggers, and a `WandbLogger` if
    asked to.
    """

    order = Order.METRICS

    def __init__(
        self,
        run_dir: str | None = None,
        every_n_steps: int = 100,
        wandb: Literal["disabled", "offline", "online"] | None = None,
        project: str | None = None,
        name: str | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
    ) -> None:
        """Check the settings.

        Args:
            run_dir: folder of the run, for the CSV files; None leaves the trainer's loggers alone.
            every_n_steps: gradient steps between two rows; each row costs one synchronisation with
                the device.
            wandb: log to Weights & Biases too; ``online`` becomes ``offline`` (upload later with
                ``wandb sync``) if it cannot start. If not given: ``WANDB_MODE``, else ``disabled``.
            project: Weights & Biases project. If not given: ``WANDB_PROJECT``, else
                ``qam_lightning``.
            name: name of the run there. If not given: ``WANDB_NAME``, else the run folder's.
            group: what W&B gathers runs under, say the name of a study; 1 to 128 characters. If not
                given: ``WANDB_RUN_GROUP``. Other loggers get it as a hyperparameter.
            tags: labels of the run, each of 1 to 64 characters. If not given: ``WANDB_TAGS``. Other
                loggers get them as a hyperparameter.

        Raises:
            ArgumentError: ``every_n_steps`` is below 1, or group or tags are out of range.
        """
        require(every_n_steps >= 1, MetricsLogger, "every_n_steps", every_n_steps, "at least 1")
        check_text("group", group, 128)
        for tag in tags or ():
            check_text("tags", tag, 64)
        labels = {"name": name, "group": group, "tags": tags}
        self._labels = {key: value for key, value in labels.items() if value is not None}
        self.every_n_steps = every_n_steps
        self._loggers: list[RunLogger] = []
        if run_dir is not None:
            self._loggers.append(CsvLogger(run_dir))
            if wandb is None and os.environ.get("WANDB_MODE", "disabled") == "disabled":
                wandb = "disabled"
            if wandb != "disabled":
                self._loggers.append(WandbLogger(run_dir, wandb, project, name, group, tags))
        self._step, self._since = 0, 0.0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Add the loggers; let Lightning and its ``LearningRateMonitor`` log at the same steps."""
        super().setup(trainer, pl_module, stage)
        others = [logger for logger in trainer.loggers if logger not in self._loggers]
        trainer.loggers = [*self._loggers, *others]
        trainer.log_every_n_steps = self.every_n_steps  # type: ignore[attr-defined]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Claim the folders of the loggers.

        Raises:
            UserError: see `Callback.claim`; or the metrics of a run that resumes are damaged.
        """
        for logger in (x for x in trainer.loggers if isinstance(x, RunLogger)):
            self.claim(trainer, logger.run_dir, logger.check)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to log only now: until now, the run could still be refused."""
        step = None if begins_anew(trainer) else cast(Method, pl_module).gradient_step
        for logger in trainer.loggers:
            if isinstance(logger, RunLogger):
                logger.begin(step, self.config)
            elif self._labels:
                logger.log_hyperparams(dict(self._labels))
        self._start_clock(cast(Method, pl_module))

    def on_collection(self, trainer: pl.Trainer, method: Method) -> None:
        """Restart the clock: a long collection does not slow the gradient steps."""
        self._start_clock(method)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: object
    ) -> None:
        """Send a row when it is due; the only place where training waits for the device.

        Raises:
            UserError: the loss is not finite, or a row cannot be written.
        """
        method = cast(Method, pl_module)
        if method.gradient_step % self.every_n_steps != 0:
            return
        # A loss that is not finite on one rank is so in the mean: all ranks stop together.
        logged = {n: x for n, x in trainer.logged_metrics.items() if n not in _LIGHTNINGS}
        metrics = host_values(method.metrics, trainer.strategy.reduce, logged)
        if not math.isfinite(metrics["loss"]):
            name = culprit(metrics) or "loss"
            raise UserError(
                f"training diverged: {name} is {metrics[name]} at gradient step "
                f"{method.gradient_step}; the checkpoints are older and intact; lower "
                "learning_rate or grad_clip"
            )
        row = {**_counters(method), "steps_per_second": self._speed(method.gradient_step)}
        row |= metrics
        _send(trainer, row)
        if logged:  # Lightning logs these itself, too, right after this: at the same step
            method.log("step", float(method.gradient_step))
        for callback in ours(trainer):
            callback.on_metrics(trainer, method, row)

    def on_evaluation(
        self, trainer: pl.Trainer, method: Method, result: Mapping[str, float]
    ) -> None:
        """Send the results of an evaluation; its time does not count as training time."""
        named = {f"{PREFIX}{name}": value for name, value in result.items()}
        _send(trainer, {**_counters(method), **named})
        self._since += result.get("seconds", 0.0)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Wait until the rows that belong to a checkpoint are on disk."""
        for logger in trainer.loggers:
            logger.save()

    def _start_clock(self, method: Method) -> None:
        self._step, self._since = method.gradient_step, time.perf_counter()

    def _speed(self, step: int) -> float:
        """Gradient steps per second since the last row."""
        now = time.perf_counter()
        speed = (step - self._step) / max(now - self._since, 1e-9)
        self._step, self._since = step, now
        return round(speed, 3)


def check_text(name: str, value: object, most: int) -> None:
    """Check a label: None, or a text that W&B takes.

    Raises:
        ArgumentError: it is empty or longer than ``most`` characters.
    """
    fine = value is None or (isinstance(value, str) and 1 <= len(value.strip()) <= most)
    require(fine, MetricsLogger, name, repr(value), f"a text of 1 to {most} characters")


def host_values(
    metrics: Mapping[str, torch.Tensor],
    reduce: Callable[[Any], Any] = lambda values: values,
    logged: Mapping[str, Any] = {},  # noqa: B006  (never changed)
) -> dict[str, float]:
    """Bring 0-dim tensors to the host with a single synchronisation, as floats of 6 digits.

    Args:
        metrics: name -> 0-dim tensor, at least one.
        reduce: average over ranks, applied to all of ``metrics`` as one tensor (n,).
        logged: further values, not to be averaged; of equal names those of ``metrics`` win.
    """
    values = reduce(torch.stack([value.float() for value in metrics.values()]))
    further = {name: value for name, value in logged.items() if name not in metrics}
    if further:
        tensors = [torch.as_tensor(x, device=values.device).float() for x in further.values()]
        values = torch.cat([values, torch.stack(tensors)])
    names = [*metrics, *further]
    return {n: float(f"{value:.6g}") for n, value in zip(names, values.tolist(), strict=True)}


def _counters(method: Method) -> dict[str, Any]:
    return {name: getattr(method, name) for name in ("gradient_step", "env_step", "phase")}


def _send(trainer: pl.Trainer, row: dict[str, Any]) -> None:
    numbers = {name: value for name, value in row.items() if not isinstance(value, str)}
    for logger in trainer.loggers:
        whole = isinstance(logger, RunLogger)
        logger.log_metrics(row if whole else numbers, step=row["gradient_step"])
