"""Writing checkpoint files: each is whole or absent, and older ones make room in order.

The reading side is `qam_lightning.checkpoints`.
"""

import contextlib
import errno
import io
import os
import zlib
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from qam_lightning.checkpoints import (
    CheckpointInfo,
    checkpoint_path,
    last_checkpoints,
    read_checkpoint,
)
from qam_lightning.util.files import checksum, save_json


class SafeFile(TorchCheckpointIO):
    """Lightning's way to checkpoint files, with every byte checked on its way out and in.

    Lightning's own writes through the system's folder for temporary files, which may be another
    disk, full at other times, and keeps what a kill left there.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write a checkpoint and its JSON, flush both to disk, and read the checkpoint back.

        Raises:
            OSError: the file cannot be written, or the disk returns other bytes.
            UserError: the JSON cannot be written.
        """
        path, buffer = Path(path), io.BytesIO()
        torch.save(checkpoint, buffer)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        if checksum(path, from_disk=True) != zlib.crc32(buffer.getbuffer()):
            raise OSError(errno.EIO, "the disk returns other bytes than were written")
        info = CheckpointInfo.of(checkpoint, path).model_dump()
        save_json(path.with_suffix(".json"), info, alone=True)

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint onto the CPU; see `qam_lightning.checkpoints.read_checkpoint`."""
        return read_checkpoint(path)

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a checkpoint and its JSON."""
        super().remove_checkpoint(path)
        Path(path).with_suffix(".json").unlink(missing_ok=True)


def move(source: Path, target: Path) -> None:
    """Rename a checkpoint, then its JSON: after a kill in between, the JSON is known as stale."""
    os.replace(source, target)
    _move_json(source, target)


def keep_last(run_dir: str | Path, count: int) -> None:
    """Give ``last.ckpt`` the name ``last-1.ckpt`` and so on, to keep ``count`` with the next one.

    Where the file system has links, ``last.ckpt`` exists at every instant.
    """
    last = checkpoint_path(run_dir, "last")
    names = list(enumerate(last_checkpoints(run_dir)[: count - 1], 1))
    for age, newer in reversed(names):
        older = checkpoint_path(run_dir, f"last-{age}")
        if last.exists() and newer != older:
            spare = older.with_name(f".{older.name}.tmp")
            spare.unlink(missing_ok=True)
            try:
                os.link(newer, spare)
            except OSError:
                os.replace(newer, spare)
            os.replace(spare, older)
            spare.unlink(missing_ok=True)  # it is still there if both names were of one file
            _move_json(newer, older)


def set_aside(run_dir: str | Path, resumed: Path) -> None:
    """Rename the damaged checkpoints that a run fell back from, so that none replaces a sound one.

    Args:
        run_dir: folder of the run.
        resumed: the checkpoint that it resumes from; one outside the folder changes nothing.
    """
    paths = last_checkpoints(run_dir)
    places = [path.resolve() for path in paths]
    if resumed.resolve() in places:
        for path in paths[: places.index(resumed.resolve())]:
            os.replace(path, path.with_name(f"{path.name}.aside"))
            path.with_suffix(".json").unlink(missing_ok=True)


def _move_json(source: Path, target: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.replace(source.with_suffix(".json"), target.with_suffix(".json"))
