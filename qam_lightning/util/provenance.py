"""Which software made a file: results differ between releases, so every output carries this."""

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from qam_lightning import __version__

_PACKAGES = ("torch", "lightning", "ogbench", "mujoco", "gymnasium", "numpy")
# A different release of these changes results: contact physics, success rules, kernels, the loop.
_DECISIVE = ("mujoco", "ogbench", "torch", "lightning")


def versions() -> dict[str, str]:
    """Returns the versions of Python, of this project and of the packages that shape results.

    Reads package metadata only, so nothing heavy is imported. A package that is not installed
    appears as ``"missing"``.
    """
    found = {"python": platform.python_version(), "qam_lightning": __version__}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    return found


def mismatches(recorded: Mapping[str, str]) -> list[str]:
    """Compares recorded versions with the installed ones.

    Args:
        recorded: What `versions` returned when a file was written; unknown keys are ignored.

    Returns:
        One sentence per decisive package that differs, empty when all agree. Worth a warning, never
        an error: the file is still usable.
    """
    installed = versions()
    return [
        f"made with {package} {recorded[package]}, running {installed[package]}: "
        "results may differ slightly"
        for package in _DECISIVE
        if package in recorded and recorded[package] != installed[package]
    ]
