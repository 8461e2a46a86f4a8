"""What a job of a study does on a node of the cluster: it keeps some of the study's runs going.

The job starts its runs, at most `Task.slots` at a time. It passes the first signal that asks it to
stop on to its runs, waits until they are saved, and exits with `AGAIN`. The job's script then
requeues it, see `slurm`. Requeued, it does the same with the runs that are not finished yet. A job
whose time ended before any run got further fails instead: it would do the same again.
"""

import itertools
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, NamedTuple

from qam_lightning.online.schedule import Length
from qam_lightning.studies import launch
from qam_lightning.studies.state import State, failed_since, state_of
from qam_lightning.studies.study import Run
from qam_lightning.util.devices import available_cores
from qam_lightning.util.errors import UserError
from qam_lightning.util.schema import Count, Schema, read_json

TASKS = "tasks.json"
"""The file that lists what each task of a job array does."""

AGAIN = 128 + signal.SIGTERM
"""Exit code of a task that was stopped and has runs to go on with."""

TIME_IS_UP = signal.SIGUSR1
"""What the job asks SLURM to send before its time is up. On preemption SLURM sends SIGTERM."""

_STOPPING = (signal.SIGTERM, TIME_IS_UP, signal.SIGUSR2, signal.SIGHUP, signal.SIGINT)
_PAUSE = 0.5  # seconds between looks at the runs


class Entry(Schema):
    """A run in `TASKS`.

    Attributes:
        group: as in `Run`, and so are the next four.
        length: how long the study wants it.
    """

    group: str
    axes: dict[str, Any]
    settings: dict[str, Any]
    run_dir: str
    arguments: list[str]
    length: Length

    @property
    def run(self) -> Run:
        """The run."""
        return Run(self.group, self.axes, self.settings, Path(self.run_dir), self.arguments)

    def state(self) -> State:
        """What became of the run.

        Raises:
            UserError: see `state_of`.
        """
        return state_of(Path(self.run_dir), self.length)

    def failed_since(self, submitted: float) -> bool:
        """Whether the run has failed since its job was submitted: the job does not try it again."""
        return failed_since(Path(self.run_dir), submitted)


class Task(Schema):
    """What one task of an array does.

    Attributes:
        entries: its runs.
        slots: how many of them run at a time.
        ranks: each run is several processes, which ``srun`` starts.
    """

    entries: list[Entry]
    slots: Count
    ranks: bool


def read_tasks(path: Path) -> list[Task]:
    """Read a `TASKS` file.

    Raises:
        UserError: it cannot be read, or is none.
    """
    return read_json(list[Task], path, "the tasks of a job", "submit the study again")


def work(path: str, number: int) -> None:
    """Do a task of an array: the function that submitit calls.

    Args:
        path: of the `TASKS` file.
        number: of the task.

    Raises:
        SystemExit: always, with 0: nothing is left to do; 1: a run failed, and none is left to do,
            or no run got further before the time was up; `AGAIN`.
    """
    tasks = read_tasks(Path(path))
    raise SystemExit(_Job(tasks[number], Path(path).stat().st_mtime).work())


class _Process(NamedTuple):
    """A run's process.

    Attributes:
        entry: the run.
        process: its process, or ``srun``.
        steps: that the run had taken before.
        begin: where its words begin in the run's log.
    """

    entry: Entry
    process: subprocess.Popen
    steps: int
    begin: int


class _Job:
    """A task at work, which was submitted at a time."""

    def __init__(self, task: Task, submitted: float) -> None:
        self._task, self._submitted, self._waiting = task, submitted, list(task.entries)
        self._slots: dict[int, _Process] = {}
        self._tried_again: set[str] = set()
        self._signal: int | None = None
        self._told = self._again = self._failed = self._further = False

    def work(self) -> int:
        """Keep the runs going; return the exit code."""
        for number in _STOPPING:
            signal.signal(number, self._on_signal)
        while self._slots or self._waiting:
            if self._signal is None:
                self._fill()
            elif not self._told:
                self._stop()
            for slot in [s for s, at in self._slots.items() if at.process.poll() is not None]:
                self._ended(self._slots.pop(slot))
            if self._slots:
                time.sleep(_PAUSE)
        if self._again and self._signal == TIME_IS_UP and not self._further:
            _say("no run got further before the job's time was up; ask for more time")
            return 1
        return AGAIN if self._again else int(self._failed)

    def _on_signal(self, number: int, frame: object) -> None:
        self._signal = self._signal or number

    def _stop(self) -> None:
        """Ask the runs to stop; those that wait are for the job's next life."""
        _say(f"{signal.Signals(self._signal or 0).name}: the runs stop")
        self._told = True
        self._again |= bool(self._waiting)
        self._waiting.clear()
        # SIGTERM would make srun kill its tasks; it passes SIGUSR1 on.
        number = signal.SIGUSR1 if self._task.ranks else signal.SIGTERM
        for at in self._slots.values():
            at.process.send_signal(number)

    def _fill(self) -> None:
        """Start runs in the slots that are free."""
        free = (slot for slot in itertools.count() if slot not in self._slots)
        while self._waiting and len(self._slots) < self._task.slots and self._signal is None:
            entry = self._waiting.pop(0)
            try:
                state = entry.state()
                if not self._is_left_out(entry, state):
                    slot = next(free)
                    begin = _size(entry.run)
                    process = self._start(entry.run, slot)
                    self._slots[slot] = _Process(entry, process, state.done, begin)
                    _say(f"{entry.run.name}: started, process {process.pid}")
            except UserError as error:
                self._failed = True
                _say(f"{entry.run.name}: {error}")

    def _start(self, run: Run, slot: int) -> subprocess.Popen:
        if self._task.ranks:
            return launch.start(run, {}, launcher=("srun", "--kill-on-bad-exit"))
        jobs, cores = self._task.slots, int(os.environ.get("SLURM_CPUS_PER_TASK", 0))
        cores = cores or available_cores()
        variables = launch.shared_variables(slot, jobs, cores)
        return launch.start(run, variables, launch.shared_flags(run, jobs, cores))

    def _is_left_out(self, entry: Entry, state: State) -> bool:
        """Whether a run needs no process of this job's."""
        failed = state.kind == "failed" and entry.failed_since(self._submitted)
        self._failed |= failed
        left_out = failed or state.kind in ("finished", "running", "pruned")
        if left_out:
            _say(f"{entry.run.name}: {state.kind}{f', {state.line}' if state.line else ''}")
        return left_out

    def _ended(self, at: _Process) -> None:
        """Note how a run's process ended, and what follows from it."""
        run, code = at.entry.run, self._code(at)
        further = _steps_of(at.entry) > at.steps
        self._further |= further
        if code == 0:
            _say(f"{run.name}: finished")
        elif code == 2 and launch.is_elsewhere(run, launch.last_line(run.run_dir / launch.LOG)):
            _say(f"{run.name}: another process has it")
        elif 0 < code < 128:
            self._fail(run, code)
        elif self._is_stopped(code):
            _say(f"{run.name}: stopped, exit code {code}")
            self._again = True
        elif further or run.name not in self._tried_again:
            _say(f"{run.name}: ended with exit code {code}, is tried again")
            if further:
                self._tried_again.discard(run.name)
            else:
                self._tried_again.add(run.name)
            self._waiting.append(at.entry)
        else:  # it gets no further
            self._fail(run, code)

    def _code(self, at: _Process) -> int:
        """Return the exit code of a run.

        That of ``srun`` may be of a task that it ended because another one failed. It says which
        was the first.
        """
        if self._task.ranks and at.process.returncode:
            with (at.entry.run.run_dir / launch.LOG).open("rb") as log:
                log.seek(at.begin)
                first = re.search(rb"^srun: error: .* tasks? .*: (.*)$", log.read(), re.MULTILINE)
            if first and (own := re.match(rb"Exited with exit code (\d+)", first[1])):
                return int(own[1])
        return at.process.returncode

    def _is_stopped(self, code: int) -> bool:
        """Whether a signal to the whole job ended a run, rather than a signal to it alone."""
        if self._signal is None:
            time.sleep(_PAUSE)  # SLURM signals all processes of a job, one after the other
        # SLURM signals the tasks of srun, but not this process beside it.
        return self._signal is not None or self._task.ranks

    def _fail(self, run: Run, code: int) -> None:
        self._failed = True
        try:
            _say(f"{run.name}: failed with exit code {code}: {launch.finish(run, code)}")
        except UserError as error:
            _say(f"{run.name}: failed with exit code {code}; {error}")


def _steps_of(entry: Entry) -> int:
    try:
        return entry.state().done
    except UserError:  # no checkpoint was ever complete
        return 0


def _size(run: Run) -> int:
    log = run.run_dir / launch.LOG
    return log.stat().st_size if log.exists() else 0


def _say(line: str) -> None:
    print(line, flush=True)
