"""Sizes that do not fit into memory: one line before anything is allocated or written."""

import contextlib
from pathlib import Path
from typing import Any

import pytest

from qam_lightning import QAM, Spaces
from qam_lightning.cli import main
from qam_lightning.evaluation import limits
from qam_lightning.util import memory
from qam_lightning.util.devices import available_cores
from qam_lightning.util.errors import ArgumentError
from tests.evaluation.conftest import run as run  # a fixture
from tests.methods.test_every_method import EXAMPLE, METHODS, settings
from tests.online.conftest import build as arguments
from tests.online.conftest import data as data  # a fixture

DIGITS = "9" * 300


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        (
            f"model.width={10**6}",
            "model.width is 1000000: with depth 4 and num_critics 2, the",
        ),
        (
            f"model.num_critics={10**9}",
            "model.num_critics is 1000000000: with width 8 and depth",
        ),
        (
            f"model.num_critics={10**18}",
            "the networks would take more than 10^12 GB, but there are",
        ),
        (f"model.depth={10**6}", "model.depth is 1000000, expected at least 1 and at most 1000"),
        (f"model.flow_steps={10**9}", "expected at least 1 and at most 10000"),
        (f"model.width={DIGITS}", "which does not fit into 64 bits"),
        (f"model.lr_decay_steps={DIGITS}", "which does not fit into 64 bits"),
        (f"model.best_of_n={10**9}", "is 1000000000: acting in 2 environments at once would take"),
        (f"data.batch_size={10**9}", "data.batch_size is 1000000000: 5 batches would take"),
        (f"data.batch_size={DIGITS}", "which does not fit into 64 bits"),
        (
            f"evaluation.episodes={10**9}",
            "evaluation.episodes is 1000000000: their results would",
        ),
        (f"evaluation.workers={10**9}", "evaluation.workers is 1000000000: the processes would ta"),
        (f"evaluation.num_envs={10**7}", "evaluation.num_envs is 10000000, expected at most 10000"),
    ],
)
def test_training_says_what_does_not_fit(
    setting: str,
    told: str,
    data: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(memory, "memory_limit", lambda: 20 * 10**9)
    key, _, value = setting.partition("=")
    many = {"evaluation.workers", "evaluation.num_envs"}
    chosen: dict[str, Any] = {
        "model__depth": 4,
        "evaluation__episodes": 10**7 if key in many else 2,
        "evaluation__num_envs": 10**3 if key == "evaluation.workers" else 8,
        "evaluation__workers": 0,
        key.replace(".", "__"): value,
    }
    assert main(arguments(data, tmp_path / "run", **chosen)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line and len(line) < 400
    assert not list(tmp_path.rglob("*.yaml")) and not list(tmp_path.rglob("*.c*"))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--episodes=1000000000"], "episodes is 1000000000: their results would take 1e+03 GB"),
        ([f"--episodes={DIGITS}"], "does not fit into 64 bits"),
        (["--num_envs=20000", "--episodes=20000"], "num_envs is 20000: the simulators would take"),
        (["--best_of_n=1000000000"], "best_of_n is 1000000000: acting in 8 environments at once w"),
        (["--workers=900", "--num_envs=900", "--episodes=900"], "workers is 900: the processes w"),
        ([f"--seed={'9' * 4000}"], "does not fit into 64 bits"),
    ],
)
def test_eval_says_what_does_not_fit(
    options: list[str],
    told: str,
    run: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(memory, "memory_limit", lambda: 20 * 10**9)
    with contextlib.suppress(SystemExit):  # the parser ends the program itself
        assert main(["eval", str(run), *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
    assert not (run / "eval").exists()


@pytest.mark.parametrize("kind", METHODS)
@pytest.mark.parametrize("width", [64, 256])
def test_the_estimate_is_below_what_the_networks_take(
    kind: Any, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that fits is never refused; the estimate is not far below either."""
    estimates: list[int] = []

    def note(needed: int, *others: object) -> None:
        estimates.append(needed)

    monkeypatch.setattr("qam_lightning.methods.base.check_memory", note)
    own = {name: value for name, value in EXAMPLE.items() if name in settings(kind)}
    method = kind(Spaces(20, 5, 5), **own, width=width, depth=4, num_critics=3)
    taken = sum(x.nbytes for x in method.state_dict().values())
    assert 0.4 * taken < estimates[0] <= taken


def test_sizes_that_fit_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "memory_limit", lambda: 100 * 10**6)
    method = QAM(Spaces(3, 2, 3), tau=1.0, width=8, depth=1)
    limits.check_rollouts("eval", method, "scene", 1000, 8, 1)
    with pytest.raises(ArgumentError, match="^eval: workers is None: the processes would take"):
        monkeypatch.setattr(memory, "memory_limit", lambda: 20 * 10**6)
        limits.check_rollouts("eval", method, "scene", 1000, 8, None)
    assert available_cores() >= 1
