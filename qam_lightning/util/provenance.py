"""Which software made a file: results differ between releases, so every output carries this."""

import functools
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import qam_lightning

_PACKAGES = ("torch", "lightning", "ogbench", "mujoco", "gymnasium", "numpy")
# A different release of these changes results: contact physics, success rules, kernels, the loop.
_DECISIVE = ("mujoco", "ogbench", "torch", "lightning")


def versions() -> dict[str, str]:
    """Return the versions of Python, of this project and of the packages that shape results.

    A package that is not installed appears as ``"missing"``. In a git checkout of this project
    ``"commit"`` is the commit, with ``-dirty`` appended if files differ from it.
    """
    found = {"python": platform.python_version(), "qam_lightning": qam_lightning.__version__}
    for package in _PACKAGES:  # their metadata only: nothing heavy is imported
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "missing"
    commit = git_commit()
    return {**found, "commit": commit} if commit else found


@functools.cache
def git_commit() -> str | None:
    """Return the commit that the package runs from, ``-dirty`` appended if files differ from it.

    None if the package does not run from its own git checkout, or git is not installed. Asked
    once per process: what was imported at its start is what runs.
    """
    root = Path(qam_lightning.__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        answer = subprocess.run(
            [*command, "--exclude=*"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None


def mismatches(recorded: Mapping[str, str]) -> list[str]:
    """Compare recorded versions with the installed ones.

    Args:
        recorded: what `versions` returned when a file was written; unknown keys are ignored.

    Returns:
        One sentence per decisive package that differs, empty when all agree. A reason to warn,
        not to refuse: the file is still usable.
    """
    installed = versions()
    return [
        f"made with {package} {recorded[package]}, running {installed[package]}: "
        "results may differ slightly"
        for package in _DECISIVE
        if package in recorded and recorded[package] != installed[package]
    ]
