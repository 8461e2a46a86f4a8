"""The replay: what was lived through online, and how it is mixed with the dataset.

One file of rows of equal size, to which rows are only ever added, mapped into memory for reading.
Row n, from 0, is environment step n + 1 of a run. With E environments it belongs to environment
n mod E, so that a chunk is a number of rows E apart, and nothing but the number of rows visible to
an update decides which chunks there are to draw. A row says whether it is the first of its episode,
not whether it is the last: so an episode that broke off needs no mending of what is written. The
field holds 0, or one more than the number of episodes discarded since the environment's last row.
"""

import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch

from qam_lightning.data.batch import Batch
from qam_lightning.data.chunks import ACTION_LIMIT, ChunkStorage, fold, sample_indices
from qam_lightning.util.errors import UserError

RUNNING, TERMINATED, TRUNCATED = 0, 1, 2
"""How a step left its episode: under way, at the goal (mask 0), or cut off (mask 1)."""

_BLOCK = 4096  # rows by which the file grows


class Schedule(NamedTuple):
    """When steps are taken online, in terms of gradient steps.

    Attributes:
        offline: Gradient steps on the dataset alone, before the first environment step.
        start: Environment steps before updates go on.
        steps: Environment steps altogether.
        ratio: Updates per environment step from then on.
    """

    offline: int
    start: int
    steps: int
    ratio: int

    @property
    def total(self) -> int:
        """Gradient steps of both phases."""
        return self.offline + (self.steps - self.start) * self.ratio

    def rows(self, step: int) -> int:
        """Environment steps taken before the update with this number (from 0): what it may see."""
        if step < self.offline:
            return 0
        return min(self.start + 1 + (step - self.offline) // self.ratio, self.steps)


def row_type(obs_dim: int, action_dim: int) -> np.dtype:
    """The layout of a row; all fields have four bytes a number, so none is out of line."""
    return np.dtype(
        [
            ("observation", "<f4", (obs_dim,)),
            ("action", "<f4", (action_dim,)),
            ("reward", "<f4"),
            ("next_observation", "<f4", (obs_dim,)),
            ("success", "<f4"),
            ("first", "<i4"),
            ("end", "<i4"),
        ]
    )


class Replay:
    """Environment steps in a file that only grows."""

    def __init__(self, file: IO[bytes], kind: np.dtype, horizon: int, discount: float, envs: int):
        """Starts with no rows.

        Args:
            file: Open for reading and writing; what it holds is overwritten as rows come.
            kind: See `row_type`.
            horizon: Steps per chunk, H.
            discount: γ.
            envs: Environments whose steps take turns, E.
        """
        self.count, self.crc32 = 0, 0
        self.kind, self.envs, self._file = kind, envs, file
        self._offsets = envs * np.arange(horizon)[:, None]
        self._weights = np.array([[discount**i] for i in range(horizon)])
        self._mapped = np.empty(0, kind)

    @property
    def rows(self) -> np.ndarray:
        """All rows so far, (N,) of the row type."""
        return self._mapped[: self.count]

    def reserve(self) -> None:
        """Sees that there is room for another row.

        Raises:
            OSError: The file cannot grow, as the disk is full.
        """
        if self.count == len(self._mapped):
            self._grow()

    def append(self, row: np.ndarray) -> None:
        """Adds a row.

        Raises:
            OSError: See `reserve`.
        """
        self.reserve()
        self._mapped[self.count] = row
        self.crc32 = zlib.crc32(row.tobytes(), self.crc32)
        self.count += 1

    def _grow(self) -> None:
        size = (self.count // _BLOCK + 1) * _BLOCK * self.kind.itemsize
        # Real zeros, not a hole: writing to a map of a hole on a full disk kills the process.
        self._file.write(bytes(max(0, size - self._file.seek(0, os.SEEK_END))))
        self._file.flush()
        self._mapped = np.memmap(self._file, self.kind, "r+", shape=(size // self.kind.itemsize,))

    def restore(self, rows: np.ndarray) -> None:
        """Starts with these rows; whatever else the file holds is cut off.

        Args:
            rows: (N,) of the row type.

        Raises:
            OSError: They cannot be written.
        """
        content = rows.tobytes()
        self._file.seek(0)
        self._file.write(content)
        self._file.truncate()
        self.count, self.crc32 = len(rows), zlib.crc32(content)
        self._grow()

    def sync(self) -> None:
        """Waits until all rows are on disk.

        Raises:
            OSError: They cannot be written.
        """
        if isinstance(self._mapped, np.memmap):
            self._mapped.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file, cut to its rows."""
        self._mapped = np.empty(0, self.kind)
        self._file.truncate(self.count * self.kind.itemsize)
        self._file.close()

    def last(self, number: int, count: int) -> np.ndarray:
        """The latest ``count`` rows of an environment, in order."""
        own = self.rows[number :: self.envs]
        return own[len(own) - count :]

    def episode(self, row: int) -> np.ndarray:
        """The rows of an episode up to this row."""
        start = row
        while not self._mapped["first"][start]:
            start -= self.envs
        return self._mapped[start : row + 1 : self.envs]

    def num_chunks(self, rows: int) -> int:
        """How many chunks lie within the first ``rows`` rows; the n-th starts at row n."""
        return max(0, rows - self.reach)

    @property
    def reach(self) -> int:
        """From a chunk's first row to its last."""
        return int(self._offsets[-1, 0])

    def gather(self, starts: np.ndarray) -> Batch:
        """Collects chunks.

        Args:
            starts: (B,) first rows; rows ``reach`` further on exist.
        """
        rows = starts + self._offsets  # (H, B)
        alive = np.ones(rows.shape, bool)
        alive[1:] = np.logical_and.accumulate(self._mapped["first"][rows[1:]] == 0)
        last = rows[alive.sum(0) - 1, np.arange(len(starts))]
        folded = fold(
            torch.from_numpy(alive),
            torch.from_numpy(self._mapped["reward"][rows] * self._weights),
            torch.from_numpy(self._mapped["end"][rows] == TERMINATED),
        )
        actions = torch.from_numpy(self._mapped["action"][rows.T].reshape(len(starts), -1))
        return Batch(
            observations=torch.from_numpy(self._mapped["observation"][starts]),
            actions=actions.clamp_(-ACTION_LIMIT, ACTION_LIMIT),
            next_observations=torch.from_numpy(self._mapped["next_observation"][last]),
            **folded._asdict(),
        )


def read_rows(path: Path, kind: np.dtype, count: int, crc32: int) -> np.ndarray:
    """Reads the rows that a checkpoint knows from a replay's file, changing nothing.

    Args:
        path: The file.
        kind: Its row type.
        count: How many rows to read; more may follow them.
        crc32: Their checksum.

    Raises:
        UserError: The file is missing, too short or damaged.
    """
    found = path.stat().st_size // kind.itemsize if path.is_file() else 0
    if found < count:
        raise UserError(
            f"{path} holds {found} environment steps, but the checkpoint goes with {count}; "
            "bring the whole file back, or start a new run"
        )
    rows = np.fromfile(path, kind, count) if count else np.empty(0, kind)
    if zlib.crc32(rows.tobytes()) != crc32:
        raise UserError(
            f"{path}: its first {count} environment steps are not those of the checkpoint (their "
            "checksum differs); bring the right file back, or start a new run"
        )
    return rows


class Mixture(NamedTuple):
    """Batches of the online phase: chunks of the dataset and of the replay.

    Attributes:
        schedule: Which rows each update may see.
        replay: The rows.
        half: Half of every batch from each, instead of uniformly from both together.
        receive: Fetches the next row, if it has been asked for already and is wanted early.
    """

    schedule: Schedule
    replay: Replay
    half: bool
    receive: Callable[[], None]

    def draw(self, seed: int, step: int, size: int, offline: int) -> np.ndarray:
        """Draws the chunks of an update: a function of its arguments and the number of rows.

        Args:
            seed: The run's seed.
            step: The gradient step.
            size: Chunks to draw, B.
            offline: Number of the dataset's chunks; the replay's are numbered from there on.

        Returns:
            (B,) int64. Halves alternate, so that every share of a batch has the same mixture.
        """
        online = self.replay.num_chunks(self.schedule.rows(step))
        if not self.half:
            return sample_indices(seed, step, size, offline + online)
        halves = (
            sample_indices(seed, step, size // 2, offline),
            sample_indices(seed, step, size // 2, online, stream=1) + offline,
        )
        return np.stack(halves, 1).ravel()

    def wait(self, indices: np.ndarray, offline: int) -> None:
        """Waits for the rows of chunks; the environment may still be busy with the latest one."""
        needed = int(indices.max()) - offline + self.replay.reach
        while needed >= self.replay.count:
            self.receive()

    def gather(self, storage: ChunkStorage, indices: np.ndarray) -> Batch:
        """Collects chunks of both kinds, where the dataset's are."""
        online = indices >= storage.num_chunks
        known = storage.gather(indices[~online])
        if not online.any():
            return known
        lived = self.replay.gather(indices[online] - storage.num_chunks)
        order = torch.from_numpy(np.argsort(np.argsort(online, kind="stable"), kind="stable"))
        fields: list[Any] = []
        for a, b in zip(known, lived, strict=True):
            fields.append(torch.cat((a, b.to(a.device)))[order.to(a.device)])
        return Batch(*fields)
