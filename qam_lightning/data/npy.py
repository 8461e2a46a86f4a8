"""The ``.npy`` format: headers, checked before anything is allocated, and memory-mapped arrays."""

import io
import math
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from qam_lightning.util.files import regular

HEADER_LIMIT = 1 << 14  # bytes; those of plain arrays take 128
_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class Header(NamedTuple):
    """What the beginning of a ``.npy`` file says.

    Attributes:
        shape: Of the array, each length at least 0.
        fortran: Whether columns, rather than rows, are contiguous.
        dtype: Its type, without Python objects.
        offset: Bytes before the array's first.
    """

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes of the array, as declared."""
        return math.prod(self.shape) * self.dtype.itemsize


def read_header(stream: BinaryIO) -> Header:
    """Read the header at the beginning of a stream, whatever it claims in little memory.

    Raises:
        ValueError: It is no header of a plain array.
    """
    start = io.BytesIO(stream.read(HEADER_LIMIT))
    version = np.lib.format.read_magic(start)
    if version not in _READERS:
        raise ValueError(f"npy format {version}")
    try:
        shape, fortran, dtype = _READERS[version](start)
    except Exception as error:  # numpy parses it as Python's source
        raise ValueError(f"no npy header: {type(error).__name__}") from None
    if dtype.hasobject:
        raise ValueError("Python objects, expected numbers")
    if any(length < 0 for length in shape):
        raise ValueError(f"an array of shape {shape}")
    return Header(shape, fortran, dtype, start.tell())


def npy_header(shape: tuple[int, ...], dtype: str) -> bytes:
    """The beginning of a ``.npy`` file, to be followed by the array's bytes."""
    stream = io.BytesIO()
    content = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, content)
    return stream.getvalue()


def map_npy(path: Path) -> np.ndarray:
    """Map an array read-only.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not exactly the array that its header declares.
    """
    with regular(path).open("rb") as file:
        header = read_header(file)
    size = path.stat().st_size
    if header.fortran or size != header.offset + header.nbytes:
        raise ValueError(
            f"{path.name} takes {size} bytes, but declares {header.shape} of {header.dtype}"
        )
    return np.memmap(path, header.dtype, "r", header.offset, header.shape)
