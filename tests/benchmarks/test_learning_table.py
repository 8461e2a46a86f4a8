"""benchmarks/learning_table.py trains, scores and writes its table."""

import argparse
import csv
import re
from pathlib import Path

import pytest
import yaml

from qam_lightning.data.generate import generate
from qam_lightning.util.configs import METHODS
from qam_lightning.util.provenance import git_commit
from tests.benchmarks.loading import load


@pytest.mark.slow
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
    assert row["chosen"] == "of `cube-double`, not tuned here"
    assert row["commit"] == (git_commit() or "")
    assert re.search(r"\| fql \| \d+% \(\d+–\d+, 1 seed\) \|", out.with_suffix(".md").read_text())


def test_the_table_of_the_documentation_follows_from_its_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = load("learning_table", monkeypatch)
    docs = Path(__file__).parents[2] / "docs/learning_table"
    with docs.with_suffix(".csv").open(newline="") as file:
        rows = [
            table.Row(**row | {"seed": int(row["seed"]), "parameters": int(row["parameters"])})
            for row in csv.DictReader(file)
        ]
    rows = [row._replace(success=float(row.success), ms=float(row.ms)) for row in rows]
    options = {"config": "quickstart.yaml", "steps": 4_000, "episodes": 50, "seeds": 3}
    table.write(tmp_path / "t", rows, argparse.Namespace(methods=table.METHODS, **options))
    assert (tmp_path / "t.md").read_text() == docs.with_suffix(".md").read_text()
    for row in rows:
        how = table.chosen(row.method, "quickstart") if row.values else "none to choose"
        assert row.chosen == how


def test_how_settings_were_chosen_is_said_for_every_domain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = load("learning_table", monkeypatch)
    assert set(table.QUICKSTART) <= set(table.METHODS)
    assert table.chosen("qam", "cube_triple") == "of `cube-triple` (the paper's Table 4)"
    for method in table.METHODS:  # whose values were taken over from cube-double, as they say
        tuned = yaml.safe_load((METHODS / f"{method}.yaml").read_text()).get("tuned")
        if tuned and "cube-double" in table.chosen(method, "quickstart"):
            assert tuned["quickstart"] == tuned["cube-double"]
