"""What a run survives: damaged files, full disks, divergence, dead processes, interrupts."""

import errno
import os
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import numpy as np
import pytest
import torch

from qam_lightning.callbacks.base import Callback
from qam_lightning.callbacks.checkpoint_files import keep_last
from qam_lightning.callbacks.checkpoints import Checkpoints
from qam_lightning.callbacks.divergence import culprit
from qam_lightning.callbacks.evaluation import Evaluate
from qam_lightning.checkpoints import checkpoint_path, last_checkpoints, newest, read_checkpoint
from qam_lightning.cli import main
from qam_lightning.envs.rollout import RolloutPool, WorkerError
from qam_lightning.evaluation import report
from qam_lightning.loggers.base import is_evaluation
from qam_lightning.loggers.csv import CsvLogger
from qam_lightning.methods.base import Method
from qam_lightning.studies.state import EXIT, End, state_of
from qam_lightning.util import arguments as command_line
from qam_lightning.util.errors import UserError
from qam_lightning.util.files import save_json
from tests.app.conftest import read_csv
from tests.conftest import limited
from tests.online.conftest import build
from tests.online.test_online import assert_same_runs, kill_at
from tests.online.tiny import DEATH

TOTAL = 18  # gradient steps of both phases
FLAGS = (
    "--evaluation.every_n_steps=6",
    "--checkpoints.every_n_steps=4",
    "--checkpoints.keep_last=3",
)


def step_of(path: Path) -> int:
    return read_checkpoint(path)["counters"]["gradient_step"]


def content(run: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def raised(error: Exception) -> NoReturn:
    raise error


@pytest.fixture(scope="module")
def made(data, tmp_path_factory) -> dict[str, Path]:
    """Two runs in one go and one killed at step 15, all made once."""
    folder = tmp_path_factory.mktemp("made")
    assert main(build(data, folder / "whole", *FLAGS)) == 0
    with pytest.MonkeyPatch.context() as patch:
        kill_at(patch, 15)
        patch.setattr(command_line, "unforeseen", raised)
        with pytest.raises(RuntimeError, match="killed"):
            main(build(data, folder / "killed", *FLAGS))
    return {"whole": folder / "whole", "killed": folder / "killed"}


@pytest.fixture
def killed(made, tmp_path) -> Path:
    """A copy of the run that was killed; its checkpoints are of steps 12, 8 and 4."""
    return shutil.copytree(made["killed"], tmp_path / "run")


@pytest.fixture
def told(capsys) -> Callable[..., list[str]]:
    """``told(status, *arguments)``: what a command that exits so writes to standard error."""

    def run(status: int, *command: str) -> list[str]:
        capsys.readouterr()
        assert main(list(command)) == status
        return capsys.readouterr().err.splitlines()

    return run


# -- checkpoints ---------------------------------------------------------------------------------


def test_the_newest_checkpoints_are_kept(made):
    kept = last_checkpoints(made["whole"])
    assert [path.name for path in kept] == ["last.ckpt", "last-1.ckpt", "last-2.ckpt"]
    assert [step_of(path) for path in kept] == [TOTAL, 16, 12]
    assert not list(made["whole"].rglob("*.tmp"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def flip(path: Path) -> None:
    """Changes one bit of a weight, which reading alone would not notice."""
    content = bytearray(path.read_bytes())
    weight = read_checkpoint(path)["state_dict"]["critic.hidden.0.weight"].numpy().tobytes()
    content[content.index(weight)] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, Path.unlink])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    damage, killed, made, arguments, told
):
    newest_one = killed / "checkpoints/last.ckpt"
    damage(newest_one)
    held = newest_one.read_bytes() if newest_one.exists() else None
    (line,) = told(0, *arguments(*FLAGS, "--ckpt_path=last"))
    assert line.startswith(str(newest_one)) and "damaged" in line or "no such" in line
    assert line.endswith(
        f"falling back to {killed / 'checkpoints/last-1.ckpt'}, of gradient step 8"
    )
    assert_same_runs(made["whole"], killed)
    aside = newest_one.with_name("last.ckpt.aside")
    assert (aside.read_bytes() if aside.exists() else None) == held
    assert [step_of(path) for path in last_checkpoints(killed)] == [TOTAL, 16, 12]


def test_it_falls_back_as_far_as_needed_and_no_further(killed):
    paths = last_checkpoints(killed)
    assert newest(killed) == paths[0]
    flip(paths[0])
    assert newest(killed) == paths[1]
    paths[1].write_bytes(b"")
    assert newest(killed) == paths[2]
    paths[2].write_text("something else")
    with pytest.raises(UserError, match="last.ckpt: not a readable checkpoint"):
        newest(killed)


def test_a_refused_resume_changes_nothing(killed, arguments, told):
    cut(killed / "checkpoints/last.ckpt")
    (killed / "checkpoints/replay.bin").write_bytes(b"short")
    before = content(killed)
    lines = told(2, *arguments(*FLAGS, "--ckpt_path=last"))
    assert "falling back" in lines[0] and "replay.bin holds 0 environment steps" in lines[-1]
    assert content(killed) == before


def test_both_names_are_there_all_the_time(killed, monkeypatch):
    """Whatever the instant of a kill: the files are renamed one after the other, as here."""
    seen, replace = [], os.replace

    def noting(*names):
        if names[1].suffix == ".ckpt":
            seen.append([step_of(path) for path in last_checkpoints(killed)])
        replace(*names)

    monkeypatch.setattr(os, "replace", noting)
    keep_last(killed, 3)
    assert seen == [[12, 8, 4], [12, 8, 8]]
    assert [step_of(path) for path in last_checkpoints(killed)] == [12, 12, 8]
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
    keep_last(killed, 3)
    assert [step_of(path) for path in last_checkpoints(killed)] == [12, 12]


def test_resuming_a_complete_run_changes_nothing(made, arguments, tmp_path):
    """As a job does that is requeued once too often."""
    run = shutil.copytree(made["whole"], tmp_path / "run")
    before = content(run)
    assert main(arguments(*FLAGS, "--ckpt_path=last")) == 0
    assert content(run) == before


def test_what_a_kill_left_half_written_is_gone_after_a_resume(killed, made, arguments):
    for name in ("config.yaml", "metrics/train.csv", "metrics/eval.csv", "checkpoints/last.ckpt"):
        path = killed / name
        path.with_name(f".{path.name}.tmp").write_bytes(path.read_bytes()[:50])
    assert len(list(killed.rglob("*.tmp"))) == 4
    assert main(arguments(*FLAGS, "--ckpt_path=last")) == 0
    assert not list(killed.rglob("*.tmp"))
    assert_same_runs(made["whole"], killed)


def test_the_generators_of_random_numbers_go_on(killed, monkeypatch, arguments):
    drawn, step = [], Method.training_step

    def drawing(self, batch, batch_idx):
        drawn.append((random.random(), np.random.rand(), torch.rand(()).item()))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Method, "training_step", drawing)
    run = killed.parent / "drawing"
    assert main(arguments("--checkpoints.every_n_steps=7", run_dir=run)) == 0
    whole = drawn.copy()
    drawn.clear()
    (run / "checkpoints/last.ckpt").unlink()
    assert main(arguments("--ckpt_path=last", run_dir=run)) == 0
    assert drawn == whole[14:]


def test_the_best_is_not_replaced_by_a_worse_one_after_a_resume(killed, tmp_path):
    branch = tmp_path / "branch"
    (branch / "checkpoints").mkdir(parents=True)
    callback = Checkpoints(str(branch))
    callback.load_state_dict({"best": 0.5})
    assert callback.state_dict() == {"best": float("-inf")}  # a branch has no best of its own
    best = read_checkpoint(checkpoint_path(killed, "best"))
    best["callbacks"]["Checkpoints"]["best"] = 0.9
    torch.save(best, callback.path("best"))
    callback.load_state_dict({"best": 0.5})
    assert callback.state_dict() == {"best": 0.9}


# -- full disks ----------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_checkpoints_before_whole(
    made, arguments, told, monkeypatch, tmp_path
):
    run, write = tmp_path / "run", Checkpoints._write

    def writing(self, trainer, path):
        if trainer.lightning_module.gradient_step < 8:
            return write(self, trainer, path)
        with limited(10_000):
            write(self, trainer, path)

    monkeypatch.setattr(Checkpoints, "_write", writing)
    (line,) = told(2, *arguments(*FLAGS))
    assert line.startswith("error: ") and "last.ckpt: cannot be written: File too" in line
    assert [step_of(path) for path in last_checkpoints(run)] == [4, 0]
    assert not list(run.rglob("*.tmp"))
    monkeypatch.undo()
    assert main(arguments(*FLAGS, "--ckpt_path=last")) == 0
    assert_same_runs(made["whole"], run)


def test_what_did_not_arrive_on_disk_is_not_taken_for_a_checkpoint(
    made, arguments, told, monkeypatch, tmp_path
):
    """On a disk that returns other bytes: they change before the system flushes them."""
    fsync = os.fsync

    def failing(handle):
        name = os.readlink(f"/proc/self/fd/{handle}")
        if name.endswith(".ckpt.tmp"):
            with open(name, "r+b") as file:
                file.seek(-100, os.SEEK_END)
                file.write(b"x" * 10)
        fsync(handle)

    monkeypatch.setattr(os, "fsync", failing)
    (line,) = told(2, *arguments(*FLAGS))
    assert "the disk returns other bytes than were written" in line
    assert not last_checkpoints(tmp_path / "run")


@pytest.mark.parametrize("table", ["train", "eval"])
def test_a_full_disk_under_a_table_is_told(table, made, arguments, told, monkeypatch, tmp_path):
    run, write = tmp_path / "run", CsvLogger.write

    def writing(self, row):
        path = run / f"metrics/{table}.csv"
        other = is_evaluation(row) != (table == "eval")
        if other or row["gradient_step"] < 12 or not path.exists():
            return write(self, row)
        with limited(path.stat().st_size + 5):  # the row is torn
            write(self, row)

    monkeypatch.setattr(CsvLogger, "write", writing)
    (line,) = told(2, *arguments(*FLAGS))
    assert (
        line == f"error: {run}/metrics/{table}.csv: cannot be written: {os.strerror(errno.EFBIG)}"
    )
    monkeypatch.undo()
    assert main(arguments(*FLAGS, "--ckpt_path=last")) == 0
    assert_same_runs(made["whole"], run)


def test_a_full_disk_under_a_result_loses_no_result(killed, capsys, monkeypatch):
    write = report.write_report

    def writing(*args, **kwargs):
        with limited(10):
            return write(*args, **kwargs)

    monkeypatch.setattr(report, "write_report", writing)
    assert (
        main(["eval", str(killed), "--episodes=1", "--workers=0", "--import=tests.online.tiny"])
        == 2
    )
    shown = capsys.readouterr()
    (line,) = shown.err.splitlines()
    assert line.startswith("error: ") and line.endswith(os.strerror(errno.EFBIG))
    assert "success" in shown.out
    assert not list((killed / "eval").iterdir())


# -- divergence ----------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_never_reaches_a_checkpoint(
    value, arguments, told, monkeypatch, tmp_path
):
    """Even if the weights stay finite, and nobody looks at the loss of that very step."""
    step = Method.training_step

    def diverging(self, batch, batch_idx):
        step(self, batch, batch_idx)
        if self.gradient_step == 6:
            self.metrics["loss"] = torch.tensor(value)

    monkeypatch.setattr(Method, "training_step", diverging)
    (line,) = told(2, *arguments(*FLAGS, "--log.every_n_steps=100"))
    assert "training diverged: loss is not finite at gradient step 8" in line
    assert [step_of(path) for path in last_checkpoints(tmp_path / "run")] == [4, 0]


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda m: m.critic_ema.hidden[0].weight.data, "the weight critic_ema.hidden.0.weight"),
        (lambda m: next(iter(m.optimizers().state.values()))["exp_avg"], "optimizer's exp_avg 0"),
    ],
)
def test_nothing_of_the_state_is_saved_that_is_not_finite(
    spoil, named, arguments, told, monkeypatch, tmp_path
):
    write = Checkpoints._write

    def spoiling(self, trainer, path):
        if trainer.lightning_module.gradient_step == 8:
            spoil(trainer.lightning_module).view(-1)[0] = float("inf")
        write(self, trainer, path)

    monkeypatch.setattr(Checkpoints, "_write", spoiling)
    (line,) = told(2, *arguments(*FLAGS, "--evaluation.every_n_steps=100"))
    assert f"{named} is not finite at gradient step 8" in line
    assert [step_of(path) for path in last_checkpoints(tmp_path / "run")] == [4, 0]


def test_the_first_metric_that_is_not_finite_is_named():
    nan, inf = float("nan"), float("inf")
    assert culprit({"loss": nan, "critic/loss": 1.0, "actor/loss": nan, "grad_norm": inf}) == (
        "actor/loss"
    )
    assert culprit({"loss": inf, "critic/loss": 1.0}) == "loss"
    assert culprit({"loss": 1.0}) is None


# -- processes and interrupts --------------------------------------------------------------------


def test_a_dead_environment_is_replaced_in_an_evaluation(
    made, arguments, told, monkeypatch, tmp_path
):
    death, run, reset = tmp_path / "death", tmp_path / "run", RolloutPool._reset
    monkeypatch.setenv(DEATH, str(death))
    died = []

    def deadly(self, *args):
        reset(self, *args)
        if not died:
            died.append(True)
            death.touch()

    monkeypatch.setattr(RolloutPool, "_reset", deadly)
    lines = told(0, *arguments(*FLAGS, "--evaluation.workers=1", "--evaluation.episodes=1"))
    assert "ended unexpectedly with exit code 9" in lines[0]
    assert lines[-1] == "evaluation: runs its episodes again"
    rows, others = (read_csv(r / "metrics/eval.csv") for r in (run, made["whole"]))
    assert [float(row["discarded"]) for row in rows] == [1.0, 0.0, 0.0, 0.0]
    assert [row["return"] for row in rows] == [row["return"] for row in others]


def test_an_environment_that_always_dies_ends_the_evaluation(monkeypatch):
    tries = []

    class Pool:
        def run(self, policy, episodes, seed):
            tries.append(seed)
            raise WorkerError("dead")

    with pytest.raises(RuntimeError, match="dead"):
        Evaluate(seed=4)._insist(Pool(), SimpleNamespace(act=None))
    assert tries == [4, 4, 4]


def test_an_interrupt_in_the_last_step_lets_the_run_end(made, arguments, monkeypatch, tmp_path):
    step = Method.training_step

    def interrupted(self, batch, batch_idx):
        if self.gradient_step == TOTAL - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        step(self, batch, batch_idx)

    monkeypatch.setattr(Method, "training_step", interrupted)
    assert main(arguments(*FLAGS)) == 0
    assert_same_runs(made["whole"], tmp_path / "run")


@pytest.mark.parametrize("killed", [True, False])
def test_a_last_evaluation_that_fails_is_repeated(killed, arguments, monkeypatch, tmp_path):
    """The final checkpoint is written after it, although it would have been due before."""
    run, flags = tmp_path / "run", ("--evaluation.every_n_steps=7", "--checkpoints.every_n_steps=3")
    assert main(arguments(*flags, run_dir=tmp_path / "whole")) == 0
    roll_out = Evaluate._roll_out

    def failing(self, trainer, method):
        if method.gradient_step == TOTAL:
            raise WorkerError("dead")
        return roll_out(self, trainer, method)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluate, "_roll_out", failing)
        if killed:
            patch.setattr(Checkpoints, "on_exception", Callback.on_exception)  # saves nothing
        with pytest.raises(WorkerError, match="dead"):
            main(arguments(*flags))
    save_json(run / EXIT, End(code=-signal.SIGKILL if killed else 1).model_dump())  # as studies do
    state = state_of(run)
    assert (state.kind, state.gradient_step) == ("stopped" if killed else "failed", 15)
    assert main(arguments(*flags, "--ckpt_path=last")) == 0
    assert state_of(run).kind == "finished"
    assert_same_runs(tmp_path / "whole", run)


def test_a_run_can_go_on_from_its_best_checkpoint_where_that_is_the_newest(made, killed, arguments):
    """As a kill may leave it; its replay and its rows are there."""
    for path in last_checkpoints(killed):
        path.unlink()
    assert main(arguments(*FLAGS, "--ckpt_path=best")) == 0
    assert_same_runs(made["whole"], killed)
