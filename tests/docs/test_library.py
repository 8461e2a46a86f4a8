"""The code of docs/library.md runs, in its order: act, train, clone, use the mathematics."""

from pathlib import Path

import pytest

from qam_lightning.cli import main
from tests.docs.pages import DOCS, blocks

ACT, TRAIN, CLONE, MATHEMATICS = blocks(DOCS / "library.md", "python")
TINY = (
    "--model.width=8",
    "--model.depth=1",
    "--model.compile=false",
    "--trainer.max_steps=2",
    "--trainer.accelerator=cpu",
    "--evaluation.episodes=1",
    "--evaluation.workers=0",
)


def execute(code: str) -> dict:
    names: dict = {}
    exec(compile(code, "library.md", "exec"), names)
    return names


@pytest.fixture(scope="module")
def folder(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a few episodes, and a run of two steps on them."""
    folder = tmp_path_factory.mktemp("library")
    data = folder / "datasets" / "quickstart"
    data.parent.mkdir()
    data.symlink_to(dataset)
    run = (f"--run_dir={folder / 'runs' / 'quickstart'}", f"--data.directory={data}")
    assert main(["fit", "--config=quickstart.yaml", *run, *TINY]) == 0
    return folder


def test_acting(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    names = execute(ACT)
    assert names["observation"].shape == names["env"].observation_space.shape
    chunk = names["policy"].sample_chunk(names["observation"])
    assert chunk.shape == (5, *names["env"].action_space.shape) and abs(chunk).max() <= 1
    assert names["policy"].metadata


@pytest.mark.filterwarnings("ignore")
def test_training(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    names = execute(TRAIN.replace("max_steps=1_000", "max_steps=2, accelerator='cpu'"))
    assert names["method"].gradient_step == 2


@pytest.mark.filterwarnings("ignore")
def test_starting_from_a_clone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    small = CLONE.replace('"width": 128, "depth": 3', '"width": 8, "depth": 1')
    names = execute(small.replace("max_steps=1_000", "max_steps=2, accelerator='cpu'"))
    assert names["method"].gradient_step == 2
    assert names["method"].pretrained.path == "runs/quickstart/checkpoints/last.ckpt"


def test_the_mathematics() -> None:
    names = execute(MATHEMATICS)
    assert names["adjoints"].shape == (10, 256, 1)
    assert names["residual"].weight.grad.abs().sum() > 0
