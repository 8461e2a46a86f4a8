"""Minari datasets, converted once to the format of all others."""

from pathlib import Path
from typing import Any

import numpy as np

from qam_lightning.util.errors import ArgumentError, UserError
from qam_lightning.util.files import replacing

PREFIX = "minari:"


def import_minari(path: str, directory: str) -> str:
    """Turn ``minari:ID`` into the path of an npz file, which is made if it does not exist.

    Observations must be vectors, and actions vectors with bounds, which become -1 and 1. An
    episode of n steps becomes n + 1 rows.

    Args:
        path: ``minari:ID``; anything else is returned unchanged.
        directory: Folder of the npz file.

    Raises:
        UserError: Minari is not installed, knows no such dataset, or it does not fit.
    """
    if not path.startswith(PREFIX):
        return path
    name = path.removeprefix(PREFIX)
    file = Path(directory).expanduser() / f"minari-{name.replace('/', '-')}.npz"
    if not file.exists() and not file.with_suffix(".store").exists():
        arrays = _arrays(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as temporary, temporary.open("wb") as output:
            np.savez_compressed(output, **arrays)
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
        reason = " ".join(str(error).split())
        raise UserError(f"Minari cannot load {name}: {reason}") from None
    low, high = _bounds(name, dataset.observation_space, dataset.action_space)
    pieces: dict[str, list[np.ndarray]] = {}
    for episode in dataset.iterate_episodes():
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
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise UserError(f"Minari's {name}: its actions are {actions}, expected bounds")
    return low, high


def _padded(values: np.ndarray) -> np.ndarray:
    """Append a row of zeros, to go with the last observation."""
    return np.concatenate([values, np.zeros_like(values[:1])]).astype(np.float32)
