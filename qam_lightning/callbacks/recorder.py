"""Metrics of a run: CSV files always, Weights & Biases when asked for.

``metrics/train.csv`` has a row every so many gradient steps, ``metrics/eval.csv`` one per
evaluation. A resumed run continues both as if it had never stopped: rows beyond the checkpoint are
dropped first, since they will come again.
"""

import csv
import math
import netrc
import os
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import urlparse

import lightning.pytorch as pl
import torch
import yaml

from qam_lightning.callbacks.base import Callback
from qam_lightning.callbacks.checkpoints import config_text, culprit
from qam_lightning.methods.base import Method
from qam_lightning.util.errors import UserError
from qam_lightning.util.files import replacing, sync, writing
from qam_lightning.util.provenance import versions

Row = dict[str, Any]


class Recorder(Callback):
    """Writes the method's metrics and the evaluations' results.

    Besides the method's own metrics, averaged over ranks, a row carries ``gradient_step``,
    ``env_step``, ``phase`` and ``steps_per_second`` (gradient steps; neither evaluations count nor
    environment steps that no update follows).

    Attributes:
        latest: The latest row of training metrics, empty before the first.
        success: The latest evaluated success rate in [0, 1], None before the first.
    """

    def __init__(
        self,
        run_dir: str,
        every: int = 100,
        wandb: Literal["disabled", "offline", "online"] = "disabled",
        project: str = "qam_lightning",
        name: str | None = None,
    ) -> None:
        """Notes the settings.

        Args:
            run_dir: Folder of the run; files go to its ``metrics`` folder.
            every: Gradient steps between two rows; each costs one synchronisation with the device.
            wandb: Whether to report to Weights & Biases too; ``online`` without an API key becomes
                ``offline`` (to be uploaded later with ``wandb sync``).
            project: Weights & Biases project.
            name: Name of the run there; by default that of the run folder.

        Raises:
            UserError: ``every`` is below 1.
        """
        if every < 1:
            raise UserError(f"log.every: must be at least 1 gradient step, found {every}")
        self.run_dir = Path(run_dir)
        self.every = every
        self.wandb = wandb
        self.project = project
        self.name = name
        self.latest: Row = {}
        self.success: float | None = None
        self._run: Any = None
        self._step = 0
        self._since = 0.0

    @property
    def train_csv(self) -> Path:
        """Where training metrics go."""
        return self.run_dir / "metrics" / "train.csv"

    @property
    def eval_csv(self) -> Path:
        """Where evaluation results go."""
        return self.run_dir / "metrics" / "eval.csv"

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Drops rows that the resumed run will write again, and opens the W&B run.

        Not before: until now, something may have refused to go on.
        """
        if trainer.is_global_zero:
            for path in (self.train_csv, self.eval_csv):
                rewind(path, cast(Method, pl_module).gradient_step)
            if self.wandb != "disabled":
                self._run = _open_wandb(self)
        self._start_clock(pl_module)

    def on_collection(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Starts the clock anew: what a long collection takes is not the speed of updates."""
        self._start_clock(pl_module)

    def _start_clock(self, pl_module: pl.LightningModule) -> None:
        self._step, self._since = cast(Method, pl_module).gradient_step, time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: object
    ) -> None:
        """Writes a row when it is due; the only place where training waits for the device.

        Raises:
            UserError: The loss is not finite, or the row cannot be written.
        """
        method = cast(Method, pl_module)
        if method.gradient_step % self.every != 0:
            return
        # All ranks see a loss that is not finite on one, and stop together.
        metrics = host_values(method.metrics, trainer.strategy.reduce)
        if not math.isfinite(metrics["loss"]):
            name = culprit(metrics) or "loss"
            raise UserError(
                f"training diverged: {name} is {metrics[name]} at gradient step "
                f"{method.gradient_step}; the checkpoints are of before; lower "
                "model.learning_rate or clip gradients"
            )
        self.latest = {
            **_counters(method),
            "steps_per_second": self._speed(method.gradient_step),
            **metrics,
        }
        if trainer.is_global_zero:
            append(self.train_csv, self.latest)
            if self._run is not None:
                self._run.log(self.latest, step=method.gradient_step)

    def on_evaluation(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, result: Mapping[str, Any]
    ) -> None:
        """Writes the numbers of an evaluation; its time does not count as training time."""
        self.success = float(result["success"])
        if trainer.is_global_zero:
            numbers = {k: v for k, v in result.items() if isinstance(v, int | float)}
            counters = _counters(cast(Method, pl_module))
            append(self.eval_csv, counters | numbers)
            if self._run is not None:
                named = counters | {f"evaluation/{k}": v for k, v in numbers.items()}
                self._run.log(named, step=counters["gradient_step"])
        self._since += result.get("seconds", 0.0)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Waits until the rows that a checkpoint goes with are on disk, too.

        Raises:
            UserError: They cannot be written.
        """
        for path in (self.train_csv, self.eval_csv):
            if trainer.is_global_zero and path.exists():
                with writing(path):
                    sync(path)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Marks the W&B run as failed."""
        self._close(exit_code=1)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Finishes the W&B run."""
        self._close(exit_code=0)

    def _close(self, exit_code: int) -> None:
        if self._run is not None:
            self._run.finish(exit_code=exit_code)
            self._run = None

    def _speed(self, step: int) -> float:
        """Gradient steps per second since the last row."""
        now = time.perf_counter()
        speed = (step - self._step) / max(now - self._since, 1e-9)
        self._step, self._since = step, now
        return round(speed, 3)


def host_values(
    metrics: Mapping[str, torch.Tensor], combine: Callable[[Any], Any] = lambda values: values
) -> dict[str, float]:
    """Brings 0-dim tensors to the host with a single synchronisation, as floats of 6 digits.

    Args:
        metrics: Name -> 0-dim tensor.
        combine: What to do with all of them, as one tensor, beforehand.
    """
    if not metrics:
        return {}
    values = combine(torch.stack([value.float() for value in metrics.values()])).tolist()
    return {name: float(f"{value:.6g}") for name, value in zip(metrics, values, strict=True)}


def _counters(method: Method) -> Row:
    return {name: getattr(method, name) for name in ("gradient_step", "env_step", "phase")}


# -- CSV -----------------------------------------------------------------------------------------


def append(path: Path, row: Row) -> None:
    """Appends a row; where it brings new columns, earlier rows are left empty in them."""
    with writing(path):
        columns = _columns(path)
        if not set(row) <= set(columns):
            rows = _read(path)[1] if columns else []
            _replace(path, columns + [name for name in row if name not in columns], [*rows, row])
            return
        with path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, columns).writerow(row)


def rewind(path: Path, gradient_step: int) -> None:
    """Drops the rows after ``gradient_step``, all of them if that is 0."""
    if not path.exists():
        return
    with writing(path):
        columns, rows = _read(path)
        kept = [row for row in rows if 0 < gradient_step >= int(row["gradient_step"])]
        if kept:
            _replace(path, columns, kept)
        else:
            path.unlink()


def _columns(path: Path) -> list[str]:
    """The columns of a file, none if it does not exist; only its first line is read."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return next(csv.reader(file), [])


def _read(path: Path) -> tuple[list[str], list[Row]]:
    """Columns and rows; a last line cut short by a crash is left out."""
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    reader = csv.DictReader(whole.splitlines())
    rows = list(reader)
    return list(reader.fieldnames or []), rows


def _replace(path: Path, columns: list[str], rows: list[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        replacing(path, alone=True) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


# -- Weights & Biases ----------------------------------------------------------------------------


def _open_wandb(recorder: Recorder) -> Any:
    import wandb  # slow to import, and few runs want it

    mode = recorder.wandb
    if mode == "online" and not _has_wandb_key():
        print("wandb: no API key found, recording offline; upload later with `wandb sync`")
        mode = "offline"
    identity = recorder.run_dir / "wandb_run_id"
    if not identity.exists():
        recorder.run_dir.mkdir(parents=True, exist_ok=True)
        identity.write_text(secrets.token_hex(4), encoding="utf-8")
    config = yaml.safe_load(config_text(recorder.run_dir)) or {}
    try:
        run = wandb.init(
            project=recorder.project,
            name=recorder.name or recorder.run_dir.name,
            id=identity.read_text(encoding="utf-8").strip(),
            resume="allow",
            mode=mode,
            dir=str(recorder.run_dir),
            config=config | {"versions": versions()},
            settings=wandb.Settings(silent=True),
        )
    except (wandb.errors.Error, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"log.wandb: cannot start a run: {reason}; try offline") from error
    run.define_metric("gradient_step")
    run.define_metric("env_step")
    run.define_metric("*", step_metric="gradient_step")
    return run


def _has_wandb_key() -> bool:
    """Whether wandb would find credentials; asking wandb itself may open a prompt."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    for path in (os.environ.get("NETRC"), "~/.netrc", "~/_netrc"):
        try:
            if path and netrc.netrc(os.path.expanduser(path)).authenticators(host or ""):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False
