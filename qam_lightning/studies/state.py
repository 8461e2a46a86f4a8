"""What became of a run, read from its folder."""

import contextlib
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from qam_lightning.checkpoints import CheckpointInfo, describe, last_checkpoints
from qam_lightning.online.schedule import Length
from qam_lightning.run_folder import contents, holder
from qam_lightning.util.errors import UserError, shown
from qam_lightning.util.metrics_csv import last_row
from qam_lightning.util.schema import Schema, Text, read_json

EXIT = "exit.json"
"""The file in a run's folder that says how its last process ended, see `launch.finish`."""

Kind = Literal["finished", "running", "stopped", "failed", "pruned", "new"]
KINDS = get_args(Kind)

_FAILURES = (1, 2)  # exit codes of `fit`: an unforeseen exception, a user's mistake


class State(NamedTuple):
    """What became of a run.

    Attributes:
        kind: ``finished``; ``running``, in a process that holds the folder's lock; ``failed``: its
            last process ended with an error; ``stopped``: by a signal, a kill or a crash of the
            machine; ``pruned``: by a search; ``new``: it never started.
        gradient_step: gradient steps at the last checkpoint, or row of metrics while it runs.
        env_step: environment steps, likewise.
        length: what a finished run has; 0 steps if that is unknown.
        line: what a failed run said last; who holds the folder of a running one.
        info: facts of the last checkpoint, None without one.
    """

    kind: Kind
    gradient_step: int = 0
    env_step: int = 0
    length: Length = Length()
    line: str = ""
    info: CheckpointInfo | None = None

    @property
    def done(self) -> int:
        """Steps taken: gradient steps offline, environment steps online; at most `total`."""
        return min(self.gradient_step, self.length.gradient_steps) + min(
            self.env_step, self.length.env_steps
        )

    @property
    def total(self) -> int:
        """Steps of a finished run."""
        return self.length.gradient_steps + self.length.env_steps


def state_of(run_dir: Path, wanted: Length | None = None) -> State:
    """Return what became of the run in a folder.

    Args:
        run_dir: the folder.
        wanted: how long the run should be; as long as it was when it was last started if None.

    Raises:
        UserError: the folder holds files of a run, but no checkpoint that can be read.
    """
    found = last_checkpoints(run_dir)
    if not found:
        end = ended(run_dir)
        if (who := holder(run_dir)) is not None:
            return State("running", length=wanted or Length(), line=who)
        if held := contents(run_dir):
            raise UserError(
                f"{run_dir} already holds a run ({held[0].relative_to(run_dir)}, but no "
                "checkpoint); move it away"
            )
        return _after(end, State("stopped" if end.code else "new", length=wanted or Length()))
    info = describe(found[0])
    goal = wanted or info.length
    steps = State("stopped", info.gradient_step, info.env_step, goal, info=info)
    if (who := holder(run_dir)) is not None:
        return _newest(run_dir, steps)._replace(kind="running", line=who)
    if goal.is_reached(info.gradient_step, info.env_step):
        return steps._replace(kind="finished")
    end = ended(run_dir)
    return steps._replace(kind="pruned") if end.pruned else _after(end, steps)


def told_state_of(run_dir: Path, wanted: Length | None = None) -> State:
    """Return the same, where a run that cannot be read is a failed one: for what is shown."""
    try:
        return state_of(run_dir, wanted)
    except UserError as error:
        return State("failed", length=wanted or Length(), line=str(error))


class End(Schema):
    """How a run's last process ended.

    Attributes:
        code: exit code of ``fit``, negative after a signal that killed it; None if unknown.
        line: the last line it printed.
        pruned: whether a search stopped it for good.
    """

    code: int | None = None
    line: Text = ""
    pruned: bool = False


def ended(run_dir: Path) -> End:
    """Return what `launch.finish` recorded."""
    with contextlib.suppress(UserError):  # none, or damaged
        end: End = read_json(End, run_dir / EXIT, "how a run ended", "")
        return end.model_copy(update={"line": shown(end.line, 300)})
    return End()


def failed_since(run_dir: Path, moment: float) -> bool:
    """Whether a run's last process ended with an error after a time, in seconds as of a file."""
    with contextlib.suppress(OSError):  # nothing is recorded
        later = (run_dir / EXIT).stat().st_mtime > moment
        return later and ended(run_dir).code in _FAILURES
    return False


def _after(end: End, state: State) -> State:
    """Return a state as a failed one if the run's last process failed."""
    failed = end.code in _FAILURES
    return state._replace(kind="failed", line=end.line) if failed else state


def _newest(run_dir: Path, state: State) -> State:
    """Return a state with the steps of the last row of metrics, which may be further."""
    with contextlib.suppress(LookupError, OSError, ValueError):  # none yet, or damaged
        row = last_row(run_dir / "metrics" / "train.csv")
        return state._replace(
            gradient_step=int(row["gradient_step"]), env_step=int(row["env_step"])
        )
    return state
