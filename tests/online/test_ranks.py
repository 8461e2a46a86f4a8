"""Two processes train, collect, evaluate and resume as one; `ranks` says what they do."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from qam_lightning.checkpoints import read_checkpoint
from qam_lightning.cli import main
from qam_lightning.cli.trainer import Trainer
from qam_lightning.methods.base import Method
from qam_lightning.methods.trqam import TRQAM
from tests.app.test_training import assert_same
from tests.methods.test_every_method import SOME_METHODS
from tests.online import test_online as online
from tests.online.conftest import build
from tests.online.ranks import ALONE, CLIP, CUTS, METHODS, ONLINE, OWN, STEPS, fit
from tests.online.test_collector import repeats
from tests.online.test_online import STATE, assert_same_runs, last, rows_of, table

ROOT = Path(__file__).resolve().parents[2]

# Sums over a batch in another order differ by about 1e-16 of their terms, 1e-15 over some steps.
# Adam divides by no less than 1e-8, so where the gradient is all rounding a step of 0.01 may differ
# by 0.01 * 1e-15 / 1e-8 = 1e-9. The weights themselves move by 0.01 a step.
TOLERANCE = STEPS * 1e-9

pytestmark = [pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def two(
    data: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What two ranks left behind; they train the methods whose tests are to run."""
    tests = [item.name for item in request.session.items if item.path == request.path]
    methods = [
        m.__name__ for m in METHODS if any(name.endswith(f"[{m.__name__}]") for name in tests)
    ]
    folder = tmp_path_factory.mktemp("ranks")
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    command = (*torchrun, "-m", "tests.online.ranks", str(data), str(folder), *methods)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=800
    )
    assert ended.returncode == 0, ended.stderr
    return folder


@pytest.fixture(scope="module")
def one(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The online run of a single process."""
    run = tmp_path_factory.mktemp("one") / "run"
    assert main(build(data, run, **ONLINE)) == 0
    return run


def apart(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """The largest difference between two sets of weights."""
    assert a.keys() == b.keys()
    return max(float((a[k] - b[k]).abs().max()) for k in a)


# -- training ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SOME_METHODS)
def test_two_ranks_train_and_score_as_one(kind: type[Method], two: Path, data: Path) -> None:
    alone = fit(kind, data, 1, **OWN.get(kind.__name__, {}))
    first, second = (torch.load(two / f"{kind.__name__}-{rank}.pt") for rank in (0, 1))
    assert_same(first["weights"], second["weights"])
    assert apart(alone["weights"], first["weights"]) < TOLERANCE
    assert any(name.split(".")[0].endswith("_ema") or "_ema." in name for name in alone["weights"])
    assert alone["adam"].keys() == first["adam"].keys()
    for state, other in zip(alone["adam"].values(), first["adam"].values(), strict=True):
        assert state["step"] == other["step"]
        torch.testing.assert_close(state["exp_avg"], other["exp_avg"], rtol=0, atol=TOLERANCE)
    # The joint norm is that of the averaged gradients, and it was clipped.
    assert len(first["norms"]) == STEPS and min(first["norms"]) > CLIP
    np.testing.assert_allclose(first["norms"], alone["norms"], rtol=1e-6)
    # Before the first step the policies are equal to the bit, and so are the scores.
    assert first["scores"][0] == second["scores"][0] == alone["scores"][0]
    assert len(alone["scores"]) == 2
    if kind is TRQAM:  # neither the mean of the divergence nor the multiplier is at a bound
        assert 0.1 < alone["weights"]["kl_mean"] < 2.0
        assert 0.5 < alone["weights"]["multiplier"] < 2.5


@pytest.mark.parametrize("name", ALONE)
def test_ranks_that_do_not_know_of_each_other_train_otherwise(
    name: str, two: Path, data: Path
) -> None:
    """What the comparison above would see, if ranks did not share noise or a batch's scale."""
    (kind,) = (m for m in METHODS if m.__name__ == name)
    unaware = torch.load(two / f"{name}-alone-0.pt")["weights"]
    assert apart(fit(kind, data, 1, **ALONE[name])["weights"], unaware) > 1e4 * TOLERANCE


def test_the_number_of_nodes_is_a_setting() -> None:
    trainer = Trainer(max_steps=1, accelerator="cpu", strategy="ddp", num_nodes=2)
    assert (trainer.num_nodes, trainer.world_size) == (2, 2)


# -- both phases ---------------------------------------------------------------------------------


def test_two_ranks_collect_evaluate_and_learn_as_one(two: Path, one: Path) -> None:
    run = two / "whole-0"
    for name, value in last(one)["state_dict"].items():
        torch.testing.assert_close(last(run)["state_dict"][name], value, rtol=1e-3, atol=1e-4)
    assert last(run)["counters"] == last(one)["counters"]
    rows = rows_of(run)
    repeats(rows, 0, envs=2)
    for field in ("observation", "action", "reward"):
        np.testing.assert_allclose(rows[field], rows_of(one)[field], atol=1e-4)
    for name in ("train", "eval"):
        a, b = table(run, name), table(one, name)
        assert [list(row) for row in a] == [list(row) for row in b]
        for column in ("gradient_step", "env_step", "phase"):
            assert [row[column] for row in a] == [row[column] for row in b]
    for column in ("loss", "critic/q_mean", "grad_norm"):  # of the whole batch, not of a share
        found, expected = ([float(row[column]) for row in table(r)] for r in (run, one))
        np.testing.assert_allclose(found, expected, rtol=1e-3)
    for column in ("success", "return", "length"):
        found, expected = ([float(row[column]) for row in table(r, "eval")] for r in (run, one))
        np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_ranks_take_half_of_the_steps_each(two: Path) -> None:
    steps = [(two / f"steps-{rank}.txt").read_text().split() for rank in (0, 1)]
    assert steps == [["0"] * (online.STEPS // 2), ["1"] * (online.STEPS // 2)]
    assert (
        last(two / "whole-0")["counters"]["gradient_step"]
        == online.OFFLINE + online.STEPS - online.START
    )


def files(run: Path) -> list[str]:
    return sorted(str(p.relative_to(run)) for p in run.rglob("*") if p.is_file())


def test_only_the_first_rank_writes(two: Path, one: Path) -> None:
    for name in ("whole", "delayed"):
        assert files(two / f"{name}-0") and not files(two / f"{name}-1")
    assert files(two / "whole-0") == files(one)


@pytest.mark.parametrize("phase", CUTS)
def test_interrupted_ranks_go_on_bit_by_bit(phase: str, two: Path) -> None:
    cut = read_checkpoint(two / phase / "checkpoints/cut")
    assert cut["counters"]["gradient_step"] == CUTS[phase]
    assert cut["counters"]["phase"] == phase
    # Online, in the middle of both ranks' episodes and chunks.
    for actor in cut["online"]["actors"]:
        assert (actor["length"] > 0 and actor["chunk"] is not None) == (phase == "online")
    assert_same_runs(two / "whole-0", two / phase)


def test_a_delayed_loss_is_logged_after_a_resume_as_without_it(two: Path) -> None:
    for key in set(STATE) - {"online"}:
        assert_same(last(two / "delayed-0")[key], last(two / "delayed")[key], key)
    assert table(two / "delayed-0") == table(two / "delayed")
    assert "actor/bc_loss" in table(two / "delayed")[-1]


def test_one_rank_goes_on_where_two_stopped(
    two: Path, one: Path, data: Path, tmp_path: Path
) -> None:
    """The number of ranks may change: batches and environments stay those of the run."""
    run = shutil.copytree(two / "online", tmp_path / "run")
    for path in (run / "checkpoints").glob("*.ckpt"):
        path.unlink()
    (run / "checkpoints/cut").rename(run / "checkpoints/last.ckpt")
    assert main(build(data, run, "--ckpt_path=last", **ONLINE)) == 0
    assert last(run)["counters"] == last(one)["counters"]
    for name, value in last(one)["state_dict"].items():
        torch.testing.assert_close(last(run)["state_dict"][name], value, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(rows_of(run)["action"], rows_of(one)["action"], atol=1e-4)


def statuses(two: Path) -> list[list[int]]:
    """Of every rank: how the run ended that was told to stop, and the one that diverged."""
    return [[int(n) for n in (two / f"status-{r}.txt").read_text().split()] for r in (0, 1)]


def test_all_ranks_stop_at_the_same_step_when_one_is_told_to(two: Path) -> None:
    assert [stopped for stopped, _ in statuses(two)] == [128 + signal.SIGTERM] * 2
    assert last(two / "terminated")["counters"]["gradient_step"] == 100


def test_all_ranks_stop_at_a_loss_that_is_not_finite_on_one(two: Path) -> None:
    assert [diverged for _, diverged in statuses(two)] == [2, 2]


@pytest.mark.slow
def test_a_first_process_that_fails_ends_those_it_started(data: Path, tmp_path: Path) -> None:
    """It says why in one line; they would wait for it, and then add what they think."""
    run = tmp_path / "run"
    (run / "checkpoints/.last.ckpt.tmp").mkdir(parents=True)  # where a file is to be
    command = build(data, run, "--trainer.devices=2", online__steps=0)
    environment = os.environ | {"PL_TORCH_DISTRIBUTED_BACKEND": "gloo", "PYTHONPATH": str(ROOT)}
    # Its output ends when all that write to it have ended.
    done = subprocess.run(
        [sys.executable, "train.py", *command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {run}/checkpoints/last.ckpt: cannot be written: ")
