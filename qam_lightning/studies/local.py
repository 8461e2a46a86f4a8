"""Runs of a study on this machine, several at a time."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple, Protocol

import torch
from rich.console import Console
from rich.live import Live
from rich.table import Table

from qam_lightning.studies.launch import finish, is_elsewhere, shared_flags, shared_variables, start
from qam_lightning.studies.plan import Planned
from qam_lightning.studies.state import State, told_state_of
from qam_lightning.util.devices import available_cores, device_count, is_counted
from qam_lightning.util.errors import UserError, shown

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_POLL = 0.2  # seconds between two looks at the processes
_REFRESH = 2.0  # seconds between two looks at their metrics


class Source(Protocol):
    """Where the runs come from."""

    @property
    def waiting(self) -> int:
        """How many runs are still to come."""

    def take(self) -> Planned | None:
        """Return the next run; None if there is none.

        Raises:
            UserError: there are to be more runs, but none can be started.
        """

    def hopeless(self, item: Planned) -> bool:
        """Whether a run should be stopped for good."""

    def ended(self, item: Planned, state: State) -> None:
        """Learn how a run ended."""


class Listed:
    """Runs that are known from the beginning; a `Source`.

    Args:
        planned: the runs, in order.
    """

    def __init__(self, planned: Sequence[Planned]) -> None:
        self._waiting = list(planned)

    @property
    def waiting(self) -> int:
        """How many runs are still to come."""
        return len(self._waiting)

    def take(self) -> Planned | None:
        """Return the next run."""
        return self._waiting.pop(0) if self._waiting else None

    def hopeless(self, item: Planned) -> bool:
        """Return False: all runs are wanted."""
        return False

    def ended(self, item: Planned, state: State) -> None:
        """Learn nothing from it."""


class Outcome(NamedTuple):
    """How the runs ended.

    Attributes:
        unfinished: the names of those that failed, or that someone killed or stopped, each with its
            state and the last line it said.
        signal: the signal that stopped all, None if none did.
        refusal: why the source gave fewer runs than it should have, None if it gave all.
    """

    unfinished: list[tuple[str, str]]
    signal: int | None
    refusal: UserError | None = None


def default_jobs(planned: Sequence[Planned]) -> int:
    """Return how many runs share the machine well: each has its GPUs, or its threads' cores."""
    if on_gpus := _on_gpus(planned):
        if not all(is_counted(item.devices) for item in on_gpus):
            return 1
        return max(1, torch.cuda.device_count() // gpus_each(planned, 1))
    cores = [
        (item.threads or available_cores()) * (device_count(item.devices) or 1) for item in planned
    ]
    return max(1, available_cores() // max(cores, default=1))


def gpus_each(planned: Sequence[Planned], jobs: int) -> int:
    """Return how many GPUs each of several runs gets: as many as the widest run needs, at least 1.

    Raises:
        UserError: several are to run at a time, and ``trainer.devices`` of one is no count.
    """
    on_gpus = _on_gpus(planned)
    for item in on_gpus:
        if jobs > 1 and not is_counted(item.devices):
            raise UserError(
                f"{item.run.name}: trainer.devices is {shown(item.devices)}, expected a number, at "
                "least 1; or run one at a time, with --jobs 1"
            )
    return max((device_count(item.devices) or 1 for item in on_gpus), default=1)


def _on_gpus(planned: Sequence[Planned]) -> list[Planned]:
    """Return the runs that this machine's GPUs train."""
    if not torch.cuda.is_available():
        return []
    return [item for item in planned if item.settings["trainer"]["accelerator"] != "cpu"]


def run_here(source: Source, jobs: int, gpus: int = 1) -> Outcome:
    """Run what a source gives, ``jobs`` at a time.

    The first Ctrl-C, SIGTERM or SIGHUP stops all runs, and waits until each has saved; the second
    kills them. If the source refuses to give a further run, those that run go on to their end.

    Args:
        source: the runs.
        jobs: how many processes at a time, at least 1.
        gpus: how many of the machine's GPUs each of them gets, if it has any.

    Returns:
        How they ended.
    """
    return _Scheduler(source, jobs, gpus).run()


class _Process(NamedTuple):
    """A run's process.

    Attributes:
        item: the run.
        slot: which of the places it has, from 0.
        handle: the process.
    """

    item: Planned
    slot: int
    handle: subprocess.Popen


class _Scheduler:
    """The loop of `run_here`."""

    def __init__(self, source: Source, jobs: int, gpus: int) -> None:
        self._source, self._jobs, self._gpus = source, jobs, gpus
        self._all = source.waiting
        self._pruned: set[str] = set()
        self._running: list[_Process] = []
        self._ended = 0
        self._unfinished: list[tuple[str, str]] = []
        self._signals: list[int] = []
        self._refusal: UserError | None = None
        self._looked = time.monotonic()
        self._display = _Display()

    def run(self) -> Outcome:
        with _signals(self._on_signal), self._display:
            try:
                self._start()
                while self._running:
                    time.sleep(_POLL)
                    self._collect()
                    self._start()
                    self._prune()
                    waiting = 0 if self._refusal else self._source.waiting
                    self._display.show([p.item for p in self._running], waiting)
            except BaseException:  # no run may be left without anyone who watches it
                if not self._signals:
                    self._on_signal(signal.SIGTERM, None)
                for process in self._running:
                    process.handle.wait()
                raise
        stopping = self._signals[0] if self._signals else None
        return Outcome(self._unfinished, stopping, self._refusal)

    def _start(self) -> None:
        free = set(range(self._jobs)) - {process.slot for process in self._running}
        while free and not self._signals and (item := self._taken()) is not None:
            slot = min(free)
            free.remove(slot)
            self._display.begun(item)
            cores = available_cores()
            variables = shared_variables(slot, self._jobs, cores, self._gpus)
            try:
                handle = start(item.run, variables, shared_flags(item.run, self._jobs, cores))
            except UserError as error:  # its log cannot be written
                free.add(slot)
                self._end(item, State("failed", length=item.state.length), str(error))
            else:
                self._running.append(_Process(item, slot, handle))
                if self._signals:  # one that came before the line above
                    handle.send_signal(signal.SIGTERM)

    def _taken(self) -> Planned | None:
        """Return the source's next run; None if there is none, or once the source has refused."""
        if self._refusal is None:
            try:
                return self._source.take()
            except UserError as error:
                self._refusal = error
        return None

    def _collect(self) -> None:
        for process in [p for p in self._running if p.handle.poll() is not None]:
            self._running.remove(process)
            run, code = process.item.run, process.handle.returncode
            try:
                line = finish(run, code, run.name in self._pruned)
            except UserError as error:  # the disk is full, or the folder gone
                line = str(error)
            self._end(process.item, told_state_of(run.run_dir, process.item.state.length), line)

    def _end(self, item: Planned, state: State, line: str) -> None:
        """Note how a run ended, and what it said last."""
        self._source.ended(item, state)
        self._ended += 1
        told = f": {line}" if line and state.kind != "finished" else ""
        if state.kind in ("failed", "stopped", "new") and not is_elsewhere(item.run, line):
            self._unfinished.append((item.run.name, f"{state.kind}{told}"))
        count = f"[{self._ended}/{self._all}]"
        self._display.ended(item, state, f"{count} {item.run.name} {state.kind}{told}")

    def _prune(self) -> None:
        if time.monotonic() - self._looked < _REFRESH:
            return
        self._looked = time.monotonic()
        for process in self._running:
            name = process.item.run.name
            if name not in self._pruned and self._source.hopeless(process.item):
                self._pruned.add(name)
                process.handle.send_signal(signal.SIGTERM)

    def _on_signal(self, number: int, frame: object) -> None:
        self._signals.append(number)
        if len(self._signals) == 1:
            os.write(2, b"stopping when every run has saved (Ctrl-C kills them)\n")
        for process in self._running:
            if process.handle.poll() is None:
                process.handle.send_signal(
                    signal.SIGTERM if len(self._signals) == 1 else signal.SIGKILL
                )


@contextmanager
def _signals(handler: Callable[[int, Any], None]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in _STOPPING}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


# -- what is shown ---------------------------------------------------------------------------------


class _Display:
    """A line for each running run, and the total; on a terminal they stay in place."""

    def __init__(self, every_seconds: float = 60.0) -> None:
        self._console = Console(soft_wrap=True)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._every = every_seconds
        self._before: dict[str, State] = {}
        self._states: dict[str, State] = {}
        self._begun = self._looked = self._printed = time.monotonic()

    def __enter__(self) -> "_Display":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._live.stop()

    def begun(self, item: Planned) -> None:
        """Show a run from now on."""
        self._before[item.run.name] = self._states[item.run.name] = item.state

    def ended(self, item: Planned, state: State, line: str) -> None:
        """Tell that a run has ended."""
        self._states[item.run.name] = state
        self._console.print(line, markup=False, highlight=False)

    def show(self, running: Sequence[Planned], waiting: int) -> None:
        """Show where the runs are, if it is time."""
        now = time.monotonic()
        if now - self._looked < _REFRESH:
            return
        self._looked = now
        for item in running:
            self._states[item.run.name] = told_state_of(item.run.run_dir, item.state.length)
        if self._console.is_terminal:
            self._live.update(self._table(running, waiting), refresh=True)
        elif now - self._printed >= self._every:
            self._printed = now
            for item in running:
                self._console.print(self._line(item), markup=False, highlight=False)
            self._console.print(self._total(len(running), waiting), markup=False, highlight=False)

    def _table(self, running: Sequence[Planned], waiting: int) -> Table:
        table = Table(box=None, show_header=False, pad_edge=False)
        for item in running:
            table.add_row(self._line(item))
        table.add_row(self._total(len(running), waiting), style="bold")
        return table

    def _line(self, item: Planned) -> str:
        state = self._states[item.run.name]
        share = state.done / state.total if state.total else 0.0
        phase = f", {state.env_step:,} in the environment" if state.env_step else ""
        return f"  {item.run.name}: {share:4.0%}, {state.gradient_step:,} updates{phase}"

    def _total(self, running: int, waiting: int) -> str:
        took = time.monotonic() - self._begun
        done = sum(s.done - self._before[n].done for n, s in self._states.items())
        going = [s for s in self._states.values() if s.kind not in ("failed", "pruned")]
        left = float(sum(s.total - s.done for s in going))
        left += waiting * sum(s.total for s in going) / max(1, len(going))
        time_left = f", {timedelta(seconds=round(took / done * left))} left" if done else ""
        complete = sum(s.kind == "finished" for s in self._states.values())
        every = len(self._states) + waiting
        counts = f"{complete} of {every} finished, {running} running, {waiting} waiting"
        return counts + time_left
