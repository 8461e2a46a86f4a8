"""The glossary of metrics names exactly what is logged, and by whom."""

from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from qam_lightning.callbacks.metrics import MetricsLogger
from qam_lightning.data.batch import Batch
from qam_lightning.evaluation.statistics import summarize
from qam_lightning.loggers import CsvLogger
from qam_lightning.methods.base import Method
from qam_lightning.online.statistics import EpisodeStatistics
from tests.methods.test_every_method import METHODS as ALL
from tests.methods.test_every_method import Build, make

GLOSSARY = Path(__file__).parents[2] / "docs" / "metrics.md"
PAGES = {path.stem for path in GLOSSARY.with_name("methods").glob("*.md")}
METHODS = [kind for kind in ALL if kind.__module__.rsplit(".", 1)[-1] in PAGES]
"""The methods with a page; a method that is added explains its metrics where its author likes."""

NAMES = sorted(kind.__module__.rsplit(".", 1)[-1] for kind in METHODS)


def glossary() -> dict[str, list[str]]:
    """Return column -> the methods that log it, as the glossary says."""
    found: dict[str, list[str]] = {}
    for line in GLOSSARY.read_text(encoding="utf-8").splitlines():
        if line.startswith("| `"):
            cells = [cell.strip() for cell in line.replace(r"\|", "").strip("|").split("|")]
            assert len(cells) == 5, line
            column, methods = cells[0].strip("`"), cells[1]
            listed = methods.removeprefix("all").removeprefix(" but ").split(", ")
            if methods.startswith("all"):
                listed = [name for name in NAMES if name not in listed]
            found.setdefault(column, []).extend(listed)
    return found


def logged(method: Method, batch: Batch, folder: Path) -> set[str]:
    """Train two steps, the first that a delay of 2 makes complete; return the files' columns."""
    metrics, logger = MetricsLogger(every_n_steps=1), CsvLogger(folder)
    quiet = {"logger": logger, "enable_checkpointing": False, "enable_model_summary": False}
    trainer = pl.Trainer(
        max_steps=2, accelerator="cpu", enable_progress_bar=False, callbacks=[metrics], **quiet
    )
    online = EpisodeStatistics(recent=[[1.0, -3.0, 4.0]]).metrics()
    method.metrics |= {name: torch.tensor(value) for name, value in online.items()}
    trainer.fit(method, DataLoader([batch, batch], batch_size=None))
    episode = SimpleNamespace(success=1.0, episode_return=-3.0, length=4)
    numbers = {**summarize([episode]), "discarded": 0.0, "seconds": 1.0}
    metrics.on_evaluation(trainer, method, numbers)
    files = (logger.train_csv, logger.eval_csv)
    return {name for file in files for name in file.read_text().splitlines()[0].split(",")}


@pytest.mark.filterwarnings("ignore")
def test_glossary_names_what_is_logged_and_by_whom(
    build: Build, batch: Batch, tmp_path: Path
) -> None:
    found: dict[str, list[str]] = {}
    for kind in METHODS:
        name = kind.__module__.rsplit(".", 1)[-1]
        for column in logged(make(kind, build), batch, tmp_path / name):
            found.setdefault(column, []).append(name)
    told = glossary()
    assert set(found) - set(told) == set(), "logged, but not in the glossary"
    assert set(told) - set(found) == set(), "in the glossary, but logged by nobody"
    assert {c: sorted(m) for c, m in told.items()} == {c: sorted(m) for c, m in found.items()}
