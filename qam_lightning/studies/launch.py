"""A run of a study as a process."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from qam_lightning.checkpoints import last_checkpoints
from qam_lightning.studies.state import EXIT, End
from qam_lightning.studies.study import Run
from qam_lightning.util.errors import shown
from qam_lightning.util.files import save_json, writing

LOG = "output.log"
"""The file in a run's folder that gets what its processes print."""

_TAIL = 16_384  # bytes in which the last line is looked for


def start(
    run: Run, environment: Mapping[str, str], extra: tuple[str, ...] = ()
) -> subprocess.Popen:
    """Start ``fit`` in a session of its own: a terminal's Ctrl-C does not reach it.

    It goes on from the run's last checkpoint if there is one.

    Args:
        run: the run.
        environment: variables besides those of this process.
        extra: further arguments of ``fit``, which must not change results.

    Raises:
        UserError: the log in the run's folder cannot be written.
    """
    resume = ["--ckpt_path=last"] if last_checkpoints(run.run_dir) else []
    command = [sys.executable, "-m", "qam_lightning", "fit", *run.arguments, *extra, *resume]
    path = run.run_dir / LOG
    with writing(path):
        run.run_dir.mkdir(parents=True, exist_ok=True)
        (run.run_dir / EXIT).unlink(missing_ok=True)
        with path.open("ab") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                start_new_session=True,
            )


def finish(run: Run, code: int, pruned: bool = False) -> str:
    """Record in the run's folder how its process ended; return what it said last.

    Args:
        run: the run.
        code: exit code of ``fit``; negative after a signal that killed it.
        pruned: whether it was stopped for good.

    Raises:
        UserError: the record cannot be written.
    """
    line = last_line(run.run_dir / LOG)
    save_json(run.run_dir / EXIT, End(code, line, pruned)._asdict(), alone=True)
    return line


def last_line(path: Path) -> str:
    """Return the last line of a log that is not empty, ``""`` if there is none."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL))
            lines = log.read().decode("utf-8", "replace").split("\n")
    except OSError:
        return ""
    return next((shown(line.strip(), 300) for line in reversed(lines) if line.strip()), "")
