"""``python eval.py``: what it writes, and one line for every mistake."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import imageio.v3 as iio
import pytest
import torch

from qam_lightning.cli import evaluate as command
from qam_lightning.envs.gl import headless_gl

FAST = ["--episodes", "2", "--workers", "0"]


@pytest.fixture(autouse=True)
def torch_settings():
    """Put back the settings that the command makes for its process."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


def reports(run):
    return sorted((run / "eval").glob("*.json"))


def test_a_run_is_evaluated_from_its_checkpoint(run, capsys):
    assert command.main([str(run), *FAST, "--seed", "3"]) == 0
    out = capsys.readouterr().out
    path = run / "eval" / "last-step4-learned-task1-seed3.json"
    assert "QAM on pointmaze-medium, task 1" in out and str(path) in out
    report = json.loads(path.read_text())
    assert report["method"] == "qam_lightning.methods.qam.QAM"
    assert (report["env"], report["task"], report["gradient_step"]) == ("pointmaze-medium", 1, 4)
    assert report["num_envs"] == 8
    assert report["episodes"] == len(report["results"]) == 2
    assert report["success"]["low"] <= report["success"]["mean"] <= report["success"]["high"]
    assert report["versions"]["torch"] == report["trained_versions"]["torch"]

    # The same again gives the same numbers, in another file, whoever simulates.
    assert command.main([str(run), "--episodes=2", "--workers=2", "--seed=3", "--num_envs=8"]) == 0
    again = json.loads(path.with_name(f"{path.stem}-2.json").read_text())
    assert again["results"] == report["results"]


def test_policy_task_and_best_of_n_can_be_chosen(run, tmp_path, capsys):
    checkpoint = run / "checkpoints" / "best.ckpt"
    output = tmp_path / "x" / "report.json"
    options = ["--policy", "behavior", "--task", "2", "--best_of_n", "3", "--output", str(output)]
    assert command.main([str(checkpoint), *FAST, *options]) == 0
    report = json.loads(output.read_text())
    assert (report["policy"], report["task"], report["trained_task"]) == ("behavior", 2, 1)
    assert report["best_of_n"] == 3

    # The file is there now, and is left alone.
    assert command.main([str(checkpoint), *FAST, "--output", str(output)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert json.loads(output.read_text()) == report


def test_video_and_picture(run, capsys, monkeypatch):
    monkeypatch.setattr(command, "FRAMES_IN_VIDEO", 10)  # software rendering is slow
    frames = headless_gl() is not None
    options = ["--episodes", "1", "--workers", "1", "--video", "--picture"]
    assert command.main([str(run), *options]) == 0
    assert iio.imread(run / "picture.png").shape[0] > (600 if frames else 400)
    videos = list((run / "videos").glob("*.mp4"))
    if frames:
        # A frame every 100 of the 1000 steps, the first and the last included.
        assert iio.imread(videos[0], plugin="FFMPEG").shape == (11, 240, 320, 3)
    else:
        assert videos == [] and "without frames" in capsys.readouterr().err


def test_other_software_is_warned_about_in_one_line(run, tmp_path, capsys):
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    checkpoint["qam_lightning"]["versions"] |= {"mujoco": "0.1", "torch": "0.2"}
    torch.save(checkpoint, tmp_path / "old.ckpt")
    assert command.main([str(tmp_path / "old.ckpt"), *FAST]) == 0
    err = capsys.readouterr().err
    assert err.startswith("warning: ") and err.count("\n") == 1
    assert "mujoco 0.1" in err and "torch 0.2" in err
    assert reports(tmp_path)  # a checkpoint outside a run folder: results go beside it


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "9"], "task is 9, but pointmaze-medium has tasks 1 to 5"),
        (["--picture", "--runs", "elsewhere"], "eval.csv: no such file"),
        (["--checkpoint", "worst"], "invalid choice: 'worst'"),
        (["--episodes", "0"], "expected at least 1, found 0"),
        (["--num_envs", "0"], "expected at least 1, found 0"),
        (["--seed", "many"], "invalid integer value: 'many'"),
        (["--vidoe"], "unrecognized arguments: --vidoe"),
    ],
)
def test_mistakes_are_answered_with_one_line(run, capsys, options, message):
    before = reports(run)
    try:
        code = command.main([str(run), *options])
    except SystemExit as stop:
        code = stop.code
    err = capsys.readouterr().err
    assert code == 2
    assert err.startswith("error: ") and message in err and err.count("\n") == 1
    assert reports(run) == before


@pytest.mark.parametrize("content", [None, b"", b"not a checkpoint"])
def test_unusable_sources_are_answered_with_one_line(tmp_path, capsys, content):
    path = tmp_path / "x.ckpt"
    if content is not None:
        path.write_bytes(content)
    assert command.main([str(path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {path}: ") and err.count("\n") == 1


def test_as_a_script():
    script = [sys.executable, Path(__file__).parents[2] / "eval.py", "run", "--episodes=0"]
    result = subprocess.run(script, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("error: argument --episodes: expected at least 1, found 0;")
    assert result.stderr.count("\n") == 1


def test_a_source_that_is_not_there_is_answered_with_one_line(tmp_path, capsys):
    assert command.main([str(tmp_path / "none")]) == 2
    expected = f"error: {tmp_path / 'none'}: no such run folder or checkpoint file\n"
    assert capsys.readouterr().err == expected


def test_an_empty_run_folder_is_answered_with_one_line(tmp_path, capsys):
    assert command.main([str(tmp_path)]) == 2
    assert "last.ckpt: no such checkpoint file" in capsys.readouterr().err


def test_help(capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(["--help"])
    assert stop.value.code == 0
    assert "--best_of_n" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("surroundings", "closed"),
    [
        ({"PYTHONIOENCODING": "latin-1"}, False),
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, False),
        ({}, True),
    ],
)
def test_a_result_is_there_whatever_can_be_printed(run, tmp_path, surroundings, closed):
    """A console without the characters, an ASCII locale, a closed standard output."""
    output = tmp_path / "report.json"
    command = [sys.executable, str(Path(__file__).parents[2] / "eval.py"), str(run), *FAST]
    shell = ["sh", "-c", 'exec "$@" >&-', "sh"] if closed else []
    ended = subprocess.run(
        [*shell, *command, "--output", str(output)],
        env={**os.environ, **surroundings},
        capture_output=True,
    )
    assert ended.returncode == 0, ended.stderr
    assert json.loads(output.read_text())["episodes"] == 2
    assert b"Traceback" not in ended.stderr and (closed or b"wrote " in ended.stdout)


def test_a_result_is_written_before_anything_is_printed(run, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no console")

    monkeypatch.setattr("rich.console.Console.print", fail)
    with pytest.raises(RuntimeError, match="no console"):
        command.main([str(run), *FAST, "--output", str(tmp_path / "report.json")])
    assert json.loads((tmp_path / "report.json").read_text())["episodes"] == 2


@pytest.fixture
def bare(run, tmp_path):
    """A run with its checkpoints alone."""
    shutil.copytree(run / "checkpoints", tmp_path / "run" / "checkpoints")
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("in_the_way", "options", "told"),
    [
        ("eval", [], "eval is a file, expected a folder"),
        ("videos", ["--video"], "videos is a file, expected a folder"),
        ("picture.png/", ["--picture"], "picture.png: cannot be written: it is a folder"),
        ("x", ["--output", "{run}/x/report.json"], "x is a file, expected a folder"),
        ("x/", ["--output", "{run}/x"], "x: exists already; delete it or name another"),
        ("closed/", ["--output", "{run}/closed/more/r.json"], "closed may not be written to"),
    ],
)
def test_what_is_in_the_way_is_said_before_the_rollouts(
    run, bare, in_the_way, options, told, capsys, monkeypatch
):
    path = bare / in_the_way
    path.mkdir() if in_the_way.endswith("/") else path.write_text("mine")
    if "--picture" in options:
        shutil.copytree(run / "metrics", bare / "metrics")
    monkeypatch.setattr(os, "access", lambda path, mode: path.name != "closed")
    monkeypatch.setattr(command, "with_progress", lambda *args: pytest.fail("rolled out"))
    before = sorted(bare.rglob("*"))
    assert command.main([str(bare), *FAST, *(o.format(run=bare) for o in options)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and line.endswith(told)
    assert sorted(bare.rglob("*")) == before


@pytest.mark.parametrize("kind", ["file", "folder", "link", "name"])
def test_a_folder_that_holds_no_run_is_answered_with_one_line(tmp_path, capsys, kind):
    run, last = tmp_path / "run", tmp_path / "run" / "checkpoints" / "last.ckpt"
    if kind == "file":
        run.mkdir()
        last.parent.write_text("not a folder")
    else:
        last.parent.mkdir(parents=True)
    if kind == "folder":
        last.mkdir()
    if kind == "link":
        last.symlink_to(last)
    source = f"{tmp_path}/{'n' * 5000}" if kind == "name" else str(run)
    assert command.main([source]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
