"""Making a store from npz files: once, in bounded memory, whatever crashes or runs beside it.

Everything is written into ``<name>.store.tmp``. After each source file the data are forced to disk
and ``progress.json`` records how many bytes are good, so an interrupted conversion continues with
the file it was at. Only a complete store gets its final name.
"""

import json
import math
import os
import shutil
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from qam_lightning.data.layout import Layout
from qam_lightning.data.npz import NpzFile
from qam_lightning.data.store import FORMAT, MANIFEST, OutdatedStore, Store, npy_header
from qam_lightning.util.errors import UserError, cannot_write
from qam_lightning.util.files import locked, save_json, sync
from qam_lightning.util.provenance import versions


def ensure_store(files: list[Path], folder: Path, layout: Layout) -> Store:
    """Open a store; make it if there is none, or if its source or format has changed.

    Args:
        files: Source files in order; once there is a store, they may be missing.
        folder: The store's folder.
        layout: Arrays that the environment needs.

    Raises:
        UserError: The source or the store is damaged, or the store cannot be written.
    """
    store = _current(files, folder)
    if store is None:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with locked(folder.with_name(f"{folder.name}.lock")):
                store = _current(files, folder)  # unless another process made it meanwhile
                if store is None:
                    _convert(files, folder, layout)
                    store = Store(folder)
        except OSError as error:
            raise cannot_write(folder, error, "store") from None
    store.check_layout(layout)
    return store


def _current(files: list[Path], folder: Path) -> Store | None:
    """The store; None where it must be made, or made again."""
    if not folder.exists():
        return None
    try:
        store = Store(folder)
    except OutdatedStore:
        if files and all(path.exists() for path in files):
            return None
        raise
    return None if store.changes(files) else store


def _convert(files: list[Path], folder: Path, layout: Layout) -> None:
    """Convert into a temporary folder, then put it in place of the old one."""
    temporary = folder.with_name(f"{folder.name}.tmp")
    source, ends = _survey(files, layout)
    shapes = _shapes(source, layout)
    progress = _resumed(temporary, {"layout": layout, "source": source}, shapes)
    total = sum(len(npy_header(*kind)) + _data_bytes(*kind) for kind in shapes.values())
    _check_space(temporary, total - sum(progress["bytes"].values()))
    with ExitStack() as stack:
        bar = stack.enter_context(_progress_bar())
        task = bar.add_task(f"converting {folder.stem}", total=total)
        outputs = {
            key: stack.enter_context(_output(temporary / f"{key}.npy", progress["bytes"][key]))
            for key in shapes
        }
        for number in range(progress["done"], len(files)):
            row = sum(shard["rows"] for shard in source[:number])
            for written in _append(files[number], ends[number], row, layout, outputs, progress):
                bar.update(task, completed=written)
            for output in outputs.values():
                output.flush()
                os.fsync(output.fileno())
            progress["done"] += 1
            save_json(temporary / "progress.json", progress)
    manifest = {"format": FORMAT, "layout": layout, "crc32": progress["crc32"]}
    save_json(temporary / MANIFEST, manifest | {"versions": versions(), "source": source})
    _put_in_place(temporary, folder)


def _survey(files: list[Path], layout: Layout) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """Read from every file, before the long work, what it is and where its trajectories end."""
    source, all_ends = [], []
    first: dict[str, str] = {}
    for path in files:
        with NpzFile(path) as file:
            ends = file.ends()
            rows = int(ends[-1]) + 1
            for key, column in layout.items():
                file.check_header(key, column, rows)
                dtype = str(file.shape(key)[1])
                if dtype != first.setdefault(key, dtype):
                    raise UserError(
                        f"{path}: {key} holds {dtype}, but {files[0].name} holds {first[key]}; "
                        "are these files of one dataset?"
                    )
            shard = {"name": path.name, "fingerprint": file.fingerprint()}
            source.append(shard | {"rows": rows, "trajectories": len(ends)})
            all_ends.append(ends)
    return source, all_ends


def _shapes(source: list[dict[str, Any]], layout: Layout) -> dict[str, tuple[tuple[int, ...], str]]:
    """The shape and type of every array of the store."""
    rows, trajectories = (sum(s[key] for s in source) for key in ("rows", "trajectories"))
    shapes = {
        key: (column.shape(rows if column.last_rows else rows - trajectories), column.dtype)
        for key, column in layout.items()
    }
    return shapes | {"ends": ((trajectories,), "int64")}


def _data_bytes(shape: tuple[int, ...], dtype: str) -> int:
    return math.prod(shape) * np.dtype(dtype).itemsize


def _resumed(
    temporary: Path, subject: dict[str, Any], shapes: dict[str, tuple[tuple[int, ...], str]]
) -> dict[str, Any]:
    """Return how far an interrupted conversion of the same files got, or start afresh.

    Args:
        temporary: Folder of the conversion.
        subject: Layout and source files.
        shapes: See `_shapes`.
    """
    try:
        found = json.loads((temporary / "progress.json").read_text())
        same = {key: found[key] for key in subject} == json.loads(json.dumps(subject))
        # A file that was cut meanwhile must not be lengthened again with zeros.
        if same and all(
            (temporary / f"{key}.npy").stat().st_size >= found["bytes"][key] for key in shapes
        ):
            return found
    except (OSError, ValueError, TypeError, LookupError):
        pass
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    headers = {key: npy_header(*kind) for key, kind in shapes.items()}
    for key, header in headers.items():
        (temporary / f"{key}.npy").write_bytes(header)
    written = {key: len(header) for key, header in headers.items()}
    sums = {key: zlib.crc32(header) for key, header in headers.items()}
    return {**subject, "done": 0, "bytes": written, "crc32": sums}


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"converting into {folder.parent} takes {needed / 1e9:.3g} GB, but only "
            f"{free / 1e9:.3g} GB are free there; free some, or choose another store"
        )


@contextmanager
def _output(path: Path, good: int) -> Iterator[IO[bytes]]:
    """Open an array's file behind its ``good`` first bytes."""
    with path.open("ab") as file:
        file.truncate(good)
        yield file


def _append(
    path: Path,
    ends: np.ndarray,
    row: int,
    layout: Layout,
    outputs: dict[str, IO[bytes]],
    progress: dict[str, Any],
) -> Iterator[int]:
    """Append one file, whose first row becomes ``row``; yield the bytes written in all."""

    def write(key: str, block: np.ndarray) -> int:
        data = np.ascontiguousarray(block).tobytes()
        outputs[key].write(data)
        progress["crc32"][key] = zlib.crc32(data, progress["crc32"][key])
        progress["bytes"][key] += len(data)
        return sum(progress["bytes"].values())

    with NpzFile(path) as file:
        for key, column in layout.items():
            for block in file.columns(key, column, ends):
                yield write(key, block)
    write("ends", ends + row)


def _put_in_place(temporary: Path, folder: Path) -> None:
    """Give a complete store its name; an old one goes when the new one is there."""
    (temporary / "progress.json").unlink()
    sync(temporary)
    outdated = folder.with_name(f"{folder.name}.old")
    if folder.exists():
        shutil.rmtree(outdated, ignore_errors=True)
        folder.rename(outdated)
    temporary.rename(folder)
    shutil.rmtree(outdated, ignore_errors=True)
    sync(folder.parent)


def _progress_bar() -> Progress:
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    return Progress(TextColumn("{task.description}"), *columns)
