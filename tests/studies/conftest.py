from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.app.conftest import small
from tests.online.conftest import ENV
from tests.online.conftest import data as tiny_data  # noqa: F401  (a fixture)

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """``write(**parts)``: the file of a study whose runs go below ``tmp_path``."""

    def writer(**parts: Any) -> Path:
        path = tmp_path / "mine.yaml"
        parts = {"folder": str(tmp_path / "runs"), **parts}
        path.write_text(yaml.safe_dump(parts, sort_keys=False))
        return path

    return writer


@pytest.fixture
def tiny(tiny_data: Path) -> dict[str, Any]:  # noqa: F811
    """Settings of runs of seconds."""
    flags = small(Path("unused"), 6, env=ENV, path=tiny_data, task=1, horizon=3)[1:]
    pairs = dict(flag.removeprefix("--").split("=", 1) for flag in flags)
    del pairs["run_dir"]
    settings: dict[str, Any] = {key: yaml.safe_load(value) for key, value in pairs.items()}
    return settings | {"threads": 1, "evaluation.every_n_steps": 3}
