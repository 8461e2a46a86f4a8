"""Short real runs: what they leave behind, and how they stop, crash and go on."""

import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch

from qam_lightning.callbacks.evaluation import Evaluate
from qam_lightning.checkpoints import read_checkpoint
from qam_lightning.cli import main
from qam_lightning.methods.base import Method
from qam_lightning.util.errors import UserError
from tests.app.conftest import read_csv
from tests.online.conftest import ENV

ROOT = Path(__file__).resolve().parents[2]


def steps(path: Path) -> list[int]:
    return [int(row["gradient_step"]) for row in read_csv(path)]


def last(run: Path) -> dict:
    return read_checkpoint(run / "checkpoints" / "last.ckpt")


def assert_same(a, b, where=""):
    """Bitwise equality of nested state."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}[{i}]")
    else:
        assert a == b, where


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


def test_a_run_leaves_everything_in_its_folder(small_run, run, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(small_run(4, "--evaluation.every_n_steps=2", "--log.every_n_steps=2")) == 0
    found = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    names = "best.ckpt best.json last-1.ckpt last-1.json last.ckpt last.json"
    expected = [f"run/checkpoints/{name}" for name in names.split()]
    names = "config.yaml metrics/eval.csv metrics/train.csv"
    assert found == expected + [f"run/{name}" for name in names.split()]
    assert steps(run / "metrics/train.csv") == steps(run / "metrics/eval.csv") == [2, 4]
    row = read_csv(run / "metrics/train.csv")[-1]
    assert (row["phase"], row["env_step"]) == ("offline", "0")
    assert float(row["steps_per_second"]) > 0 and float(row["loss"]) > 0
    assert 0 <= float(read_csv(run / "metrics/eval.csv")[-1]["success"]) <= 1
    output = capsys.readouterr()
    assert output.err == ""
    assert "offline 4/4" in output.out.splitlines()[-1]


def test_checkpoints_say_how_to_rebuild_the_method(small_run, run):
    assert main(small_run(2)) == 0
    for name in ("last", "best"):
        checkpoint = read_checkpoint(run / "checkpoints" / f"{name}.ckpt")
        entry = checkpoint["qam_lightning"]
        assert entry["method"] == "qam_lightning.methods.qam.QAM"
        assert entry["model"]["width"] == 8 and entry["model"]["tau"] == 1.0
        environment = {"env": ENV, "dataset": "play", "task": 1, "sparse": False}
        assert entry["environment"] == environment
        assert entry["config"] == (run / "config.yaml").read_text()
        assert len(entry["config_hash"]) == 16
        assert entry["versions"]["torch"] == version("torch")
        counters = {"gradient_step": 2, "env_step": 0, "phase": "offline"}
        assert checkpoint["counters"] == counters
        assert not counters.keys() & entry.keys()  # stored once
        assert entry["run_dir"] == str(run)


def test_a_resumed_run_is_bitwise_the_uninterrupted_one(small_run, run, tmp_path):
    whole = tmp_path / "whole"
    assert main(small_run(6, run_dir=whole)) == 0
    assert main(small_run(3)) == 0
    half = last(run)
    assert main(small_run(6, "--ckpt_path=last")) == 0
    one, two = last(whole), last(run)
    for key in ("state_dict", "optimizer_states", "counters", "global_step"):
        assert_same(one[key], two[key], key)
    targets = [k for k in one["state_dict"] if "_ema" in k or "ema" in k.split(".")[0]]
    assert targets
    for key in targets:  # and the targets did move, away from the online networks too
        assert not torch.equal(one["state_dict"][key], half["state_dict"][key]), key
    assert steps(run / "metrics/train.csv") == [1, 2, 3, 4, 5, 6]
    losses = [[row["loss"] for row in read_csv(r / "metrics/train.csv")] for r in (whole, run)]
    assert losses[0] == losses[1]


def test_a_killed_run_goes_on_without_lost_or_repeated_rows(cube_run, run):
    arguments = cube_run(100_000, "--checkpoints.every_n_steps=5", "--log.every_n_steps=1")
    before = os.times()
    process = subprocess.Popen([sys.executable, "train.py", *arguments], cwd=ROOT)
    table = run / "metrics/train.csv"
    deadline = time.monotonic() + 120
    try:
        while not (table.exists() and len(table.read_text().splitlines()) % 5 == 4):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        process.kill()
        process.wait()
    done = last(run)["counters"]["gradient_step"]
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user
    # CPU seconds until the first step; other work on the machine inflates them.
    assert spent - before.children_system < 20 + 0.2 * done
    with table.open("a") as file:  # as a crash in the middle of a write would leave it
        file.write("99999,0,off")
    assert main(cube_run(done + 3, "--ckpt_path=last")) == 0
    assert steps(table) == list(range(1, done + 4))
    assert last(run)["counters"]["gradient_step"] == done + 3
    assert not list(run.rglob("*.tmp"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_an_interrupt_stops_at_the_step_boundary(number, small_run, run, capsys, monkeypatch):
    step = Method.training_step

    def interrupted_step(self, batch, batch_idx):
        if self.gradient_step == 3:
            os.kill(os.getpid(), number)
        step(self, batch, batch_idx)

    monkeypatch.setattr(Method, "training_step", interrupted_step)
    assert main(small_run(1000, "--evaluation.every_n_steps=2")) == 128 + number
    assert "--ckpt_path last continues" in capsys.readouterr().err
    assert last(run)["counters"]["gradient_step"] == 4
    assert steps(run / "metrics/train.csv") == [1, 2, 3, 4]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert {signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1)} == {signal.SIG_DFL}


def test_a_termination_before_the_first_step_is_obeyed_after_it(small_run, run, monkeypatch):
    roll_out = Evaluate._roll_out

    def terminated(self, trainer, method):
        os.kill(os.getpid(), signal.SIGTERM)
        return roll_out(self, trainer, method)

    monkeypatch.setattr(Evaluate, "_roll_out", terminated)
    assert main(small_run(10, "--evaluation.at_start=true")) == 128 + signal.SIGTERM
    assert last(run)["counters"]["gradient_step"] == 1


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_after_a_signal_stops_at_once_and_saves_nothing(
    first, small_run, run, capsys, monkeypatch
):
    step = Method.training_step

    def interrupted_step(self, batch, batch_idx):
        if self.gradient_step == 3:
            os.kill(os.getpid(), first)
            os.kill(os.getpid(), signal.SIGINT)
        step(self, batch, batch_idx)

    monkeypatch.setattr(Method, "training_step", interrupted_step)
    assert main(small_run(10, "--checkpoints.every_n_steps=2")) == 128 + signal.SIGINT
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted"
    assert last(run)["counters"]["gradient_step"] == 2


def test_a_second_signal_of_the_system_changes_nothing(small_run, run, capfd, monkeypatch):
    """SLURM sends SIGTERM twice to a job that it preempts."""
    step = Method.training_step

    def interrupted_step(self, batch, batch_idx):
        if self.gradient_step == 3:
            for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM):
                os.kill(os.getpid(), number)
        step(self, batch, batch_idx)

    monkeypatch.setattr(Method, "training_step", interrupted_step)
    assert main(small_run(10, "--checkpoints.every_n_steps=2")) == 128 + signal.SIGTERM
    said = capfd.readouterr().err.splitlines()
    assert [line.split()[0] for line in said] == ["stopping", "stopped"]
    assert last(run)["counters"]["gradient_step"] == 4


def test_a_failure_between_steps_loses_nothing(small_run, run, refused, monkeypatch):
    step = Method.training_step

    def failing_step(self, batch, batch_idx):
        if self.gradient_step == 3:
            raise UserError("the power went")
        step(self, batch, batch_idx)

    monkeypatch.setattr(Method, "training_step", failing_step)
    assert refused(*small_run(10)) == "error: the power went"
    assert last(run)["counters"]["gradient_step"] == 3
    monkeypatch.undo()
    assert main(small_run(5, "--ckpt_path=last")) == 0
    assert steps(run / "metrics/train.csv") == [1, 2, 3, 4, 5]


def test_a_failure_within_a_step_does_not_replace_the_checkpoint(small_run, run, monkeypatch):
    step = Method.training_step

    def half_step(self, batch, batch_idx):
        step(self, batch, batch_idx)
        if self.gradient_step == 4:  # the targets have not moved yet
            raise RuntimeError("half done")

    monkeypatch.setattr(Method, "training_step", half_step)
    with pytest.raises(RuntimeError, match="half done"):
        main(small_run(10, "--checkpoints.every_n_steps=2"))
    assert last(run)["counters"]["gradient_step"] == 2


def test_divergence_ends_training_and_keeps_the_good_checkpoint(
    small_run, run, refused, monkeypatch
):
    step = Method.training_step

    def diverging_step(self, batch, batch_idx):
        step(self, batch, batch_idx)
        if self.gradient_step == 3:
            with torch.no_grad():
                next(self.parameters()).fill_(float("nan"))

    monkeypatch.setattr(Method, "training_step", diverging_step)
    arguments = small_run(10, "--checkpoints.every_n_steps=2", "--log.every_n_steps=100")
    message = refused(*arguments)
    assert "critic/loss is not finite at gradient step 4" in message and "last.ckpt" in message
    assert last(run)["counters"]["gradient_step"] == 2
    monkeypatch.undo()
    monkeypatch.setattr(Method, "training_step", diverging_step)
    arguments = small_run(10, "--log.every_n_steps=4", run_dir=run.parent / "other")
    assert "critic/loss is nan at gradient step 4" in refused(*arguments)
    assert last(run.parent / "other")["counters"]["gradient_step"] == 0


def test_a_run_is_never_overwritten(small_run, run, refused):
    assert main(small_run(1)) == 0
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert "--ckpt_path last, or choose another --run_dir" in refused(*small_run(2))
    other = run.parent / "other"
    assert main(small_run(1, run_dir=other)) == 0
    foreign = f"--ckpt_path={other / 'checkpoints/last.ckpt'}"
    assert "is not part of it" in refused(*small_run(2, foreign))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_run_can_branch_off_another_but_not_overwrite_what_came_later(
    small_run, run, refused, tmp_path
):
    assert main(small_run(2)) == 0
    branch = tmp_path / "branch"
    start = f"--ckpt_path={run / 'checkpoints/last.ckpt'}"
    assert main(small_run(4, start, run_dir=branch)) == 0
    assert steps(branch / "metrics/train.csv") == [3, 4]
    shutil.copy(run / "checkpoints/last.ckpt", branch / "checkpoints/best.ckpt")
    before = {path: path.read_bytes() for path in branch.rglob("*") if path.is_file()}
    message = refused(*small_run(5, "--ckpt_path=best", run_dir=branch))
    assert "best.ckpt is at gradient step 2, but" in message and "last.ckpt is at 4" in message
    assert {path: path.read_bytes() for path in branch.rglob("*") if path.is_file()} == before
    (branch / "checkpoints/last.ckpt").unlink()  # the user's own decision
    assert main(small_run(3, "--ckpt_path=best", run_dir=branch)) == 0
    assert steps(branch / "metrics/train.csv") == [3]


def test_a_delayed_loss_is_logged_after_a_resume_as_without_it(small_run, run, tmp_path):
    whole, method = tmp_path / "whole", "--method=rebrac"
    assert main(small_run(3, method, run_dir=whole)) == 0
    assert main(small_run(2, method)) == 0
    assert main(small_run(3, method, "--ckpt_path=last")) == 0
    resumed, straight = (read_csv(folder / "metrics/train.csv") for folder in (run, whole))
    for row in (*resumed, *straight):
        del row["steps_per_second"]
    assert resumed == straight and resumed[-1]["actor/bc_loss"]


def test_changed_settings_are_told_on_resume(small_run, run, refused, capsys):
    assert main(small_run(1)) == 0
    capsys.readouterr()
    assert main(small_run(2, "--ckpt_path=last", "--model.learning_rate=0.01")) == 0
    lines = capsys.readouterr().out.splitlines()
    told = [line for line in lines if line.startswith("changed since the checkpoint")]
    assert told == [
        "changed since the checkpoint: trainer.max_steps: 1 -> 2",
        "changed since the checkpoint: model.learning_rate: 0.0003 -> 0.01",
    ]
    assert step_size(run) == 0.01
    kept = (run / "config.yaml").read_text()
    message = refused(*small_run(3, "--ckpt_path=last", "--model.width=9"))
    assert "networks of other sizes" in message and "model.width: 8 -> 9" in message
    message = refused(*small_run(3, "--ckpt_path=last", "--method=bam"))
    assert "qam_lightning.methods.qam.QAM" in message and "qam_lightning.methods.bam.BAM" in message
    assert (run / "config.yaml").read_text() == kept


def step_size(run):
    """Adam's step size in the run's last gradient step."""
    return last(run)["optimizer_states"][0]["param_groups"][0]["lr"]


def test_the_step_size_decays_along_half_a_cosine_also_through_a_resume(small_run, run):
    decaying = ("--model.learning_rate=0.01", "--model.lr_decay_steps=4")
    assert main(small_run(2, *decaying)) == 0
    assert step_size(run) == pytest.approx(0.01 * (2 + 2**0.5) / 4)
    assert main(small_run(3, *decaying, "--ckpt_path=last")) == 0
    assert step_size(run) == pytest.approx(0.005)


def test_statistics_of_the_observations_are_the_datasets_and_stay(small_run, run, tiny_data):
    assert main(small_run(1, "--model.standardize=true")) == 0
    first = last(run)["state_dict"]
    with np.load(tiny_data) as data:
        observations = data["observations"].astype(np.float64)
    mean, std = observations.mean(0), observations.std(0).clip(0.01)
    np.testing.assert_allclose(first["obs_norm.mean"], mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(first["obs_norm.std"], std, rtol=1e-5, atol=1e-6)
    half = ("--model.standardize=true", "--data.fraction=0.4", "--ckpt_path=last")
    assert main(small_run(2, *half)) == 0
    assert torch.equal(last(run)["state_dict"]["obs_norm.mean"], first["obs_norm.mean"])


def test_the_saved_configuration_repeats_and_resumes_the_run(small_run, run, tmp_path):
    assert main(small_run(2)) == 0
    saved = f"--config={run / 'config.yaml'}"
    assert main(["fit", saved, "--ckpt_path=last", "--trainer.max_steps=3"]) == 0
    assert last(run)["counters"]["gradient_step"] == 3
    again = tmp_path / "again"
    assert main(["fit", saved, f"--run_dir={again}", "--trainer.max_steps=2"]) == 0
    assert [r["loss"] for r in read_csv(again / "metrics/train.csv")] == [
        r["loss"] for r in read_csv(run / "metrics/train.csv")
    ][:2]


def test_a_resume_reads_one_checkpoint_once(small_run, run, monkeypatch):
    assert main(small_run(4, "--checkpoints.every_n_steps=1", "--evaluation.every_n_steps=2")) == 0
    read, loaded = Path.read_bytes, []

    def noting(path):
        loaded.extend([path.name] if path.suffix == ".ckpt" else [])
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", noting)
    assert main(small_run(5, "--ckpt_path=last")) == 0
    assert loaded == ["last.ckpt"]
    loaded.clear()
    for path in run.rglob("*.json"):  # of a folder that was copied without them, say
        path.unlink()
    assert main(small_run(6, "--ckpt_path=last")) == 0
    assert set(loaded) == {"last.ckpt", "best.ckpt"}
    assert steps(run / "metrics/train.csv") == [1, 2, 3, 4, 5, 6]


def test_the_configuration_in_checkpoints_is_that_of_the_start(small_run, run, monkeypatch):
    step = Method.training_step

    def editing(self, batch, batch_idx):
        step(self, batch, batch_idx)
        (run / "config.yaml").write_text("edited: by a user\n")

    monkeypatch.setattr(Method, "training_step", editing)
    assert main(small_run(1)) == 0
    assert "learning_rate" in last(run)["qam_lightning"]["config"]


def test_a_checkpoint_of_version_0_1_is_refused_in_one_line(small_run, run, refused):
    assert main(small_run(1, "--checkpoints.keep_last=1")) == 0
    old = last(run)
    del old["qam_lightning"]["format"]
    old["qam_lightning"]["versions"]["qam_lightning"] = "0.1.0"
    torch.save(old, run / "checkpoints/last.ckpt")
    message = refused(*small_run(2, "--ckpt_path=last"))
    assert "last.ckpt: written by qam_lightning 0.1.0, whose checkpoints" in message
    message = refused(*small_run(2, f"--ckpt_path={run / 'checkpoints/last.ckpt'}"))
    assert "written by qam_lightning 0.1.0" in message
