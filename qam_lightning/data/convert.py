"""Making a store from npz files: once, in bounded memory, whatever crashes or runs beside it.

Everything is written into ``<name>.store.tmp``. After each source file the data are forced to disk
and ``progress.json`` records how many files are done, so an interrupted conversion continues with
the file it was at. Only a complete store gets its final name.
"""

import math
import os
import shutil
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import numpy as np

from qam_lightning.data.bars import bytes_bar
from qam_lightning.data.layout import Layout, Shapes
from qam_lightning.data.npy import npy_header
from qam_lightning.data.npz import NpzFile
from qam_lightning.data.source import made_once
from qam_lightning.data.store import FORMAT, MANIFEST, Manifest, OutdatedStore, Shard, Store
from qam_lightning.util.errors import ArgumentError, UserError
from qam_lightning.util.files import save_json, sync
from qam_lightning.util.memory import gigabytes
from qam_lightning.util.provenance import versions
from qam_lightning.util.schema import Count, read_json

PROGRESS = "progress.json"


class _Progress(Manifest):
    """``progress.json``: the manifest so far, and how many of its files are done."""

    done: Count


def ensure_store(files: list[Path], folder: Path, layout: Layout) -> Store:
    """Open a store; make it if there is none, or if its source or format has changed.

    Args:
        files: Source files in order; once there is a store, they may be missing.
        folder: The store's folder.
        layout: Arrays that the environment needs.

    Raises:
        UserError: The source or the store is damaged, or the store cannot be written.
    """
    store = made_once(
        folder,
        "store",
        found=lambda: _current(files, folder),
        make=lambda: _convert(files, folder, layout),
    )
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
    changed = store.changes(files)
    # A store beside its files goes with them; one elsewhere may be of others of the same name.
    alone = files and not any(path.exists() for path in files) and not _beside(folder, files[0])
    if (changed or alone) and (other := store.others(files)):
        problem = f"leads to {folder}, which is made from {other}, other data; choose another store"
        raise ArgumentError("ChunkDataModule", "store", problem)
    return None if changed else store


def _beside(folder: Path, file: Path) -> bool:
    return folder.parent.absolute() in file.absolute().parents


def _convert(files: list[Path], folder: Path, layout: Layout) -> Store:
    """Convert into a temporary folder, then put it in place of the old one."""
    temporary = folder.with_name(f"{folder.name}.tmp")
    source, ends = _survey(files, layout)
    manifest = {
        "format": FORMAT,
        "layout": layout,
        "crc32": {},
        "versions": versions(),
        "source": [shard.model_dump() for shard in source],
        "folder": str(files[0].parent.absolute()),
    }
    headers = {key: npy_header(*kind) for key, kind in _shapes(source, layout).items()}
    done = _resumed(temporary, layout, source, headers)
    good = _sizes(headers, source[:done], layout)
    total = sum(_sizes(headers, source, layout).values())
    _check_space(temporary, total - sum(good.values()))
    with ExitStack() as stack:
        bar = stack.enter_context(bytes_bar())
        task = bar.add_task(f"converting {folder.stem}", total=total)
        outputs = {
            key: stack.enter_context(_Output(temporary / f"{key}.npy", good[key]))
            for key in headers
        }
        for number in range(done, len(files)):
            row = sum(shard.rows for shard in source[:number])
            try:
                for _ in _append(files[number], ends[number], row, layout, outputs):
                    bar.update(task, completed=sum(output.size for output in outputs.values()))
            except UserError:  # a file that is refused must be replaced: nothing to go on from
                shutil.rmtree(temporary, ignore_errors=True)
                raise
            for output in outputs.values():
                output.sync()
            save_json(temporary / PROGRESS, manifest | {"done": number + 1})
    manifest["crc32"] = {key: output.crc32 for key, output in outputs.items()}
    save_json(temporary / MANIFEST, manifest)
    _put_in_place(temporary, folder)
    return Store(folder)


def _survey(files: list[Path], layout: Layout) -> tuple[list[Shard], list[np.ndarray]]:
    """Read from every file, before the long work, what it is and where its trajectories end."""
    source, all_ends = [], []
    first: dict[str, str] = {}
    for path in files:
        with NpzFile(path) as file:
            ends = file.ends(layout)
            for key in layout:
                dtype = str(file.shape(key)[1])
                if dtype != first.setdefault(key, dtype):
                    raise UserError(
                        f"{path}: {key} holds {dtype}, but {files[0].name} holds {first[key]}; "
                        "are these files of one dataset?"
                    )
            source.append(
                Shard(
                    name=path.name,
                    fingerprint=file.fingerprint(),
                    rows=int(ends[-1]) + 1,
                    trajectories=len(ends),
                )
            )
            all_ends.append(ends)
    return source, all_ends


def _shapes(source: list[Shard], layout: Layout) -> Shapes:
    """What the store's arrays look like with the trajectories of these files."""
    rows, trajectories = (sum(getattr(s, key) for s in source) for key in ("rows", "trajectories"))
    shapes = {
        key: (column.shape(rows if column.last_rows else rows - trajectories), column.dtype)
        for key, column in layout.items()
    }
    return shapes | {"ends": ((trajectories,), "int64")}


def _sizes(headers: dict[str, bytes], source: list[Shard], layout: Layout) -> dict[str, int]:
    """The bytes of every array's file once it holds the trajectories of these files."""
    return {
        key: len(headers[key]) + math.prod(shape) * np.dtype(dtype).itemsize
        for key, (shape, dtype) in _shapes(source, layout).items()
    }


def _resumed(
    temporary: Path, layout: Layout, source: list[Shard], headers: dict[str, bytes]
) -> int:
    """Return how many files an interrupted conversion of the same files did, or start afresh."""
    try:
        found = read_json(_Progress, temporary / PROGRESS, "a conversion", "delete it")
        good = _sizes(headers, source[: found.done], layout)
        # A file that was cut meanwhile must not be lengthened again with zeros.
        if (
            (found.format, found.layout, found.source) == (FORMAT, layout, source)
            and found.done <= len(source)
            and all((temporary / f"{k}.npy").stat().st_size >= good[k] for k in headers)
        ):
            return found.done
    except (OSError, UserError):
        pass
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    for key, header in headers.items():
        (temporary / f"{key}.npy").write_bytes(header)
    return 0


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"converting into {folder.parent} takes {gigabytes(needed)}, but only "
            f"{gigabytes(free)} are free there; free some, or choose another store"
        )


class _Output:
    """An array's file that is appended to, its size in bytes, and the checksum of all of it."""

    def __init__(self, path: Path, good: int):
        """Open the file behind its ``good`` first bytes."""
        self._file = path.open("r+b")
        self.size, self.crc32 = 0, 0
        while block := self._file.read(min(1 << 22, good - self.size)):
            self._note(block)
        self._file.truncate(good)

    def _note(self, data: bytes) -> None:
        self.size, self.crc32 = self.size + len(data), zlib.crc32(data, self.crc32)

    def write(self, block: np.ndarray) -> None:
        """Append rows."""
        data = np.ascontiguousarray(block).tobytes()
        self._file.write(data)
        self._note(data)

    def sync(self) -> None:
        """Wait until all is on disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _append(
    path: Path, ends: np.ndarray, row: int, layout: Layout, outputs: dict[str, _Output]
) -> Iterator[None]:
    """Append one file, whose first row becomes ``row``; yield after every block."""
    with NpzFile(path) as file:
        for key, column in layout.items():
            for block in file.columns(key, column, ends):
                outputs[key].write(block)
                yield
    outputs["ends"].write(ends + row)


def _put_in_place(temporary: Path, folder: Path) -> None:
    """Give a complete store its name; an old one goes when the new one is there."""
    (temporary / PROGRESS).unlink()
    sync(temporary)
    outdated = folder.with_name(f"{folder.name}.old")
    if folder.exists():
        shutil.rmtree(outdated, ignore_errors=True)
        folder.rename(outdated)
    temporary.rename(folder)
    shutil.rmtree(outdated, ignore_errors=True)
    sync(folder.parent)
