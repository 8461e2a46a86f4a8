"""Minari datasets, converted once to the format of all others."""

import re
from typing import Any

import numpy as np

from qam_lightning.data.source import place, unwritable
from qam_lightning.util.errors import ArgumentError, UserError, shown
from qam_lightning.util.files import replacing

PREFIX = "minari:"


def import_minari(path: str, directory: str, store: str | None = None) -> str:
    """Turn ``minari:ID`` into the path of an npz file, which is made if it does not exist.

    Observations must be vectors, and actions vectors with bounds, which become -1 and 1. An
    episode of n steps becomes n + 1 rows.

    Args:
        path: ``minari:ID``; anything else is returned unchanged.
        directory: Folder of the npz file.
        store: Folder of stores, whose presence makes the file unnecessary; beside it if not given.

    Raises:
        UserError: Minari is not installed, knows no such dataset, or it does not fit.
    """
    if not path.startswith(PREFIX):
        return path
    name = path.removeprefix(PREFIX)
    if not re.fullmatch(r"[\w-]+(/[\w-]+)*", name):
        problem = f"is '{shown(path)}', expected an id such as minari:mujoco/halfcheetah/medium-v0"
        raise ArgumentError("ChunkDataModule", "path", problem)
    stem = f"minari-{name.replace('/', '.')}"  # no dot is part of an id
    file = place("ChunkDataModule", "directory", directory) / f"{stem}.npz"
    stores = place("ChunkDataModule", "store", store) if store else file.parent
    if not file.exists() and not (stores / f"{stem}.store").exists():
        arrays = _arrays(name)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(file) as temporary, temporary.open("wb") as output:
                np.savez_compressed(output, **arrays)
        except OSError as error:
            raise unwritable("ChunkDataModule", "directory", file, error) from None
    return str(file)


def _arrays(name: str) -> dict[str, Any]:
    try:
        import minari
    except ImportError:
        problem = f"is {PREFIX}{name}, which needs Minari: pip install 'qam_lightning[minari]'"
        raise ArgumentError("ChunkDataModule", "path", problem) from None
    try:
        dataset = minari.load_dataset(name, download=True)
    except Exception as error:  # it raises whatever its storage or the network does
        reason = shown(" ".join(str(error).split()), 400)
        raise UserError(f"Minari cannot load {name}: {reason}") from None
    low, high = _bounds(name, dataset.observation_space, dataset.action_space)
    pieces: dict[str, list[np.ndarray]] = {}
    for episode in dataset.iterate_episodes():
        if not len(episode.actions):
            continue
        scaled = 2.0 * (episode.actions - low) / (high - low) - 1.0
        ended = np.zeros(len(scaled) + 1, bool)
        ended[-1] = True
        rows = {
            "observations": np.asarray(episode.observations, np.float32),
            "actions": _padded(np.clip(scaled, -1.0, 1.0)),
            "rewards": _padded(np.asarray(episode.rewards)),
            "masks": _padded(1.0 - np.asarray(episode.terminations)).astype(np.uint8),
            "terminals": ended,
        }
        for key, value in rows.items():
            pieces.setdefault(key, []).append(value)
    return {key: np.concatenate(values) for key, values in pieces.items()}


def _bounds(name: str, observations: Any, actions: Any) -> tuple[np.ndarray, np.ndarray]:
    for role, space in (("observations", observations), ("actions", actions)):
        if len(getattr(space, "shape", None) or ()) != 1:
            raise UserError(f"Minari's {name}: its {role} are {space}, expected vectors (Box)")
    low = np.asarray(getattr(actions, "low", -np.inf))
    high = np.asarray(getattr(actions, "high", np.inf))
    if not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
        raise UserError(f"Minari's {name}: its actions are {actions}, expected bounds")
    return low, high


def _padded(values: np.ndarray) -> np.ndarray:
    """Append a row of zeros, to go with the last observation."""
    return np.concatenate([values, np.zeros_like(values[:1])]).astype(np.float32)
