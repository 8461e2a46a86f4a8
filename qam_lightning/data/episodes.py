"""Episodes of other formats, written as one npz file in the format of all others."""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from qam_lightning.data.source import making
from qam_lightning.util.files import atomically


class Episode(NamedTuple):
    """An episode of n >= 1 steps.

    Attributes:
        observations: (n + 1, O), the final one included.
        actions: (n, A) in [-1, 1].
        rewards: (n,).
        masks: (n,), 0 where the step ended in a terminal state, else 1.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    masks: np.ndarray


def save_episodes(file: Path, episodes: Iterable[Episode], argument: str) -> None:
    """Write episodes into an npz file, which is either whole or absent.

    Args:
        file: The file; no other process writes it.
        episodes: One or more.
        argument: The argument of `ChunkDataModule` that chooses another folder.

    Raises:
        ArgumentError: The file cannot be written.
        ValueError: Rows of an episode are missing.
    """
    pieces: dict[str, list[np.ndarray]] = {}
    for episode in episodes:
        for key, values in episode._asdict().items():
            rows = values if key == "observations" else _padded(values)
            if len(rows) != len(episode.observations):
                steps = len(episode.observations) - 1
                raise ValueError(f"an episode has {len(values)} {key}, expected {steps}")
            pieces.setdefault(key, []).append(rows.astype(np.uint8 if key == "masks" else "f4"))
        pieces.setdefault("terminals", []).append(np.arange(len(rows)) == len(rows) - 1)
    arrays = {key: np.concatenate(rows) for key, rows in pieces.items()}
    with making(file, argument), atomically(file, alone=True) as temporary:
        with temporary.open("wb") as output:
            np.savez_compressed(output, **arrays)  # type: ignore[arg-type]


def _padded(values: np.ndarray) -> np.ndarray:
    """Append a row of zeros, to go with the last observation."""
    return np.concatenate([values, np.zeros_like(values[:1])])
