"""Studies that run: several processes at a time, kills, Ctrl-C, failures."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qam_lightning.cli import main
from qam_lightning.run_folder import Claim
from qam_lightning.studies.local import Listed, Outcome, run_here
from qam_lightning.studies.plan import plan
from qam_lightning.studies.state import state_of
from qam_lightning.studies.study import read_study
from tests.studies.conftest import Write

LONG = {"trainer.max_steps": 150, "evaluation.every_n_steps": 1000, "checkpoints.every_n_steps": 5}


def steps(folder: Path) -> list[int]:
    with (folder / "metrics/train.csv").open() as file:
        return [int(row["gradient_step"]) for row in csv.DictReader(file)]


def until(happened: Callable[[], Any]) -> None:
    end = time.monotonic() + 90
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)


def begun(path: Path) -> subprocess.Popen:
    """Start a study in a process of its own."""
    command = [sys.executable, "-m", "qam_lightning", "study", "run", str(path), "--jobs", "2"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


@pytest.mark.slow
def test_a_failure_is_told_and_the_others_go_on(
    write: Write, tiny: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The data of one run are missing, which only its own process finds out."""
    data, gone = tiny.pop("data.path"), tmp_path / "gone.npz"
    path = write(settings=tiny, grid={"data.path": [data, str(gone)]})
    runs = tmp_path / "runs"
    assert main(["study", "run", str(path), "--jobs", "2"]) == 2
    out, err = capsys.readouterr()
    assert "finished" in out and "2 to run, 2 at a time" in out
    failed, last = err.splitlines()[-2:]
    assert str(gone) in failed and last.startswith("error: 1 of 2 runs did not finish")
    broken = next(p for p in runs.iterdir() if "gone" in p.name)
    whole = next(p for p in runs.iterdir() if p != broken)
    assert json.loads((broken / "exit.json").read_text())["code"] == 2
    assert state_of(broken).kind == "failed" and state_of(whole).kind == "finished"
    before = (whole / "checkpoints/last.ckpt").stat().st_mtime_ns
    assert main(["study", "status", str(path)]) == 0
    assert failed in capsys.readouterr().out
    gone.write_bytes(Path(data).read_bytes())  # mended
    assert main(["study", "run", str(path), "--jobs", "2"]) == 0
    assert "1 failed" in capsys.readouterr().out
    assert state_of(broken).kind == "finished"
    assert (whole / "checkpoints/last.ckpt").stat().st_mtime_ns == before  # not done again
    assert main(["study", "run", str(path)]) == 0
    assert capsys.readouterr().out == "mine, 2 runs: 2 finished\n"


def test_ctrl_c_saves_all_and_the_same_command_continues(
    write: Write, tiny: dict[str, Any], tmp_path: Path
) -> None:
    path = write(settings={**tiny, **LONG}, grid={"seed": [0, 1]})
    folders = [tmp_path / "runs" / f"seed{n}" for n in (0, 1)]
    study = begun(path)
    until(lambda: all((f / "metrics/train.csv").exists() for f in folders))
    os.kill(study.pid, signal.SIGINT)
    _, err = study.communicate(timeout=90)
    assert study.returncode == 130
    assert err.splitlines()[-1] == f"stopped; `qam study run {path}` continues".replace(
        "qam study", "python -m qam_lightning study"
    )
    for folder in folders:
        state = state_of(folder)
        assert state.kind == "stopped" and 0 < state.gradient_step < 150
        assert state.gradient_step == steps(folder)[-1]  # saved where it was
    assert main(["study", "run", str(path), "--jobs", "2"]) == 0
    for folder in folders:
        assert steps(folder) == list(range(1, 151))
    assert main(["study", "report", str(path)]) == 0
    with (tmp_path / "runs/report/runs.csv").open() as file:
        rows = [(row["final_step"], row["finished"]) for row in csv.DictReader(file)]
    assert rows == [("150", "True")] * 2


def test_runs_outlive_a_killed_study_and_are_not_started_twice(
    write: Write, tiny: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(settings={**tiny, **LONG, "trainer.max_steps": 5000}, grid={"seed": [0]})
    folder = tmp_path / "runs/seed0"
    study = begun(path)
    until(lambda: (folder / "metrics/train.csv").exists())
    os.kill(study.pid, signal.SIGKILL)
    study.wait()
    assert main(["study", "run", str(path)]) == 0
    assert capsys.readouterr().out == "mine, 1 run: 1 running\n"
    assert main(["study", "status", str(path)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("seed0 running") and "process " in last
    process = int(last.split("process ")[1].split()[0])
    os.kill(process, signal.SIGKILL)
    until(lambda: state_of(folder).kind == "stopped")
    assert 0 < state_of(folder).gradient_step < 5000


def test_a_run_that_another_process_began_meanwhile_is_left_to_it(
    write: Write, tiny: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    study = read_study(str(write(settings=tiny)))
    planned = plan(study, lambda *_: None)
    (run,) = study.runs
    other = Claim(run.run_dir)
    assert run_here(Listed(planned), 1) == Outcome([], None)
    assert f"{run.name} running: error: {run.run_dir} is in use" in capsys.readouterr().out
    other.release()  # it is stopped before it has saved
    assert state_of(run.run_dir).kind == "new" and not (run.run_dir / "exit.json").exists()
