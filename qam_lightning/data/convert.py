"""Making a store from npz files: once, in bounded memory, safe against crashes and each other.

Everything is written into ``<name>.store.tmp``. After each source file the data are forced to disk
and ``progress.json`` tells how far they are good, so that an interrupted conversion goes on with
the file it was at. Only a complete store is renamed to its final name.
"""

import json
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

from qam_lightning.data.npz import Layout, NpzFile
from qam_lightning.data.store import FORMAT, MANIFEST, Store
from qam_lightning.util.errors import UserError, cannot_write
from qam_lightning.util.files import locked, save_json, sync
from qam_lightning.util.provenance import versions


def ensure_store(files: list[Path], folder: Path, layout: Layout) -> Store:
    """Opens a store, making it first where there is none or where its source has changed.

    Args:
        files: Source files in order; they may be gone once there is a store.
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
    if not folder.exists():
        return None
    store = Store(folder)
    return None if store.changes(files) else store


def _convert(files: list[Path], folder: Path, layout: Layout) -> None:
    """Converts into a temporary folder, then puts it in place of what was there."""
    temporary = folder.with_name(f"{folder.name}.tmp")
    prints, total = _survey(files, layout)
    progress = _resumed(temporary, layout, prints)
    _check_space(temporary, total - sum(progress["bytes"].values()))
    with ExitStack() as stack:
        bar = stack.enter_context(_progress_bar())
        task = bar.add_task(f"converting {folder.stem}", total=total)
        outputs = {
            key: stack.enter_context(_output(path, progress["bytes"][key]))
            for key, path in _outputs(temporary, layout).items()
        }
        for path in files[len(progress["source"]) :]:
            for done in _append(path, layout, outputs, progress):
                bar.update(task, completed=done)
            for output in outputs.values():
                output.flush()
                os.fsync(output.fileno())
            save_json(temporary / "progress.json", progress)
    _finish(temporary, folder, layout, progress)


def _survey(files: list[Path], layout: Layout) -> tuple[list[str], int]:
    """Looks into every file before the long work: fingerprints, and the bytes the store takes."""
    prints, total = [], 0
    first: dict[str, Any] = {}
    for path in files:
        with NpzFile(path) as file:
            prints.append(file.fingerprint())
            rows = file.rows()
            for key, column in layout.items():
                file.check_header(key, column, rows)
                dtype = str(file.shape(key)[1])
                if dtype != first.setdefault(key, dtype):
                    raise UserError(
                        f"{path}: {key} holds {dtype}, but {files[0].name} holds {first[key]}; "
                        "are these files of one dataset?"
                    )
                total += rows * max(1, column.columns) * np.dtype(column.dtype).itemsize
    return prints, total


def _resumed(temporary: Path, layout: Layout, prints: list[str]) -> dict[str, Any]:
    """How far an interrupted conversion of the same files got; else a fresh start."""
    start = {key: 0 for key in [*layout, "ends"]}
    fresh = {"layout": layout, "source": [], "bytes": start, "crc32": dict(start)}
    try:
        found = json.loads((temporary / "progress.json").read_text())
        done = [shard["fingerprint"] for shard in found["source"]]
        same = found["layout"] == json.loads(json.dumps(layout)) and done == prints[: len(done)]
        # What was cut meanwhile must not be made long enough again with zeros.
        same = same and all(
            path.stat().st_size >= found["bytes"][key]
            for key, path in _outputs(temporary, layout).items()
        )
    except (OSError, ValueError, TypeError, LookupError):
        same = False
    if same:
        return found
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    return fresh


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"converting into {folder.parent} takes {needed / 1e9:.3g} GB, but only "
            f"{free / 1e9:.3g} GB are free there; free some, or choose another folder with "
            "--data.store"
        )


def _outputs(folder: Path, layout: Layout) -> dict[str, Path]:
    """The file of every array."""
    dtypes = {key: column.dtype for key, column in layout.items()} | {"ends": "int64"}
    return {key: folder / f"{key}.{dtype}" for key, dtype in dtypes.items()}


@contextmanager
def _output(path: Path, good: int) -> Iterator[IO[bytes]]:
    """Opens an array's file at the end of what is known to be good."""
    with path.open("ab") as file:
        file.truncate(good)
        yield file


def _append(
    path: Path, layout: Layout, outputs: dict[str, IO[bytes]], progress: dict[str, Any]
) -> Iterator[int]:
    """Appends one file to every array; yields the bytes written in all."""

    def write(key: str, block: np.ndarray) -> int:
        data = np.ascontiguousarray(block).tobytes()
        outputs[key].write(data)
        progress["crc32"][key] = zlib.crc32(data, progress["crc32"][key])
        progress["bytes"][key] += len(data)
        return sum(progress["bytes"].values())

    before = sum(shard["rows"] for shard in progress["source"])
    with NpzFile(path) as file:
        ends = file.ends()
        for key, column in layout.items():
            for block in file.columns(key, column, ends):
                yield write(key, block)
        write("ends", ends + before)
        shard = {"name": path.name, "fingerprint": file.fingerprint()}
    progress["source"].append(shard | {"rows": int(ends[-1]) + 1, "trajectories": len(ends)})


def _finish(temporary: Path, folder: Path, layout: Layout, progress: dict[str, Any]) -> None:
    arrays = {}
    for key, column in layout.items():
        width = max(1, column.columns) * np.dtype(column.dtype).itemsize
        rows = progress["bytes"][key] // width
        shape = [rows, column.columns] if column.columns else [rows]
        arrays[key] = {"dtype": column.dtype, "shape": shape, "crc32": progress["crc32"][key]}
    ends = {"dtype": "int64", "shape": [progress["bytes"]["ends"] // 8]}
    arrays["ends"] = ends | {"crc32": progress["crc32"]["ends"]}
    manifest = {"format": FORMAT, "layout": layout, "arrays": arrays, "versions": versions()}
    save_json(temporary / MANIFEST, manifest | {"source": progress["source"]})
    (temporary / "progress.json").unlink()
    sync(temporary)
    if folder.exists():  # made from what the source was before
        outdated = folder.with_name(f"{folder.name}.old")
        shutil.rmtree(outdated, ignore_errors=True)
        folder.rename(outdated)
        temporary.rename(folder)
        shutil.rmtree(outdated)
    else:
        temporary.rename(folder)
    sync(folder.parent)


def _progress_bar() -> Progress:
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    return Progress(TextColumn("{task.description}"), *columns)
