"""A run folder: one process at a time, never overwritten, resumable from the first moment."""

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lightning.pytorch.utilities import rank_zero_only

from qam_lightning.checkpoints import read_checkpoint
from qam_lightning.cli import main
from qam_lightning.cli.trainer import Trainer
from qam_lightning.cli.training import _launched_as_ranks
from qam_lightning.methods.base import Method
from qam_lightning.run_folder import Claim, check_unused, contents
from qam_lightning.util.errors import UserError
from tests.app.conftest import read_csv

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return tmp_path / "run"


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def step_of(run: Path) -> int:
    return read_checkpoint(run / "checkpoints/last.ckpt")["counters"]["gradient_step"]


def wait_until(holds: Callable[[], bool], process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not holds():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


# -- what a folder holds ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "config.yaml",
        "picture.png",
        "checkpoints/last.ckpt",
        "checkpoints/last.ckpt.aside",
        "checkpoints/best.json",
        "checkpoints/replay.bin",
        "metrics/eval.csv",
        "eval/last-step4-learned-task1-seed1.json",
        "videos/a.mp4",
    ],
)
def test_a_folder_that_holds_anything_of_a_run_is_a_run(name: str, run: Path) -> None:
    (run / name).parent.mkdir(parents=True)
    (run / name).write_bytes(b"x")
    assert contents(run) == [run / name]
    with pytest.raises(UserError, match="already holds a run"):
        check_unused(run)


@pytest.mark.parametrize("name", ["best.json", "last-1.ckpt", "replay.bin"])
def test_a_folder_in_the_place_of_a_file_is_refused_before_anything_is_written(
    name, small_run, run, refused
) -> None:
    assert main(small_run(1)) == 0
    (run / "checkpoints" / name).unlink(missing_ok=True)
    (run / "checkpoints" / name).mkdir()
    before = snapshot(run)
    message = refused(*small_run(2, "--ckpt_path=last", "--model.learning_rate=0.1"))
    assert f"{name}: is no file, but a folder" in message
    assert snapshot(run) == before


def test_what_precedes_the_first_checkpoint_is_no_run(run: Path) -> None:
    for name in (".lock", "checkpoints/.last.ckpt.tmp", "wandb_run_id", "notes.txt"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(b"x")
    (run / "checkpoints/replay.bin").touch()
    check_unused(run)
    check_unused(run / "absent")


def test_a_run_without_its_checkpoints_is_not_overwritten(small_run, run, refused) -> None:
    assert main(small_run(2)) == 0
    for path in (run / "checkpoints").iterdir():
        path.unlink()
    before = snapshot(run)
    message = refused(*small_run(2, "--seed=9"))
    assert "already holds a run (config.yaml, but no checkpoint)" in message
    assert snapshot(run) == before


# -- one at a time ---------------------------------------------------------------------------------


@pytest.fixture
def holder(run: Path) -> Iterator[subprocess.Popen]:
    """Another process that claims the folder."""
    code = (
        "import sys; from qam_lightning.run_folder import Claim; claim = Claim(sys.argv[1]); "
        "print(flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(run)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "\n"
    yield process
    process.kill()
    process.communicate()


def test_a_folder_in_use_is_refused_until_its_process_ends(holder, small_run, run, refused) -> None:
    for more in ([], ["--ckpt_path=last"]):
        message = refused(*small_run(1, *more))
        assert f"{run} is in use: process {holder.pid} on " in message
    assert [path.name for path in run.iterdir()] == [".lock"]
    holder.kill()  # a crash
    holder.wait()
    assert main(small_run(1)) == 0
    assert not (run / ".lock").exists()


def test_a_process_may_claim_a_folder_several_times(run: Path) -> None:
    first, second = Claim(run), Claim(run)
    first.release()
    first.release()
    assert (run / ".lock").exists()
    second.release()
    assert not run.exists()  # it was made for the claim alone


def test_a_folder_of_the_users_stays(run: Path, tmp_path: Path) -> None:
    run.mkdir()
    link = tmp_path / "link"
    link.symlink_to(run)
    Claim(link).release()
    assert run.is_dir() and not list(run.iterdir())


def test_a_refused_run_leaves_no_folder(small_run, run, refused) -> None:
    refused(*small_run(1, "--data.path=nowhere.npz"))
    assert not run.exists()


def test_a_folder_that_cannot_be_claimed_is_refused_in_one_line(small_run, run, refused) -> None:
    run.write_text("a file of that name")
    assert f"{run}: is a file, expected a folder" in refused(*small_run(1))


# -- who is first ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_leftover_variables_of_a_launcher_change_nothing(small_run, run) -> None:
    script = "import sys; from qam_lightning.cli import main; a = sys.argv[1:]; " + (
        "print(main(a), file=sys.stderr); print(main([*a, '--seed=2']), file=sys.stderr)"
    )
    ranks = dict.fromkeys(("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"), "1")
    result = subprocess.run(
        [sys.executable, "-c", script, *small_run(2)],
        cwd=ROOT,
        env={**os.environ, **ranks, "WORLD_SIZE": "2"},
        capture_output=True,
        text=True,
    )
    first, refusal, second = result.stderr.splitlines()
    assert (first, second) == ("0", "2") and "already holds a run" in refusal
    assert [row["gradient_step"] for row in read_csv(run / "metrics/train.csv")] == ["1", "2"]
    assert "offline 2/2" in result.stdout


def test_notices_are_printed_whatever_the_environment_says(
    small_run, run, monkeypatch, capsys
) -> None:
    assert main(small_run(2)) == 0
    last = run / "checkpoints/last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    monkeypatch.setattr(rank_zero_only, "rank", 1)  # as RANK=1 sets it on import
    capsys.readouterr()
    assert main(small_run(3, "--ckpt_path=last", "--model.learning_rate=0.1")) == 0
    printed = capsys.readouterr()
    assert "changed since the checkpoint: model.learning_rate: 0.0003 -> 0.1" in printed.out
    assert "falling back to" in printed.err


@pytest.mark.parametrize("devices", [1, "1", [0], "0,"])
def test_one_device_is_a_run_of_its_own_under_srun(devices, monkeypatch) -> None:
    variables = {"SLURM_NTASKS": 4, "SLURM_NTASKS_PER_NODE": 4, "SLURM_PROCID": 3}
    more = {"SLURM_LOCALID": 3, "SLURM_NODEID": 0, "SLURM_NNODES": 1, "SLURM_JOB_NAME": "seeds"}
    for name, value in (variables | more).items():
        monkeypatch.setenv(name, str(value))
    if isinstance(devices, list | str) and devices != "1":
        devices = 1 if not pytest.importorskip("torch").cuda.is_available() else devices
    trainer = Trainer(devices=devices, accelerator="cpu")
    assert (trainer.is_global_zero, trainer.world_size) == (True, 1)


def test_ranks_that_a_launcher_started_claim_together(monkeypatch) -> None:
    """Where the first one is refused alone, the others wait for it."""
    assert not _launched_as_ranks(Trainer(accelerator="cpu", devices=2))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    for name in ("RANK", "LOCAL_RANK", "GROUP_RANK"):
        monkeypatch.setenv(name, "0")
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    assert _launched_as_ranks(Trainer(accelerator="cpu", devices=2))
    assert not _launched_as_ranks(Trainer(accelerator="cpu", devices=1))


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_fork", "ddp_notebook"])
def test_strategies_that_copy_the_process_are_refused(strategy, small_run, refused) -> None:
    message = refused(*small_run(1, f"--trainer.strategy={strategy}", "--trainer.devices=2"))
    assert f"trainer.strategy is {strategy}, expected auto or ddp" in message


@pytest.mark.parametrize("precision", ["16-mixed", "16-true", "16", "bf16-true"])
def test_half_precision_is_refused_on_every_device(precision, small_run, refused) -> None:
    message = refused(*small_run(1, f"--trainer.precision={precision}"))
    assert "trainer.precision" in message and "bf16-mixed" in message


# -- resumable from the first moment ---------------------------------------------------------------


def test_a_run_that_dies_in_its_first_step_is_resumed(small_run, run, tmp_path, monkeypatch):
    whole = tmp_path / "whole"
    assert main(small_run(3, run_dir=whole)) == 0
    step = Method.training_step

    def dying(self, batch, batch_idx):
        raise KeyboardInterrupt

    monkeypatch.setattr(Method, "training_step", dying)
    assert main(small_run(3)) == 130
    assert step_of(run) == 0 and (run / "config.yaml").exists()
    monkeypatch.setattr(Method, "training_step", step)
    assert main(small_run(3, "--ckpt_path=last")) == 0
    one, two = (read_checkpoint(r / "checkpoints/last.ckpt")["state_dict"] for r in (whole, run))
    assert all(one[name].equal(two[name]) for name in one)


def test_an_evaluation_at_the_start_stays_after_a_resume(small_run, run, monkeypatch) -> None:
    step = Method.training_step

    def dying(self, batch, batch_idx):
        raise KeyboardInterrupt

    monkeypatch.setattr(Method, "training_step", dying)
    assert main(small_run(2, "--evaluation.at_start=true")) == 130
    monkeypatch.setattr(Method, "training_step", step)
    assert main(small_run(2, "--evaluation.at_start=true", "--ckpt_path=last")) == 0
    assert [row["gradient_step"] for row in read_csv(run / "metrics/eval.csv")] == ["0", "2"]


def test_a_second_run_does_not_mix_with_the_first_which_a_closed_terminal_saves(
    small_run, run, refused
) -> None:
    arguments = small_run(100_000, "--checkpoints.every_n_steps=100000", "--seed=1")
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "train.py", *arguments],
        cwd=ROOT,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=_take_terminal,
    )
    os.close(theirs)
    wait_until((run / ".lock").exists, process)
    process.send_signal(signal.SIGSTOP)
    try:
        assert "is in use" in refused(*small_run(3, "--seed=5"))
    finally:
        process.send_signal(signal.SIGCONT)
    table = run / "metrics/train.csv"
    wait_until(lambda: table.exists() and len(table.read_text().splitlines()) > 3, process)
    os.close(ours)
    assert process.wait(60) == 128 + signal.SIGHUP
    assert "seed: 1\n" in (run / "config.yaml").read_text()
    steps = [int(row["gradient_step"]) for row in read_csv(table)]
    assert steps == list(range(1, step_of(run) + 1))


def _take_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
