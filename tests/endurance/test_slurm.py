"""Runs under SLURM: the job of the guide with commands that stand in, and signals to a run."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from qam_lightning.callbacks.metrics import MetricsLogger
from qam_lightning.cli import main
from qam_lightning.methods.base import Method
from tests.online.test_online import last, table

ROOT = Path(__file__).resolve().parents[2]
VARIABLES = {
    "SLURM_NTASKS": "1",
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NAME": "train",
    **dict.fromkeys(("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"), "0"),
}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands that note what they were asked; ``srun`` exits with the status in $STATUS."""
    commands, notes = tmp_path / "commands", tmp_path / "notes"
    commands.mkdir()
    for name, status in (("srun", "$STATUS"), ("scontrol", "0")):
        (commands / name).write_text(f'#!/bin/bash\necho {name} "$@" >> {notes}\nexit {status}\n')
        (commands / name).chmod(0o755)
    for name, value in {**VARIABLES, "PATH": f"{commands}:{os.environ['PATH']}"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return notes


def jobs() -> list[str]:
    guide = (ROOT / "docs/endurance.md").read_text()
    return re.findall(r"```bash\n(#!/bin/bash\n.*?)```", guide, re.DOTALL)


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("task", [None, "3"])
@pytest.mark.parametrize(
    ("status", "restarts"), [(0, 0), (2, 0), (129, 0), (138, 1), (143, 99), (143, 100)]
)
def test_the_job_of_the_guide_resumes_and_is_requeued_when_it_was_stopped(
    status: int,
    task: str | None,
    begun: bool,
    restarts: int,
    slurm: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", str(restarts))
    if task is not None:
        monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "5")
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", task)
    seed = task or "0"
    if begun:
        checkpoints = Path(f"runs/cube-triple-{seed}/checkpoints")
        checkpoints.mkdir(parents=True)
        (checkpoints / "last-1.ckpt").touch()
    monkeypatch.setenv("STATUS", str(status))
    command = ["bash", "-c", jobs()[0], "job", "--model.tau=1"]
    assert subprocess.run(command).returncode == status
    command, *requeued = slurm.read_text().splitlines()
    assert command.startswith("srun --kill-on-bad-exit python train.py fit ")
    assert f"--seed {seed} --run_dir runs/cube-triple-{seed} --model.tau=1" in command
    assert command.endswith("--ckpt_path last") == begun
    stopped = status in (128 + signal.SIGUSR1, 128 + signal.SIGTERM) and restarts < 100
    assert requeued == ([f"scontrol requeue {'7' if task is None else '5_3'}"] if stopped else [])


def test_the_job_of_the_guide_under_slurm(tmp_path: Path) -> None:
    """It is stopped, requeued, and ends as without."""
    if shutil.which("sinfo") is None or subprocess.run(["sinfo"], capture_output=True).returncode:
        pytest.skip("no SLURM runs here")
    script = [sys.executable, ROOT / "benchmarks/slurm.py", "--only", "terminated"]
    subprocess.run([*script, "--output", tmp_path], cwd=tmp_path, check=True)


def test_lightning_does_not_requeue_by_itself(
    slurm: Path, arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, start, before = Method.training_step, MetricsLogger.on_train_start, []

    def noting(self, *args, **kwargs):
        before.append(signal.getsignal(signal.SIGUSR1))
        return start(self, *args, **kwargs)

    def interrupted(self, batch, batch_idx):
        if self.gradient_step == 2:
            os.kill(os.getpid(), signal.SIGUSR1)
        step(self, batch, batch_idx)

    monkeypatch.setattr(MetricsLogger, "on_train_start", noting)
    monkeypatch.setattr(Method, "training_step", interrupted)
    assert main(arguments()) == 128 + signal.SIGUSR1
    assert set(before) == {signal.SIG_DFL}  # before the first step, too
    assert last(tmp_path / "run")["counters"]["gradient_step"] == 3
    assert not slurm.exists() and not list(tmp_path.glob("*.ckpt"))


def test_a_checkpoint_of_lightnings_requeueing_is_not_resumed_unasked(
    slurm: Path, arguments, tmp_path: Path
) -> None:
    """Lightning looks for one in the working directory, where another program may have put it."""
    assert main(arguments(online__steps=0)) == 0
    (tmp_path / "run/checkpoints/last.ckpt").rename(tmp_path / "hpc_ckpt_1.ckpt")
    assert main(arguments(online__steps=0, run_dir=tmp_path / "other")) == 0
    steps = [row["gradient_step"] for row in table(tmp_path / "other")]
    assert steps == ["1", "2", "3", "4"]


@pytest.mark.slow
def test_an_installed_srun_that_is_not_used_is_not_worth_a_word(
    slurm: Path, arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on every login node."""
    for name in VARIABLES:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    right = arguments(online__steps=0)
    # The method without an offline phase is refused only after the trainer is there.
    wrong = arguments("--method=rlpd", online__steps=0, run_dir=tmp_path / "wrong")
    script = "import json, sys; from qam_lightning.cli import main; " + (
        "print([main(command) for command in json.loads(sys.argv[1])])"
    )
    both = subprocess.run(
        [sys.executable, "-c", script, json.dumps([right, wrong])], capture_output=True, text=True
    )
    assert both.stdout.splitlines()[-1] == "[0, 2]"
    (line,) = both.stderr.splitlines()
    assert line.startswith("error: ") and "no offline phase" in line
    assert not slurm.exists()
