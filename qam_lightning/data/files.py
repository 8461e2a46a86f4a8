"""Where OGBench's dataset files are, and whether they are what they should be."""

import contextlib
import fcntl
import http
import http.client
import os
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO

import numpy as np
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from qam_lightning.errors import UserError

# Whose data OGBench's scripted oracles collected, and can collect here.
ENVIRONMENTS = (
    *(f"cube-{n}" for n in ("single", "double", "triple", "quadruple", "octuple")),
    "scene",
    *(f"puzzle-{n}" for n in ("3x3", "4x4", "4x5", "4x6")),
)
DATASETS = ("play", "noisy")
# Seconds without a byte after which a transfer counts as broken.
TIMEOUT = 30.0
BLOCK = 1 << 20
# Actions are clipped when they are recorded; beyond this they are of another convention.
ACTION_TOLERANCE = 1e-3


def dataset_name(env: str, dataset: str) -> str:
    """OGBench's name of a dataset, such as ``scene-play-v0``."""
    return f"{env}-{dataset}-v0"


def fetch(
    env: str, dataset: str, directory: str, base_url: str, sizes: Mapping[str, int]
) -> tuple[Path, Path]:
    """Finds a dataset's two files, downloading what is missing.

    Args:
        env: Environment name, such as ``scene``.
        dataset: Kind of dataset, such as ``play``.
        directory: Where they are or shall be.
        base_url: Where to download from.
        sizes: Columns to expect of each array, as for `load_arrays`.

    Returns:
        Paths of the training and the validation file.

    Raises:
        UserError: The dataset is one that cannot be handled, or a download failed.
    """
    if dataset.endswith("100m"):
        raise UserError(
            f"data.dataset {dataset!r} is a folder of many files, which is not supported yet; use "
            f"the 1M dataset {dataset.removesuffix('-100m')!r}"
        )
    folder = Path(directory).expanduser()
    name = dataset_name(env, dataset)
    paths = folder / f"{name}.npz", folder / f"{name}-val.npz"
    for path in paths:
        if not path.exists():
            url = f"{base_url.rstrip('/')}/{path.name}"
            _download(url, path, sizes, remedy=_remedy(env, dataset, folder))
    return paths


def _remedy(env: str, dataset: str, folder: Path) -> str:
    other = "give another --data.base_url"
    if env in ENVIRONMENTS and dataset in DATASETS:
        return f"{other} or run `python train.py generate --env {env} --dataset {dataset}`"
    return f"{other} or put the file into {folder}"


def load_arrays(path: Path, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Reads a dataset file and checks all of it. Never changes the file.

    Args:
        path: The npz file.
        sizes: Which arrays to read besides ``terminals``, and their number of columns.

    Returns:
        ``terminals`` (T,) bool and the named arrays (T, columns): ``button_states`` int64, the
        others float32.

    Raises:
        UserError: The file is missing, damaged, of another environment, or holds impossible values.
    """
    arrays = _read(path, ["terminals", *sizes])
    terminals = arrays["terminals"]
    if terminals.ndim != 1:
        raise UserError(f"{path}: terminals has shape {terminals.shape}, expected one dimension")
    for key, columns in sizes.items():
        _check_array(path, key, arrays[key], len(terminals), columns)
    arrays["terminals"] = _check_terminals(path, terminals)
    for key in sizes:
        dtype = np.int64 if key == "button_states" else np.float32
        arrays[key] = arrays[key].astype(dtype, copy=False)
    worst = np.abs(arrays["actions"]).max(axis=1)
    if worst.max() > 1.0 + ACTION_TOLERANCE:
        raise UserError(
            f"{path}: actions reaches {worst.max():.4g} (first in row "
            f"{int(np.argmax(worst > 1.0 + ACTION_TOLERANCE))}), expected values from -1 to 1"
        )
    return arrays


def _read(path: Path, keys: list[str]) -> dict[str, np.ndarray]:
    again = "move it away to have it downloaded again"
    if not path.exists():
        raise UserError(f"{path} does not exist")
    try:
        if not zipfile.is_zipfile(path):
            raise UserError(f"{path} is not an npz file, or only the beginning of one; {again}")
        with np.load(path, allow_pickle=False) as file:
            missing = [key for key in keys if key not in file.files]
            if missing:
                raise UserError(
                    f"{path}: no array {missing[0]!r}, found only {', '.join(file.files) or 'none'}"
                )
            damaged = file.zip.testzip()
            if damaged:
                raise UserError(f"{path}: {damaged} fails its checksum; {again}")
            return {key: file[key] for key in keys}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({_reason(error)}); {again}") from None


def _check_array(path: Path, key: str, array: np.ndarray, rows: int, columns: int) -> None:
    integer = key == "button_states"
    if array.dtype.kind not in ("iu" if integer else "f"):
        wanted = "integers" if integer else "floating-point numbers"
        raise UserError(f"{path}: {key} holds {array.dtype}, expected {wanted}")
    if array.ndim != 2 or array.shape[1] != columns:
        found = array.shape[1] if array.ndim == 2 else f"shape {array.shape}"
        raise UserError(
            f"{path}: {key} has {found} columns, but the environment's has {columns}; "
            "is this the file of another environment?"
        )
    if len(array) != rows:
        raise UserError(f"{path}: {key} has {len(array)} rows, but terminals has {rows}")
    finite = np.isfinite(array).all(axis=1)
    if not finite.all():
        raise UserError(f"{path}: {key} has NaN or infinity, first in row {int(finite.argmin())}")


def _check_terminals(path: Path, terminals: np.ndarray) -> np.ndarray:
    if terminals.dtype.kind not in "biuf" or not np.isin(terminals, (0, 1)).all():
        raise UserError(f"{path}: terminals must hold only 0 and 1 (false and true)")
    ends = np.flatnonzero(terminals)
    if not len(ends):
        raise UserError(f"{path}: terminals marks no trajectory's end")
    if ends[-1] != len(terminals) - 1:
        raise UserError(
            f"{path}: the last trajectory has no end (last row {len(terminals) - 1}, last terminal "
            f"{ends[-1]}); was the file cut?"
        )
    lengths = np.diff(ends, prepend=-1)
    if lengths.min() < 2:
        row = int(ends[lengths.argmin()])
        raise UserError(f"{path}: the trajectory ending in row {row} has 1 row, expected 2 or more")
    return terminals.astype(bool)


def _download(url: str, path: Path, sizes: Mapping[str, int], remedy: str) -> None:
    """Downloads under a temporary name, resuming what is there, checks it, then renames it."""
    partial = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(partial) as file:
            if not path.exists():  # no other process was faster
                _transfer(url, file, path.name)
                _verify(url, partial, sizes, remedy)
                partial.replace(path)
    except urllib.error.HTTPError as error:
        reason = f"HTTP {error.code} {error.reason}"
        raise UserError(f"cannot download {url}: {reason}; {remedy}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise UserError(f"cannot download {url}: {_reason(error)}; {remedy}") from None


def _verify(url: str, partial: Path, sizes: Mapping[str, int], remedy: str) -> None:
    try:
        load_arrays(partial, sizes)
    except UserError as error:
        partial.unlink()  # it is complete: resuming could never mend it
        raise UserError(f"{url} is not usable: {error}; {remedy}") from None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file for appending, alone: two runs started at once must not both write it."""
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


def _transfer(url: str, file: IO[bytes], name: str) -> None:
    """Appends the rest of the file, reconnecting as long as something arrives."""
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
    """Makes one request for what is missing. Returns whether the file is complete now."""
    have = file.seek(0, os.SEEK_END)
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        if error.headers.get("Content-Range") == f"bytes */{have}":
            return True  # nothing was missing
        file.truncate(0)  # what we have is of some other file
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
    """What went wrong, in one line."""
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
    return " ".join(str(reason).split()) or type(error).__name__
