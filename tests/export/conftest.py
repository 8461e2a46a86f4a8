"""A tiny run, exported once."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from qam_lightning import load_policy
from tests.evaluation.conftest import run as run  # noqa: F401  (a fixture)


@pytest.fixture(scope="session")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """Return the exported folder of the tiny run, acting with the best of three; leave it as is."""
    folder = tmp_path_factory.mktemp("exports") / "tiny"
    load_policy(run, best_of_n=3).export(folder, formats=("onnx", "pt2"), episodes=1)
    return folder


@pytest.fixture
def copied(exported: Path, tmp_path: Path) -> Callable[[], Path]:
    """Return a maker of copies that may be changed."""
    return lambda: Path(shutil.copytree(exported, tmp_path / "copy"))
