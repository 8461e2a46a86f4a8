"""The trial can fail: every way to end badly is told from ending well."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.fuzz import harness
from tests.fuzz.case import Case
from tests.fuzz.harness import MEMORY, Outcome, attempt, judge

WELL = Outcome(2, 0.1, 0, "", "error: a.yaml: wrong\n", [], executed=False, escaped=[])
CASE = Case([], "", ["a.yaml"])


@pytest.mark.parametrize(
    ("outcome", "case"),
    [
        (WELL, CASE),
        (WELL._replace(code=0, stderr=""), CASE),
        (WELL._replace(changes=["x/.lock"]), CASE),
        (WELL._replace(changes=["made"]), Case([], "", ["a.yaml"], writes=["ma*"])),
        (WELL._replace(stderr=f"a: falling back to b\n{WELL.stderr}"), CASE),
        (WELL._replace(code=None, seconds=99), Case([], "", [], endless=True)),
        (WELL._replace(code=1, stderr=""), Case([], "", [], codes=(1,))),
    ],
)
def test_good_ends(outcome: Outcome, case: Case) -> None:
    assert judge(case, outcome) is None


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"executed": True}, "a payload was run"),
        ({"escaped": ["EVIL"]}, "wrote outside"),
        ({"memory": MEMORY + 1}, "takes more than"),
        ({"code": None, "seconds": 99}, "has no end"),
        ({"code": None, "seconds": 1}, "takes too much"),
        ({"code": -11}, "dies of SIGSEGV"),
        ({"code": 1, "stderr": "Traceback (most recent call last):\nKeyError: 1"}, "traceback"),
        ({"code": 1, "stderr": "error: unforeseen: KeyError: 1"}, "unforeseen"),
        ({"code": 1, "stderr": ""}, "exit code 1"),
        ({"stderr": "error: a.yaml: one\nand two\n"}, "more than one line"),
        ({"stderr": "a.yaml: wrong\n"}, "no line of error"),
        ({"stderr": ""}, "no line of error"),
        ({"stderr": "error: a.yaml: \x1b[31m\n"}, "a control character"),
        ({"stderr": "error: a.yaml: \u2028\n"}, "a control character"),
        ({"stderr": f"error: a.yaml: {'x' * 9999}\n"}, "an error of"),
        ({"stderr": "error: wrong\n"}, "names no place"),
        ({"changes": ["run/config.yaml"]}, "refused, but changed"),
    ],
)
def test_bad_ends(changes: dict, problem: str) -> None:
    assert (judge(CASE, WELL._replace(**changes)) or "").startswith(problem)


def test_what_an_input_must() -> None:
    accepted = WELL._replace(code=0, stderr="")
    assert judge(Case([], "", [], "be refused"), accepted) == "is accepted"
    assert (judge(Case([], "", ["a"], "be accepted"), WELL) or "").startswith("is refused")


def run_code(arguments: list[str]) -> int:
    Path("..", harness.EXECUTED).touch()
    return 0


def take_memory(arguments: list[str]) -> int:
    return 0 * len(b"x" * (2 * MEMORY))


CALLS = {
    "crash": (lambda _: os.kill(os.getpid(), signal.SIGKILL), "dies of SIGKILL"),
    "hang": (lambda _: time.sleep(99), "has no end"),
    "escape": (lambda _: Path("../EVIL").write_text(""), "wrote outside"),
    "execute": (run_code, "a payload was run"),
    "grow": (take_memory, "takes"),
    "fail": (lambda _: 1 // 0, "traceback: ZeroDivisionError"),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_process_is_watched(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    call, problem = CALLS[name]
    monkeypatch.setitem(harness.CALLS, name, call)
    monkeypatch.setattr(harness, "SECONDS", 0.5 if name == "hang" else 20)
    (tmp_path / "place/work").mkdir(parents=True)
    assert (attempt(Case([name], "", []), tmp_path / "place")[1] or "").startswith(problem)
