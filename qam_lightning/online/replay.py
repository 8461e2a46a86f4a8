"""The replay: a file of environment steps, and chunks gathered from it.

Rows have equal size, are only ever appended, and are mapped into memory for reading. Row n, from 0,
is environment step n + 1 of a run and belongs to environment n mod E, so a chunk is a series of
rows that lie E apart, and the number of rows visible to an update decides which chunks it can draw.
A row marks the first step of an episode, not the last. So an episode that broke off needs no
correction of rows already written.
"""

import os
import tempfile
import zlib
from enum import IntEnum
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch

from qam_lightning.data.batch import Batch
from qam_lightning.data.chunks import ACTION_LIMIT, fold
from qam_lightning.util.errors import UserError
from qam_lightning.util.files import writing

BLOCK = 4096  # rows by which the file grows


class Ending(IntEnum):
    """How a step left its episode."""

    RUNNING = 0
    """The episode goes on."""
    TERMINATED = 1
    """The step reached the goal: no bootstrap."""
    TRUNCATED = 2
    """The step hit the time limit: bootstrap from the next observation."""


class Step(NamedTuple):
    """One environment step, a row of the replay.

    Attributes:
        observation: (O,) float32, before the step.
        action: (A,) float32 in [-1, 1].
        reward: Of this step.
        next_observation: (O,) float32, after the step.
        success: ``info["success"]``, 0 or 1.
        first: Whether the episode starts with this step.
        ending: How the step left its episode.
        discarded: Episodes of this environment that were given up since its previous row.
    """

    observation: np.ndarray
    action: np.ndarray
    reward: float
    next_observation: np.ndarray
    success: float
    first: bool
    ending: int
    discarded: int


def row_type(obs_dim: int, action_dim: int) -> np.dtype:
    """The layout of a `Step` in the file; numbers of four bytes stay aligned to four bytes."""
    return np.dtype(
        [
            ("observation", "<f4", (obs_dim,)),
            ("action", "<f4", (action_dim,)),
            ("reward", "<f4"),
            ("next_observation", "<f4", (obs_dim,)),
            ("success", "<f4"),
            ("first", "?"),
            ("ending", "u1"),
            ("discarded", "<u2"),
        ]
    )


class Replay:
    """Environment steps in a file that only grows."""

    def __init__(
        self, path: Path | None, kind: np.dtype, horizon: int, discount: float, num_envs: int
    ):
        """Open the file, with no rows.

        Args:
            path: The file; its old content is overwritten as rows come. None takes a temporary one.
            kind: See `row_type`.
            horizon: Steps per chunk, H.
            discount: γ.
            num_envs: Environments whose steps take turns, E.

        Raises:
            UserError: The file cannot be opened for writing.
        """
        self.count, self.crc32 = 0, 0
        self.kind, self.num_envs = kind, num_envs
        self._path = path or Path("temporary replay")
        self._file = self._open(path)
        self._offsets = num_envs * np.arange(horizon)[:, None]
        self._weights = np.array([[discount**i] for i in range(horizon)])
        self._mapped = np.empty(0, kind)

    def _open(self, path: Path | None) -> IO[bytes]:
        with writing(self._path):
            if path is None:
                return tempfile.TemporaryFile()
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            return path.open("r+b")

    @property
    def rows(self) -> np.ndarray:
        """All rows so far, (N,) of the row type."""
        return self._mapped[: self.count]

    def reserve(self) -> None:
        """Make room for another row.

        Raises:
            UserError: The file cannot grow, as the disk is full.
        """
        if self.count == len(self._mapped):
            with writing(self._path):
                self._grow()

    def append(self, step: Step) -> None:
        """Add a row.

        Raises:
            UserError: See `reserve`.
        """
        self.reserve()
        self._mapped[self.count] = step
        self.crc32 = zlib.crc32(self._mapped[self.count].tobytes(), self.crc32)
        self.count += 1

    def _grow(self) -> None:
        size = (self.count // BLOCK + 1) * BLOCK * self.kind.itemsize
        # Real zeros, not a hole: writing to a map of a hole on a full disk kills the process.
        self._file.write(bytes(max(0, size - self._file.seek(0, os.SEEK_END))))
        self._file.flush()
        self._mapped = np.memmap(self._file, self.kind, "r+", shape=(size // self.kind.itemsize,))

    def restore(self, rows: np.ndarray) -> None:
        """Replace the file's content by these rows.

        Args:
            rows: (N,) of the row type.

        Raises:
            UserError: They cannot be written.
        """
        content = rows.tobytes()
        with writing(self._path):
            self._file.seek(0)
            self._file.write(content)
            self._file.truncate()
            self.count, self.crc32 = len(rows), zlib.crc32(content)
            if self.count:
                self._grow()

    def sync(self) -> None:
        """Wait until all rows are on disk.

        Raises:
            UserError: They cannot be written.
        """
        if isinstance(self._mapped, np.memmap):
            with writing(self._path):
                self._mapped.flush()
                os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file, cut to its rows."""
        self._mapped = np.empty(0, self.kind)
        self._file.truncate(self.count * self.kind.itemsize)
        self._file.close()

    def last(self, number: int, count: int) -> np.ndarray:
        """Return the latest ``count`` rows of environment ``number``, in order."""
        own = self.rows[number :: self.num_envs]
        return own[len(own) - count :]

    def num_chunks(self, rows: int) -> int:
        """Return the number of chunks within the first ``rows`` rows; chunk n starts at row n."""
        return max(0, rows - self.reach)

    @property
    def reach(self) -> int:
        """Rows from a chunk's first to its last."""
        return int(self._offsets[-1, 0])

    def gather(self, starts: np.ndarray) -> Batch:
        """Collect chunks.

        Args:
            starts: (B,) first rows; all rows up to ``starts + reach`` exist.
        """
        rows = starts + self._offsets  # (H, B)
        alive = np.ones(rows.shape, bool)
        alive[1:] = np.logical_and.accumulate(~self._mapped["first"][rows[1:]])
        last = rows[alive.sum(0) - 1, np.arange(len(starts))]
        folded = fold(
            torch.from_numpy(alive),
            torch.from_numpy(self._mapped["reward"][rows] * self._weights),
            torch.from_numpy(self._mapped["ending"][rows] == Ending.TERMINATED),
        )
        actions = torch.from_numpy(self._mapped["action"][rows.T].reshape(len(starts), -1))
        return Batch(
            observations=torch.from_numpy(self._mapped["observation"][starts]),
            actions=actions.clamp_(-ACTION_LIMIT, ACTION_LIMIT),
            next_observations=torch.from_numpy(self._mapped["next_observation"][last]),
            **folded._asdict(),
        )


def read_rows(path: Path, kind: np.dtype, count: int, crc32: int) -> np.ndarray:
    """Read the rows that a checkpoint refers to, changing nothing.

    Args:
        path: A replay's file.
        kind: Its row type.
        count: How many rows to read; more may follow them.
        crc32: Their checksum.

    Raises:
        UserError: The file is missing, too short or damaged.
    """
    found = path.stat().st_size // kind.itemsize if path.is_file() else 0
    if found < count:
        raise UserError(
            f"{path} holds {found} environment steps, but the checkpoint refers to {count}; "
            "restore the whole file, or start a new run"
        )
    rows = np.fromfile(path, kind, count) if count else np.empty(0, kind)
    if zlib.crc32(rows.tobytes()) != crc32:
        raise UserError(
            f"{path}: its first {count} environment steps are not those of the checkpoint (their "
            "checksum differs); restore the right file, or start a new run"
        )
    return rows
