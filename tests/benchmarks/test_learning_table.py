"""benchmarks/learning_table.py trains, scores and writes its table."""

import csv
from pathlib import Path

import pytest

from qam_lightning.data.generate import generate
from tests.benchmarks.loading import load


def test_learning_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generate("cube-single", "play", str(tmp_path), episodes=3, workers=1, episode_steps=30)
    table = load("learning_table", monkeypatch)
    tiny = ("--model.width=8", "--model.depth=1", "--model.compile=false", "--log.every_n_steps=1")
    out = tmp_path / "table"
    arguments = ["--methods", "fql", "--seeds", "1", "--steps", "2", "--episodes", "1"]
    arguments += ["--runs", str(tmp_path / "runs"), "--out", str(out)]
    arguments += [f"--data.directory={tmp_path}", "--trainer.accelerator=cpu", *tiny]
    table.main(arguments)
    with out.with_suffix(".csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["method"] == "fql" and 0 <= float(row["success"]) <= 1
    assert "| fql |" in out.with_suffix(".md").read_text()
