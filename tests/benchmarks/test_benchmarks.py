"""Every benchmark runs, at sizes of a few seconds. `tests/endurance` runs crash.py."""

import csv
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from qam_lightning.data.generate import generate

FOLDER = Path(__file__).parents[2] / "benchmarks"


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import a benchmark by its path, without changing how this process warns and logs."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", ["qam", "rlpd"])
def test_update(
    method: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    update = load("update", monkeypatch)
    monkeypatch.setattr(update, "TRANSITIONS", 3_000)
    monkeypatch.setitem(update.SIZES, "quickstart", {"width": 8, "depth": 1, "flow_steps": 2})
    update.main(["--method", method, "--size", "quickstart", "--repeats", "1"])
    printed = capsys.readouterr().out
    for part in ("noise", "loss and backward", "EMA targets", "whole update", "GFLOP per update"):
        assert part in printed


def test_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ("--transitions", "5000", "--cold", "5000", "--repeats", "3")
    load("data", monkeypatch).main([*sizes, "--directory", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "plain gather" in printed and "storage: disk" in printed and "fits memory" in printed


@pytest.mark.filterwarnings("ignore")
def test_online(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    online = load("online", monkeypatch)
    monkeypatch.setitem(online.SIZES, "quickstart", {"width": 8, "depth": 1, "flow_steps": 2})
    steps = ("--steps", "15", "--rounds", "1", "--episodes", "1")
    online.main(["--domain", "cube_single", *steps])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert len(rows) == 5


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
