"""Files that are either whole or absent, and locks that end with their process."""

import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from qam_lightning.util.errors import UserError, shown

_LOCK = ".lock"


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an `OSError` (a full disk, a missing permission) into a `UserError` naming ``path``."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{shown(path, 300)}: cannot be written: {error.strerror or error}"
        ) from error


@contextlib.contextmanager
def replacing(path: Path, alone: bool = False) -> Iterator[Path]:
    """Yield a temporary path to write to; it becomes ``path`` if the block succeeds.

    Args:
        path: the file; its folder exists.
        alone: no other process writes this file. The temporary name is then always the same, so
            the next attempt removes what a kill left behind. Otherwise see `_workplace`.

    Raises:
        UserError: the file cannot be written.
    """
    with writing(path), atomically(path, alone) as temporary:
        yield temporary


@contextlib.contextmanager
def atomically(path: Path, alone: bool = False) -> Iterator[Path]:
    """Do what `replacing` does, but let the system's errors pass."""
    with contextlib.ExitStack() as stack:
        if alone:
            temporary = path.with_name(f".{path.name}.tmp")
        else:
            temporary = stack.enter_context(_workplace(path)) / path.name
        try:
            yield temporary
            sync(temporary)
            temporary.replace(path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; it becomes ``folder`` if the block succeeds.

    Args:
        folder: does not exist. Its parent is made if need be.

    Raises:
        UserError: it cannot be written, or another process made it meanwhile.
    """
    with contextlib.ExitStack() as stack:
        with writing(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            temporary = stack.enter_context(_workplace(folder)) / folder.name
            temporary.mkdir()
        yield temporary
        with writing(folder):
            for path in temporary.iterdir():
                sync(path)
            temporary.rename(folder)


@contextlib.contextmanager
def _workplace(path: Path) -> Iterator[Path]:
    """Yield an empty hidden folder beside ``path``; delete it, and those that a kill left there.

    A file in it, locked until its process ends, says that somebody works there. On a file system
    without locks nobody can tell, and what a kill left stays.
    """
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(OSError), (left / _LOCK).open("rb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left)
    place = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        with (place / "new").open("wb") as file:
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            (place / "new").rename(place / _LOCK)  # nobody finds it before it is locked
            yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def save_json(path: Path, content: Any, alone: bool = False) -> None:
    """Write ``content`` as JSON; see `replacing`."""
    with replacing(path, alone) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def regular(path: Path) -> Path:
    """Return a path that may be read to its end; a missing file is the reader's matter.

    Raises:
        OSError: it is a pipe or a device, which may have no end, or a folder.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is no regular file, but a folder, a pipe or a device")
    return path


def sync(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def checksum(path: Path, from_disk: bool = False) -> int:
    """Return the CRC-32 of a file.

    Args:
        path: the file.
        from_disk: first drop the system's cached copy, so that the disk itself is read. The file
            must have been flushed to disk (`sync`) before: what was not cannot be dropped. Where
            there is no disk (tmpfs), or another process maps the file, the copy stays.
    """
    total = 0
    with regular(path).open("rb") as file:
        if from_disk and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while block := file.read(1 << 22):
            total = zlib.crc32(block, total)
    return total


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, 64 hexadecimal digits."""
    with regular(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_at(file: IO, path: Path) -> bool:
    """Whether a locked file still has its path: who held the lock before may have moved it."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _lock(file: IO, path: Path) -> None:
    for _ in range(20):
        with contextlib.suppress(BlockingIOError):
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(0.05)
    print(f"waiting for another process, which holds {shown(path, 300)}", file=sys.stderr)
    fcntl.flock(file, fcntl.LOCK_EX)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for appending under an exclusive lock; delete it if nothing was written.

    If another process holds the lock for more than a second, a line says so.
    """
    while True:
        with path.open("ab") as file:
            _lock(file, path)
            if not is_at(file, path):
                continue
            try:
                yield file
            finally:
                if not file.seek(0, os.SEEK_END):
                    path.unlink(missing_ok=True)
            return
