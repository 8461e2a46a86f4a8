"""Checkpoint files: written whole or not at all, read with plain words for what is wrong.

A run folder holds ``checkpoints/last.ckpt``, those before it, ``last-1.ckpt`` and so on, and
``checkpoints/best.ckpt``. They are Lightning checkpoints of tensors and primitives only (they load
with ``weights_only=True``) with one more entry, ``"qam_lightning"``, which says how to rebuild the
method and where it was trained.
"""

import contextlib
import errno
import importlib
import io
import os
import pickle
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only

from qam_lightning.methods.base import Method
from qam_lightning.util.errors import UserError
from qam_lightning.util.files import checksum

ENTRY = "qam_lightning"
_ENTRY_KEYS = frozenset(
    ("method", "model", "environment", "config", "config_hash", "versions", "run_dir")
    + ("gradient_step", "env_step", "phase")
)
_UNREADABLE = (RuntimeError, ValueError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile)


class SafeFile(TorchCheckpointIO):
    """Writes a checkpoint to its place, waits until it is on disk, and reads it back.

    Lightning's own way leads through the system's folder for temporary files, which is another
    disk, full at other times, and keeps what a kill left there.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Writes a checkpoint.

        Raises:
            OSError: It cannot be written, or did not arrive.
        """
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        with open(path, "wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        if checksum(Path(path)) != zlib.crc32(buffer.getbuffer()):
            raise OSError(errno.EIO, "the disk does not give back what was written")


def rename_before(newer: Path, older: Path) -> None:
    """Renames, with both names there all the time where the file system has links."""
    spare = older.with_name(f".{older.name}.tmp")
    spare.unlink(missing_ok=True)
    try:
        os.link(newer, spare)
    except OSError:
        os.replace(newer, spare)
    os.replace(spare, older)
    spare.unlink(missing_ok=True)  # it is still there if both names were of the same file


def checkpoint_path(run_dir: str | Path, name: str) -> Path:
    """Path of the checkpoint ``name`` (``"last"`` or ``"best"``) in a run folder."""
    return Path(run_dir) / "checkpoints" / f"{name}.ckpt"


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint of this project onto the CPU, without running any code from it.

    Args:
        path: A file that `Checkpoints` wrote.

    Returns:
        The Lightning checkpoint; ``["state_dict"]`` holds the weights, ``["qam_lightning"]`` the
        description of method, environment, configuration and progress.

    Raises:
        UserError: The file is missing, unreadable, damaged, or a checkpoint of something else.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint file")
    try:
        with zipfile.ZipFile(path) as archive:  # torch itself does not look at checksums
            if (name := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"{name} is damaged")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise UserError(
            f"{path}: not a readable checkpoint; it is damaged, cut short or another kind of file"
        ) from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise UserError(f"{path}: holds no training checkpoint (no 'state_dict' in it)")
    entry = checkpoint.get(ENTRY)
    missing = _ENTRY_KEYS - set(entry) if isinstance(entry, dict) else _ENTRY_KEYS
    if missing:
        raise UserError(
            f"{path}: a checkpoint of another program or version: "
            f"'{ENTRY}' lacks {', '.join(sorted(missing))}"
        )
    return checkpoint


def newest(run_dir: str | Path) -> Path:
    """The newest of a run's last checkpoints that can be read; says so if one before is taken.

    Raises:
        UserError: There is none, or none that can be read.
    """
    if not last_checkpoints(run_dir):
        path = checkpoint_path(run_dir, "last")
        raise UserError(f"--ckpt_path last: there is no {path}; leave it out to start anew")
    problems = []
    for path in dict.fromkeys([checkpoint_path(run_dir, "last"), *last_checkpoints(run_dir)]):
        try:
            step = read_checkpoint(path)[ENTRY]["gradient_step"]
        except UserError as error:
            problems.append(str(error))
            continue
        if problems:
            rank_zero_only(print)(
                f"{problems[0]}: falling back to {path}, of gradient step {step}", file=sys.stderr
            )
        return path
    raise UserError(problems[0])


def last_checkpoints(run_dir: str | Path) -> list[Path]:
    """A run's ``last.ckpt``, ``last-1.ckpt`` and so on, as far as they exist."""
    paths = checkpoint_path(run_dir, "last").parent.glob("last*.ckpt")
    ages = {path: path.stem.removeprefix("last").removeprefix("-") or "0" for path in paths}
    return sorted((p for p, age in ages.items() if age.isdigit()), key=lambda p: int(ages[p]))


def check_newest(path: Path, run_dir: str | Path) -> None:
    """Sees that going on from a checkpoint in a run's folder overwrites nothing that came after.

    Raises:
        UserError: The run has got further.
    """
    found = {}
    for candidate in (path, *last_checkpoints(run_dir)):
        with contextlib.suppress(UserError):  # what cannot be read is no loss
            found[candidate] = read_checkpoint(candidate)[ENTRY]["gradient_step"]
    furthest = max(found, key=lambda p: found[p], default=path)
    if path in found and found[path] < found[furthest]:
        raise UserError(
            f"{path} is of gradient step {found[path]}, but {furthest} of {found[furthest]}, which "
            "would be overwritten; choose another --run_dir, or resume from last"
        )


def set_aside(run_dir: str | Path, resumed: Path) -> None:
    """Renames what a run fell back from, so that it takes no sound checkpoint's place.

    Args:
        run_dir: Folder of the run.
        resumed: The checkpoint that it goes on from; only one of its older last ones matters.
    """
    paths = last_checkpoints(run_dir)
    places = [path.resolve() for path in paths]
    if resumed.resolve() in places:
        for path in paths[: places.index(resumed.resolve())]:
            os.replace(path, path.with_name(f"{path.name}.aside"))


def load_method(path: str | Path, **overrides: Any) -> tuple[Method, dict[str, Any]]:
    """Rebuilds a trained method from a checkpoint.

    Args:
        path: A checkpoint file, or a run folder, whose ``last.ckpt`` is then taken.
        **overrides: Constructor arguments to replace, e.g. ``best_of_n=4``.

    Returns:
        The method on the CPU in evaluation mode, and the checkpoint's ``"qam_lightning"`` entry.

    Raises:
        UserError: See `read_checkpoint`; also when the method's class cannot be imported or built,
            or when the weights do not fit it.
    """
    path = Path(path)
    if path.is_dir():
        path = checkpoint_path(path, "last")
    checkpoint = read_checkpoint(path)
    entry = checkpoint[ENTRY]
    kind = _method_class(entry["method"], path)
    try:
        method = kind(**{**entry["model"], **overrides})
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: cannot build {entry['method']}: {error}") from error
    try:
        method.load_state_dict(checkpoint["state_dict"], strict=True)
    except RuntimeError as error:
        raise UserError(
            f"{path}: its weights do not fit {entry['method']}: {_first_detail(error)}"
        ) from error
    return method.eval(), entry


def _method_class(name: str, path: Path) -> type[Method]:
    module, _, attribute = name.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{path}: its method {name} cannot be imported: {error}") from error
    if not (isinstance(kind, type) and issubclass(kind, Method)):
        raise UserError(f"{path}: {name} is not a method")
    return kind


def _first_detail(error: RuntimeError) -> str:
    """The first difference from torch's many-line list of state-dict differences."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[1] if len(lines) > 1 else lines[0]
