"""Downloading dataset files: resumed after interruptions, checked before they get their name."""

import errno
import http
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from qam_lightning.data.layout import Layout
from qam_lightning.data.npz import check_npz
from qam_lightning.data.source import COLLECTABLE, Source, unwritable
from qam_lightning.util.errors import UserError
from qam_lightning.util.files import locked

# Seconds without a byte after which a transfer counts as broken.
TIMEOUT = 30.0
BLOCK = 1 << 20
# Errors within a transfer that mean the disk, not the network.
DISK_ERRORS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EIO,
}


def fetch(source: Source, layout: Layout, env: str, dataset: str) -> None:
    """Download the missing files of a dataset.

    Args:
        source: The files and the URL of their folder.
        layout: The arrays that each must hold.
        env: Environment, for the advice in error messages.
        dataset: Kind of dataset, for the same.

    Raises:
        UserError: A download failed or is not the dataset.
    """
    for path in source.missing:
        _download(f"{source.url}/{path.name}", path, layout, _remedy(env, dataset, path.parent))


def _remedy(env: str, dataset: str, folder: Path) -> str:
    other = "choose another base_url"
    if dataset in COLLECTABLE.get(env, ()):
        return f"{other}, or collect it: `qam generate --env {env} --dataset {dataset}`"
    return f"{other}, or put the file into {folder}"


def _download(url: str, path: Path, layout: Layout, remedy: str) -> None:
    """Download under a temporary name, resuming a partial file; check it, then rename it."""
    partial = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(partial) as file:
            if not path.exists():  # unless another process was faster
                try:
                    _transfer(url, file, path.name)
                except urllib.error.HTTPError as error:
                    reason = f"HTTP {error.code} {error.reason}"
                    raise UserError(f"cannot download {url}: {reason}; {remedy}") from None
                except (OSError, http.client.HTTPException, ValueError) as error:
                    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                        raise
                    reason = _reason(error)
                    raise UserError(f"cannot download {url}: {reason}; {remedy}") from None
                _verify(url, partial, layout, remedy)
                partial.replace(path)
    except OSError as error:
        raise unwritable("ChunkDataModule", "directory", path, error) from None


def _verify(url: str, partial: Path, layout: Layout, remedy: str) -> None:
    try:
        check_npz(partial, layout)
    except UserError as error:
        partial.unlink()  # resuming could never mend a complete file
        raise UserError(f"{url} is not usable: {error}; {remedy}") from None


def _transfer(url: str, file: IO[bytes], name: str) -> None:
    """Append the rest of the file, reconnecting as long as something arrives."""
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *columns) as progress:
        task = progress.add_task(name, total=None)

        def report(received: int, total: int | None) -> None:
            progress.update(task, completed=received, total=total)

        while True:
            before = file.seek(0, os.SEEK_END)
            try:
                if _receive(url, file, report):
                    return
                problem: Exception = ConnectionError("the connection was closed too early")
            except urllib.error.HTTPError:
                raise
            except (OSError, http.client.HTTPException) as error:
                problem = error
            if file.seek(0, os.SEEK_END) <= before:
                raise problem


def _receive(url: str, file: IO[bytes], report: Callable[[int, int | None], None]) -> bool:
    """Request the rest of the file; return whether it is complete now."""
    have = file.seek(0, os.SEEK_END)
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        if error.headers.get("Content-Range") == f"bytes */{have}":
            return True  # nothing was missing
        file.truncate(0)  # the partial file is not of this one
        return _receive(url, file, report)
    with response:
        resumed = response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if not resumed:
            file.truncate(0)  # the server sends all of it
            have = 0
        rest = response.headers.get("Content-Length")
        total = have + int(rest) if rest else None
        while block := response.read(BLOCK):
            file.write(block)
            have += len(block)
            report(have, total)
    file.flush()
    return total is None or have == total


def _reason(error: Exception) -> str:
    """The error in one line."""
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
    return " ".join(str(reason).split()) or type(error).__name__
