"""Robomimic's low-dimensional HDF5 files, converted once to the format of all others."""

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from qam_lightning.data.episodes import Episode, save_episodes
from qam_lightning.data.source import made_once, place
from qam_lightning.util.errors import ArgumentError, UserError, explaining, shown

SUFFIXES = (".hdf5", ".h5")
ARM = ("eef_pos", "eef_quat", "gripper_qpos")  # of each robot, before "object"


def import_robomimic(path: str, store: str | None = None) -> str:
    """Turn ``FILE.hdf5`` into the path of ``FILE.hdf5.npz``, which is made if need be.

    Observations are robomimic's default low-dimensional ones, in its order. A step that succeeds,
    whose reward is 1, gets reward 0 and mask 0; all others get reward - 1 and mask 1, as in
    OGBench's data. Demonstrations that ``mask/valid`` names become the validation part.

    Args:
        path: An HDF5 file, by its name; anything else is returned unchanged.
        store: Folder of the npz file and of stores; the HDF5 file's own if not given. Once a store
            is there, the files are not needed.

    Raises:
        UserError: h5py is not installed, or this is no such file.
    """
    if Path(path).suffix.lower() not in SUFFIXES:
        return path
    given = place("ChunkDataModule", "path", path)
    if given.is_dir():  # a folder of npz files, whatever its name
        return path
    stores = place("ChunkDataModule", "store", store) if store else given.parent
    made = stores / f"{given.name}.npz"
    if given.is_file():
        made_once(made, "store", lambda: _is_done(given, made), lambda: _convert(given, made))
    elif not (made.exists() or made.with_suffix(".store").exists()):
        problem = f"is {shown(given)}, which {'is no file' if given.exists() else 'does not exist'}"
        raise ArgumentError("ChunkDataModule", "path", problem)
    return str(made)


def _is_done(given: Path, made: Path) -> bool:
    """Whether a file's npz or, where that was deleted, its store is there, and not outdated."""
    now, store = given.stat().st_mtime_ns, made.with_suffix(".store")
    if made.exists():
        return made.stat().st_mtime_ns == now  # it got the file's time
    return store.exists() and store.stat().st_mtime_ns >= now


def _convert(given: Path, made: Path) -> None:
    try:
        import h5py
    except ImportError:
        problem = f"is {shown(given)}, which needs h5py: pip install 'qam_lightning[hdf5]'"
        raise ArgumentError("ChunkDataModule", "path", problem) from None
    time = given.stat().st_mtime_ns  # before it is read: a file that changes now is read again
    with explaining(f"{given}: cannot be read"), h5py.File(given) as file:
        names = _demonstrations(given, file)
        held_out = {text.decode() for text in file.get("mask/valid", ())}
        parts = {
            made.with_name(f"{given.name}-val.npz"): [n for n in names if n in held_out],
            made: [n for n in names if n not in held_out],
        }
        if not parts[made]:
            raise UserError(f"{given}: mask/valid names every demonstration, none is left")
        for part, chosen in parts.items():
            if chosen:
                episodes = (_episode(given, file, name) for name in chosen)
                save_episodes(part, episodes, "store")
            else:  # an earlier state of the file had some
                part.unlink(missing_ok=True)
                shutil.rmtree(part.with_suffix(".store"), ignore_errors=True)
    os.utime(made, ns=(time, time))


def _demonstrations(given: Path, file: Any) -> list[str]:
    """Names of the demonstrations, in the order of their numbers."""
    data = file.get("data")
    names = [name for name in data or () if name.removeprefix("demo_").isdigit()]
    if not names:
        found = ", ".join(f"data/{name}" for name in data) if data else ", ".join(file)
        raise UserError(
            f"{given}: is not robomimic's: it holds {shown(found or 'nothing')}, expected "
            "data/demo_0, data/demo_1 and so on; save other data with np.savez"
        )
    return sorted(names, key=lambda name: int(name.removeprefix("demo_")))


def _episode(given: Path, file: Any, name: str) -> Episode:
    where, demo = f"{given}: {name}", file[f"data/{name}"]
    actions, rewards = _array(where, demo, "actions"), _array(where, demo, "rewards").reshape(-1)
    masks = (rewards < 1).astype(np.uint8)
    whole = "next_obs" in demo
    # What follows a success does not matter; what followed another last step, nobody knows then.
    steps = len(actions) if whole or not masks[-1:].any() else len(actions) - 1
    if not steps:
        raise UserError(f"{where} has no transitions; remove it from the file")
    observations = _observations(where, demo, "obs")
    following = _observations(where, demo, "next_obs") if whole else observations
    for key, array in (("rewards", rewards), ("obs", observations), ("next_obs", following)):
        if len(array) != len(actions):
            raise UserError(f"{where}: {key} has {len(array)} rows, but actions {len(actions)}")
    if (rewards > 1).any():
        problem = f"rewards reach {rewards.max():.4g}, expected at most 1, which means success"
        raise UserError(f"{where}: {problem}")
    rows = np.concatenate([observations, following[-1:]])[: steps + 1]
    return Episode(rows, actions[:steps], rewards[:steps] - 1.0, masks[:steps])


def _observations(where: str, demo: Any, group: str) -> np.ndarray:
    held = demo.get(group, ())
    robots = sorted({key.partition("_")[0] for key in held if key.startswith("robot")})
    keys = [f"{robot}_{part}" for robot in robots or ["robot0"] for part in ARM]
    arrays = [_array(where, demo, f"{group}/{key}") for key in [*keys, "object"]]
    return np.concatenate([array.reshape(len(array), -1) for array in arrays], 1)


def _array(where: str, demo: Any, key: str) -> np.ndarray:
    if key not in demo:
        group = key.rpartition("/")[0]
        found = ", ".join(demo[group] if group in demo else demo) or "nothing"
        raise UserError(
            f"{where} holds no {key}, found {shown(found, 400)}, expected robomimic's "
            "low-dimensional observations, its actions and rewards"
        )
    return np.asarray(demo[key], np.float32)
