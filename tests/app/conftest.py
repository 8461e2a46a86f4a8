import csv
import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from qam_lightning.cli import main
from qam_lightning.cli.training import FitCLI
from tests.online.conftest import ENV
from tests.online.conftest import data as tiny_data  # noqa: F401  (a fixture)


class Parsing(FitCLI):
    """The command's own parser; nothing is built."""

    def before_instantiate_classes(self) -> None: ...

    def instantiate_classes(self) -> None: ...


def small(run_dir: Path, steps: int, **data: object) -> list[str]:
    """Arguments of a run of seconds on the dataset that ``data`` names."""
    settings = {
        "config": "cube_single.yaml",
        "run_dir": run_dir,
        **{f"data.{key}": value for key, value in data.items()},
        "data.batch_size": 8,
        "model.width": 8,
        "model.depth": 1,
        "model.num_critics": 2,
        "model.flow_steps": 2,
        "trainer.max_steps": steps,
        "trainer.accelerator": "cpu",
        "evaluation.every_n_steps": 1000,
        "evaluation.episodes": 1,
        "evaluation.workers": 0,
        "log.every_n_steps": 1,
    }
    return ["fit", *(f"--{key}={value}" for key, value in settings.items())]


@pytest.fixture
def small_run(
    tiny_data: Path,  # noqa: F811
    tmp_path: Path,
) -> Callable[..., list[str]]:
    """Arguments of a run: ``small_run(steps, *more, run_dir=...)``; the environment is `tiny`'s."""

    def arguments(steps: int, *more: str, run_dir: Path = tmp_path / "run") -> list[str]:
        return [*small(run_dir, steps, env=ENV, path=tiny_data, task=1, horizon=3), *more]

    return arguments


@pytest.fixture
def cube_run(dataset: Path, tmp_path: Path) -> Iterator[Callable[..., list[str]]]:
    """The same in OGBench's cube-single, whose environments take a second."""

    def arguments(steps: int, *more: str, run_dir: Path = tmp_path / "run") -> list[str]:
        return [*small(run_dir, steps, directory=dataset), *more]

    yield arguments
    gc.collect()  # the simulators of a run are large, but not in Python's eyes


@pytest.fixture
def resolved(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict]:
    """``resolved(*arguments)``: the configuration that ``fit`` with these arguments would use."""

    def parse(*arguments: str) -> dict:
        with pytest.raises(SystemExit) as exit_:
            main(["fit", *arguments, "--print_config"])
        assert exit_.value.code == 0
        return yaml.safe_load(capsys.readouterr().out)

    return parse


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """``refused(*arguments)``: the one line with which the command ends, with status 2."""

    def run(*arguments: str) -> str:
        capsys.readouterr()
        assert main(list(arguments)) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: "), lines
        return lines[0]

    return run


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
