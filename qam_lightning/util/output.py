"""Standard output and standard error that cannot end a program.

A console may lack a character, a pipe's reader may leave, a log's disk may be full, or there may be
no output at all (``>&-``). None of these may end a training run or lose a result.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO


class Tolerant:
    """A text stream that drops what it cannot write.

    Args:
        stream: where to write.

    Attributes:
        failure: why text was lost; None if none was.
        told: whether the user knows of it.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.failure: Exception | None = None
        self.told = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, or drop the text."""
        try:
            return self._stream.write(text)
        except (OSError, ValueError) as error:
            self._give_up(error)
            return len(text)

    def writelines(self, lines: Any) -> None:
        """Write lines, or drop them."""
        self.write("".join(lines))

    def flush(self) -> None:
        """Pass on what is held back, or drop it."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._give_up(error)

    def close(self) -> None:
        """Flush; the stream is the process's, and others write to it."""
        self.flush()

    def _give_up(self, error: Exception) -> None:
        """Remember the failure, and let what is still held back go nowhere."""
        self.failure = self.failure or error
        if isinstance(error, BlockingIOError):
            return  # a reader that is slow, not gone
        with suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), self._stream.fileno())


@contextmanager
def tolerant() -> Iterator[Tolerant]:
    """Replace standard output and error by tolerant streams; yield the former."""
    held = sys.stdout, sys.stderr
    if None in held:
        _fill_descriptors()
    streams = [_tolerant(stream) for stream in held]
    sys.stdout, sys.stderr = streams  # type: ignore[assignment]
    try:
        yield streams[0]
    finally:
        for stream in streams:
            stream.flush()
        if held[0] is not None and held[1] is not None:
            sys.stdout, sys.stderr = held


def _tolerant(stream: TextIO | None) -> Tolerant:
    if isinstance(stream, Tolerant):
        return stream
    if stream is None:
        stream = open(os.devnull, "w")
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    return Tolerant(stream)


def _fill_descriptors() -> None:
    """Open the standard descriptors that are closed, or the next file would be one of them."""
    descriptor = 0
    while descriptor <= 2:
        descriptor = os.open(os.devnull, os.O_RDWR)
        os.set_inheritable(descriptor, descriptor <= 2)
    os.close(descriptor)
