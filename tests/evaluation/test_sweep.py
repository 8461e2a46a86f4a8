"""``eval`` with several settings of acting: what is evaluated, found again, written and refused."""

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import imageio.v3 as iio
import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from qam_lightning import load_policy
from qam_lightning.callbacks.checkpoints import Checkpoints
from qam_lightning.cli import evaluate as command
from qam_lightning.cli import sweep as sweeping
from qam_lightning.core.flow import Sampler
from qam_lightning.data.spaces import Spaces
from qam_lightning.envs.rollout import Episode
from qam_lightning.evaluation.episode_policy import EpisodePolicy
from qam_lightning.evaluation.report import build_report, find_report
from qam_lightning.evaluation.statistics import wilson_interval
from qam_lightning.evaluation.sweep import Cell, draw_sweep, sweep_rows
from qam_lightning.methods.base import Method
from qam_lightning.methods.cgql import CGQL
from qam_lightning.methods.qam import QAM
from qam_lightning.methods.qam_fql import QAMFQL
from qam_lightning.util.errors import ArgumentError
from tests.conftest import SMALL, SPACES
from tests.evaluation.conftest import MazeData
from tests.methods.test_every_method import METHODS, Build, make, spread

FAST = ["--episodes", "1", "--workers", "0", "--num_envs", "1"]
STATES = np.random.default_rng(0).standard_normal((4, SPACES.obs_dim)).astype(np.float32)


@pytest.fixture(autouse=True)
def torch_settings() -> Iterator[None]:
    """Put back the settings that the command makes for its process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


def trained(kind: type[Method], folder: Path, **changes: Any) -> Method:
    """Train a step, and leave the checkpoint in a folder."""
    torch.manual_seed(0)
    method = kind(Spaces(2, 2, 50), **{**SMALL, "width": 8, "depth": 1, "tau": 1.0, **changes})
    spread(method)
    trainer = pl.Trainer(
        max_steps=1, callbacks=[Checkpoints(str(folder))], logger=False, accelerator="cpu",
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(method, MazeData(50))  # long chunks: few calls of the policy in an episode
    return method


@pytest.fixture(scope="module")
def learner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of QAM."""
    folder = tmp_path_factory.mktemp("learner")
    trained(QAM, folder)
    return folder


@pytest.fixture
def fresh(learner: Path, tmp_path: Path) -> Path:
    """A copy of the run, never evaluated."""
    return Path(shutil.copytree(learner, tmp_path / "run"))


@pytest.fixture
def rolled_out(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The settings of acting that were really rolled out, in order."""
    seen: list[dict[str, Any]] = []
    roll_out = sweeping.with_progress

    def noting(options: Any, pool: Any, method: Any, acting: Any) -> Any:
        seen.append(dict(acting))
        return roll_out(options, pool, method, acting)

    monkeypatch.setattr(sweeping, "with_progress", noting)
    return seen


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


GRID = ["--best_of_n", "1", "3", "--flow_steps", "2", "4"]
NAME = "last-step1-learned-task1-seed1"
TABLE = f"sweep-{NAME}-best_of_n-flow_steps.csv"


def test_a_grid_is_evaluated_once_and_each_combination_as_by_itself(
    fresh: Path, rolled_out: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fresh / "eval"
    assert command.main([*FAST, *GRID, str(fresh)]) == 0
    combinations = [{"best_of_n": n, "flow_steps": t} for n in (1, 3) for t in (2, 4)]
    assert rolled_out == combinations
    rows = read(folder / TABLE)
    assert [{k: int(row[k]) for k in combinations[0]} for row in rows] == combinations
    for row, acting in zip(rows, combinations, strict=True):
        name = f"{NAME}-best_of_n{acting['best_of_n']}-flow_steps{acting['flow_steps']}.json"
        report = json.loads((folder / name).read_text())
        assert report.items() >= {**acting, "temperature": 1.0, "episodes": 1, "seed": 1}.items()
        success = [float(row[k]) for k in ("success", "low", "high")]
        assert success == [report["success"][k] for k in ("mean", "low", "high")]
        assert float(row["return"]) == report["return"]["mean"]
        assert (row["record"], row["task"]) == (name, "1")
    out = capsys.readouterr().out
    assert "QAM on pointmaze-medium" in out and "95% Wilson" in out and TABLE in out
    assert iio.imread((folder / TABLE).with_suffix(".png")).shape[0] > 400

    # The last one by itself, under the name of an evaluation by itself.
    single = ["--best_of_n", "3", "--flow_steps=4", str(fresh)]
    assert command.main([*FAST, *single]) == 0
    alone = json.loads((folder / f"{NAME}.json").read_text())
    assert alone == report
    assert rolled_out == combinations

    # The same again evaluates nothing; a larger grid evaluates what is new.
    before = sorted(folder.iterdir())
    assert command.main([str(fresh), *FAST, *GRID]) == 0
    assert rolled_out == combinations and sorted(folder.iterdir()) == before
    assert capsys.readouterr().out.count("; found ") == 4
    assert command.main([str(fresh), *FAST, *GRID, "8"]) == 0
    assert rolled_out[4:] == [{"best_of_n": n, "flow_steps": 8} for n in (1, 3)]
    assert len(read(folder / TABLE.replace(".csv", "-2.csv"))) == 6


def test_an_interrupted_sweep_goes_on(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    roll_out, seen = sweeping.with_progress, list[Any]()

    def interrupted(*args: Any) -> Any:
        seen.append(args[-1])
        if len(seen) == 2:
            raise KeyboardInterrupt
        return roll_out(*args)

    monkeypatch.setattr(sweeping, "with_progress", interrupted)
    grid = [str(fresh), *FAST, "--temperature", "0", "0.5", "1"]
    assert command.main(grid) == 130
    assert len(list(fresh.glob("eval/*.json"))) == 1 and not list(fresh.glob("eval/*.csv"))
    assert command.main(grid) == 0
    assert [acting["temperature"] for acting in seen] == [0, 0.5, 0.5, 1]
    assert len(list(fresh.glob("eval/*.json"))) == 3
    assert capsys.readouterr().out.count("; found ") == 1


def test_all_tasks_and_their_mean(
    fresh: Path, rolled_out: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main([str(fresh), *FAST, "--task", "all"]) == 0
    rows = read(fresh / "eval/sweep-last-step1-learned-taskall-seed1.csv")
    assert [row["task"] for row in rows] == ["1", "2", "3", "4", "5", "mean"]
    returns = [float(row["return"]) for row in rows]
    assert returns[-1] == pytest.approx(np.mean(returns[:-1])) and rows[-1]["episodes"] == "5"
    assert len(rolled_out) == 5 and not list(fresh.glob("eval/*.png"))  # no setting varies
    assert "mean" in capsys.readouterr().out


EPISODES = [Episode(i, 10 + i, float(i > 0), -1.5 * i, 10 + i, []) for i in range(3)]
SUBJECT = {"checkpoint": "a.ckpt", "fingerprint": 5, "best_of_n": 2, "versions": {"commit": "x"}}


def test_a_record_is_found_by_what_it_says(tmp_path: Path) -> None:
    report = build_report(SUBJECT, EPISODES)
    (tmp_path / "any name.json").write_text(json.dumps(report))
    moved = {**SUBJECT, "checkpoint": "moved.ckpt", "versions": {"commit": "y"}}
    assert find_report(tmp_path, moved, 3) == (tmp_path / "any name.json", report)
    assert find_report(tmp_path, moved, 4) is None
    assert find_report(tmp_path / "none", moved, 3) is None
    for change in (
        {"fingerprint": 6},
        {"best_of_n": 3},
        {"seed": 1},
        {"versions": {"mujoco": "1"}},
    ):
        assert find_report(tmp_path, {**SUBJECT, **change}, 3) is None


@pytest.mark.parametrize("damage", ["cut", "edited", "another file", "binary", "folder"])
def test_a_damaged_record_is_not_taken(tmp_path: Path, damage: str) -> None:
    report = build_report(SUBJECT, EPISODES)
    path = tmp_path / "x.json"
    content = {
        "cut": json.dumps(report)[:-9].encode(),
        "edited": json.dumps({**report, "success": {**report["success"], "mean": 1.0}}).encode(),
        "another file": b'[{"results": 3}]',
        "binary": b"\xff\xfe\0",
    }
    path.mkdir() if damage == "folder" else path.write_bytes(content[damage])
    assert find_report(tmp_path, SUBJECT, 3) is None


def cells(successes: dict[tuple[int, int], list[int]]) -> list[Cell]:
    """(task, best_of_n) -> successes of its episodes."""
    about = {"method": "m.QAM", "env": "e", "task": 1, "policy": "learned", "seed": 0}
    made = []
    for (task, n), flags in successes.items():
        episodes = [Episode(i, i, float(x), -2.0 * task, 9, []) for i, x in enumerate(flags)]
        report = build_report({**about, "gradient_step": 7, "task": task}, episodes)
        made.append(Cell(task, {"best_of_n": n}, Path(f"{task}-{n}.json"), report))
    return made


def test_the_mean_over_tasks_is_that_of_each_combination() -> None:
    found = cells({(1, 1): [0, 1], (2, 1): [0, 0], (1, 4): [1, 1], (2, 4): [0, 1]})
    rows = sweep_rows(found)
    assert [(row.task, row.acting["best_of_n"]) for row in rows] == [
        *((1, 1), (2, 1), ("mean", 1)),
        *((1, 4), (2, 4), ("mean", 4)),
    ]
    assert [row.success for row in rows] == [0.5, 0.0, 0.25, 1.0, 0.5, 0.75]
    assert (rows[2].success, rows[2].low, rows[2].high) == wilson_interval(1, 4)
    assert rows[2].episode_return == -3.0


def test_curves_are_drawn_of_one_or_two_settings(tmp_path: Path) -> None:
    one = sweep_rows(cells({(1, 1): [0, 1], (1, 4): [1, 1]}))
    tasks = sweep_rows(cells({(k, n): [0, k - 1] for n in (1, 16) for k in (1, 2)}))
    two = [
        row._replace(acting={**row.acting, "flow_steps": t}, success=t / 10)
        for row in one
        for t in (1, 2, 5)
    ]
    three = [
        row._replace(acting={**row.acting, "temperature": x}) for row in two for x in (0.5, 1.0)
    ]
    pictures = [draw_sweep(rows, tmp_path / f"{len(rows)}.png") for rows in (one, tasks, two)]
    found = [iio.imread(path) for path in pictures if path]
    assert len(found) == 3 and all((picture[..., :3] < 128).any() for picture in found)
    assert draw_sweep(three, tmp_path / "none.png") is None
    assert draw_sweep(one[:1], tmp_path / "none.png") is None
    assert not (tmp_path / "none.png").exists()


def test_a_value_may_stand_before_the_run() -> None:
    options = command.parse(["--best_of_n", "4", "runs/x", "--guidance=1", "2.5", "--seed", "3"])
    assert (str(options.source), options.seed, options.sweep) == ("runs/x", 3, True)
    assert options.grid == [{"best_of_n": 4, "vartheta": x} for x in (1.0, 2.5)]
    for run in ("4-seeds", "infant", "1e5x"):
        assert str(command.parse(["--best_of_n", "1", "4", run]).source) == run
    assert command.parse(["runs/x"]).grid == [{}] and not command.parse(["runs/x"]).sweep


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--best_of_n", "2", "4", "2"], "--best_of_n: 2 is given twice"),
        (["--temperature", "1", "1.0"], "--temperature: 1 is given twice"),
        (["--best_of_n", "1", "0"], "expected at least 1, found 0"),
        (["--temperature", "1", "-1"], "expected a number of at least 0, found -1"),
        (["--temperature", "inf"], "expected a number of at least 0, found inf"),
        (["--flow_steps", "2.5"], "invalid integer value: '2.5'"),
        (["--flow_steps", "2", "20000"], "flow_steps is 20000, expected at least 1 and at most"),
        (["--best_of_n", "1", str(10**9)], f"best_of_n is {10**9}: acting in"),
        (["--vartheta", "1"], "vartheta is 1.0, but the policy of QAM has no such setting; it has"),
        (["--best_of_n", "1", "2", "--policy=behavior"], "the behaviour acts with its first"),
        (["--guidance", "1", "--policy=behavior"], "the cloned behaviour has no such setting"),
        (["--best_of_n", "1", "2", "--picture"], "--picture is for one evaluation, and this is"),
        (["--task", "all", "--video"], "--video is for one evaluation"),
        (["--task", "all", "--output", "x.json"], "--output is for one evaluation"),
        (["--task", "6", "--best_of_n", "1", "2"], "task is 6, but pointmaze-medium has tasks"),
        (["--task", "some"], "argument --task: invalid task value: 'some'"),
    ],
)
def test_mistakes_are_answered_with_one_line(
    fresh: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = command.main([str(fresh), *FAST, *options])
    except SystemExit as stop:
        code = int(str(stop.code))
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 2 and line.startswith("error: ") and message in line
    assert not (fresh / "eval").exists()


def test_the_guidance_of_cgql(tmp_path: Path) -> None:
    method = trained(CGQL, tmp_path, vartheta=0.1)
    assert command.main([str(tmp_path), *FAST, "--guidance", "0", "0.5"]) == 0
    none, much = (
        json.loads((tmp_path / f"eval/last-step1-learned-task1-seed1-vartheta{x}.json").read_text())
        for x in ("0", "0.5")
    )
    assert (none["vartheta"], much["vartheta"]) == (0, 0.5)
    # Without guidance it is the cloned behaviour.
    state = np.ones(2, np.float32)
    unguided, guided = (load_policy(tmp_path, vartheta=x).sample_chunk(state) for x in (0.0, 0.5))
    cloned = EpisodePolicy(method, 0, behavior=True)(state[None], [0])[0]
    np.testing.assert_allclose(unguided, cloned, atol=1e-6)
    assert not np.allclose(guided, cloned)


def test_the_command_line_knows_all_samplers() -> None:
    assert get_args(Sampler) == command.SAMPLERS


def test_samplers_are_swept_by_name(fresh: Path, rolled_out: list[Any]) -> None:
    grid = ["--sampler", "euler", "etd2", "--flow_steps", "2", "4"]
    assert command.main([*FAST, *grid, str(fresh)]) == 0
    names = ("euler", "etd2")
    expected = [{"flow_steps": t, "sampler": name} for t in (2, 4) for name in names]
    assert rolled_out == expected
    table = fresh / "eval" / f"sweep-{NAME}-flow_steps-sampler.csv"
    assert [row["sampler"] for row in read(table)] == [*names, *names]
    assert (fresh / "eval" / f"{NAME}-flow_steps4-sampleretd2.json").is_file()
    assert iio.imread(table.with_suffix(".png")).shape[0] > 400
    assert command.main([*FAST, *grid[:3], str(fresh)]) == 0  # only names along the axis
    assert table.with_name(f"sweep-{NAME}-sampler.csv").with_suffix(".png").is_file()


def test_settings_that_overflow_are_refused(
    fresh: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = ["--temperature", "1", "3e38", "--sampler", "ab2"]
    assert command.main([str(fresh), *FAST, *grid]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    settings = "sampler ab2, temperature 3e+38"
    assert line == f"error: with {settings}, the policy's actions are no numbers; lower them"
    assert len(list(fresh.glob("eval/*"))) == 1  # what was evaluated before


def test_load_policy_acts_as_the_sweep(fresh: Path) -> None:
    state = np.ones(2, np.float32)

    def chunk(**acting: Any) -> np.ndarray:
        return load_policy(fresh, seed=3, **acting).sample_chunk(state)

    np.testing.assert_array_equal(chunk(), chunk(flow_steps=4, temperature=1.0))
    assert not np.allclose(chunk(), chunk(flow_steps=1))
    assert not np.allclose(chunk(), chunk(sampler="etd2"))
    with pytest.raises(ArgumentError, match="sampler is heun, expected one of euler, ab2, etd2"):
        chunk(sampler="heun")
    still = [load_policy(fresh, seed=k, temperature=0.0).sample_chunk(state) for k in (1, 2)]
    np.testing.assert_array_equal(*still)
    for wrong in ({"temperature": -1.0}, {"temperature": np.inf}, {"vartheta": 1.0}):
        with pytest.raises(ArgumentError):
            chunk(**wrong)


# -- what a method says of its settings of acting ------------------------------------------------


def act(method: Method, **options: Any) -> np.ndarray:
    return EpisodePolicy(method, 3, **options)(STATES, list(range(len(STATES))))


@pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.__name__)
def test_a_method_acts_by_the_settings_that_it_names(kind: type[Method], build: Build) -> None:
    method = make(kind, build)
    spread(method)
    names = set(method.acting_settings)
    before = act(method)
    assert names <= {"best_of_n", "flow_steps", "sampler", "temperature", "vartheta"}
    if "temperature" in names:
        np.testing.assert_array_equal(act(method, temperature=1.0), before)
        assert not np.allclose(act(method, temperature=0.5), before)
    else:
        with pytest.raises(ArgumentError, match="has no such setting"):
            act(method, temperature=1.0)
    # Reading a setting that is not named would make another policy of it; those of a diffusion
    # also shape its networks.
    for name in {"flow_steps", "vartheta"} & vars(method).keys():
        if name in names or not hasattr(getattr(method, "actor", None), "schedule"):
            trained = getattr(method, name)
            setattr(method, name, trained + 1)
            assert np.allclose(act(method), before) == (name not in names), name
            setattr(method, name, trained)
    for name, other in {"sampler": "etd2", "grid_power": 2.0}.items():
        if hasattr(method, name):
            trained = getattr(method, name)
            setattr(method, name, other)
            assert np.allclose(act(method), before) == ("sampler" not in names), name
            setattr(method, name, trained)


def test_qam_fql_without_its_one_step_policy_follows_the_flow(build: Build) -> None:
    for name in ("flow_steps", "sampler"):
        assert name in build(QAMFQL, tau=1.0, alpha=float("inf")).acting_settings
        assert name not in build(QAMFQL, tau=1.0, alpha=1.0).acting_settings
