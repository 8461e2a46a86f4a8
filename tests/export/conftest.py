"""A tiny run, exported once."""

import contextlib
import io
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from qam_lightning.cli import main
from tests.evaluation.conftest import run as run  # noqa: F401  (a fixture)


@pytest.fixture(scope="session")
def export(run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:  # noqa: F811
    """Export the tiny run, acting with the best of three; return the folder and what was said."""
    folder = tmp_path_factory.mktemp("exports") / "tiny"
    options = [f"--output={folder}", "--best_of_n=3", "--formats", "onnx", "pt2", "--episodes=1"]
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert main(["export", str(run / "checkpoints" / "last.ckpt"), *options]) == 0
    return folder, said.getvalue()


@pytest.fixture(scope="session")
def exported(export: tuple[Path, str]) -> Path:
    """Return the exported folder; leave it as is."""
    return export[0]


@pytest.fixture
def copied(exported: Path, tmp_path: Path) -> Callable[[], Path]:
    """Return a maker of copies that may be changed."""
    return lambda: Path(shutil.copytree(exported, tmp_path / "copy"))
