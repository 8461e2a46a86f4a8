"""Studies of strangers: what is wrong is told in one line, and nothing starts."""

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from qam_lightning.cli import main
from qam_lightning.online.schedule import Length
from qam_lightning.studies import launch, local
from qam_lightning.studies import study as study_module
from qam_lightning.studies.begun import with_values
from qam_lightning.studies.plan import Planned
from qam_lightning.studies.state import State, ended, told_state_of
from qam_lightning.studies.study import read_study
from qam_lightning.util.errors import UserError
from tests.studies.conftest import Write


def told(capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """Return the lines with which a command ends, with exit code 2."""
    capsys.readouterr()
    assert main(["study", *words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("error: ") for line in lines), lines
    return lines


# -- the file --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"grid": {"model.tau": [1, 1.0]}}, "the same run would go to"),
        ({"grid": {"model.tau": [1e-3, 0.001]}}, "the same run would go to"),
        ({"grid": {"model.tau": 1, "model.init_args.tau": 2}}, "model.init_args.tau are one"),
        ({"settings": {"task": 1, "data.task": 1}}, "settings.task and settings.data.task are one"),
        ({"settings": {"model": {}}}, "settings.model is empty"),
        ({"name": "x" * 61, "grid": {"seed": 0}}, "expected up to 60 letters"),
        ({"groups": {"x" * 61: {"grid": {"seed": 0}}}}, "expected up to 60 letters"),
        ({"folder": "~nobody-at-all/x", "grid": {"seed": 0}}, "folder: there is no user of"),
        (
            {"search": {"trials": 1, "space": {"model.tau": [1, 1.0]}}},
            "search.space.model.tau is [1, 1.0]; write every value once",
        ),
    ],
)
def test_a_value_or_a_name_that_misleads_is_refused(
    parts: dict[str, Any], said: str, write: Write
) -> None:
    with pytest.raises(UserError) as refused:
        read_study(str(write(**parts)))
    assert said in str(refused.value) and "mine.yaml" in str(refused.value)


def test_many_groups_are_counted_as_they_are_made(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_module, "MOST_RUNS", 10)
    path = write(grid={"seed": "0-9"}, groups={f"g{n}": {} for n in range(900)})
    with pytest.raises(UserError, match="more than 10 runs; make two studies of it"):
        read_study(str(path))


def test_a_file_of_gigabytes_is_not_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "mine.yaml"
    with path.open("wb") as file:
        file.truncate(2**40)
    (line,) = told(capsys, "status", str(path))
    assert line == f"error: {path}: is larger than 1 MiB, expected a study"


def test_values_are_written_as_fit_reads_them(write: Write) -> None:
    path = write(grid={"model.alpha": [float("inf"), -float("inf"), 2.0, 1e-05, None, True, [1]]})
    written = [run.arguments[3] for run in read_study(str(path)).runs]
    values = [".inf", "-.inf", "2", "1e-05", "null", "true", "[1]"]
    assert written == [f"--model.alpha={value}" for value in values]


def test_names_of_folders_are_short_in_bytes(write: Write) -> None:
    runs = read_study(str(write(grid={"log.name": ["日" * 130, "日" * 131]}))).runs
    assert len({run.run_dir for run in runs}) == 2
    assert all(len(os.fsencode(run.run_dir.name)) <= 150 for run in runs)


def test_the_home_folder_may_be_written_as_in_a_shell(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    study = read_study(str(write(folder="~/x", grid={"seed": 0})))
    assert study.folder == tmp_path / "x" and study.runs[0].run_dir == tmp_path / "x/seed0"


@pytest.mark.parametrize("seed", [-1, 2**32, "x", True])
def test_every_seed_is_checked(
    seed: Any, write: Write, tiny: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Although configurations that differ by the seed alone are built once."""
    path = write(settings=tiny, grid={"seed": [0, seed]})
    first, last = told(capsys, "run", str(path))
    assert "seed is " in first and "1 of 2 runs cannot be started" in last


# -- folders ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "dangling", "loop", "parent"])
def test_a_folder_that_is_none_is_refused_before_anything_starts(
    kind: str, write: Write, tiny: dict[str, Any], capsys: Any, tmp_path: Path
) -> None:
    place = tmp_path / "runs" / "seed1"
    if kind == "parent":
        place = tmp_path / "runs"
    place.parent.mkdir(exist_ok=True)
    if kind in ("file", "parent"):
        place.write_text("mine")
    else:
        place.symlink_to(place if kind == "loop" else tmp_path / "nowhere")
    path = write(settings=tiny, grid={"seed": [0, 1]})
    *_, first, last = told(capsys, "run", str(path))
    assert f"{place}: is no folder" in first and "cannot be started" in last
    assert not (tmp_path / "runs" / "seed0").exists()


def test_a_folder_that_may_not_be_written_is_refused_before_anything_starts(
    write: Write, capsys: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "runs"
    place.mkdir(mode=0o500)
    if os.geteuid() == 0:  # who may write everywhere
        access = os.access
        monkeypatch.setattr(os, "access", lambda at, *how: Path(at) != place and access(at, *how))
    path = write(settings={"domain": "cube-single"}, grid={"seed": [0, 1]})
    first, last = told(capsys, "run", str(path))
    assert first == f"error: seed0: {place}: cannot be written: Permission denied"
    assert "2 of 2 runs cannot be started" in last and not list(place.iterdir())


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ("[" * 100_000, None),
        ('{"code": "x"}', None),
        ('{"code": 2, "line": {}}', None),
        ('{"code": 2, "pruned": "yes"}', None),
        ('{"code": 2, "line": "a\\nb\\u001b[31m"}', 2),
        (f'{{"code": 2, "line": "{"x" * 10**6}"}}', 2),
    ],
)
def test_a_damaged_record_of_the_end(content: str, code: int | None, tmp_path: Path) -> None:
    (tmp_path / "exit.json").write_text(content)
    end = ended(tmp_path)
    assert end.code == code and end.line.isprintable() and len(end.line) < 310


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ("trainer: 3", (0, 0)),
        ("trainer: {max_steps: x}\nonline: null", (0, 0)),
        ("trainer: {max_steps: 6}\nonline: {steps: 4}", (6, 4)),
        ("online: {steps: 4, learning_starts: 1, utd_ratio: 2}", (0, 4, 6)),
        ("online: {steps: 0, learning_starts: 1, utd_ratio: 2}", (0, 0)),
    ],
)
def test_the_length_of_a_strange_configuration(settings: str, steps: tuple[int, ...]) -> None:
    assert Length.of(yaml.safe_load(settings)) == Length(*steps)


def test_a_damaged_run_does_not_hide_the_others(
    write: Write, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = write(grid={"seed": [0, 1, 2]})
    checkpoint = tmp_path / "runs/seed1/checkpoints/last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_bytes(b"nonsense")
    files = tmp_path / "runs/seed1/wandb/run-1/files"
    files.mkdir(parents=True)
    (files / "config.yaml").write_text("a: 1\n")
    assert main(["study", "status", str(path)]) == 0
    *_, counts, line = capsys.readouterr().out.splitlines()
    assert counts.split()[-3:] == ["–", "2", "3"]
    assert line.startswith(f"seed1 failed: {checkpoint}")
    (line,) = told(capsys, "report", str(path))
    assert "no run has results yet, of 3: seed0: new" in line


# -- searches --------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["model.tau", "model.init_args.tau", "task", "model.class_path"])
def test_the_values_of_a_trial_are_found_by_any_spelling(
    key: str, write: Write, tmp_path: Path
) -> None:
    config = {"data": {"task": 3}, "model": {"class_path": 3, "init_args": {"tau": 3}}}
    folder = tmp_path / "runs" / "trial-0001"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (run,) = with_values(read_study(str(write(search={"trials": 1, "space": {key: [1, 3]}}))))
    assert run.axes == {key: 3}


@pytest.mark.parametrize(
    "content", [b"", b"[", b"- 1", b"model: 3", b"\xff", b"[" * 3000, b"model: {init_args: 3}"]
)
def test_a_damaged_trial_is_told(content: bytes, write: Write, tmp_path: Path) -> None:
    path = write(search={"trials": 1, "space": {"model.tau": [1, 3]}})
    config = tmp_path / "runs" / "trial-0001" / "config.yaml"
    config.parent.mkdir(parents=True)
    config.write_bytes(content)
    with pytest.raises(UserError) as refused:
        with_values(read_study(str(path)))
    assert str(refused.value).startswith(str(config))
    assert main(["study", "status", str(path)]) == 0  # which reads no values


# -- the runs --------------------------------------------------------------------------------------


class Sleeper:
    """A process that ends when it is told to."""

    pid = 1

    def __init__(self) -> None:
        self.returncode: int | None = None

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, number: int) -> None:
        self.returncode = 128 + number

    def wait(self) -> int:
        assert self.returncode is not None, "nobody told it to end"
        return self.returncode


def planned(write: Write, count: int) -> list[Planned]:
    study = read_study(str(write(grid={"seed": f"0-{count - 1}"})))
    return [Planned(run, State("new"), 1, 1, None, {}) for run in study.runs]


def test_a_run_that_cannot_start_fails_alone(
    write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "seed1").write_text("in its way since the study was checked")
    started: list[Sleeper] = []

    def start(run: Any, *_: object) -> Sleeper:
        if run.run_dir.is_file():
            raise UserError(f"{run.run_dir}: cannot be written")
        started.append(Sleeper())
        started[-1].returncode = 0
        return started[-1]

    monkeypatch.setattr(local, "start", start)
    outcome = local.run_here(local.Listed(planned(write, 3)), 2)
    assert len(started) == 2
    assert ("seed1", f"failed: {tmp_path}/runs/seed1: cannot be written") in outcome.unfinished


def test_a_run_that_is_killed_is_told_and_the_command_fails(
    write: Write, tiny: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    """By the kernel when memory is short, for example: nobody stopped the study."""
    path = write(settings=tiny, grid={"seed": "0-1"})
    for run in read_study(str(path)).runs:
        run.run_dir.mkdir(parents=True)
    killed = ["sh", "-c", "kill -9 $$"]
    monkeypatch.setattr(local, "start", lambda run, *_: subprocess.Popen(killed))
    assert main(["study", "run", str(path), "--jobs", "2"]) == 2
    *lines, last = capsys.readouterr().err.splitlines()
    assert sorted(lines) == ["seed0 stopped", "seed1 stopped"]
    assert last == "error: 2 of 2 runs did not finish; the same command tries them again"


def test_an_error_leaves_no_run_behind(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that nobody foresaw; a source that refuses a further run lets the others go on."""
    started: list[Sleeper] = []

    def start(*_: object) -> Sleeper:
        started.append(Sleeper())
        return started[-1]

    class Broken(local.Listed):
        def take(self) -> Planned | None:
            if self.waiting == 1:
                raise RuntimeError("this one cannot be built")
            return super().take()

    monkeypatch.setattr(local, "start", start)
    with pytest.raises(RuntimeError, match="cannot be built"):
        local.run_here(Broken(planned(write, 3)), 3)
    assert [process.returncode for process in started] == [128 + signal.SIGTERM] * 2


def test_a_folder_that_is_gone_at_the_end_is_told(
    write: Write, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    process = Sleeper()
    process.returncode = 1
    monkeypatch.setattr(local, "start", lambda *_: process)
    local.run_here(local.Listed(planned(write, 1)), 1)
    assert "exit.json: cannot be written: No such file" in capsys.readouterr().out


def test_more_jobs_than_runs_share_the_cores_of_the_runs(
    write: Write, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def run_here(source: Any, jobs: int, gpus: int) -> local.Outcome:
        asked.append(jobs)
        return local.Outcome([], None)

    monkeypatch.setattr(local, "run_here", run_here)
    path = write(settings=tiny, grid={"seed": [0, 1]})
    assert main(["study", "run", str(path), "--jobs", str(2**62)]) == 0
    assert asked == [2]


def on_gpus(write: Write, *devices: Any, accelerator: str = "auto") -> list[Planned]:
    """New runs with ``trainer.devices`` each."""
    trainers = [{"accelerator": accelerator, "devices": each} for each in devices]
    found = zip(planned(write, len(devices)), trainers, strict=True)
    return [x._replace(devices=at["devices"], settings={"trainer": at}) for x, at in found]


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)


@pytest.mark.usefixtures("four_gpus")
@pytest.mark.parametrize(
    ("devices", "names"),
    [
        ([1] * 5, {"0", "1", "2", "3"}),
        ([2, 2, 2], {"0,1", "2,3"}),
        (["2", 1], {"0,1", "2,3"}),  # their places are alike
        ([3, 3], {None}),  # one at a time, which sees them all
        ([4], {None}),
        ([[3], 1], {None}),
        (["auto", 1], {None}),
    ],
)
def test_every_run_has_gpus_of_its_own(
    devices: list[Any], names: set[str | None], write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str | None] = []

    def start(run: Any, variables: dict[str, str], *_: object) -> Sleeper:
        seen.append(variables.get("CUDA_VISIBLE_DEVICES"))
        process = Sleeper()
        process.returncode = 0
        return process

    monkeypatch.setattr(local, "start", start)
    runs = on_gpus(write, *devices)
    jobs = local.default_jobs(runs)
    local.run_here(local.Listed(runs), jobs, local.gpus_each(runs, jobs))
    assert len(seen) == len(runs) and set(seen) == names


@pytest.mark.usefixtures("four_gpus")
def test_more_jobs_than_gpus_share_them(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = [launch.shared_variables(slot, 4, 8, 2)["CUDA_VISIBLE_DEVICES"] for slot in range(4)]
    assert shared == ["0,1", "2,3", "0,1", "2,3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,5,6")
    assert launch.shared_variables(1, 4, 8, 2)["CUDA_VISIBLE_DEVICES"] == "7,5"
    assert launch.shared_variables(1, 4, 8)["CUDA_VISIBLE_DEVICES"] == "5"


@pytest.mark.usefixtures("four_gpus")
def test_runs_on_the_cpu_share_its_cores(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "available_cores", lambda: 12)
    runs = on_gpus(write, 1, 2, accelerator="cpu")
    assert local.default_jobs([runs[0]._replace(threads=1)]) == 12
    assert local.default_jobs([run._replace(threads=1) for run in runs]) == 6
    assert local.default_jobs(runs) == 1
    assert local.gpus_each(on_gpus(write, [0, 1], accelerator="cpu"), 2) == 1


@pytest.mark.usefixtures("four_gpus")
@pytest.mark.parametrize("devices", [[3], "0,1", "3,", "auto", -1])
def test_runs_that_name_their_gpus_run_alone(devices: Any, write: Write) -> None:
    runs = on_gpus(write, 1, devices)
    assert local.gpus_each(runs, 1) in (1, 2)
    with pytest.raises(UserError) as refused:
        local.gpus_each(runs, 2)
    assert str(refused.value) == (
        f"seed1: trainer.devices is {devices}, expected a number, at least 1; "
        "or run one at a time, with --jobs 1"
    )


def test_a_dry_run_checks_the_options_of_jobs(
    write: Write, tiny: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = tmp_path / "slurm.yaml"
    options.write_text("gpu: 1\n")
    path = write(settings=tiny)
    (line,) = told(capsys, "run", str(path), "--dry_run", "--slurm", str(options))
    assert line == f"error: {options}: unknown option 'gpu'; did you mean gpus?"
    path = write(settings=tiny | {"trainer.devices": 2})
    options.write_text("runs_per_gpu: 2\n")
    (line,) = told(capsys, "run", str(path), "--dry_run", "--slurm", str(options))
    assert "runs_per_gpu is 2, but the run has 1 node(s) with 2 device(s)" in line


def test_what_is_shown_of_a_run_never_raises(tmp_path: Path) -> None:
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "train.csv").write_text("x")
    (tmp_path / "exit.json").write_text(json.dumps({"code": 0}))
    state = told_state_of(tmp_path)
    assert state.kind == "failed" and "already holds a run" in state.line
