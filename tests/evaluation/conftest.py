"""A real, tiny training run to evaluate: QAM on a point maze for a few steps."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from qam_lightning.callbacks.checkpoints import Checkpoints
from qam_lightning.callbacks.evaluation import Evaluate
from qam_lightning.callbacks.metrics import MetricsLogger
from qam_lightning.data.batch import Batch
from qam_lightning.data.spaces import Spaces
from qam_lightning.methods.qam import QAM
from tests.conftest import SMALL

CHUNK = 10  # actions of `run`'s chunks: an episode of 1,000 steps calls its policy 100 times


class Stream(IterableDataset):
    """Endless random chunks of a point maze: O = 2, A = 2, H = ``horizon``."""

    def __init__(self, horizon: int = 2) -> None:
        self.horizon = horizon

    def __iter__(self) -> Iterator[Batch]:
        g = torch.Generator().manual_seed(0)
        one = torch.ones(8)
        while True:
            s, after = torch.randn(2, 8, 2, generator=g)
            yield Batch(
                s, torch.rand(8, 2 * self.horizon, generator=g) - 0.5, -one, after, one, one
            )


class MazeData(pl.LightningDataModule):
    """Random data under the name of an environment."""

    env, dataset, task, sparse = "pointmaze-medium", "navigate", 1, False

    def __init__(self, horizon: int = 2) -> None:
        super().__init__()
        self.horizon = horizon

    def train_dataloader(self) -> DataLoader:
        return DataLoader(Stream(self.horizon), batch_size=None)


def tiny_qam(horizon: int = 2, **changes: Any) -> QAM:
    """Return a QAM too small to learn anything; with long chunks it acts quickly."""
    torch.manual_seed(0)
    return QAM(Spaces(2, 2, horizon), tau=1.0, **SMALL | {"width": 8, "depth": 1, **changes})


def fit(method: QAM, steps: int, callbacks: list[pl.Callback], logger: Any = False) -> pl.Trainer:
    """Train on random data."""
    trainer = pl.Trainer(
        max_steps=steps, callbacks=callbacks, logger=logger, enable_checkpointing=False,
        accelerator="cpu", enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(method, MazeData(method.spaces.horizon))
    return trainer


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run of four steps with an evaluation every two."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    evaluate = Evaluate(every_n_steps=2, episodes=2, workers=0)
    callbacks = [evaluate, MetricsLogger(str(folder)), Checkpoints(str(folder))]
    fit(tiny_qam(CHUNK), 4, callbacks)
    return folder
