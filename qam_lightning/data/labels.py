"""Rewards and masks of a task, computed from the stored states by OGBench's own code, and kept."""

import json
import os
import shutil
from pathlib import Path

import gymnasium
import numpy as np
from ogbench.relabel_utils import relabel_dataset

from qam_lightning.data.atomic import save_json, sync
from qam_lightning.data.store import Store
from qam_lightning.errors import UserError
from qam_lightning.provenance import versions

# Transitions whose states are in memory at a time.
BLOCK = 1 << 18
Labels = tuple[np.ndarray, np.ndarray]


def task_labels(store: Store, env: str, task: int, task_env: gymnasium.Env) -> Labels:
    """Rewards (N,) float32 and masks (N,) uint8 of every transition, mapped read-only.

    Args:
        store: The dataset.
        env: OGBench environment.
        task: Its task, 1 to 5.
        task_env: The task's environment.

    Raises:
        UserError: They cannot be written.
    """
    folder = store.folder / f"task{task}"
    if not _valid(folder, store.transitions):
        temporary = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
        try:
            _compute(store, temporary, f"{env}-singletask-task{task}-v0", task_env)
            shutil.rmtree(folder, ignore_errors=True)
            temporary.rename(folder)
        except OSError as error:
            if not _valid(folder, store.transitions):  # else another process was faster
                raise UserError(
                    f"cannot write {folder}: {error.strerror or error}; choose another folder for "
                    "the store with --data.store"
                ) from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return (
        np.memmap(folder / "rewards.float32", np.float32, "r"),
        np.memmap(folder / "masks.uint8", np.uint8, "r"),
    )


def _valid(folder: Path, transitions: int) -> bool:
    """Whether a task's labels are there in full, from the installed version of OGBench."""
    try:
        record = json.loads((folder / "record.json").read_text())
        sizes = [(folder / name).stat().st_size for name in ("rewards.float32", "masks.uint8")]
    except (OSError, ValueError):
        return False
    return record.get("ogbench") == versions()["ogbench"] and sizes == [
        4 * transitions,
        transitions,
    ]


def _compute(store: Store, folder: Path, name: str, task_env: gymnasium.Env) -> None:
    folder.mkdir()
    keys = store.manifest["arrays"].keys() & {"qpos", "button_states"}
    states = {key: store.array(key) for key in keys}
    rewards_file, masks_file = folder / "rewards.float32", folder / "masks.uint8"
    with rewards_file.open("wb") as rewards, masks_file.open("wb") as masks:
        for start in range(0, store.transitions, BLOCK):
            part = {key: np.array(array[start : start + BLOCK]) for key, array in states.items()}
            relabel_dataset(name, task_env, part)
            rewards.write(part["rewards"].astype(np.float32).tobytes())
            masks.write(part["masks"].astype(np.uint8).tobytes())
    for path in (rewards_file, masks_file):
        sync(path)
    save_json(folder / "record.json", {"ogbench": versions()["ogbench"]})
