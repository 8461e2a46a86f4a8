"""Reading npz files block by block, in little memory, and checking all values on the way."""

import contextlib
import hashlib
import lzma
import math
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Self
from zipfile import BadZipFile

import numpy as np

from qam_lightning.data.layout import Column, Layout
from qam_lightning.data.npy import Header, read_header
from qam_lightning.util.errors import UserError, shown
from qam_lightning.util.memory import gigabytes, memory_limit

BLOCK_ROWS = 1 << 16
BLOCK_BYTES = 1 << 24
# Recorded actions are clipped to [-1, 1]; values further out follow another convention.
ACTION_TOLERANCE = 1e-3
_KINDS = {
    "f": ("fiub", "numbers"),
    "i": ("iub", "integers"),
    "u": ("iufb", "0 and 1"),
}
# What zipfile and numpy raise at damaged files; RuntimeError where flags look like encryption.
_DAMAGE = (
    *(OSError, ValueError, EOFError, RuntimeError, OverflowError),
    *(BadZipFile, zlib.error, lzma.LZMAError, struct.error),
)


class NpzFile:
    """An npz file open for reading; what is wrong with it becomes a `UserError` that names it."""

    def __init__(
        self,
        path: Path,
        advice: str = "move it away; if it is one of OGBench's, the next run downloads it again",
    ):
        """Open the file and read its table of contents.

        Args:
            path: The file.
            advice: What to do if it is damaged.

        Raises:
            UserError: It does not exist, or is not a whole npz file.
        """
        self.path, self._advice = path, advice
        if not path.is_file():
            found = "is no file" if path.exists() else "does not exist"
            raise UserError(f"{path}: {found}")
        with self._reading():
            if not zipfile.is_zipfile(path):
                raise ValueError("it is not an npz file, or only the beginning of one")
            self._zip = zipfile.ZipFile(path)
            for name, count in Counter(self._zip.namelist()).most_common(1):
                if count > 1:
                    raise ValueError(f"it holds {shown(name)} twice")
        self._headers: dict[str, Header] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._zip.close()

    def fingerprint(self) -> str:
        """A digest of the contents' sizes and checksums, read from the table of contents."""
        members = sorted((i.filename, i.CRC, i.file_size) for i in self._zip.infolist())
        return hashlib.sha256(repr(members).encode()).hexdigest()[:16]

    def keys(self) -> list[str]:
        """The arrays' names."""
        return [name.removesuffix(".npy") for name in self._zip.namelist()]

    def shape(self, key: str) -> tuple[tuple[int, ...], np.dtype]:
        """Shape and type of an array, without reading it."""
        header = self._header(key)
        return header.shape, header.dtype

    def blocks(self, key: str) -> Iterator[np.ndarray]:
        """Yield an array in blocks of rows; the zip checksum is compared after the last one."""
        shape, fortran, dtype, offset = header = self._header(key)
        with self._reading(), self._zip.open(f"{key}.npy") as stream:
            stream.read(offset)
            if fortran and len(shape) > 1:
                if 2 * header.nbytes > memory_limit():
                    raise UserError(
                        f"{self.path}: {key} is in Fortran order, and so takes "
                        f"{gigabytes(2 * header.nbytes)} of memory; save np.ascontiguousarray of it"
                    )
                whole = np.frombuffer(stream.read(header.nbytes), dtype).reshape(shape, order="F")
                yield from np.array_split(whole, -(-shape[0] // BLOCK_ROWS) or 1)
            else:
                width = dtype.itemsize * math.prod(shape[1:])
                rows_at_once = max(1, min(BLOCK_ROWS, BLOCK_BYTES // max(1, width)))
                for start in range(0, shape[0], rows_at_once):
                    rows = min(rows_at_once, shape[0] - start)
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
            raise UserError(f"{self.path}: {key} holds {shown(dtype)}, expected {wanted}")
        expected = column.shape(rows)
        if shape != expected:
            why = ""
            if len(shape) != len(expected):
                why = "; reshape it" if math.prod(shape) == math.prod(expected) else ""
            elif shape[1:] != expected[1:]:
                why = "; is this the file of another environment?"
            else:
                why = f", as terminals has {rows} rows"
            raise UserError(f"{self.path}: {key} has shape {shape}, expected {expected}{why}")

    def rows(self) -> int:
        """Return the number of rows.

        Raises:
            UserError: The terminals are not one-dimensional.
        """
        shape, _ = self.shape("terminals")
        if len(shape) != 1:
            expected = f"({math.prod(shape)},), one dimension"
            raise UserError(f"{self.path}: terminals has shape {shape}, expected {expected}")
        return shape[0]

    def ends(self, layout: Layout) -> np.ndarray:
        """Check all headers, then return the last row of every trajectory, (trajectories,) int64.

        Args:
            layout: The arrays that are needed.

        Raises:
            UserError: An array is missing or of another shape, or the terminals do not divide all
                rows into trajectories of two or more.
        """
        rows = self.rows()
        for key, column in layout.items():
            self.check_header(key, column, rows)
        found: list[np.ndarray] = []
        start, last = 0, -1
        for block in self.blocks("terminals"):
            if block.dtype.kind not in "biuf" or not np.isin(block, (0, 1)).all():
                raise UserError(f"{self.path}: terminals must hold only 0 and 1 (false and true)")
            ends = np.flatnonzero(block) + start
            short = np.diff(ends, prepend=last) < 2
            if short.any():
                row = ends[short.argmax()]
                raise UserError(
                    f"{self.path}: the trajectory ending in row {row} has 1 row, expected 2 or more"
                )
            found.append(ends)
            start += len(block)
            last = int(ends[-1]) if len(ends) else last
        if last < 0:
            raise UserError(f"{self.path}: terminals marks no trajectory's end")
        if last != start - 1:
            raise UserError(
                f"{self.path}: the last trajectory has no end (last row {start - 1}, last "
                f"terminal {last}); was the file cut?"
            )
        return np.concatenate(found).astype(np.int64)

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

    def _header(self, key: str) -> Header:
        """An array's header, which agrees with the size of its part of the file."""
        if key in self._headers:
            return self._headers[key]
        name = f"{key}.npy"
        if name not in self._zip.namelist():
            found = ", ".join(self.keys()) or "none"
            raise UserError(f"{self.path}: no array {key!r}, found only {shown(found, 400)}")
        with self._reading(), self._zip.open(name) as stream:
            try:
                header = read_header(stream)  # type: ignore[arg-type]
            except ValueError as error:
                raise ValueError(f"{key} holds {error}") from None
            size = self._zip.getinfo(name).file_size
            if size != header.offset + header.nbytes:
                raise ValueError(
                    f"{key} takes {size} bytes, but declares {header.shape} of {header.dtype}"
                )
        self._headers[key] = header
        return header

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except _DAMAGE as error:
            reason = shown(" ".join(str(getattr(error, "strerror", None) or error).split()), 400)
            end = f"; {self._advice}" if self._advice else ""
            raise UserError(f"{self.path}: cannot be read: {reason}{end}") from None


def check_npz(path: Path, layout: Layout) -> None:
    """Read and check a whole file that is not kept if it is damaged.

    Raises:
        UserError: The file is damaged, of another environment, or holds impossible values.
    """
    with NpzFile(path, advice="") as file:
        ends = file.ends(layout)
        for key, column in layout.items():
            for _ in file.columns(key, column, ends):
                pass
