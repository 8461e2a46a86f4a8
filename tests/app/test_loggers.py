"""Metrics through Lightning's loggers, in real runs: ours, others', and ``self.log``."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger

from qam_lightning.callbacks.base import Callback, Order
from qam_lightning.callbacks.checkpoints import Checkpoints
from qam_lightning.callbacks.evaluation import Evaluate
from qam_lightning.callbacks.metrics import MetricsLogger
from qam_lightning.checkpoints import describe, read_checkpoint
from qam_lightning.cli import main
from qam_lightning.loggers import CsvLogger
from qam_lightning.methods.base import Method
from qam_lightning.methods.qam import QAM
from tests.app.conftest import read_csv
from tests.app.test_training import steps
from tests.evaluation.conftest import MazeData, fit, tiny_qam


class Talkative(QAM):
    """A method of a user's, who logs as Lightning's guide says."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        super().training_step(batch, batch_idx)
        self.log("mine/step", float(self.gradient_step))
        self.log_dict({"mine/tensor": torch.tensor(0.5), "loss": torch.tensor(-1.0)})


class Counting(pl.Callback):
    """A callback of a user's, who logs and adds to the method's metrics at the end of a step."""

    def on_train_batch_end(self, trainer: pl.Trainer, method: Method, *args: Any) -> None:  # type: ignore[override]
        self.log("mine/callback", 2.0 * method.gradient_step)
        method.metrics["mine/metric"] = torch.tensor(3.0 * method.gradient_step)


class Memory(Logger):
    """Another logger: keeps what it gets, and takes numbers only, as TensorBoard does."""

    name, version = "memory", "0"

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int | None, dict[str, float]]] = []

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:  # type: ignore[override]
        assert all(isinstance(value, int | float) for value in metrics.values()), metrics
        self.rows.append((step, dict(metrics)))


def test_what_a_user_logs_is_in_the_row_of_its_step_in_every_logger(
    small_run: Callable[..., list[str]], tmp_path: Path
) -> None:
    flags = (
        f"--model={__name__}.Talkative",
        "--model.tau=1",
        f"--trainer.callbacks+={__name__}.Counting",
        "--trainer.callbacks+=lightning.pytorch.callbacks.LearningRateMonitor",
        "--trainer.logger=lightning.pytorch.loggers.CSVLogger",
        f"--trainer.logger.save_dir={tmp_path}/theirs",
        "--log.every_n_steps=2",
        "--evaluation.every_n_steps=4",
    )
    assert main(small_run(6, *flags)) == 0
    rows = read_csv(tmp_path / "run/metrics/train.csv")
    assert [int(row["gradient_step"]) for row in rows] == [2, 4, 6]
    for row in rows:
        step = float(row["gradient_step"])
        found = {name.removeprefix("mine/"): float(row[name]) for name in row if "mine/" in name}
        assert found == {"step": step, "tensor": 0.5, "callback": 2 * step, "metric": 3 * step}
        assert float(row["loss"]) > 0  # the method's own, not what was logged under its name
        assert float(row["lr-Adam"]) == pytest.approx(3e-4)
        assert "epoch" not in row
    (theirs,) = tmp_path.glob("theirs/**/metrics.csv")
    merged: dict[int, dict[str, str]] = {}
    for row in read_csv(theirs):
        mine = {name: value for name, value in row.items() if value}
        merged.setdefault(int(row["step"]), {}).update(mine)
    for step in (2, 4, 6):
        assert float(merged[step]["mine/step"]) == float(merged[step]["gradient_step"]) == step
        assert "critic/loss" in merged[step] and "phase" not in merged[step]
    assert "evaluation/success" in merged[4] and "evaluation/success" in merged[6]
    assert read_csv(tmp_path / "run/metrics/eval.csv")[0]["success"]


def test_every_logger_gets_numbers_at_gradient_steps() -> None:
    memory = Memory()
    fit(
        tiny_qam(50),
        4,
        [Evaluate(4, episodes=1, workers=0), MetricsLogger(every_n_steps=2)],
        memory,
    )
    assert [step for step, _ in memory.rows] == [2, 4, 4]
    assert "critic/loss" in memory.rows[0][1] and "evaluation/return" in memory.rows[2][1]


def test_self_log_works_without_our_callbacks() -> None:
    method, memory = tiny_qam(50), Memory()
    method.__class__ = Talkative
    fit(method, 50, [], memory)
    assert {step for step, _ in memory.rows} == {50}
    row = {name: value for _, row in memory.rows for name, value in row.items()}
    assert row["mine/step"] == row["gradient_step"] == 50 and "critic/loss" in row


def test_the_order_of_the_list_does_not_matter(tmp_path: Path) -> None:
    """Rows and results of a step are there before its checkpoint, whoever comes first."""

    class Last(Callback):
        order = Order.ONLINE

        def on_train_batch_end(self, trainer: pl.Trainer, method: Method, *args: Any) -> None:  # type: ignore[override]
            step = method.gradient_step
            if step == trainer.max_steps:
                return  # the final checkpoint follows the final evaluation
            seen.append(step)
            checkpoint = read_checkpoint(tmp_path / "checkpoints/last.ckpt")
            assert checkpoint["counters"]["gradient_step"] == step
            assert checkpoint["callbacks"]["Evaluate"]["evaluated"] == step
            assert steps(tmp_path / "metrics/train.csv")[-1] == step
            assert steps(tmp_path / "metrics/eval.csv")[-1] == step

    class Users(pl.Callback):
        pass

    seen: list[int] = []
    evaluate = Evaluate(1, episodes=1, workers=0)
    given = [
        Last(),
        Checkpoints(str(tmp_path), 1),
        evaluate,
        MetricsLogger(every_n_steps=1),
        Users(),
    ]
    trainer = fit(tiny_qam(50), 3, given, CsvLogger(tmp_path))
    assert seen == [1, 2]
    names = [type(callback).__name__ for callback in trainer.callbacks]  # type: ignore[attr-defined]
    assert names == ["Users", "EmaTargets", "MetricsLogger", "Evaluate", "Checkpoints", "Last"]


def test_rows_are_on_disk_before_a_checkpoint_counts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[str] = []
    fsync = os.fsync

    def noting(handle: int) -> None:
        flushed.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noting)
    fit(
        tiny_qam(50),
        2,
        [Checkpoints(str(tmp_path), 2), MetricsLogger(every_n_steps=1)],
        CsvLogger(tmp_path),
    )
    first, last = (n for n, name in enumerate(flushed) if name == ".last.ckpt.tmp")
    assert "train.csv" in flushed[first:last]
    assert flushed[last : last + 3] == [".last.ckpt.tmp", "..last.ckpt.json.tmp", "checkpoints"]


def test_foreign_rows_are_kept_for_the_next_row(tmp_path: Path) -> None:
    logger = CsvLogger(tmp_path)
    logger.log_metrics({"lr": 0.5, "loss": 9.0, "epoch": 0}, step=0)
    logger.log_metrics({"gradient_step": 1, "evaluation/success": 1.0}, step=1)
    logger.log_metrics({"gradient_step": 1, "loss": 1.0}, step=1)
    logger.log_metrics({"gradient_step": 2, "loss": 2.0}, step=2)
    rows = [list(row.values()) for row in read_csv(logger.train_csv)]
    assert rows == [["1", "1.0", "0.5"], ["2", "2.0", ""]]
    assert read_csv(logger.eval_csv) == [{"gradient_step": "1", "success": "1.0"}]


def test_lightnings_own_csv_logger_alone_serves_too(tmp_path: Path) -> None:
    fit(tiny_qam(50), 4, [MetricsLogger(every_n_steps=2)], CSVLogger(tmp_path))
    (table,) = tmp_path.rglob("metrics.csv")
    assert [int(row["gradient_step"]) for row in read_csv(table)] == [2, 4]


def test_lightnings_model_checkpoint_serves_besides(tmp_path: Path) -> None:
    """It writes through our files, after the evaluation of its step."""
    theirs = ModelCheckpoint(tmp_path / "theirs", every_n_train_steps=2, save_top_k=-1)
    trainer = pl.Trainer(
        max_steps=4,
        callbacks=[theirs, Checkpoints(str(tmp_path)), Evaluate(2, 1, workers=0)],
        logger=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(tiny_qam(50), MazeData(50))
    found = sorted(describe(path).gradient_step for path in (tmp_path / "theirs").glob("*.ckpt"))
    assert found == [2, 4] and len(list((tmp_path / "theirs").glob("*.json"))) == 2
    for path in (tmp_path / "theirs").glob("*.ckpt"):
        checkpoint = read_checkpoint(path)
        evaluated = checkpoint["callbacks"]["Evaluate"]["evaluated"]
        assert evaluated == checkpoint["counters"]["gradient_step"]
    trainer.save_checkpoint(tmp_path / "weights/only.ckpt", weights_only=True)
    assert sorted(path.name for path in (tmp_path / "weights").iterdir()) == [
        "only.ckpt",
        "only.json",
    ]
