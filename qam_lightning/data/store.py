"""The store: a dataset as ``.npy`` files, mapped into memory and shared by all its tasks.

A folder ``<name>.store`` holds one file per array, ``ends.npy`` with the last row of every
trajectory, and ``manifest.json`` with checksums and the source files. Observations are kept for
every row, so next observations need no storage of their own; everything else is kept for
transitions only (see ``chunks.py`` for their numbers).
"""

import io
import json
import mmap
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from qam_lightning.data.layout import Column, Layout
from qam_lightning.data.npz import NpzFile
from qam_lightning.util.errors import UserError
from qam_lightning.util.files import checksum

FORMAT = 2
MANIFEST = "manifest.json"
PHYSICAL_MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


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
        manifest: See the module's docstring.
    """

    def __init__(self, folder: Path):
        """Map the arrays.

        Raises:
            OutdatedStore: The store is of another format.
            UserError: The store is damaged.
        """
        self.folder = folder
        try:
            self.manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
            if self.manifest["format"] != FORMAT:
                raise OutdatedStore(
                    f"{folder}: has format {self.manifest['format']}, expected {FORMAT}; training "
                    "makes it again from its npz files, so bring those back if they are gone"
                )
            self.arrays: dict[str, np.ndarray] = {
                key: np.load(self.path(key), mmap_mode="r") for key in self.manifest["crc32"]
            }
            self.ends, self.transitions = self.arrays["ends"], len(self.arrays["actions"])
            # Fingerprint of every source file, by name.
            self.shards = {shard["name"]: shard["fingerprint"] for shard in self.manifest["source"]}
            columns = self.manifest["layout"].items()
            self.layout: Layout = {key: Column(*column) for key, column in columns}
        except (OSError, EOFError, ValueError, TypeError, LookupError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise UserError(
                f"{folder}: cannot be read: {reason}; delete it, and the next run converts the "
                "files again"
            ) from None

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
            found = (*self.arrays[key].shape, 0)[1]
            if found != column.columns:
                raise UserError(
                    f"{self.folder}: {key} has {found} columns, but the environment's has "
                    f"{column.columns}; is this the data of another environment?"
                )

    def changes(self, files: list[Path]) -> str | None:
        """What differs from the source files that still exist; None if nothing does."""
        for path in files:
            if path.exists():
                recorded = self.shards.get(path.name)
                if recorded is None:
                    return f"{path.name} is new"
                with NpzFile(path) as file:
                    if file.fingerprint() != recorded:
                        return f"{path.name} has changed"
        return None

    def verify(self, files: list[Path]) -> list[str]:
        """Compare every byte with the checksums and every number with the source.

        Args:
            files: Source files; missing ones are passed over.

        Returns:
            One line for each array that is wrong.
        """
        wrong = []
        for key, expected in self.manifest["crc32"].items():
            if checksum(self.path(key)) != expected:
                wrong.append(f"{self.path(key)} fails its checksum")
        present = {path.name: path for path in files if path.exists()}
        row = transition = 0
        for shard in self.manifest["source"]:
            if shard["name"] in present:
                wrong += self._compare(present[shard["name"]], row, transition)
            row += shard["rows"]
            transition += shard["rows"] - shard["trajectories"]
        return wrong

    def _compare(self, path: Path, row: int, transition: int) -> list[str]:
        with NpzFile(path) as file:
            if file.fingerprint() != self.shards.get(path.name):
                return [f"{path} has changed since the store was made"]
            ends, wrong = file.ends(), []
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


def npy_header(shape: tuple[int, ...], dtype: str) -> bytes:
    """The beginning of a ``.npy`` file, to be followed by the array's bytes."""
    stream = io.BytesIO()
    content = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, content)
    return stream.getvalue()
