"""What a study has to do: every configuration is built, and compared with the folders' runs."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from qam_lightning.checkpoints import last_checkpoints
from qam_lightning.cli.explain import spoken
from qam_lightning.cli.resume import changed
from qam_lightning.cli.training import FitCLI
from qam_lightning.envs.make import env_id
from qam_lightning.online.schedule import Length
from qam_lightning.studies.state import State, state_of
from qam_lightning.studies.study import Run, Study
from qam_lightning.util.errors import ArgumentError, UserError
from qam_lightning.util.provenance import mismatches
from qam_lightning.util.run_config import configuration

FREE = (
    *("threads", "ckpt_path", "run_dir", "log.", "progress.", "checkpoints.", "evaluation.workers"),
    *(f"data.{key}" for key in ("prefetch", "directory", "base_url", "store", "storage")),
)
"""Settings that may change while a study runs: they do not change what it finds."""

LONGER = ("trainer.max_steps", "online.steps")
"""Settings that may grow: a finished run goes on. The first may not once the run is online."""

_ONE_RUN = re.compile(r"\$\{(seed|data\.task)\}")


class Planned(NamedTuple):
    """A run of a study that can be started.

    Attributes:
        run: the run.
        state: what became of it so far.
        nodes: machines that it needs.
        devices: devices that it needs on each of them, as ``trainer.devices`` says.
        threads: CPU threads of its configuration, None if that leaves it to PyTorch.
        settings: its configuration, resolved.
    """

    run: Run
    state: State
    nodes: int
    devices: Any
    threads: int | None
    settings: dict[str, Any]


class Refused(UserError):
    """Runs of a study that cannot be started.

    Args:
        message: how many of them.
        problems: mistake -> the first run that has it.
    """

    def __init__(self, message: str, problems: dict[str, str]) -> None:
        super().__init__(message)
        self.problems = problems


def plan(
    study: Study, told: Callable[[int, int], None], any_version: bool = False
) -> list[Planned]:
    """Check all runs of a study; nothing is started or written.

    Configurations that differ by the seed and the task alone are built once.

    Args:
        study: the study.
        told: is called with the number of runs that were checked, and of all runs.
        any_version: take runs that other versions of the software have made.

    Raises:
        Refused: some cannot be started.
        UserError: two runs of a group are one.
    """
    builds: dict[str, _Built | UserError] = {}
    planned: list[Planned] = []
    problems: dict[str, str] = {}
    for number, run in enumerate(study.runs, 1):
        key = json.dumps(run.settings)
        if "${" not in key:  # which may stand for the seed or the task
            own = {k: v for k, v in run.settings.items() if not _is_checked_later(k, v)}
            key = json.dumps([own, bool(last_checkpoints(run.run_dir))])
        try:
            built = builds.get(key)
            if built is None or isinstance(built, _Built) and built.is_of_one_run:
                built = builds[key] = _built(run)
            planned.append(_planned(run, built, any_version))
        except UserError as error:
            builds.setdefault(key, error)  # the others would fail alike: one line for all
            problem = spoken(error) if isinstance(error, ArgumentError) else str(error)
            problems.setdefault(problem, run.name)
        told(number, len(study.runs))
    if problems:
        broken = f"{len(study.runs) - len(planned)} of {len(study.runs)}"
        raise Refused(f"{study.path}: {broken} runs cannot be started; nothing was", problems)
    if study.search is None:  # one may try a combination again
        _check_different(planned, study.path)
    return planned


def _check_different(planned: Iterable[Planned], path: Path) -> None:
    """Refuse two runs of a group that are one in their configurations, as qam-edit is qam_edit.

    Groups may share a run: the default is in each of several curves.
    """
    seen: dict[tuple[str, bytes], Run] = {}
    for item in planned:
        settings = {k: v for k, v in item.settings.items() if k not in ("run_dir", "log")}
        content = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
        key = item.run.group, content.digest()
        if (other := seen.setdefault(key, item.run)) is not item.run:
            raise UserError(
                f"{path}: {other.run_dir} and {item.run.run_dir} would hold the same run; write "
                "every value once"
            )


def _is_checked_later(key: str, value: Any) -> bool:
    """Whether a setting is a seed or a task of the usual kind, which `_planned` takes care of."""
    return type(value) is int and (key == "seed" and 0 <= value < 2**32 or key == "task")


class _Built(NamedTuple):
    """What was learned by building a configuration.

    Attributes:
        settings: the resolved configuration.
        length: how long the run is.
        is_of_one_run: whether a file refers to the seed or the task.
    """

    settings: dict[str, Any]
    length: Length
    is_of_one_run: bool


def _built(run: Run) -> _Built:
    """Compose and build a run's configuration."""
    # Its folder is looked at elsewhere; a run that resumes may have one.
    cli = FitCLI([*run.arguments, "--ckpt_path=last"])
    cli.check()
    if not last_checkpoints(run.run_dir):
        cli.start_from_clone()  # later it may be gone
    settings = configuration(cli.settings())
    files = {key: value for key, value in cli.given.config.items() if key != "run_dir"}
    length = Length.of(settings, None if cli.model.offline_phase else 0)
    return _Built(settings, length, bool(_ONE_RUN.search(json.dumps(files, default=str))))


def _planned(run: Run, built: "_Built | UserError", any_version: bool) -> Planned:
    if isinstance(built, UserError):
        raise built
    _check_place(run.run_dir)
    settings = {**built.settings, "run_dir": str(run.run_dir)}
    settings["seed"] = run.settings.get("seed", settings["seed"])
    if "task" in run.settings:
        settings["data"] = {**settings["data"], "task": run.settings["task"]}
        env_id(settings["data"]["env"], run.settings["task"])
    state = state_of(run.run_dir, built.length)
    if state.info is not None:
        _check_fits(run, state, settings, any_version)
    trainer = settings["trainer"]
    machine = trainer["num_nodes"], trainer["devices"], settings["threads"]
    return Planned(run, state, *machine, settings)


def _check_place(run_dir: Path) -> None:
    """Check that a run's folder exists or can be made.

    Raises:
        UserError: a file is in its way, or a folder that this user may not write to.
    """
    nearest = next(path for path in (run_dir, *run_dir.parents) if os.path.lexists(path))
    if not nearest.is_dir():
        raise UserError(f"{nearest}: is no folder, expected one for runs; move it away")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"{nearest}: cannot be written: Permission denied")


def _check_fits(run: Run, state: State, settings: dict[str, Any], any_version: bool) -> None:
    """Check that a folder holds the run that the study means.

    Raises:
        UserError: it is another one, or another version of the software made it.
    """
    assert state.info is not None
    before = configuration(state.info.config)
    if not before:
        raise UserError(f"{run.run_dir} holds a run that is not of this command line; move it away")
    phase = state.info.phase
    if differences(before, settings, phase):
        settings = _built(run).settings  # its own: others may hold its seed in further places
    if found := differences(before, settings, phase):
        raise UserError(
            f"{run.run_dir} was made with other settings ({'; '.join(found[:3])}); move it away, "
            "or undo the change"
        )
    if not any_version and (lines := mismatches(state.info.versions)):
        raise UserError(f"{run.run_dir}: {lines[0]}; move it away, or take it with --any_version")


def differences(before: dict[str, Any], after: dict[str, Any], phase: str) -> list[str]:
    """List the changed settings that make another run of one in a phase: see `FREE`, `LONGER`."""
    longer = LONGER if phase == "offline" else ("online.steps",)
    return [
        line
        for line in changed(before, after)
        if not line.startswith(FREE) and not _grows(line, longer)
    ]


def _grows(line: str, keys: Sequence[str]) -> bool:
    key, _, values = line.partition(": ")
    old, _, new = values.partition(" -> ")
    return key in keys and old.isdigit() and new.isdigit() and int(new) > int(old)


def missing(planned: Iterable[Planned]) -> list[Planned]:
    """Return what a study has still to run."""
    return [item for item in planned if item.state.kind in ("stopped", "failed", "new")]


def counted(planned: Sequence[Planned]) -> str:
    """Say how many runs are in which state, e.g. ``12 runs: 8 finished, 4 new``."""
    kinds = [item.state.kind for item in planned]
    parts = [f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)]
    count = f"{len(kinds)} {'run' if len(kinds) == 1 else 'runs'}"
    return f"{count}: {', '.join(parts)}" if parts else count
