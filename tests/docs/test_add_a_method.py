"""docs/add_a_method.md, carried out: its class and its configurations, and nothing else."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from qam_lightning.cli import main
from qam_lightning.data.spaces import Spaces
from qam_lightning.util.errors import ArgumentError
from tests.app.conftest import read_csv
from tests.docs.pages import DOCS, ROOT, blocks, commands

PAGE = DOCS / "add_a_method.md"
(CODE,), (OWN_CONFIG, CONFIG) = blocks(PAGE, "python"), blocks(PAGE, "yaml")
TINY = {
    "data.batch_size": 8,
    "model.width": 8,
    "model.depth": 1,
    "model.num_critics": 2,
    "model.flow_steps": 2,
    "trainer.max_steps": 3,
    "trainer.accelerator": "cpu",
    "evaluation.episodes": 1,
    "evaluation.workers": 0,
}
GENERIC = (
    "tests/methods/test_every_method.py",
    "tests/methods/test_glossary.py",
    "tests/methods/test_parameter_counts.py",
    "tests/app/test_configs.py",
    "tests/docs/test_methods.py",
    "tests/test_architecture.py",
)
"""Tests that look for methods by themselves."""


def call(*arguments: object, cwd: Path, path: Path) -> str:
    """Run Python in a folder with another on its path; returns what it printed."""
    result = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    return result.stdout


def test_the_method_trains_and_is_scored_from_a_folder_of_ones_own(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "crr.py").write_text(CODE)
    (tmp_path / "crr.yaml").write_text(OWN_CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    flags = [f"--{key}={value}" for key, value in TINY.items()]
    fit = ("fit", "--config=crr.yaml", f"--data.directory={dataset}", "--log.every_n_steps=1")
    assert main([*fit, *flags]) == 0
    ((_, _, run_dir, *named),) = (words for words in commands(PAGE) if words[:2] == ["qam", "eval"])
    rows = read_csv(Path(run_dir) / "metrics" / "train.csv")
    assert [row["gradient_step"] for row in rows] == ["1", "2", "3"]
    assert all(0 <= float(row["actor/kept"]) <= 1 for row in rows)
    evaluate = ("-m", "qam_lightning", "eval", run_dir, *named, "--episodes=1", "--workers=0")
    call(*evaluate, "--output=score.json", cwd=tmp_path, path=Path(f"{ROOT}{os.pathsep}{tmp_path}"))
    assert 0 <= json.loads(Path("score.json").read_text())["success"]["mean"] <= 1


def test_its_setting_is_checked_and_named() -> None:
    names: dict = {}
    exec(compile(CODE, PAGE.name, "exec"), names)
    with pytest.raises(ArgumentError, match=r"^CRR: samples is 0, expected at least 1"):
        names["CRR"](Spaces(3, 2), samples=0)


@pytest.mark.slow
def test_in_the_repository_two_files_suffice_for_the_tests_to_pass(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    skip = (".*", "build", "dist", "runs", "datasets", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(*skip))
    (copy / "qam_lightning" / "methods" / "crr.py").write_text(CODE)
    (copy / "configs" / "methods" / "crr.yaml").write_text(CONFIG)
    # What concerns the new method, and every test that counts methods.
    chosen = "CRR or crr or glossary or listed or cover or there_is or architecture"
    tests = call(
        *("-m", "pytest", "-v", "-n0", "-p", "no:cacheprovider", "-k", chosen, *GENERIC),
        cwd=copy,
        path=copy,
    )
    assert "test_every_method.py" in tests and "[CRR]" in tests
