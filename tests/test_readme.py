"""Every command the README shows works, as far as it gets without data and hours."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from jsonargparse import ArgumentParser

from qam_lightning.cli import main
from qam_lightning.data.generate import generate

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
COMMANDS = [
    shlex.split(line, comments=True)
    for block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
    if shlex.split(line, comments=True)
]
PROGRAMS = (["python", "train.py"], ["qam"], ["python", "-m", "qam_lightning"])
OTHERS = ("make", "pip", "git", "cd")


def command(words: list[str]) -> list[str]:
    """Return a command without the way it is called: ``fit --domain scene``."""
    if words[:2] == ["python", "eval.py"]:
        return ["eval", *words[2:]]
    for program in PROGRAMS:
        if words[: len(program)] == program:
            return words[len(program) :]
    return words


def commands(name: str) -> list[list[str]]:
    return [rest for first, *rest in map(command, COMMANDS) if first == name]


def test_every_command_is_of_a_tested_kind() -> None:
    kinds = {command(words)[0] for words in COMMANDS}
    assert kinds - set(OTHERS) <= {"fit", "eval", "generate", "data"}
    assert {"fit", "eval", "make"} <= kinds


@pytest.mark.parametrize("arguments", commands("fit"), ids=" ".join)
def test_fit_commands_resolve(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    show = [] if "--print_config" in arguments else ["--print_config"]
    with pytest.raises(SystemExit) as exit_:
        main(["fit", *arguments, *show])
    assert exit_.value.code == 0
    assert "class_path: qam_lightning.methods" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", commands("generate"), ids=" ".join)
def test_generate_commands_parse(arguments: list[str]) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_function_arguments(generate)
    assert parser.parse_args(arguments).env


@pytest.mark.parametrize("arguments", commands("data"), ids=" ".join)
def test_data_commands_get_as_far_as_the_missing_files(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = [f"--directory={tmp_path}", "--base_url=http://127.0.0.1:1"]
    assert main(["data", *arguments, *nowhere]) == 2
    message = capsys.readouterr().err
    assert len(message.splitlines()) == 1 and "127.0.0.1" in message


@pytest.mark.parametrize("arguments", commands("eval"), ids=" ".join)
def test_eval_commands_get_as_far_as_the_missing_run(arguments: list[str], tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, ROOT / "eval.py", *arguments],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1 and arguments[0] in result.stderr


@pytest.mark.parametrize("arguments", commands("make"), ids=" ".join)
def test_make_targets_exist(arguments: list[str]) -> None:
    subprocess.run(["make", "--dry-run", *arguments], cwd=ROOT, check=True, capture_output=True)
