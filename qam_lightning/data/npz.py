"""Reading npz files block by block, in little memory, and checking all values on the way."""

import contextlib
import hashlib
import math
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Self
from zipfile import BadZipFile

import numpy as np

from qam_lightning.data.layout import Column, Layout
from qam_lightning.util.errors import UserError

BLOCK_ROWS = 1 << 16
# Recorded actions are clipped to [-1, 1]; values further out follow another convention.
ACTION_TOLERANCE = 1e-3
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_KINDS = {"f": ("f", "floating-point numbers"), "i": ("iub", "integers"), "u": ("iufb", "0 and 1")}


class NpzFile:
    """An npz file open for reading; what is wrong with it becomes a `UserError` that names it."""

    def __init__(self, path: Path):
        """Open the file and read its table of contents.

        Raises:
            UserError: It does not exist, or is not a whole npz file.
        """
        self.path = path
        if not path.exists():
            raise UserError(f"{path}: does not exist")
        with self._reading():
            if not zipfile.is_zipfile(path):
                raise UserError(
                    f"{path}: cannot be read: it is not an npz file, or only the beginning of one; "
                    "move it away, and the next run downloads it again"
                )
            self._zip = zipfile.ZipFile(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def fingerprint(self) -> str:
        """A digest of the contents' sizes and checksums, read from the table of contents."""
        members = sorted((i.filename, i.CRC, i.file_size) for i in self._zip.infolist())
        return hashlib.sha256(repr(members).encode()).hexdigest()[:16]

    def shape(self, key: str) -> tuple[tuple[int, ...], np.dtype]:
        """Shape and type of an array, without reading it."""
        with self._reading(), self._open(key) as stream:
            shape, _, dtype = self._header(stream)
            return shape, dtype

    def blocks(self, key: str) -> Iterator[np.ndarray]:
        """Yield an array in blocks of rows; the zip checksum is compared after the last one."""
        with self._reading(), self._open(key) as stream:
            shape, fortran, dtype = self._header(stream)
            if dtype.hasobject:
                raise UserError(f"{self.path}: {key} holds Python objects, expected numbers")
            if fortran and len(shape) > 1:
                whole = np.frombuffer(stream.read(), dtype).reshape(shape, order="F")
                yield from np.array_split(whole, -(-shape[0] // BLOCK_ROWS) or 1)
                return
            width = dtype.itemsize * math.prod(shape[1:])
            for start in range(0, shape[0], BLOCK_ROWS):
                rows = min(BLOCK_ROWS, shape[0] - start)
                data = stream.read(rows * width)
                if len(data) < rows * width:
                    raise EOFError(f"{key} ends in row {start + len(data) // width}")
                yield np.frombuffer(data, dtype).reshape(rows, *shape[1:])
            stream.read(1)  # at the end the checksum is compared

    def check_header(self, key: str, column: Column, rows: int) -> None:
        """Check that an array has the type and width of ``column``, and ``rows`` rows.

        Raises:
            UserError: It does not, or there is no such array.
        """
        shape, dtype = self.shape(key)
        kinds, wanted = _KINDS[np.dtype(column.dtype).kind]
        if dtype.kind not in kinds:
            raise UserError(f"{self.path}: {key} holds {dtype}, expected {wanted}")
        if shape[1:] != ((column.columns,) if column.columns else ()):
            found = shape[1] if len(shape) == 2 else f"shape {shape}"
            raise UserError(
                f"{self.path}: {key} has {found} columns, but the environment's has "
                f"{column.columns}; is this the file of another environment?"
            )
        if shape[0] != rows:
            raise UserError(f"{self.path}: {key} has {shape[0]} rows, but terminals has {rows}")

    def rows(self) -> int:
        """Return the number of rows.

        Raises:
            UserError: The terminals are not one-dimensional.
        """
        shape, _ = self.shape("terminals")
        if len(shape) != 1:
            raise UserError(f"{self.path}: terminals has shape {shape}, expected one dimension")
        return shape[0]

    def ends(self) -> np.ndarray:
        """Return the last row of every trajectory, (trajectories,) int64.

        Raises:
            UserError: The terminals do not divide all rows into trajectories of two or more.
        """
        self.rows()
        found, start = [], 0
        for block in self.blocks("terminals"):
            if block.dtype.kind not in "biuf" or not np.isin(block, (0, 1)).all():
                raise UserError(f"{self.path}: terminals must hold only 0 and 1 (false and true)")
            found.append(np.flatnonzero(block) + start)
            start += len(block)
        ends = np.concatenate(found) if found else np.zeros(0, np.int64)
        if not len(ends):
            raise UserError(f"{self.path}: terminals marks no trajectory's end")
        if ends[-1] != start - 1:
            raise UserError(
                f"{self.path}: the last trajectory has no end (last row {start - 1}, last "
                f"terminal {ends[-1]}); was the file cut?"
            )
        lengths = np.diff(ends, prepend=-1)
        if lengths.min() < 2:
            row = int(ends[lengths.argmin()])
            raise UserError(
                f"{self.path}: the trajectory ending in row {row} has 1 row, expected 2 or more"
            )
        return ends.astype(np.int64)

    def columns(self, key: str, column: Column, ends: np.ndarray) -> Iterator[np.ndarray]:
        """Yield the rows that a store keeps of an array, block by block, checked and converted.

        Raises:
            UserError: An impossible value.
        """
        start = 0
        for block in self.blocks(key):
            self._check_values(key, block, column, start)
            kept = np.ones(len(block), bool)
            if not column.last_rows:
                first, last = np.searchsorted(ends, (start, start + len(block)))
                kept[ends[first:last] - start] = False
            start += len(block)
            yield block[kept].astype(column.dtype)

    def _check_values(self, key: str, block: np.ndarray, column: Column, start: int) -> None:
        flat = block.reshape(len(block), -1)
        if column.dtype == "float32":  # in which numbers beyond 1e38 become infinite
            with np.errstate(over="ignore"):
                flat = flat.astype(np.float32, copy=False)
        if flat.dtype.kind == "f" and not (finite := np.isfinite(flat).all(1)).all():
            row = start + int(finite.argmin())
            raise UserError(
                f"{self.path}: {key} has NaN or infinity as {flat.dtype}, first in row {row}"
            )
        limits: dict[str, tuple[float, float, str]] = {
            "int8": (-128, 127, "small integers"),
            "uint8": (0, 1, "0 and 1 only"),
        }
        if key == "actions":
            limits["float32"] = (-1 - ACTION_TOLERANCE, 1 + ACTION_TOLERANCE, "values from -1 to 1")
        if column.dtype in limits:
            low, high, wanted = limits[column.dtype]
            bad = ((flat < low) | (flat > high)).any(1)
            if column.dtype == "uint8":
                bad |= (flat != flat.astype(bool)).any(1)
            if bad.any():
                row = int(bad.argmax())
                worst = flat[row][np.abs(flat[row]).argmax()]
                raise UserError(
                    f"{self.path}: {key} reaches {worst:.4g} (first in row {start + row}), "
                    f"expected {wanted}"
                )

    def _open(self, key: str) -> zipfile.ZipExtFile:
        name = f"{key}.npy"
        if name not in self._zip.namelist():
            found = ", ".join(n.removesuffix(".npy") for n in self._zip.namelist()) or "none"
            raise UserError(f"{self.path}: no array {key!r}, found only {found}")
        return self._zip.open(name)  # type: ignore[return-value]

    @staticmethod
    def _header(stream: zipfile.ZipExtFile) -> tuple[tuple[int, ...], bool, np.dtype]:
        version = np.lib.format.read_magic(stream)
        if version not in _HEADERS:
            raise ValueError(f"npy format {version}")
        return _HEADERS[version](stream)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        # zipfile raises RuntimeError where damaged flags look like encryption.
        except (OSError, ValueError, EOFError, RuntimeError, BadZipFile, zlib.error) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(
                f"{self.path}: cannot be read: {' '.join(str(reason).split())}; move it away, and "
                "the next run downloads it again"
            ) from None


def check_npz(path: Path, layout: Layout) -> None:
    """Read and check a whole file, keeping nothing.

    Raises:
        UserError: The file is damaged, of another environment, or holds impossible values.
    """
    with NpzFile(path) as file:
        ends = file.ends()
        for key, column in layout.items():
            file.check_header(key, column, int(ends[-1]) + 1)
            for _ in file.columns(key, column, ends):
                pass
