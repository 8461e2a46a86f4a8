"""A run's folder: the files of a run, and the lock that lets one process at a time write them.

The lock is ``flock`` on ``.lock`` in the folder. The system releases it when its process ends,
however it ends. The lock works across machines on NFS version 4 (version 3 with lockd), Lustre
mounted with ``flock``, GPFS and CephFS. On a file system without locks, a line says so, and nothing
keeps a second run out.
"""

import contextlib
import errno
import fcntl
import os
import socket
import sys
import time
from pathlib import Path
from typing import IO, ClassVar

from qam_lightning.util.errors import UserError
from qam_lightning.util.files import is_at, writing

LOCK = ".lock"
_KEPT = ("config.yaml", "picture.png", "checkpoints/*", "metrics/*", "eval/*", "videos/*")
_BUSY = (errno.EAGAIN, errno.EACCES)
_ATTEMPTS = 5  # to lock a folder: `holder` may be looking at it


def contents(run_dir: str | Path) -> list[Path]:
    """Return the files of a run in a folder: everything of value to its owner.

    Hidden files are not: a lock, what a kill left of a file. Neither are empty files, nor those of
    Weights & Biases, which come before the first checkpoint: a new run is another one of theirs.
    """
    folder = Path(run_dir)
    found = [path for pattern in _KEPT for path in sorted(folder.glob(pattern))]
    return [p for p in found if not p.name.startswith(".") and not _is_empty_file(p)]


def _is_empty_file(path: Path) -> bool:
    return path.is_file() and not path.stat().st_size


def check_unused(run_dir: str | Path) -> None:
    """Check that a folder holds nothing of a run, which a new one would overwrite.

    Raises:
        UserError: it does.
    """
    folder = Path(run_dir)
    if not (held := contents(folder)):
        return
    if any(path.suffix == ".ckpt" for path in held):
        raise UserError(f"{folder} already holds a run; resume it, or choose another run_dir")
    found = f"{held[0].relative_to(folder)}, but no checkpoint"
    raise UserError(
        f"{folder} already holds a run ({found}); choose another run_dir, or move that one away"
    )


def check_files(run_dir: str | Path) -> None:
    """Check that files are where a run writes files, before it writes any.

    Raises:
        UserError: a folder, a pipe or a device is in the place of one.
    """
    for path in contents(run_dir):
        if path.name.endswith((".ckpt", ".json", ".bin", ".csv", ".yaml")) and not path.is_file():
            raise UserError(f"{path}: is no file, but a folder, a pipe or a device; move it away")


def holder(run_dir: str | Path) -> str | None:
    """Return who writes a run to a folder, e.g. ``process 12 on node3``; None if nobody does."""
    path = Path(run_dir) / LOCK
    try:
        with path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError as error:
                return file.read().strip() or "a process" if error.errno in _BUSY else None
    except OSError:
        pass  # there is no lock
    return None


class Claim:
    """The right to write to a run's folder, from its making to `release`.

    All callbacks of a process may claim the same folder; the last to release it frees it.

    Args:
        run_dir: the folder, which is made if need be.

    Raises:
        UserError: a run of another process writes to it, or it cannot be written.
    """

    _held: ClassVar[dict[Path, tuple[IO[str], list["Claim"]]]] = {}
    _made: ClassVar[set[Path]] = set()  # by a claim, rather than by the user

    def __init__(self, run_dir: str | Path) -> None:
        self._folder = Path(os.path.realpath(run_dir))
        if self._folder not in self._held:
            new = not self._folder.exists()
            self._held[self._folder] = _lock(Path(run_dir)), []
            self._made.update([self._folder] if new else [])
        self._held[self._folder][1].append(self)

    def release(self) -> None:
        """Let others write to the folder; an empty one that was made for it goes.

        Harmless if repeated.
        """
        file, claims = self._held.get(self._folder, (None, []))
        if file is None or self not in claims:
            return
        claims.remove(self)
        if not claims:
            del self._held[self._folder]
            with contextlib.suppress(OSError):
                (self._folder / LOCK).unlink()
                if self._folder in self._made:
                    self._folder.rmdir()  # unless the run has begun
            self._made.discard(self._folder)
            file.close()


def _lock(folder: Path) -> IO[str]:
    path = folder / LOCK
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file, expected a folder; choose another run_dir")
    attempts = 0
    while True:
        with writing(path):
            folder.mkdir(parents=True, exist_ok=True)
            file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            attempts += 1
            if error.errno in _BUSY and attempts < _ATTEMPTS:
                file.close()
                time.sleep(0.02)
                continue
            if error.errno in _BUSY:
                file.seek(0)
                holder = file.read().strip() or "another process"
                file.close()
                raise UserError(
                    f"{folder} is in use: {holder} is writing a run to it; wait for its end, or "
                    "choose another run_dir"
                ) from None
            print(f"{folder}: this file system has no locks ({error.strerror}); nothing keeps a "
                  "second run out of the folder", file=sys.stderr)  # fmt: skip
        if is_at(file, path):
            break
        file.close()
    with writing(path):
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
    return file
