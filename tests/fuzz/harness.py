"""Runs an input in a process of its own and judges how it ends.

The processes are forked from one that has imported everything and has a single thread, so an input
costs tenths of a second, and a crash, a hang or a leak stays its own.
"""

import contextlib
import hashlib
import io
import os
import shutil
import signal
import stat
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from tests.fuzz import sound
from tests.fuzz.case import Case, Group

SECONDS = 20.0
"""A limit for every input."""

PATIENCE = 2.0
"""How long an endless input is watched."""

MEMORY = 1536 << 20
"""Bytes that an input may take beyond what the warm process has."""

THREADS = 500
"""An input that starts more is ended at once, for the sake of the machine."""

LENGTH = 2500
"""Characters of an error."""

EXECUTED = "EXECUTED"
"""Name of the file that a payload makes when it is run."""

LOCKS = "*.lock"
"""Files that may stay behind."""

NOTICES = ("warning: ", ": falling back to ")
"""Lines that may come before the error."""

Call = Callable[[list[str]], int]


def _load_policy(arguments: list[str]) -> int:
    from qam_lightning.policy import load_policy
    from qam_lightning.util.arguments import answered

    return answered(lambda: 0 * load_policy(*arguments).method.gradient_step)


CALLS: dict[str, Call] = {"load_policy": _load_policy}
"""What is tried besides commands; it answers errors as a command would."""


class Outcome(NamedTuple):
    """How an input ended.

    Attributes:
        code: exit code; negative after a signal; None if it was ended for its time or memory.
        seconds: time taken.
        memory: most bytes taken beyond those of the warm process.
        stdout: what it wrote.
        stderr: what it wrote.
        changes: paths, relative to the case's folder, that differ from before.
        executed: whether a payload was run.
        escaped: files outside the case's folder.
    """

    code: int | None
    seconds: float
    memory: int
    stdout: str
    stderr: str
    changes: list[str]
    executed: bool
    escaped: list[str]


@dataclass
class Result:
    """An input and its outcome; ``problem`` is None if it ended well."""

    case: Case
    outcome: Outcome
    problem: str | None

    def report(self) -> str:
        """Return everything that it takes to understand a failure."""
        case, outcome = self.case, self.outcome
        return "\n".join(
            [
                f"{case.group} {case.number} of seed {case.seed}, {case.kind}: {self.problem}",
                f"  input:   {case.about}",
                f"  command: {' '.join(ascii(word)[1:-1][:200] for word in case.command)}",
                f"  must:    {case.must}; a refusal names one of {list(case.places)[:8]}",
                f"  ended:   code {outcome.code} after {outcome.seconds:.1f} s, "
                f"{outcome.memory >> 20} MiB; changed: {outcome.changes[:8]}",
                *(f"  stderr:  {line[:400]!r}" for line in outcome.stderr.splitlines()[-6:]),
                f"  again:   {case.again}",
            ]
        )


def warm() -> None:
    """Import everything, and fill the caches, without starting a thread."""
    from qam_lightning.cli import main
    from qam_lightning.util.imports import uncollected

    with uncollected():
        import torch

        import qam_lightning.cli.training  # noqa: F401
        from qam_lightning.envs.make import make_env

    torch.set_num_threads(1)
    make_env("InvertedPendulum-v5", 1).close()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main(["fit", "--domain=scene", "--print_config"])
    assert len(os.listdir("/proc/self/task")) == 1, "a process with threads cannot be forked"


def prepare(base: Path) -> None:
    """Make the sound files in an empty folder, in a process of their own."""
    (base / "cases").mkdir()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            silent = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silent, 1)
            sound.build(base / "sound")
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0, "the sound files cannot be made"


def run(group: Group, seed: int, number: int, base: Path) -> Result:
    """Make an input from the sound files, run it, judge it, and remove its files.

    Args:
        group: the group of the input.
        seed: seed of the trial.
        number: of the input in its group.
        base: the folder given to `prepare`.
    """
    place = base / "cases" / f"{group.name}-{number}"
    work = place / "work"
    shutil.copytree(base / "sound", work, symlinks=True)
    case = group.make(seed, number, work)
    outcome, problem = attempt(case, place)
    if problem is None and (outcome.code == 0 or outcome.code in case.codes) and case.check:
        problem = _checked(case, work, outcome)
    shutil.rmtree(place)
    return Result(case, outcome, problem)


def _checked(case: Case, work: Path, outcome: Outcome) -> str | None:
    assert case.check is not None
    try:
        return case.check(work, outcome.stdout)
    except Exception as error:  # the result is not even readable
        return f"the result cannot be checked: {type(error).__name__}: {error}"


def attempt(case: Case, place: Path) -> tuple[Outcome, str | None]:
    """Run an input in ``place/work``; return how it ended, and what is wrong with that."""
    work = place / "work"
    for name in ("home", "temporary"):
        (place / name).mkdir()
    before, neighbours = contents(work), set(os.listdir(place.parent))
    start, base = time.monotonic(), _memory(os.getpid())
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _child(case, place)
    code, peak = _wait(pid, start + (PATIENCE if case.endless else SECONDS), base + 2 * MEMORY)
    with contextlib.suppress(ProcessLookupError):  # what it started
        os.killpg(pid, signal.SIGKILL)
    after = contents(work)
    changes = sorted(p for p in before.keys() | after.keys() if before.get(p) != after.get(p))
    known = {"work", "home", "temporary", "stdout", "stderr", EXECUTED}
    escaped = {*os.listdir(place)} - known | {*os.listdir(place.parent)} - neighbours
    outcome = Outcome(
        code=code,
        seconds=time.monotonic() - start,
        memory=max(0, peak - base),
        stdout=(place / "stdout").read_text(errors="replace"),
        stderr=(place / "stderr").read_text(errors="replace"),
        changes=changes,
        executed=(place / EXECUTED).exists(),
        escaped=sorted(escaped),
    )
    return outcome, judge(case, outcome)


def judge(case: Case, outcome: Outcome) -> str | None:
    """Return what is wrong with an outcome, None if it is well."""
    if outcome.executed:
        return "a payload was run"
    if outcome.escaped:
        return f"wrote outside its folder: {', '.join(outcome.escaped)}"
    if outcome.memory > MEMORY:
        return f"takes more than {MEMORY >> 20} MiB"
    if outcome.code is None:
        soon = outcome.seconds < (PATIENCE if case.endless else SECONDS)
        if soon:
            return "takes too much memory or too many threads"
        return None if case.endless else f"has no end within {SECONDS:g} s"
    if outcome.code < 0:
        return f"dies of {signal.Signals(-outcome.code).name}"
    if "Traceback" in outcome.stderr:
        return f"traceback: {_exception(outcome.stderr)}"
    if "error: unforeseen: " in outcome.stderr:
        return f"unforeseen: {outcome.stderr.partition('unforeseen: ')[2][:200]}"
    if outcome.code == 0 or outcome.code in case.codes:
        return "is accepted" if case.must == "be refused" else None
    if outcome.code != 2:
        return f"exit code {outcome.code}: {outcome.stderr.strip()[-200:]}"
    if case.must == "be accepted":
        return f"is refused: {outcome.stderr.strip()[-300:]}"
    return _of_refusal(case, outcome)


def _of_refusal(case: Case, outcome: Outcome) -> str | None:
    text = outcome.stderr.removesuffix("\n")
    # Not splitlines alone: a line separator within a message must be escaped, too.
    *notices, line = [x for x in text.split("\n") if not any(n in x for n in NOTICES)] or [""]
    if notices:
        return f"more than one line of error: {text[-300:]!r}"
    if not line.startswith("error: "):
        return f"no line of error: {text[-300:]!r}"
    if not line.isprintable():
        return f"a control character in {line!r}"
    if len(line) > LENGTH:
        return f"an error of {len(line)} characters"
    if not any(place in line for place in case.places):
        return f"names no place: {line[:300]!r}"
    left = [
        p
        for p in outcome.changes
        if not any(fnmatch(p, allowed) for allowed in (LOCKS, *case.writes))
    ]
    if left and "diverged" not in line:
        return f"refused, but changed {', '.join(left[:5])}"
    return None


def contents(folder: Path) -> dict[str, object]:
    """Return path -> what is there, of everything below a folder; links are not followed."""
    found: dict[str, object] = {}
    for above, folders, files in os.walk(folder):
        for name in folders + files:
            path = Path(above, name)
            facts = path.lstat()
            content: object = stat.S_IFMT(facts.st_mode)
            if path.is_symlink():
                content = os.readlink(path)
            elif stat.S_ISREG(facts.st_mode):
                large = facts.st_size > 1 << 26
                content = facts.st_size if large else hashlib.sha1(path.read_bytes()).digest()
            found[str(path.relative_to(folder))] = content
    return found


def _child(case: Case, place: Path) -> None:
    """Run the input in this process, which was forked for it, and end."""
    code: object = 1
    try:
        os.setsid()
        for number, name in ((0, os.devnull), (1, place / "stdout"), (2, place / "stderr")):
            handle = os.open(name, os.O_RDWR | os.O_CREAT)
            os.dup2(handle, number)
        sys.stdout = open(1, "w", closefd=False)
        sys.stderr = open(2, "w", closefd=False, errors="backslashreplace", buffering=1)
        os.chdir(place / "work")
        os.environ |= {"HOME": str(place / "home"), "TMPDIR": str(place / "temporary")}
        os.environ |= {"QAM_DATA_URL": "http://127.0.0.1:9"}  # where nobody answers
        for name, value in case.environment.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        tempfile.tempdir = None
        sys.argv = ["qam"]
        sys.path.insert(0, str(place / "work"))  # as of `python -m qam_lightning` in this folder
        from qam_lightning.cli import main

        name, *arguments = case.command or [""]
        try:
            code = CALLS[name](arguments) if name in CALLS else main(case.command)
        except SystemExit as error:
            code = error.code or 0
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code if isinstance(code, int) else 1)


def _wait(pid: int, deadline: float, limit: int) -> tuple[int | None, int]:
    """Wait for a process; return its exit code and its largest memory in bytes."""
    stopped = False
    while True:
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        if ended:
            code = None if stopped else os.waitstatus_to_exitcode(status)
            return code, usage.ru_maxrss << 10
        late = time.monotonic() > deadline
        if not stopped and (late or _memory(pid) > limit or _threads(pid) > THREADS):
            os.kill(pid, signal.SIGKILL)
            stopped = True
        time.sleep(0.01)


def _memory(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def _threads(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[17])
    except (OSError, IndexError):
        return 0


def _exception(text: str) -> str:
    """The last line of a traceback, and the last place in the product."""
    lines = text.strip().splitlines()
    own = [x.strip() for x in lines if "qam_lightning/" in x and x.lstrip().startswith("File")]
    where = own[-1].rpartition("qam_lightning/")[2].replace('"', "") if own else ""
    last = next((x for x in reversed(lines) if x and not x.startswith(" ")), lines[-1])
    return f"{last[:200]} ({where})"


def summary(results: Sequence[Result]) -> str:
    """Return the failures by kind and problem, one example of each."""
    seen: dict[tuple[str, str, str], list[Result]] = {}
    for result in results:
        if result.problem:
            key = (result.case.group, result.case.kind, result.problem.split(":")[0])
            seen.setdefault(key, []).append(result)
    return "\n\n".join(
        f"[{len(found)} of this kind] {found[0].report()}" for found in seen.values()
    )
