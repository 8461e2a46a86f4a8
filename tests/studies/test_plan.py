"""What is found out before anything starts."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from qam_lightning.cli import main
from qam_lightning.methods.base import Method
from qam_lightning.online.schedule import Length
from qam_lightning.run_folder import Claim
from qam_lightning.studies.plan import Planned, Refused, missing, plan
from qam_lightning.studies.state import state_of
from qam_lightning.studies.study import read_study
from tests.studies.conftest import Write

ONLINE = {"online.steps": 12, "online.learning_starts": 10, "online.async_env": False}


def planned(path: Path) -> list[Planned]:
    return plan(read_study(str(path)), lambda *_: None)


def kinds(path: Path) -> list[str]:
    return [item.state.kind for item in planned(path)]


def stopped(path: Path, step: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Train a study's first run in this process, and stop it after a gradient step."""
    run, train = read_study(str(path)).runs[0], Method.training_step

    def signalled(self: Method, *args: Any) -> Any:
        if self.gradient_step == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return train(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Method, "training_step", signalled)
        assert main(["fit", *run.arguments]) == 128 + signal.SIGTERM
    return run.run_dir


def trained(path: Path, number: int = 0, *flags: str) -> Path:
    """Train a run of a study in this process."""
    run = read_study(str(path)).runs[number]
    assert main(["fit", *run.arguments, *flags]) == 0
    return run.run_dir


def test_every_configuration_is_built_before_anything_starts(
    write: Write, tiny: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del tiny["model.width"]
    path = write(settings=tiny, grid={"model.width": [8, 0, 16], "seed": "0-1"})
    assert main(["study", "run", str(path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "error: width0-seed0: model.width is 0, expected at least 1 and finite",
        f"error: {path}: 2 of 6 runs cannot be started; nothing was",
    ]
    assert not (tmp_path / "runs").exists()


def test_every_seed_may_start_from_a_clone_of_its_own(
    write: Write, tiny: dict[str, Any], tmp_path: Path
) -> None:
    clones = write(settings={**tiny, "method": "bc"}, grid={"seed": "0-1"})
    first = trained(clones)
    pretrained = f"{first.parent}/seed${{seed}}"
    path = write(
        settings={**tiny, "model.freeze_behavior": True, "pretrained": pretrained},
        grid={"method": ["qam", "ifql"], "seed": "0-1"},
        folder=str(tmp_path / "learned"),
    )
    with pytest.raises(Refused, match="2 of 4 runs cannot be started") as refused:
        planned(path)
    assert list(refused.value.problems.values()) == ["qam-seed1"]
    assert "seed1: no such checkpoint file" in next(iter(refused.value.problems))
    shutil.copytree(first, first.with_name("seed1"))
    assert kinds(path) == ["new"] * 4
    run = trained(path, 1)
    shutil.rmtree(first.parent)  # a run that began needs its clone no more
    assert yaml.safe_load((run / "config.yaml").read_text())["pretrained"].endswith("seed1")
    with pytest.raises(Refused, match="3 of 4 runs cannot be started"):
        planned(path)


def test_runs_without_a_clone_stand_beside_those_with_one(
    write: Write, tiny: dict[str, Any], tmp_path: Path
) -> None:
    clone = trained(write(settings={**tiny, "method": "bc"}, folder=str(tmp_path / "bc")))
    path = write(settings=tiny, grid={"pretrained": [None, str(clone)]})
    assert kinds(path) == ["new"] * 2
    assert yaml.safe_load((trained(path) / "config.yaml").read_text())["pretrained"] is None


def test_the_clones_of_all_new_runs_are_checked(
    write: Write, tiny: dict[str, Any], tmp_path: Path
) -> None:
    """Also where a file names them by the seed, and where another run needs its own no more."""
    clone = trained(write(settings={**tiny, "method": "bc"}, folder=str(tmp_path / "bc")))
    shutil.copytree(clone, tmp_path / "bc/seed0")
    file = tmp_path / "clone.yaml"
    clones = f"pretrained: {tmp_path}/bc/seed${{seed}}"
    file.write_text(f"include: {tiny['config']}\n{clones}\n")
    path = write(settings={**tiny, "config": str(file)}, grid={"seed": "0-2"})
    with pytest.raises(Refused) as refused:
        planned(path)
    assert list(refused.value.problems.values()) == ["seed1", "seed2"], refused.value.problems
    path = write(settings={**tiny, "pretrained": str(clone)}, grid={"seed": "0-2"})
    trained(path)
    shutil.rmtree(clone)
    with pytest.raises(Refused, match="2 of 3 runs cannot be started"):
        planned(path)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"model.widht": 8}, "model.widht"),
        ({"method": "qamm"}, "no method named 'qamm'"),
        ({"config": "nothing.yaml"}, "no config named 'nothing.yaml'"),
        ({"trainer.devices": 1001}, "trainer.devices is 1001"),
    ],
)
def test_a_mistake_is_one_line(
    setting: dict[str, Any], said: str, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(settings={"domain": "cube-single", **setting}, grid={"seed": "0-3"})
    assert main(["study", "run", str(path)]) == 2
    first, last = capsys.readouterr().err.splitlines()
    assert said in first and "4 of 4 runs cannot be started" in last


def test_a_task_that_is_not_there_is_refused(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    """Although configurations that differ by the task alone are built once."""
    path = write(settings={"domain": "cube-single"}, grid={"task": [1, 6]})
    assert main(["study", "run", str(path)]) == 2
    assert "task6: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("grid", "names"),
    [
        ({"method": ["qam-edit", "qam_edit"]}, ("qam-edit", "qam_edit")),
        ({"domain": ["cube-single", "cube_single"], "seed": [0, 1]},
         ("cube-single-seed0", "cube_single-seed0")),
        ({"log.every_n_steps": [1, 2]}, ("every_n_steps1", "every_n_steps2")),
    ],
)  # fmt: skip
def test_one_run_with_two_folders_is_refused(
    grid: dict[str, Any],
    names: tuple[str, str],
    write: Write,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write(settings={"config": "cube_single.yaml"}, grid=grid)
    assert main(["study", "run", str(path)]) == 2
    one, other = (f"{tmp_path}/runs/{name}" for name in names)
    assert capsys.readouterr().err == (
        f"error: {path}: {one} and {other} would hold the same run; write every value once\n"
    )
    assert not (tmp_path / "runs").exists()


def test_groups_may_share_a_run(write: Write) -> None:
    """As curves of two settings do that meet in the default, 10 critics and T = 10."""
    groups = {
        "critics": {"grid": {"model.num_critics": [2, 10]}},
        "flow_steps": {"grid": {"model.flow_steps": [10]}},
    }
    path = write(settings={"domain": "cube-single"}, groups=groups)
    first, second, third = (item.settings for item in planned(path))
    assert first != second
    assert second | {"run_dir": "", "log": {}} == third | {"run_dir": "", "log": {}}


def test_states_of_a_run(write: Write, tiny: dict[str, Any], tmp_path: Path) -> None:
    path = write(settings=tiny)
    assert kinds(path) == ["new"]
    unstarted = tmp_path / "runs/run/exit.json"
    unstarted.parent.mkdir(parents=True)
    for code, kind in ((2, "failed"), (1, "failed"), (143, "stopped"), (-15, "stopped")):
        unstarted.write_text(json.dumps({"code": code, "line": "error: x"}))
        assert kinds(path) == [kind]
    unstarted.unlink()
    unstarted.parent.rmdir()
    folder = trained(path)
    assert kinds(path) == ["finished"]
    state = state_of(folder)
    assert (state.gradient_step, state.done, state.total) == (6, 6, 6)
    claim = Claim(folder)
    assert state_of(folder).kind == "running" and state_of(folder).line.startswith("process ")
    claim.release()
    assert not missing(planned(path))
    path = write(settings={**tiny, "trainer.max_steps": 8})
    assert kinds(path) == ["stopped"]  # it goes on
    assert len(missing(planned(path))) == 1
    state = state_of(folder, Length(8, 0))
    assert (state.done, state.total) == (6, 8)
    ends = {0: "stopped", 1: "failed", 2: "failed", 143: "stopped", -9: "stopped"}
    for code, kind in ends.items():
        (folder / "exit.json").write_text(json.dumps({"code": code, "line": "error: x"}))
        assert state_of(folder, Length(8, 0)).kind == kind
    assert state_of(folder).kind == "finished"  # whatever was said
    (folder / "exit.json").write_text("nonsense")
    assert state_of(folder, Length(8, 0)).kind == "stopped"


def test_a_run_of_a_version_that_did_not_know_a_setting_had_its_default(
    write: Write, tiny: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    study = write(settings=tiny)
    path = trained(study) / "checkpoints/last.ckpt"
    path.with_suffix(".json").unlink()
    content = torch.load(path, weights_only=True)
    settings = yaml.safe_load(content["qam_lightning"]["config"])
    del settings["model"]["init_args"]["integrator"]
    content["qam_lightning"]["config"] = yaml.safe_dump(settings)
    torch.save(content, path)
    assert kinds(study) == ["finished"]
    other = {**tiny, "model.integrator": "denoiser", "model.sampler": "etd2"}
    assert main(["study", "run", str(write(settings=other))]) == 2
    said = capsys.readouterr().err
    assert "made with other settings (" in said
    assert "model.integrator: shifted_euler -> denoiser" in said


def test_an_online_run_may_grow_online_only(
    write: Write, tiny: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Its offline phase is over: more gradient steps there make another run."""
    online = {**tiny, **ONLINE}
    folder = trained(write(settings=online))
    assert kinds(write(settings={**online, "online.steps": 14})) == ["stopped"]
    assert main(["study", "run", str(write(settings={**online, "trainer.max_steps": 8}))]) == 2
    first, _ = capsys.readouterr().err.splitlines()[-2:]
    assert f"{folder} was made with other settings (trainer.max_steps: 6 -> 8)" in first


def test_a_run_is_not_finished_before_its_last_update(
    write: Write, tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Although no environment step is left to take."""
    path = write(settings={**tiny, **ONLINE, "online.utd_ratio": 2})
    folder = stopped(path, 9, monkeypatch)
    state = state_of(folder)
    assert (state.kind, state.gradient_step, state.env_step) == ("stopped", 9, 12)
    assert kinds(path) == ["stopped"]
    trained(path, 0, "--ckpt_path=last")
    assert kinds(path) == ["finished"] and state_of(folder)[:3] == ("finished", 10, 12)


def test_the_share_of_a_method_without_an_offline_phase(
    write: Write,
    tiny: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its trainer.max_steps counts for nothing, also where an older JSON does not tell."""
    online = {**ONLINE, "method": "rlpd", "online.steps": 20, "trainer.max_steps": 1000}
    path = write(settings={**tiny, **online})
    beside = stopped(path, 5, monkeypatch) / "checkpoints/last.json"
    facts = json.loads(beside.read_text())
    assert facts.pop("offline_steps") == 0
    for text in (beside.read_text(), json.dumps(facts)):
        beside.write_text(text)
        capsys.readouterr()
        assert main(["study", "status", str(path), "--all"]) == 0
        assert capsys.readouterr().out.splitlines()[-1] == "run stopped 75%"
    trained(path, 0, "--ckpt_path=last")
    assert kinds(path) == ["finished"] and state_of(beside.parents[1]).kind == "finished"


def test_a_folder_of_another_run_is_refused(
    write: Write, tiny: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(settings=tiny, grid={"seed": [0]})
    folder = trained(path)
    before = (folder / "checkpoints/last.ckpt").read_bytes()
    other = write(settings={**tiny, "model.tau": 7.0}, grid={"seed": [0]})
    assert main(["study", "run", str(other)]) == 2
    first, last = capsys.readouterr().err.splitlines()
    assert "seed0: " in first and "was made with other settings (model.tau: " in first
    assert "-> 7.0" in first and "move it away" in first
    foreign = tmp_path / "runs/seed1"
    shutil.copytree(folder, foreign)  # of seed 0
    assert main(["study", "run", str(write(settings=tiny, grid={"seed": [0, 1]}))]) == 2
    assert "seed1 was made with other settings (seed: 0 -> 1)" in capsys.readouterr().err
    shutil.rmtree(foreign)
    (foreign / "metrics").mkdir(parents=True)
    (foreign / "metrics/train.csv").write_text("gradient_step\n1\n")
    assert main(["study", "run", str(write(settings=tiny, grid={"seed": [0, 1]}))]) == 2
    assert "already holds a run (metrics/train.csv, but no checkpoint)" in capsys.readouterr().err
    assert (folder / "checkpoints/last.ckpt").read_bytes() == before


def test_a_damaged_run_is_told(
    write: Write, tiny: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(settings=tiny, grid={"seed": [0, 1]})
    folder = trained(path)
    for file in folder.glob("checkpoints/last*"):
        file.write_bytes(b"nonsense")
    assert main(["study", "run", str(path)]) == 2
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith(f"error: seed0: {folder}/checkpoints/last.ckpt")
    assert "1 of 2 runs cannot be started" in last


def test_another_version_is_refused_unless_it_is_taken(
    write: Write, tiny: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(settings=tiny)
    folder = trained(path)
    (beside,) = folder.glob("checkpoints/last.json")
    facts = json.loads(beside.read_text())
    facts["versions"]["mujoco"] = "3.1.0"
    beside.write_text(json.dumps(facts))
    assert main(["study", "run", str(path)]) == 2
    assert "made with mujoco 3.1.0, running" in capsys.readouterr().err
    assert main(["study", "run", str(path), "--any_version"]) == 0


def test_what_does_not_change_results_may_change(write: Write, tiny: dict[str, Any]) -> None:
    path = write(settings=tiny, grid={"seed": [3]})
    trained(path, 0, "--threads=2", "--log.every_n_steps=2", "--evaluation.workers=1")
    assert kinds(path) == ["finished"]


def test_runs_that_began_without_tags_are_the_studys(
    write: Write, tiny: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(settings=tiny, grid={"seed": [0, 1]})
    first, _ = read_study(str(path)).runs
    words = [word for word in first.arguments if not word.startswith("--log.")]
    assert main(["fit", *words]) == 0
    folder = trained(path, 1)
    tags = [
        yaml.safe_load((place / "config.yaml").read_text())["log"]["tags"]
        for place in (first.run_dir, folder)
    ]
    assert tags == [None, ["mine"]]
    capsys.readouterr()
    assert main(["study", "run", str(path)]) == 0
    assert capsys.readouterr().out == "mine, 2 runs: 2 finished\n"
    assert main(["study", "report", str(path)]) == 0
    page = (tmp_path / "runs/report/report.md").read_text()
    assert "seed1" in page and "tags" not in page


@pytest.mark.parametrize("kind", ["grid", "search"])
def test_status_imports_nothing_slow(
    kind: str, write: Write, tiny: dict[str, Any], tmp_path: Path
) -> None:
    """The facts beside a checkpoint say what became of a run."""
    name, space = ("seed0", [0]) if kind == "grid" else ("trial-0001", [0, 1])
    assert main(["fit", *(f"--{k}={v}" for k, v in tiny.items()), "--seed=0",
                 f"--run_dir={tmp_path}/runs/{name}"]) == 0  # fmt: skip
    varied = {"seed": space}
    more = {"grid": varied} if kind == "grid" else {"search": {"trials": 1, "space": varied}}
    path = write(settings=tiny, **more)
    (tmp_path / "runs/.slurm/0").mkdir(parents=True)
    (tmp_path / "runs/.slurm/0/tasks.json").write_text("[]")
    code = f"""
import sys
from qam_lightning.cli import main
code = main(["study", "status", {str(path)!r}, "--all"])
slow = {{"torch", "lightning", "numpy", "mujoco", "ogbench", "gymnasium", "matplotlib", "optuna"}}
sys.exit(str(slow & set(sys.modules)) if slow & set(sys.modules) else code)
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert f"{name} finished 100%" in shown.stdout


def test_dry_run_prints_commands_that_a_shell_takes(
    write: Write, tiny: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    import shlex

    path = write(settings={**tiny, "log.name": "a 'name'"}, grid={"seed": "0-1"})
    assert main(["study", "run", str(path), "--dry_run"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head == "mine, 2 runs: 2 new"
    for line, run in zip(lines, read_study(str(path)).runs, strict=True):
        words = shlex.split(line)
        assert words[words.index("fit") + 1 :] == run.arguments


def test_rlpd_is_as_long_as_its_online_phase(write: Write, tiny: dict[str, Any]) -> None:
    online = {"online.steps": 40, "online.learning_starts": 20}
    path = write(settings={**tiny, "method": "rlpd", **online})
    assert planned(path)[0].state.total == 40


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--slurm.limit", "3"], "--slurm.limit: needs --slurm"),
        (["--slurm", "--slurm.limit", "0"], "expected at least 1, found 0"),
        (["--slurm", "nothing.yaml"], "nothing.yaml"),
        (["--jobs", "0"], "expected at least 1, found 0"),
        (["--jobs", "2", "--slurm"], "--jobs: is of runs on this machine; with --slurm, say"),
    ],
)
def test_options_of_jobs_are_checked(
    flags: list[str], said: str, write: Write, tiny: dict[str, Any], capsys: Any
) -> None:
    path = write(settings=tiny)
    try:
        code = main(["study", "run", str(path), *flags])
    except SystemExit as refused:  # the parser's answer
        code = refused.code
    assert code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and said in line
