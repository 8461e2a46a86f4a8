"""Which software made a file, and on what: results differ, so every output carries this."""

import contextlib
import functools
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import qam_lightning

_PACKAGES = ("torch", "lightning", "ogbench", "mujoco", "gymnasium", "numpy")
# A different release of these changes results: contact physics, success rules, kernels, the loop.
_DECISIVE = ("mujoco", "ogbench", "torch", "lightning")


def versions() -> dict[str, str]:
    """Return the versions of Python, of this project and of the packages that shape results.

    A package that is not installed appears as ``"missing"``. In a git checkout of this project
    ``"commit"`` is there too, see `git_commit`.
    """
    found = {"python": platform.python_version(), "qam_lightning": qam_lightning.__version__}
    for package in _PACKAGES:  # their metadata only: nothing heavy is imported
        found[package] = _installed(package)
    commit = git_commit()
    return {**found, "commit": commit} if commit else found


@functools.cache  # what was imported stays, and every checkpoint asks
def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


@functools.cache
def hardware(device: Any = "cpu") -> str:
    """Return the name of a ``torch.device``, or of the processor for any that is no GPU."""
    if getattr(device, "type", device) == "cuda":
        import torch

        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError, IndexError):
        text = Path("/proc/cpuinfo").read_text()
        return text.split("model name", 1)[1].split("\n")[0].strip(" \t:")
    return platform.processor() or platform.machine()


def versions_line() -> str:
    """Return `versions` in one line, for printed tables: ``python 3.11.7, torch 2.13.0, ...``."""
    return ", ".join(f"{name} {value}" for name, value in versions().items())


@functools.cache
def git_commit() -> str | None:
    """Return the commit that the package runs from, ``-dirty`` appended if files differ from it.

    Files differ if a file of the repository was changed, or the package or ``configs/`` holds one
    that the repository lacks.

    None if the package is no part of the git repository that holds it (an installed wheel), or if
    git is not installed or fails. Asked once per process: what was imported at its start is what
    runs.
    """
    package = Path(qam_lightning.__file__).resolve().parent
    if not (package.parent / ".git").exists():  # a file in a worktree or a submodule
        return None
    try:
        git = functools.partial(_git, package.parent)
        git("ls-files", "--error-unmatch", f"{package.name}/__init__.py")
        commit = git("rev-parse", "--verify", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no")
        added = git("ls-files", "--others", "--exclude-standard", package.name, "configs")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}-dirty" if changed or added else commit


def _git(root: Path, *arguments: str) -> str:
    """Return what git answers about the repository at ``root``, whatever the environment says.

    The folder may belong to another user, as in a container: its code is running already.
    """
    command = ["git", "--no-optional-locks", "-c", "safe.directory=*", "-C", str(root), *arguments]
    environment = {name: x for name, x in os.environ.items() if not name.startswith("GIT_")}
    answer = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=10, check=True
    )
    return answer.stdout.strip()


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
