"""Studies under SLURM: options, what is submitted, what is left out, and what a job does.

Commands that stand in for SLURM's note what they were asked; the runs are real.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import submitit  # noqa: F401  (configures logging, which closes the streams of handlers)
import yaml

from qam_lightning.cli import main
from qam_lightning.online.schedule import Length
from qam_lightning.studies import slurm_job
from qam_lightning.studies.plan import Planned
from qam_lightning.studies.slurm import (
    FOLDER,
    SlurmOptions,
    queued,
    read_options,
    shape_of,
    submit,
    tasks_of,
)
from qam_lightning.studies.slurm_job import AGAIN, TASKS, read_tasks
from qam_lightning.studies.state import EXIT, State, state_of
from qam_lightning.studies.study import Run, Study, read_study
from qam_lightning.util.errors import UserError
from tests.online.conftest import build, data  # noqa: F401

ROOT = Path(__file__).resolve().parents[2]


def run_of(number: int = 0, nodes: int = 1, devices: Any = 1, accelerator: str = "auto") -> Planned:
    run = Run("", {"seed": number}, {}, Path(f"runs/s/seed{number}"), [])
    settings = {"trainer": {"accelerator": accelerator}}
    return Planned(run, State("new", length=Length(4, 0)), nodes, devices, None, settings)


def planned(runs: Sequence[Run], steps: int = 4) -> list[Planned]:
    """Runs of a study, as `plan` has them."""
    length, settings = Length(steps, 0), {"trainer": {"accelerator": "auto"}}
    found = [(run, run.settings.get("trainer.devices", 1)) for run in runs]
    return [
        Planned(run, state_of(run.run_dir, length), 1, many, None, settings) for run, many in found
    ]


# -- options ---------------------------------------------------------------------------------------


def test_options_come_from_a_file_and_flags_override_them(tmp_path: Path) -> None:
    path = tmp_path / "slurm.yaml"
    path.write_text("partition: long\ntime: 60\nmemory: 8G\nextra: {qos: high, exclusive: true}\n")
    options = read_options(path, {"time": 30, "limit": 4})
    assert (options.partition, options.time, options.limit, options.memory) == ("long", 30, 4, "8G")
    assert options.extra == {"qos": "high", "exclusive": True}
    assert read_options(None) == SlurmOptions()


def test_the_guide_shows_every_option(tmp_path: Path) -> None:
    path = tmp_path / "slurm.yaml"
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/cluster.md").read_text(), re.DOTALL)
    path.write_text(text)
    assert read_options(path).model_fields_set == set(SlurmOptions.model_fields)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("partitoin: long", "unknown option 'partitoin'; did you mean partition?"),
        ("limit: 0", "limit is 0, expected at least 1"),
        ("runs_per_gpu: 0", "runs_per_gpu is 0, expected at least 1"),
        ("limit: true", "limit is True, expected an integer"),
        ("gpus: -1", "gpus is -1, expected at least 0"),
        ("partition: ''", "partition is '', expected a name"),
        ("account: a b", "account is 'a b', expected a name"),
        ("memory: 32 GB", "memory is '32 GB', expected a size such as 32G"),
        ("memory: 32", "memory is 32, expected a text"),
        ("time: 12:00:00", "time is 12:00:00, expected minutes"),
        ("time: 5\nwarning: 300", "warning is 300 s, and time 5 min"),
        ("extra: {array: 0-9}", "extra.array follows from the study"),
        ("extra: {--job_name: x}", "extra.--job_name follows from the study"),
        ("extra: {mem: 3G}", "extra.mem is the option memory"),
        ("extra: {'a b': 3}", "'a b' is no parameter of sbatch"),
        ("extra: {qos: [1]}", "extra.qos is list"),
        ("- partition", "expected partition, account"),
        ("partition: [", "not valid YAML"),
    ],
)
def test_options_that_are_wrong_are_refused_in_one_line(
    text: str, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "slurm.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(said)) as error:
        read_options(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_a_wrong_flag_and_a_missing_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="slurm: limit is 0, expected at least 1"):
        read_options(None, {"limit": 0})
    with pytest.raises(UserError, match="none.yaml: cannot be read"):
        read_options(tmp_path / "none.yaml")


# -- what is submitted -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("needs", "shape"),
    [
        ({}, (1, 1, 1)),
        ({"accelerator": "cpu"}, (1, 1, 0)),
        ({"devices": 4}, (1, 4, 4)),
        ({"devices": "4"}, (1, 4, 4)),
        ({"devices": 2, "nodes": 3}, (3, 2, 2)),
        ({"devices": 2, "accelerator": "cpu"}, (1, 2, 0)),
    ],
)
def test_a_job_asks_for_what_its_run_needs(needs: dict, shape: tuple[int, ...]) -> None:
    assert shape_of(run_of(**needs), SlurmOptions()) == shape


@pytest.mark.parametrize(
    ("needs", "options", "said"),
    [
        ({"devices": "auto"}, {}, "trainer.devices is auto; a job needs how many, at least 1"),
        ({"devices": -1}, {}, "trainer.devices is -1; a job needs how many"),
        ({"devices": 0}, {}, "trainer.devices is 0; a job needs how many"),
        ({"devices": [3]}, {}, "trainer.devices is [3]; a job needs how many"),
        ({"devices": [0, 1]}, {}, "trainer.devices is [0, 1]; a job needs how many"),
        ({"devices": "3,"}, {}, "trainer.devices is 3,; a job needs how many"),
        ({"devices": True}, {}, "trainer.devices is True"),
        ({"devices": 2}, {"runs_per_gpu": 2}, "only runs of one device share a job"),
        ({"nodes": 2}, {"runs_per_gpu": 2}, "only runs of one device share a job"),
        ({"devices": 4}, {"gpus": 2}, "gpus is 2, but the run has 4 device(s)"),
    ],
)
def test_what_no_job_can_be_is_refused(needs: dict, options: dict, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        shape_of(run_of(**needs), SlurmOptions(**options))


@pytest.mark.parametrize("longest", [1, 3, 1000])
@pytest.mark.parametrize("options", [{}, {"runs_per_gpu": 3}, {"gpus": 2, "runs_per_gpu": 2}])
@pytest.mark.parametrize("count", [1, 4, 13])
def test_every_run_is_in_one_task_and_arrays_are_not_too_long(
    count: int, options: dict, longest: int
) -> None:
    runs = [run_of(n) for n in range(count)]
    (tasks,) = tasks_of(runs, SlurmOptions(**options), longest).values()
    assert [entry.run for task in tasks for entry in task.entries] == [item.run for item in runs]
    assert len(tasks) <= longest
    slots = options.get("gpus", 1) * options.get("runs_per_gpu", 1)
    assert all(task.slots == slots and not task.ranks for task in tasks)
    if longest == 1000:
        assert all(len(task.entries) <= slots for task in tasks)


def test_each_shape_is_an_array() -> None:
    runs = [run_of(0), run_of(1, devices=2), run_of(2), run_of(3, devices="2")]
    arrays = tasks_of(runs, SlurmOptions(), 1000)
    names = {
        shape: [entry.run.name for task in tasks for entry in task.entries]
        for shape, tasks in arrays.items()
    }
    assert names == {(1, 1, 1): ["seed0", "seed2"], (1, 2, 2): ["seed1", "seed3"]}
    assert [task.ranks for tasks in arrays.values() for task in tasks] == [False] * 2 + [True] * 2


# -- commands that stand in ------------------------------------------------------------------------

COMMANDS = {
    # It takes jobs until as many are there as the file `room` says.
    "sbatch": """
        number=$(ls $notes/job-* 2>/dev/null | wc -l)
        if [ $number -ge $(cat $notes/room) ]; then
            echo "sbatch: error: invalid partition specified: long" >&2
            echo "sbatch: error: Batch job submission failed: Invalid partition name" >&2
            exit 1
        fi
        cp "$1" $notes/job-$((number + 1))
        echo "Submitted batch job $((number + 1))"
    """,
    "squeue": "cat $notes/queue 2>/dev/null; true",
    "scontrol": 'echo scontrol "$@" >> $notes/said; echo "MaxArraySize = $(cat $notes/longest)"',
    "scancel": 'echo scancel "$@" >> $notes/said',
    # --unbuffered --output FILE: what submitit asks of it.
    "srun": 'shift 3; echo $$ > $notes/pid; exec ${SRUN:-"$@"}',
}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder where commands that stand in for SLURM's keep their notes."""
    commands, notes = tmp_path / "commands", tmp_path / "notes"
    commands.mkdir()
    notes.mkdir()
    (notes / "room").write_text("100")
    (notes / "longest").write_text("1001")
    for name, text in COMMANDS.items():
        (commands / name).write_text(f"#!/bin/bash\nnotes={notes}\n{text}\n")
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    return notes


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Study]:
    """Return a builder of studies: ``study(grid={...}, list=[...])``."""
    monkeypatch.chdir(tmp_path)

    def builder(**content: Any) -> Study:
        (tmp_path / "small.yaml").write_text(yaml.safe_dump(content))
        return read_study("small.yaml")

    return builder


def in_queue(notes: Path, *tasks: int | str) -> None:
    """Put tasks of the first array into the queue; ``N/A`` is the only one of a single job."""
    (name,) = re.findall(r"--job-name=(\S+)", (notes / "job-1").read_text())
    (notes / "queue").write_text("".join(f"1|{task}|{name}\n" for task in tasks))


def fail(run: Run, ago: float = 0.0) -> None:
    """Record that a run has failed, some seconds ago."""
    run.run_dir.mkdir(parents=True, exist_ok=True)
    path = run.run_dir / EXIT
    path.write_text('{"code": 2, "line": "error: wrong"}')
    os.utime(path, (time.time() - ago,) * 2)


def left_out(capsys: pytest.CaptureFixture) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if "left out" in line]


def test_what_is_missing_becomes_one_array(slurm: Path, study: Callable[..., Study]) -> None:
    found = study(grid={"seed": "0-4"})
    options = SlurmOptions(
        partition="long", account="us", time=60, cpus=4, limit=2, memory="8G", extra={"qos": "high"}
    )
    assert submit(found, planned(found.runs[1:]), options) == ["1"]
    script = (slurm / "job-1").read_text()
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", script, re.MULTILINE))
    name = asked.pop("job-name")
    assert re.fullmatch(r"small-\w{8}", name)
    place = Path(asked.pop("output")).parent
    assert place == found.folder.absolute() / FOLDER / name.removeprefix("small-")
    assert asked == {
        "account": "us",
        "array": "0-3%2",
        "cpus-per-task": "4",
        "gpus-per-node": "1",
        "mem": "8G",
        "nodes": "1",
        "ntasks-per-node": "1",
        "open-mode": "append",
        "partition": "long",
        "qos": "high",
        "requeue": "",
        "signal": "USR1@300",
        "time": "60",
    }
    tasks = read_tasks(place / TASKS)
    assert [entry.run for task in tasks for entry in task.entries] == found.runs[1:]


def test_runs_that_jobs_in_the_queue_hold_are_left_out(
    slurm: Path, study: Callable[..., Study], capsys: pytest.CaptureFixture
) -> None:
    found = study(grid={"seed": "0-1"})
    assert submit(found, planned(found.runs), SlurmOptions()) == ["1"]
    in_queue(slurm, 0, 1)
    assert queued(found) == {"seed0": "1_0", "seed1": "1_1"}
    more = study(grid={"seed": "0-3"})
    assert submit(more, planned(more.runs), SlurmOptions()) == ["2"]
    assert left_out(capsys) == ["2 run(s) left out: in the queue already, job 1"]
    assert "--array=0-1%2" in (slurm / "job-2").read_text()
    (slurm / "queue").unlink()  # all have ended, as far as SLURM knows
    assert submit(found, planned(found.runs), SlurmOptions()) == ["3"]
    assert left_out(capsys) == []


def test_nothing_is_submitted_if_the_queue_holds_everything(
    slurm: Path, study: Callable[..., Study]
) -> None:
    found = study(grid={"seed": "0-1"})
    submit(found, planned(found.runs), SlurmOptions())
    in_queue(slurm, 0, 1)
    assert submit(found, planned(found.runs), SlurmOptions()) == []
    assert not (slurm / "job-2").exists()


def test_a_job_holds_a_run_until_that_fails_in_it(slurm: Path, study: Callable[..., Study]) -> None:
    found = study(grid={"seed": "0-1"})
    fail(found.runs[1], ago=60)
    submit(found, planned(found.runs), SlurmOptions(runs_per_gpu=2))
    in_queue(slurm, "N/A")
    assert queued(found) == {"seed0": "1", "seed1": "1"}
    fail(found.runs[1], ago=-60)
    assert queued(found) == {"seed0": "1"}
    assert submit(found, planned(found.runs), SlurmOptions()) == ["2"]


def test_the_folders_of_arrays_go_when_all_their_runs_are_finished(
    slurm: Path,
    study: Callable[..., Study],
    data: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    words = build(data, tmp_path, trainer__max_steps=4, online__steps=0, threads=1)
    settings = dict(word[2:].split("=", 1) for word in words[1:])
    del settings["run_dir"]
    found = study(settings=settings, grid={"seed": [0, 1]})
    for run in found.runs:  # an array for each
        submit(found, planned([run]), SlurmOptions())
    first, second = sorted(
        (found.folder / FOLDER).glob("*/"), key=lambda path: path.stat().st_mtime_ns
    )
    assert main(["fit", *found.runs[0].arguments]) == 0
    fail(found.runs[1])
    in_queue(slurm, "N/A")  # the first
    submit(found, [], SlurmOptions())
    assert first.exists() and second.exists()
    (slurm / "queue").unlink()
    submit(found, [], SlurmOptions())
    assert not first.exists() and second.exists()


def test_a_refused_job_leaves_nothing(
    slurm: Path, study: Callable[..., Study], capsys: pytest.CaptureFixture
) -> None:
    found = study(list=[{"seed": 0}, {"seed": 1, "trainer.devices": 2}])
    (slurm / "room").write_text("1")  # the first array is taken, the second is not
    with pytest.raises(UserError, match="^SLURM refuses the job: invalid .*; Batch .*name$"):
        submit(found, planned(found.runs), SlurmOptions())
    assert capsys.readouterr() == ("", "")
    assert "scancel 1" in (slurm / "said").read_text().splitlines()
    (slurm / "room").write_text("0")
    before = sorted(found.folder.rglob("*"))
    with pytest.raises(UserError, match="SLURM refuses the job"):
        submit(found, planned(found.runs), SlurmOptions())
    assert sorted(found.folder.rglob("*")) == before
    sbatch = Path(shutil.which("sbatch") or "")
    said = "Invalid generic resource (gres) specification"
    sbatch.write_text(f'#!/bin/bash\necho "sbatch: error: {said}" >&2\nexit 1\n')
    for gpus, advice in ((1, "; --slurm.gpus 0 asks for none"), (0, "")):
        with pytest.raises(UserError) as refused:
            submit(found, planned(found.runs[:1]), SlurmOptions(gpus=gpus))
        assert str(refused.value) == f"SLURM refuses the job: {said}{advice}"


def test_no_slurm_and_no_submitit(
    study: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = study(grid={"seed": "0-1"})
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="there is no SLURM on this machine"):
        submit(found, planned(found.runs), SlurmOptions())
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=re.escape("pip install 'qam_lightning[slurm]'")):
        submit(found, planned(found.runs), SlurmOptions())
    assert not found.folder.exists()


@pytest.mark.parametrize("there", [True, False])
def test_what_slurm_refuses_is_one_line(
    there: bool,
    slurm: Path,
    study: Callable[..., Study],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = study(settings={"domain": "cube-single"}, grid={"seed": "0-1"})
    (slurm / "room").write_text("0")
    if not there:
        monkeypatch.setenv("PATH", "/nowhere")
    assert main(["study", "run", "small.yaml", "--slurm", "--slurm.partition=long"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    if there:
        assert line.startswith("error: SLURM refuses the job: invalid partition specified: long; ")
    else:
        assert line.startswith("error: there is no SLURM on this machine")
    assert not list(found.folder.glob("seed*"))


def test_variables_of_a_job_do_not_reach_the_jobs_that_it_submits(
    slurm: Path, study: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "7")
    monkeypatch.setenv("SLURM_CONF", "/a/file")
    sbatch = shutil.which("sbatch")
    text = Path(sbatch).read_text()
    Path(sbatch).write_text(text.replace("number=", f"env > {slurm}/variables\nnumber=", 1))
    found = study(grid={"seed": "0-1"})
    submit(found, planned(found.runs), SlurmOptions())
    variables = (slurm / "variables").read_text()
    assert "SLURM_CONF=/a/file" in variables and "SLURM_CPUS_PER_TASK" not in variables
    assert os.environ["SLURM_CPUS_PER_TASK"] == "7"


# -- the job ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [None, "3"])
@pytest.mark.parametrize(
    ("status", "restarts", "again"),
    [(0, 0, False), (1, 0, False), (AGAIN, 0, True), (137, 99, True), (AGAIN, 100, False)],
)
def test_a_job_that_was_stopped_requeues_its_own_task(
    status: int,
    restarts: int,
    again: bool,
    task: str | None,
    slurm: Path,
    study: Callable[..., Study],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = study(grid={"seed": "0-1"})
    submit(found, planned(found.runs), SlurmOptions())
    (slurm / "said").unlink()
    stand_in = slurm / "end"
    stand_in.write_text(f"#!/bin/bash\nexit {status}\n")
    stand_in.chmod(0o755)
    variables = {"SRUN": str(stand_in), "SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restarts)}
    variables |= {} if task is None else {"SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": task}
    done = subprocess.run(["bash", slurm / "job-1"], env={**os.environ, **variables})
    assert done.returncode == status
    said = (slurm / "said").read_text() if (slurm / "said").exists() else ""
    assert said == (f"scontrol requeue {'7' if task is None else '5_3'}\n" if again else "")


class Job:
    """A submitted task at work, as SLURM would start it."""

    def __init__(self, notes: Path, log: Path, restarts: int) -> None:
        self.pid, self.log = notes / "pid", log
        self.pid.unlink(missing_ok=True)
        variables = {"SLURM_JOB_ID": "1", "SLURM_RESTART_COUNT": str(restarts), "SLURM_PROCID": "0"}
        with log.open("w") as file:
            self.process = subprocess.Popen(
                ["bash", notes / "job-1"], env={**os.environ, **variables}, stdout=file, stderr=file
            )

    def until(self, happened: Callable[[], Any]) -> None:
        for _ in range(600):
            if happened():
                return
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.1)
        raise AssertionError(self.log.read_text())

    def kill(self, number: int) -> None:
        os.kill(int(self.pid.read_text()), number)

    @property
    def said(self) -> dict[str, list[str]]:
        """What the job said of each run."""
        found: dict[str, list[str]] = {}
        for line in self.log.read_text().splitlines():
            if match := re.match(r"(\S*seed\d): (.*?)(, process \d+|[:,] error: .*)?$", line):
                found.setdefault(match[1], []).append(match[2])
        return found


@pytest.fixture
def start(slurm: Path, tmp_path: Path) -> Iterator[Callable[[int], Job]]:
    """Return a starter of the first submitted job, ``start(restarts)``; none is left over."""
    jobs: list[Job] = []

    def starter(restarts: int) -> Job:
        jobs.append(Job(slurm, tmp_path / f"{restarts}.log", restarts))
        return jobs[-1]

    yield starter
    for job in jobs:
        if job.process.poll() is None:
            job.kill(signal.SIGTERM)
            job.process.wait(60)


@pytest.mark.slow
def test_a_job_saves_its_runs_and_goes_on_with_them(
    start: Callable[[int], Job],
    study: Callable[..., Study],
    data: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """One run is wrong from the start. The other is stopped, continued, and stopped again.

    SLURM had requeued the job before it started any of them.
    """
    words = build(data, tmp_path, trainer__max_steps=100_000, online__steps=0, threads=1)
    settings = dict(word[2:].split("=", 1) for word in words[1:])
    del settings["run_dir"]
    every = {"trainer.accelerator": "cpu", "checkpoints.every_n_steps": 10}
    found = study(settings=settings | every, grid={"seed": [0, 1]}, list=[{"model.tau": 1}])
    wrong, good = found.runs
    wrong.arguments.append("--model.tau=-1")
    for run in found.runs:
        fail(run, ago=60)  # in a job before
    assert submit(found, planned(found.runs, 100_000), SlurmOptions(runs_per_gpu=2)) == ["1"]
    first = start(1)
    first.until(lambda: "model.tau is -1" in state_of(wrong.run_dir).line)
    first.until(lambda: state_of(good.run_dir).gradient_step > 0)
    first.kill(signal.SIGUSR1)
    assert first.process.wait(60) == AGAIN
    at = state_of(good.run_dir)
    assert at.kind == "stopped"
    second = start(2)
    second.until(lambda: state_of(good.run_dir).gradient_step > at.gradient_step)
    second.kill(signal.SIGTERM)
    assert second.process.wait(60) == AGAIN
    stopped = ["started", "stopped, exit code 143"]
    names = wrong.run_dir.name, good.run_dir.name
    failed = "failed with exit code 2"
    assert first.said == dict(zip(names, (["started", failed], stopped), strict=True))
    assert second.said == dict(zip(names, (["failed"], stopped), strict=True))


def test_a_requeued_job_does_not_hide_a_failure(
    slurm: Path, study: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It leaves the run out that failed in its life before, and ends as failed itself."""
    found = study(grid={"seed": [0]})
    submit(found, planned(found.runs), SlurmOptions())
    fail(found.runs[0], ago=-60)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    monkeypatch.setattr(slurm_job, "_STOPPING", ())  # this process keeps its handlers
    (path,) = found.folder.glob(f"{FOLDER}/*/{TASKS}")
    with pytest.raises(SystemExit) as ended:
        slurm_job.work(str(path), 0)
    assert ended.value.code == 1
    assert not (found.runs[0].run_dir / "output.log").exists()  # it was not started


def test_a_killed_run_is_given_up_after_two_attempts_without_progress(
    slurm: Path, study: Callable[..., Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = study(grid={"seed": [0]})
    submit(found, planned(found.runs), SlurmOptions())
    (path,) = found.folder.glob(f"{FOLDER}/*/{TASKS}")
    (task,) = read_tasks(path)
    (entry,) = task.entries
    job = slurm_job._Job(task, 0.0)
    monkeypatch.setattr(slurm_job, "_PAUSE", 0)
    killed = subprocess.Popen(["sh", "-c", "kill -9 $$"])
    killed.wait()
    tried = []
    for before, after in ((0, 5), (5, 5), (5, 8), (8, 8), (8, 8)):
        monkeypatch.setattr(slurm_job, "_steps_of", lambda entry, after=after: after)
        job._waiting.clear()
        job._ended(slurm_job._Process(entry, killed, before, 0))
        tried.append(bool(job._waiting))
    assert tried == [True, True, True, True, False]


def test_a_job_too_short_for_its_runs_is_not_requeued(
    slurm: Path, study: Callable[..., Study], start: Callable[[int], Job]
) -> None:
    """It would end the same again."""
    found = study(grid={"seed": [0]})
    submit(found, planned(found.runs), SlurmOptions())
    job = start(0)
    job.until(lambda: (found.runs[0].run_dir / "output.log").exists())
    job.kill(signal.SIGUSR1)
    assert job.process.wait(60) == 1
    assert "ask for more time" in job.log.read_text()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_studies_under_slurm(tmp_path: Path) -> None:
    """A real one of one node: a task is requeued, and its run ends as without."""
    if os.geteuid() or not all(map(shutil.which, ("slurmctld", "slurmd", "munged", "sbatch"))):
        pytest.skip("needs root, and SLURM and munge installed")
    script = [sys.executable, ROOT / "benchmarks/slurm_study.py", "--start"]
    chosen = ("--only", "requeued", "submitted_twice", "user_mistake")
    subprocess.run([*script, *chosen, "--output", tmp_path], cwd=tmp_path, check=True)
    assert "**failed**" not in (tmp_path / "slurm_study_table.md").read_text()
