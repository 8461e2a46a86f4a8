"""Downloading dataset files: from the first place that has them, resumed, and checked."""

import errno
import http
import http.client
import os
import shutil
import sys
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO

from qam_lightning.data import hub
from qam_lightning.data.bars import bytes_bar
from qam_lightning.data.checksums import check_sum, record, recorded
from qam_lightning.data.layout import Layout
from qam_lightning.data.npz import check_npz
from qam_lightning.data.source import COLLECTABLE, Source, making_alone
from qam_lightning.util.errors import UserError, explaining, reason_of, shown
from qam_lightning.util.files import sha256
from qam_lightning.util.hub import address

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
    """Download the missing files of a dataset, each from the first place that has it.

    Args:
        source: The files, and the URLs that they may come from.
        layout: The arrays that each must hold.
        env: Environment, for the advice in error messages.
        dataset: Kind of dataset, for the same.

    Raises:
        UserError: Every place failed, or gave what is not the dataset.
    """
    urls = list(source.urls)
    for path in source.missing:
        good = _download(urls, source.folder, path, layout, _remedy(env, dataset, path.parent))
        if good:  # for the next file, ask this one first
            urls.sort(key=lambda url: url != good)


def _remedy(env: str, dataset: str, folder: Path) -> str:
    other = "choose another base_url"
    if dataset in COLLECTABLE.get(env, ()):
        return f"{other}, or collect it: `qam generate --env {env} --dataset {dataset}`"
    return f"{other}, or put the file into {folder}"


def _download(urls: list[str], folder: str, path: Path, layout: Layout, remedy: str) -> str | None:
    """Download a file from the first URL that has it; return the URL, None if the file is there."""
    problems: list[str] = []
    with making_alone(path, "directory"):
        if path.exists():  # another process was faster
            return None
        recorded(path)  # a damaged record is told before the long work
        for url in urls:
            if problems:
                print(shown(f"{problems[-1]}; trying {url}", 1000), file=sys.stderr)
            try:
                _get(url, folder, path, layout)
            except UserError as error:
                problems.append(str(error))
            else:
                for rest in path.parent.glob(f"{path.name}*.part"):
                    _remove(rest)
                return url
    raise UserError("; ".join([*problems, remedy]))


def partial_of(url: str, path: Path) -> Path:
    """The temporary name of a file from a URL: bytes of two hosts are never mixed.

    Of the Hugging Face hub's client, it is the folder, which is of no use once it has ended.
    """
    return path.with_name(f"{path.name}.{zlib.crc32(url.encode(errors='surrogatepass')):08x}.part")


def _get(url: str, folder: str, path: Path, layout: Layout) -> None:
    """Download a file from one place, check it, then give it its name."""
    partial = partial_of(url, path)
    name = f"{folder}/{path.name}" if folder else path.name
    try:
        found = _arrived(url, name, partial)
        try:
            check_npz(found, layout)
            check_sum(digest := sha256(found), path)
        except UserError as error:
            _remove(partial)  # resuming could never mend a complete file
            problem = str(error).removeprefix(f"{found}: ")
            raise UserError(f"{path.name} from {url} is not usable: {problem}") from None
        record(path, digest)
        found.replace(path)
    finally:
        if partial.is_dir() or (partial.is_file() and not partial.stat().st_size):
            _remove(partial)


def _arrived(url: str, name: str, partial: Path) -> Path:
    """Return where all of a file now is: ``partial``, or somewhere in it."""
    try:
        if where := address(url, "datasets"):
            return hub.download(where, name, partial)
        with partial.open("ab") as file:
            if folder := _folder(url):
                found = hub.find(_listing(folder), "", name)
                _transfer((folder / found).as_uri(), file, name.rpartition("/")[2])
            else:
                _transfer_either(url, name, file)
        return partial
    except UserError as error:
        problem = str(error)
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            raise
        problem = _reason(error)
    raise UserError(f"cannot download {url}/{name}: {problem}")


def _folder(url: str) -> Path | None:
    """Return the folder that a ``file://`` URL names; None if it is another URL."""
    path = url.removeprefix("file://").removeprefix("localhost")
    is_here = url.startswith("file://") and path.startswith("/")
    return Path(urllib.request.url2pathname(path)) if is_here else None


def _listing(folder: Path) -> list[str]:
    """Return the files in a folder, and the npz files in its subfolders."""
    files: list[str] = []
    with explaining("the folder cannot be read"):
        for entry in folder.iterdir():
            found = [entry] if entry.is_file() else entry.glob("*.npz")
            files += [file.relative_to(folder).as_posix() for file in found]
    return files


def _remove(partial: Path) -> None:
    if partial.is_dir():
        shutil.rmtree(partial)
    else:
        partial.unlink()


def _transfer_either(url: str, name: str, file: IO[bytes]) -> None:
    """Append the rest of the file, which the host has in OGBench's folder or without it."""
    bare, problems = name.rpartition("/")[2], []
    for given in dict.fromkeys([name, bare]):
        try:
            return _transfer(f"{url}/{given}", file, bare)
        except urllib.error.HTTPError as error:
            problems.append(reason_of(f"HTTP {error.code} {error.reason}"))
    raise UserError(f", nor {url}/{bare}: ".join(problems))


def _transfer(url: str, file: IO[bytes], name: str) -> None:
    """Append the rest of the file, reconnecting as long as something arrives."""
    with bytes_bar() as progress:
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
        if not have or error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
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
    return reason_of(reason)
