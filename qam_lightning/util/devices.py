"""The cores of this machine, what ``trainer.devices`` asks for, and formats of numbers."""

import os

from qam_lightning.util.errors import require

_PRECISIONS = ("32-true", "bf16-mixed", "64-true", "32", "bf16", "64")


def available_cores() -> int:
    """Number of cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def is_counted(devices: object) -> bool:
    """Whether devices are given by their count, 2 or "2", rather than by their numbers."""
    return str(devices).isdecimal()


def device_count(devices: object) -> int | None:
    """Return how many devices are asked for: 2, "2", [0, 1] and "0, 1" are two, "3," is one.

    Args:
        devices: a number, or the devices by their numbers, as Lightning's trainer takes them.

    Returns:
        At least 1; None if it does not say, e.g. "auto" or -1, or is no such thing.
    """
    if isinstance(devices, str):
        named = [word for word in devices.replace(" ", "").split(",") if word]
        if not all(word.isdecimal() for word in named):
            return None
        devices = named if "," in devices else int("".join(named) or 0)
    count = len(devices) if isinstance(devices, list | tuple) else devices
    return count if type(count) is int and count >= 1 else None


def check_precision(precision: object) -> None:
    """Check that training works in a number format of Lightning's.

    Weights in bfloat16 (bf16-true) are too coarse for the small steps of target networks, Adam and
    TRQAM's λ. In float16, scaled gradients would be clipped, scale and all.

    Raises:
        ArgumentError: it does not.
    """
    expected = "32-true, bf16-mixed or 64-true"
    require(str(precision) in _PRECISIONS, "Trainer", "precision", precision, expected)
