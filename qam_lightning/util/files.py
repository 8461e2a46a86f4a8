"""Files that are either whole or absent, and locks that end with their process."""

import contextlib
import fcntl
import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from qam_lightning.util.errors import UserError


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Words what goes wrong while a file is written.

    Raises:
        UserError: The system refused, as for a full disk.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot write: {error.strerror or error}") from error


@contextlib.contextmanager
def replacing(path: Path, alone: bool = False) -> Iterator[Path]:
    """Gives a temporary name to write to, which becomes ``path`` when all went well.

    Args:
        path: The file; its folder exists.
        alone: No other process writes this file. The temporary name is then always the same, so
            that what a kill leaves is gone with the next attempt.

    Raises:
        UserError: It cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{'' if alone else f'{os.getpid()}.'}tmp")
    with writing(path):
        try:
            yield temporary
            sync(temporary)
            temporary.replace(path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def save_json(path: Path, content: Any) -> None:
    """Writes JSON, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def sync(path: Path) -> None:
    """Waits until a file, or a folder's list of names, is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def checksum(path: Path) -> int:
    """CRC-32 of a file."""
    total = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            total = zlib.crc32(block, total)
    return total


@contextlib.contextmanager
def locked(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file for appending, alone: two processes started at once must not both write it."""
    while True:
        with path.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            # Whoever held the lock before may have renamed or removed this very file.
            if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                continue
            try:
                yield file
            finally:
                if not file.seek(0, os.SEEK_END):  # nothing ever arrived
                    path.unlink(missing_ok=True)
            return
