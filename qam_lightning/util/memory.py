"""How much memory a process may use, and checks of a size before it is allocated.

A system grants more memory than it has, and kills a process that then uses it. So a size is checked
before it is allocated. It is compared with all memory, because free memory changes by the second.
"""

import contextlib
import functools
import os
import resource
from pathlib import Path

from qam_lightning.util.errors import ArgumentError

PHYSICAL_MEMORY = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
"""Bytes of the machine."""


@functools.cache
def memory_limit() -> int:
    """Return the bytes that this process may use: of the machine, its control group, its ulimit."""
    limits = [PHYSICAL_MEMORY, *_group_limits(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))]
    address_space = resource.getrlimit(resource.RLIMIT_AS)[0]
    return min(limits if address_space == resource.RLIM_INFINITY else [*limits, address_space])


def _group_limits(groups: Path, root: Path) -> list[int]:
    """Return the limits of this process's control groups and all above them; version 1 and 2."""
    found = []
    with contextlib.suppress(OSError, ValueError):  # another system has none
        for line in groups.read_text().splitlines():
            _, controllers, name = line.split(":", 2)
            if controllers in ("", "memory"):
                top, file = root / controllers, ("memory.max", "memory.limit_in_bytes")
                group = top / name.lstrip("/")
                for folder in (group, *group.parents):
                    if not folder.is_relative_to(top):
                        break
                    for path in (folder / file[0], folder / file[1]):
                        with contextlib.suppress(OSError, ValueError):  # "max": no limit
                            found.append(int(path.read_text()))
    return found


def check_memory(needed: int, owner: type | str, name: str, problem: str) -> None:
    """Check that something fits into memory before it is allocated.

    Args:
        needed: bytes.
        owner: the class or function that takes the argument.
        name: the argument, or several, that decide the size.
        problem: begins the message, e.g. ``"is 100000: the networks"``; a verb follows.

    Raises:
        ArgumentError: it does not fit.
    """
    if needed > memory_limit():
        there = f"there are {gigabytes(memory_limit())} for this process"
        raise ArgumentError(owner, name, f"{problem} would take {gigabytes(needed)}, but {there}")


def gigabytes(size: int) -> str:
    """Return a number of bytes in words, e.g. ``23.5 GB``."""
    return f"{size / 1e9:.3g} GB" if size < 10**21 else "more than 10^12 GB"
