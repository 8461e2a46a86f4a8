"""The store: a dataset as plain arrays on disk, mapped into memory and shared by all its tasks.

A folder ``<name>.store`` with one raw file per array, ``ends.int64`` with the last row of every
trajectory, and ``manifest.json`` with shapes, checksums and what it was made from. Observations are
kept for every row, so next observations need no storage of their own; everything else is kept for
transitions only (see ``chunks.py`` for how they are numbered).
"""

import json
import mmap
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from qam_lightning.data.npz import Column, Layout, NpzFile
from qam_lightning.util.errors import UserError
from qam_lightning.util.files import checksum

FORMAT = 1
MANIFEST = "manifest.json"
PHYSICAL_MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class Store:
    """An existing store, its arrays mapped read-only."""

    def __init__(self, folder: Path):
        """Reads the manifest and checks that every file has its full size.

        Raises:
            UserError: The store is damaged or of another format.
        """
        self.folder = folder
        try:
            self._open()
        except (OSError, ValueError, TypeError, LookupError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise UserError(
                f"{folder / MANIFEST} cannot be read ({reason}); {self._again}"
            ) from None

    @property
    def _again(self) -> str:
        return f"delete {self.folder} to have it made again"

    def _open(self) -> None:
        self.manifest: dict[str, Any] = json.loads((self.folder / MANIFEST).read_text())
        if self.manifest["format"] != FORMAT:
            raise UserError(
                f"{self.folder} is a store of another version of this program; {self._again}"
            )
        for key, array in self.manifest["arrays"].items():
            path = self._path(key)
            expected = int(np.prod(array["shape"])) * np.dtype(array["dtype"]).itemsize
            found = path.stat().st_size if path.exists() else 0
            if found != expected:
                raise UserError(f"{path} has {found} bytes, expected {expected}; {self._again}")
        self.ends = self.array("ends")
        self.transitions = int(self.manifest["arrays"]["actions"]["shape"][0])
        # Fingerprint of every source file, by name.
        self.shards = {shard["name"]: shard["fingerprint"] for shard in self.manifest["source"]}
        self.layout: Layout = {k: Column(*column) for k, column in self.manifest["layout"].items()}

    def array(self, key: str) -> np.ndarray:
        """Maps an array; reading it touches only the pages that are used."""
        array = self.manifest["arrays"][key]
        return np.memmap(self._path(key), array["dtype"], "r", shape=tuple(array["shape"]))

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.{self.manifest['arrays'][key]['dtype']}"

    def check_layout(self, layout: Layout) -> None:
        """Checks that the store holds what an environment needs.

        Raises:
            UserError: An array is missing or has other columns.
        """
        for key, column in layout.items():
            array = self.manifest["arrays"].get(key)
            if array is None:
                raise UserError(f"{self.folder} holds no {key}; delete it to have it made again")
            found = array["shape"][1] if len(array["shape"]) == 2 else 0
            if found != column.columns:
                raise UserError(
                    f"{self.folder}: {key} has {found} columns, but the environment's has "
                    f"{column.columns}; is this the data of another environment?"
                )

    def changes(self, files: list[Path]) -> str | None:
        """What differs from the source: None where nothing does, or where no source is left."""
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
        """Compares every byte with the checksums and every number with the source.

        Args:
            files: Source files; those that do not exist any more are passed over.

        Returns:
            What is wrong, one line each.
        """
        wrong = []
        for key, array in self.manifest["arrays"].items():
            if checksum(self._path(key)) != array["crc32"]:
                wrong.append(f"{self._path(key)} fails its checksum")
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
                stored = self.array(key)
                for block in file.columns(key, column, ends):
                    if not np.array_equal(stored[at : at + len(block)], block):
                        wrong.append(f"{key} in {self.folder} differs from {path}")
                        break
                    at += len(block)
            return wrong


def read_singly(arrays: Iterable[np.ndarray]) -> None:
    """Tells the system to read of mapped arrays only what is looked up.

    Otherwise it reads all around it too, up to megabytes for a row of bytes: a good way to bring a
    file into memory, but of one that is larger than memory, most is dropped before it is used.
    """
    for array in arrays:
        array._mmap.madvise(mmap.MADV_RANDOM)  # type: ignore[attr-defined]
