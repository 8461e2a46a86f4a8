"""Runs under SLURM: the job of the guide with commands that stand in, and signals to a run."""

import os
import re
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


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("status", [0, 2, 138, 143])
def test_the_job_of_the_guide_resumes_and_is_requeued_when_its_time_is_up(
    status: int, begun: bool, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guide = (ROOT / "docs/endurance.md").read_text()
    (job,) = re.findall(r"```bash\n(#!/bin/bash\n.*?)```", guide, re.DOTALL)
    run = re.search(r"^run=(.*)$", job, re.MULTILINE)
    assert run is not None
    if begun:
        checkpoints = Path(run[1]) / "checkpoints"
        checkpoints.mkdir(parents=True)
        (checkpoints / "last-1.ckpt").touch()
    monkeypatch.setenv("STATUS", str(status))
    assert subprocess.run(["bash", "-c", job]).returncode == status
    command, *requeued = slurm.read_text().splitlines()
    assert command.startswith("srun python train.py fit ")
    assert command.endswith("--ckpt_path last") == begun
    assert requeued == (["scontrol requeue 7"] if status == 128 + signal.SIGUSR1 else [])


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


@pytest.mark.parametrize("right", [True, False])
def test_an_installed_srun_that_is_not_used_is_not_worth_a_word(
    right: bool, slurm: Path, arguments, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on every login node."""
    for name in VARIABLES:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    # The method without an offline phase is refused only after the trainer is there.
    command = arguments(online__steps=0) if right else arguments("--method=rlpd", online__steps=0)
    done = subprocess.run(
        [sys.executable, ROOT / "train.py", *command], stderr=subprocess.PIPE, text=True
    )
    assert done.returncode == (0 if right else 2)
    lines = done.stderr.splitlines()
    assert len(lines) == (0 if right else 1) and all(line.startswith("error: ") for line in lines)
    assert not slurm.exists()
