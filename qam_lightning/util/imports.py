"""Importing PyTorch and Lightning without the garbage collector."""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Import what a command needs with the garbage collector off, and exempt it from later search.

    Lightning's modules make a million objects, and none is garbage. To search them again and again
    takes a third of the time of the import, and as much when the process ends. In a process that
    has imported PyTorch before, nothing changes: there may be garbage in it.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()
