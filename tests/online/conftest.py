import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import tests.online.tiny  # noqa: F401  (registers the environment)

ENV = "tests.online.tiny:Tiny-v0"


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random trajectories in the common format, 6 of 11 rows."""
    rng, rows = np.random.default_rng(3), 66
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    terminals = np.arange(1, rows + 1) % 11 == 0
    np.savez(
        path,
        observations=rng.normal(size=(rows, 3)).astype(np.float32),
        actions=rng.uniform(-1, 1, (rows, 2)).astype(np.float32),
        terminals=terminals,
        rewards=-rng.integers(0, 3, rows).astype(np.float32),
        masks=(rng.random(rows) > 0.1).astype(np.uint8),
    )
    return path


def build(data: Path, run_dir: Path, *more: str, **changes: object) -> list[str]:
    """Arguments of a small run in the tiny environment; ``online__steps=5`` sets online.steps."""
    settings = {
        "run_dir": run_dir,
        "domain": "scene",
        "data.env": ENV,
        "data.path": data,
        "data.task": 1,
        "data.horizon": 3,
        "data.sparse": "false",
        "data.batch_size": 8,
        "model.width": 8,
        "model.depth": 1,
        "model.num_critics": 2,
        "model.flow_steps": 2,
        "model.learning_rate": 0.01,
        "trainer.max_steps": 4,
        "trainer.accelerator": "cpu",
        "online.steps": 24,
        "online.learning_starts": 10,
        "online.async_env": "false",
        "evaluation.every_n_steps": 1000,
        "evaluation.episodes": 1,
        "evaluation.workers": 0,
        "log.every_n_steps": 1,
    }
    settings |= {key.replace("__", "."): value for key, value in changes.items()}
    return ["fit", *(f"--{key}={value}" for key, value in settings.items()), *more]


@pytest.fixture
def arguments(data: Path, tmp_path: Path) -> Iterator[Callable[..., list[str]]]:
    """``arguments("--flag=...", run_dir=..., online__steps=5)``, see `build`."""

    def complete(*more: str, run_dir: Path = tmp_path / "run", **changes: object) -> list[str]:
        return build(data, run_dir, *more, **changes)

    yield complete
    gc.collect()
