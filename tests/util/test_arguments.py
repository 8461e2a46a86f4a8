"""How a command ends: one line for every mistake, whatever it is and wherever it is written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qam_lightning.util import arguments
from qam_lightning.util.arguments import answered
from qam_lightning.util.errors import UserError, shown

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain ö 漢", "plain ö 漢"),
        ("a\nb\r\t\0\x1b[31m\u2028\udcff", r"a\nb\r\t\x00\x1b[31m\u2028\udcff"),
        ("x" * 201, "x" * 200 + "…"),
        (None, "None"),
        (["a\n"], r"['a\n']"),
        pytest.param(10**5000, "<int>", id="huge"),
    ],
)
def test_text_of_users_is_shown_on_one_line(value, text):
    assert shown(value) == text


def raising(error):
    def command():
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("no\nsuch"), r"error: no\nsuch"),
        (PermissionError(13, "Permission denied", "a\nb"), r"error: a\nb: Permission denied"),
        (OSError(28, "No space left on device"), "error: No space left on device"),
        (
            MemoryError("Unable to allocate 3 GiB."),
            "error: out of memory: Unable to allocate 3 GiB",
        ),
        (MemoryError(), "error: out of memory; lower data.batch_size"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(error, line, capsys):
    assert answered(raising(error)) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(line)


def test_ctrl_c_is_status_130(capsys):
    assert answered(raising(KeyboardInterrupt())) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_the_unforeseen_is_one_line_with_its_traceback_in_a_file(
    unforeseen, monkeypatch, capsys, tmp_path
):
    monkeypatch.setattr(arguments, "unforeseen", unforeseen)
    monkeypatch.chdir(tmp_path)
    assert answered(raising(KeyError("first\nsecond"))) == 1
    (log,) = tmp_path.glob("qam-error-*.log")
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        rf"error: unforeseen: KeyError: 'first\nsecond'; the traceback is in {log.name}; "
        "please report it"
    )
    assert "Traceback" in log.read_text() and "in command" in log.read_text()
    log.unlink()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    monkeypatch.chdir("/proc")  # nobody can write here
    assert answered(raising(ValueError("a\nb"))) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "ValueError: a; no folder could take its traceback" in line


# -- output that cannot be written -----------------------------------------------------------------

PRINTING = """
import sys
from qam_lightning.util.arguments import answered

def command():
    print("\\u2581\\u00b7 first", flush=True)
    for _ in range(3000):
        print("more of it")
    open("result", "w").write("done")
    {end}

sys.exit(answered(command))
"""


def outcome(folder, shell, end="return 0", **environment):
    """Run a printing command in a shell; return its status, output, and whether it was finished."""
    (folder / "command.py").write_text(PRINTING.format(end=end))
    done = subprocess.run(
        ["sh", "-c", shell.replace("RUN", f"'{sys.executable}' command.py")],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
    )
    return done.returncode, done.stdout, done.stderr, (folder / "result").exists()


MISTAKE = "from qam_lightning.util.errors import UserError; raise UserError('\\u2581')"


@pytest.mark.parametrize(
    ("shell", "status", "said"),
    [
        ("RUN > /dev/full", 0, b"warning: standard output: No space left on device; "),
        ("RUN > /dev/full 2> /dev/full", 0, b""),
        ("RUN >&-", 0, b""),
        ("RUN 2>&-", 0, b""),
        ("RUN <&- >&- 2>&-", 0, b""),
        ("{ RUN; echo $? > status; } | head -n 1; exit $(cat status)", 0, b""),
    ],
)
def test_output_never_ends_a_command(shell, status, said, tmp_path):
    code, _, err, finished = outcome(tmp_path, shell)
    assert (code, finished) == (status, True)
    assert err.startswith(said) and len(err.splitlines()) == bool(said)


@pytest.mark.parametrize(
    ("shell", "status", "said"),
    [
        ("RUN > /dev/full", 2, b"error: standard output: No space left on device\n"),
        ("RUN >&-", 0, b""),
        # Its reader has left before it prints.
        ("{ sleep 0.3; RUN; echo $? > status; } | true; exit $(cat status)", 141, b""),
    ],
)
def test_where_output_is_all_its_loss_is_a_failure(shell, status, said, tmp_path):
    code, _, err, _ = outcome(tmp_path, shell, end="raise SystemExit(0)")
    assert (code, err) == (status, said)


@pytest.mark.parametrize("shell", ["RUN", "RUN 2> /dev/full", "RUN 2>&-"])
def test_a_mistake_keeps_its_status_where_nobody_can_read_it(shell, tmp_path):
    assert outcome(tmp_path, shell, end=MISTAKE)[0] == 2


@pytest.mark.parametrize(
    "console",
    [
        {"PYTHONIOENCODING": "latin-1"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_a_character_that_the_console_lacks_is_replaced(console, tmp_path):
    code, out, err, finished = outcome(tmp_path, "RUN", end=MISTAKE, **console)
    assert (code, err, finished) == (2, b"error: ?\n", True)
    assert out.startswith((b"?\xb7 first\n", b"?? first\n"))
