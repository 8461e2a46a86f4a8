"""A run of a study as a process."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from qam_lightning.checkpoints import last_checkpoints
from qam_lightning.run_folder import holder
from qam_lightning.studies.state import EXIT, End
from qam_lightning.studies.study import Run
from qam_lightning.util.errors import shown
from qam_lightning.util.files import save_json, writing

LOG = "output.log"
"""The file in a run's folder that gets what its processes print."""

_LAUNCHERS = ("srun: ", "slurmstepd: ")
_TAIL = 16_384  # bytes in which the last line is looked for


def start(
    run: Run,
    environment: Mapping[str, str],
    extra: tuple[str, ...] = (),
    launcher: tuple[str, ...] = (),
) -> subprocess.Popen:
    """Start ``fit`` in a session of its own: a terminal's Ctrl-C does not reach it.

    It goes on from the run's last checkpoint if there is one.

    Args:
        run: the run.
        environment: variables besides those of this process.
        extra: further arguments of ``fit``, which must not change results.
        launcher: words before the command, e.g. ``srun``.

    Raises:
        UserError: the log in the run's folder cannot be written.
    """
    resume = ["--ckpt_path=last"] if last_checkpoints(run.run_dir) else []
    fit = [sys.executable, "-m", "qam_lightning", "fit", *run.arguments, *extra, *resume]
    path = run.run_dir / LOG
    with writing(path):
        run.run_dir.mkdir(parents=True, exist_ok=True)
        (run.run_dir / EXIT).unlink(missing_ok=True)
        with path.open("ab") as log:
            return subprocess.Popen(
                [*launcher, *fit],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                start_new_session=True,
            )


def shared_variables(slot: int, jobs: int, cores: int, gpus: int = 1) -> dict[str, str]:
    """Return the variables that share cores and GPUs between runs, for `start`.

    Args:
        slot: which of the places for runs the run has, from 0. Places beyond the machine's GPUs
            share those of the first ones.
        jobs: how many places there are.
        cores: that they share.
        gpus: of each place.
    """
    threads = str(max(1, cores // jobs))
    shared = {n: threads for n in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if n not in os.environ}
    import torch  # only here: `study status` reads what jobs hold without it

    if jobs > 1 and torch.cuda.is_available():
        names = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        names = names if names[0] else [str(n) for n in range(torch.cuda.device_count())]
        first = slot % max(1, len(names) // gpus) * gpus
        shared["CUDA_VISIBLE_DEVICES"] = ",".join(names[first : first + gpus])
    return shared


def shared_flags(run: Run, jobs: int, cores: int) -> tuple[str, ...]:
    """Return flags that share cores between the evaluations of runs, for `start`."""
    if jobs == 1 or "evaluation.workers" in run.settings:
        return ()
    return (f"--evaluation.workers={max(1, cores // jobs)}",)


def finish(run: Run, code: int, pruned: bool = False) -> str:
    """Record in the run's folder how its process ended; return what it said last.

    A process that found another one in the folder records nothing: the folder is not its own.

    Args:
        run: the run.
        code: exit code of ``fit``; negative after a signal that killed it.
        pruned: whether it was stopped for good.

    Raises:
        UserError: the record cannot be written.
    """
    line = last_line(run.run_dir / LOG)
    if code != 2 or not is_elsewhere(run, line):
        end = End(code=code, line=line, pruned=pruned)
        save_json(run.run_dir / EXIT, end.model_dump(), alone=True)
    return line


def is_elsewhere(run: Run, line: str) -> bool:
    """Whether another process writes to a run's folder, or did so when ``fit`` said this line."""
    return f"{run.run_dir} is in use" in line or holder(run.run_dir) is not None


def last_line(path: Path) -> str:
    """Return the last line of a log that is not empty, nor srun's; ``""`` if there is none."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL))
            lines = log.read().decode("utf-8", "replace").split("\n")
    except OSError:
        return ""
    said = (line.strip() for line in reversed(lines) if not line.startswith(_LAUNCHERS))
    return next((shown(line, 300) for line in said if line), "")
