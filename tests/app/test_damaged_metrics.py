"""Metrics that were changed: a resume says so before it changes anything."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qam_lightning.cli import main
from tests.online.conftest import build
from tests.online.conftest import data as data  # a fixture

SETTINGS: dict[str, Any] = {"online__steps": 0, "evaluation__every_n_steps": 2}


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    run = tmp_path_factory.mktemp("trained") / "run"
    assert main(build(data, run, **SETTINGS)) == 0
    return run


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def replaced(old: bytes, new: bytes) -> Callable[[Path], Any]:
    def change(path: Path) -> None:
        content = path.read_bytes()
        assert old in content
        path.write_bytes(content.replace(old, new, 1))

    return change


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("name", ["train.csv", "eval.csv"])
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n\0\n"), ", line 1: is no text in UTF-8"),
        (lambda path: path.write_text("a,b\n1,2\n"), ", line 1: has no column gradient_step"),
        (replaced(b"gradient_step,", b"gradient,"), ", line 1: has no column gradient_step"),
        (replaced(b"\r\n2,", b"\r\n2\0,"), r": gradient_step is '2\x00', expected an integer"),
        (replaced(b"\r\n2,", b"\r\ntwo,"), ": gradient_step is 'two', expected an integer of at"),
        (replaced(b"offline", b"offline,7"), " values, expected "),
        (replaced(b",offline,", b",offline,much"), ", expected a number; restore the file"),
        (folder, ": is no file, but a folder"),
        (lambda path: (shutil.rmtree(path.parent), path.parent.write_text("")), "s a file, expect"),
    ],
)  # fmt: skip
def test_a_resume_is_refused(
    name: str,
    change: Callable[[Path], Any],
    told: str,
    trained: Path,
    data: Path,  # noqa: F811
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = shutil.copytree(trained, tmp_path / "run")
    change(run / "metrics" / name)
    before = contents(run)
    capsys.readouterr()
    more = {**SETTINGS, "trainer__max_steps": 6}
    assert main(build(data, run, "--ckpt_path=last", **more)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {run}/metrics") and told in line
    assert contents(run) == before


@pytest.mark.parametrize("cut", [b"", b"gradient_st", b"4,0,offl"])
def test_what_a_crash_leaves_is_no_damage(
    cut: bytes,
    trained: Path,
    data: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """An empty file, half a header, half a row."""
    run = shutil.copytree(trained, tmp_path / "run")
    path = run / "metrics/train.csv"
    whole = path.read_bytes() if cut.startswith(b"4") else b""
    path.write_bytes(whole + cut)
    more = {**SETTINGS, "trainer__max_steps": 6}
    assert main(build(data, run, "--ckpt_path=last", **more)) == 0
    steps = [row.split(",")[0] for row in path.read_text().splitlines()]
    assert steps == (["gradient_step", *"123456"] if whole else ["gradient_step", *"56"])


def test_missing_metrics_begin_again(trained: Path, data: Path, tmp_path: Path) -> None:  # noqa: F811
    run = shutil.copytree(trained, tmp_path / "run")
    shutil.rmtree(run / "metrics")
    more = {**SETTINGS, "trainer__max_steps": 6}
    assert main(build(data, run, "--ckpt_path=last", **more)) == 0
    assert (run / "metrics/train.csv").read_text().count("\n") == 3
