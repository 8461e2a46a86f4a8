"""Minari datasets, converted once to the format of all others."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from qam_lightning.data.episodes import Episode, save_episodes
from qam_lightning.data.source import made_once, place
from qam_lightning.envs.make import made_of_vectors
from qam_lightning.util.errors import ArgumentError, UserError, explaining, shown

PREFIX = "minari:"
_ADVICE = (
    "if its folder (in MINARI_DATASETS_PATH or ~/.minari/datasets) is damaged, delete it, and it "
    "is downloaded again"
)


def import_minari(path: str, directory: str, store: str | None = None) -> str:
    """Turn ``minari:ID`` into the path of an npz file, which is made if it does not exist.

    Observations must be numbers with fixed shapes, as vectors or in dictionaries, which are
    flattened as gymnasium's ``FlattenObservation`` does. Actions must be vectors with bounds, which
    become -1 and 1. An episode of n steps becomes n + 1 rows.

    Args:
        path: ``minari:ID``; anything else is returned unchanged.
        directory: Folder of the npz file.
        store: Folder of stores, whose presence makes the file unnecessary; beside it if not given.

    Raises:
        UserError: Minari is not installed, cannot load the dataset, or it does not fit.
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
    made = (file, stores / f"{stem}.store")
    made_once(
        file,
        "directory",
        found=lambda: any(path.exists() for path in made),
        make=lambda: _import(name, file),
    )
    return str(file)


def _import(name: str, file: Path) -> None:
    with explaining(f"Minari cannot load {name}", _ADVICE):  # it reads meanwhile
        save_episodes(file, _episodes(name), "directory")


def _episodes(name: str) -> Iterator[Episode]:
    try:
        import minari
    except ImportError:
        problem = f"is {PREFIX}{name}, which needs Minari: pip install 'qam_lightning[minari]'"
        raise ArgumentError("ChunkDataModule", "path", problem) from None
    dataset = minari.load_dataset(name, download=True)
    space = dataset.observation_space
    low, high = _bounds(name, space, dataset.action_space)
    if not dataset.total_steps:
        raise UserError(f"Minari's {name}: it has no transitions")
    for episode in dataset.iterate_episodes():
        if len(episode.actions):
            yield Episode(
                _flat(space, episode.observations),
                np.clip(2.0 * (episode.actions - low) / (high - low) - 1.0, -1.0, 1.0),
                np.asarray(episode.rewards),
                1 - np.asarray(episode.terminations, np.uint8),
            )


def _bounds(name: str, observations: Any, actions: Any) -> tuple[np.ndarray, np.ndarray]:
    if not made_of_vectors(observations):
        found = f"its observations are {shown(observations, 400)}"
        raise UserError(f"Minari's {name}: {found}, expected vectors (Box), or a Dict of them")
    if len(getattr(actions, "shape", None) or ()) != 1:
        raise UserError(
            f"Minari's {name}: its actions are {shown(actions)}, expected vectors (Box)"
        )
    low = np.asarray(getattr(actions, "low", -np.inf))
    high = np.asarray(getattr(actions, "high", np.inf))
    if not (np.isfinite(low).all() and np.isfinite(high).all() and (low < high).all()):
        raise UserError(f"Minari's {name}: its actions are {shown(actions)}, expected bounds")
    return low, high


def _flat(space: gymnasium.Space, values: Any) -> np.ndarray:
    """Observations (n, O), dictionaries of them put together in the order of their space."""
    if isinstance(space, gymnasium.spaces.Dict):
        parts = [_flat(part, values[key]) for key, part in space.spaces.items()]
        return np.concatenate(parts, 1)
    return np.asarray(values, np.float32)
