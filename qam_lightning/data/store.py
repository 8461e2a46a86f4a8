"""The store: a dataset as ``.npy`` files, mapped into memory and shared by all its tasks.

A folder ``<name>.store`` holds one file per array, ``ends.npy`` with the last row of every
trajectory, and ``manifest.json`` with checksums and the source files. Observations are kept for
every row, so next observations need no storage of their own; everything else is kept for
transitions only (see ``chunks.py`` for their numbers).
"""

import hashlib
import mmap
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from qam_lightning.data.layout import Column, Layout
from qam_lightning.data.npy import map_npy
from qam_lightning.data.npz import NpzFile
from qam_lightning.util.errors import UserError
from qam_lightning.util.files import checksum
from qam_lightning.util.schema import Checked, Count, Crc32, Schema, Text, read_json

FORMAT = 2
MANIFEST = "manifest.json"


def _file_name(text: str) -> str:
    if Path(text).name != text or "\0" in text:
        raise ValueError("a file's name without a folder")
    return text


def _plain(text: str) -> str:
    if not text.isidentifier():
        raise ValueError("a plain name")
    return text


ArrayName = Annotated[Text, Checked(_plain)]
"""An array's name, which is also its file's."""


class Shard(Schema):
    """A source file: the trajectories and rows taken from it."""

    name: Annotated[Text, Checked(_file_name)]
    fingerprint: Text
    rows: Count
    trajectories: Count


class Manifest(Schema):
    """``manifest.json``.

    Attributes:
        format: `FORMAT`.
        layout: Columns, type and whether last rows are kept of every array but ``ends``.
        crc32: checksum of every array's file.
        versions: The software that made the store.
        source: The source files, in order.
        folder: Where they were then.
    """

    format: Count
    layout: dict[ArrayName, tuple[Count, Literal["float32", "int8", "uint8"], bool]]
    crc32: dict[ArrayName, Crc32]
    versions: dict[str, str] = {}
    source: Annotated[list[Shard], Field(min_length=1)]
    folder: Text = ""


class _Format(Schema, extra="allow"):
    format: Count


class OutdatedStore(UserError):
    """A store in the format of another version of this program."""


class Store:
    """An existing store, its arrays mapped read-only.

    Attributes:
        folder: Its folder.
        arrays: (N, ...) or, of observations, (T, ...), by key; reading touches only the pages used.
        ends: Last row of every trajectory.
        transitions: N.
        layout: What its arrays look like.
        manifest: What ``manifest.json`` holds.
    """

    def __init__(self, folder: Path):
        """Map the arrays.

        Raises:
            OutdatedStore: The store is of another format.
            UserError: The store is damaged.
        """
        self.folder = folder
        path, again = (
            folder / MANIFEST,
            f"delete {folder}, and the next run converts the files again",
        )
        found = read_json(_Format, path, "a store's manifest", again).format
        if found != FORMAT:
            raise OutdatedStore(
                f"{folder}: has format {found}, expected {FORMAT}; training makes it again from "
                "its npz files, so bring those back if they are gone"
            )
        self.manifest: Manifest = read_json(Manifest, path, "a store's manifest", again)
        self.layout: Layout = {key: Column(*c) for key, c in self.manifest.layout.items()}
        try:
            self.arrays = {key: map_npy(self.path(key)) for key in [*self.layout, "ends"]}
            self._check()
        except (OSError, ValueError) as error:
            raise UserError(f"{folder}: cannot be read: {error}; {again}") from None
        self.ends, self.transitions = self.arrays["ends"], len(self.arrays["actions"])

    def _check(self) -> None:
        """Raise a `ValueError` unless the arrays fit the manifest and each other."""
        if not {"observations", "actions"} <= self.layout.keys():
            raise ValueError(f"{MANIFEST} names no observations or no actions")
        if self.manifest.crc32.keys() != self.arrays.keys():
            raise ValueError(f"{MANIFEST} has checksums of other arrays than its layout names")
        ends = self.arrays["ends"]
        if ends.dtype != np.int64 or ends.ndim != 1 or not len(ends):
            raise ValueError(f"ends is {ends.shape} of {ends.dtype}, expected (n,) of int64")
        rows = int(ends[-1]) + 1
        lengths = np.diff(ends, prepend=-1)
        if lengths.min() < 2:
            raise ValueError("ends do not increase by two or more")
        for key, column in self.layout.items():
            array = self.arrays[key]
            expected = column.shape(rows if column.last_rows else rows - len(ends))
            if array.shape != expected or array.dtype != column.dtype:
                raise ValueError(
                    f"{key} is {array.shape} of {array.dtype}, expected {expected} of "
                    f"{column.dtype}, as ends tells"
                )
        source = self.manifest.source
        counted = sum(shard.rows for shard in source), sum(shard.trajectories for shard in source)
        if counted != (rows, len(ends)):
            raise ValueError(f"{MANIFEST} counts {counted} rows and trajectories of its sources")

    @property
    def shards(self) -> dict[str, str]:
        """Fingerprint of every source file, by name."""
        return {shard.name: shard.fingerprint for shard in self.manifest.source}

    @property
    def stops(self) -> np.ndarray:
        """For each trajectory, the number of the first transition behind it."""
        return np.asarray(self.ends) - np.arange(len(self.ends))

    @property
    def fingerprint(self) -> str:
        """A digest of all arrays, 16 hexadecimal digits, from their checksums.

        It is the same for the same data in one file or several, and under any name.
        """
        sums = sorted(self.manifest.crc32.items())
        return hashlib.sha256(repr(sums).encode()).hexdigest()[:16]

    def path(self, key: str) -> Path:
        """The file of an array."""
        return self.folder / f"{key}.npy"

    def check_layout(self, layout: Layout) -> None:
        """Check that the store holds what an environment needs.

        Raises:
            UserError: An array is missing or has other columns.
        """
        for key, column in layout.items():
            if key not in self.arrays:
                problem = f"{self.folder}: holds no {key}"
                raise UserError(f"{problem}; delete it, and the next run converts the files again")
            found, expected = self.arrays[key].shape[1:], column.shape(0)[1:]
            if found != expected:
                raise UserError(
                    f"{self.folder}: {key} has rows of shape {found}, but the environment's "
                    f"{expected}; is this the data of another environment?"
                )

    def changes(self, files: list[Path]) -> str | None:
        """What differs from the source files that still exist; None if nothing does."""
        shards = self.shards
        for path in files:
            if path.exists():
                recorded = shards.get(path.name)
                if recorded is None:
                    return f"{path.name} is new"
                with NpzFile(path) as file:
                    if file.fingerprint() != recorded:
                        return f"{path.name} has changed"
        return None

    def others(self, files: list[Path]) -> Path | None:
        """A file elsewhere that this store was made from, if it was made from none of ``files``."""
        recorded = [Path(self.manifest.folder, name) for name in self.shards]
        if not self.manifest.folder or {path.absolute() for path in files} & set(recorded):
            return None
        return next((path for path in recorded if path.exists()), None)

    def verify(self, files: list[Path]) -> list[str]:
        """Compare every byte with the checksums and every number with the source.

        Args:
            files: Source files; missing ones are passed over.

        Returns:
            One line for each array that is wrong.
        """
        wrong = []
        for key, expected in self.manifest.crc32.items():
            if checksum(self.path(key)) != expected:
                wrong.append(f"{self.path(key)} fails its checksum")
        present = {path.name: path for path in files if path.exists()}
        row = transition = 0
        for shard in self.manifest.source:
            if shard.name in present:
                wrong += self._compare(present[shard.name], row, transition)
            row += shard.rows
            transition += shard.rows - shard.trajectories
        return wrong

    def _compare(self, path: Path, row: int, transition: int) -> list[str]:
        with NpzFile(path) as file:
            if file.fingerprint() != self.shards.get(path.name):
                return [f"{path} has changed since the store was made"]
            ends, wrong = file.ends(self.layout), []
            for key, column in self.layout.items():
                at = row if column.last_rows else transition
                for block in file.columns(key, column, ends):
                    if not np.array_equal(self.arrays[key][at : at + len(block)], block):
                        wrong.append(f"{key} in {self.folder} differs from {path}")
                        break
                    at += len(block)
            return wrong


def read_singly(arrays: Iterable[np.ndarray]) -> None:
    """Tell the system to read only the rows looked up from mapped arrays.

    By default it reads megabytes around every row. That brings a file into memory quickly, but of
    one that is larger than memory, most is dropped before it is used.
    """
    for array in arrays:
        array._mmap.madvise(mmap.MADV_RANDOM)  # type: ignore[attr-defined]
