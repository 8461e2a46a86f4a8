"""Rewards and masks of a task, computed from the stored states by OGBench's own code, and kept."""

import json
import shutil
from pathlib import Path

import gymnasium
import numpy as np
from ogbench.relabel_utils import relabel_dataset

from qam_lightning.data.store import Store
from qam_lightning.util.errors import cannot_write
from qam_lightning.util.files import checksum, locked, save_json, sync
from qam_lightning.util.provenance import versions

# Transitions whose states are in memory at a time.
BLOCK = 1 << 18
REWARDS, MASKS, RECORD = "rewards.float32", "masks.uint8", "record.json"
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
        try:
            with locked(folder.with_name(f"{folder.name}.lock")):
                if not _valid(folder, store.transitions):  # unless another process was faster
                    _make(store, folder, f"{env}-singletask-task{task}-v0", task_env)
        except OSError as error:
            raise cannot_write(folder, error, "store") from None
    return np.memmap(folder / REWARDS, np.float32, "r"), np.memmap(folder / MASKS, np.uint8, "r")


def damaged_labels(store: Store) -> list[str]:
    """The files of any task's labels that fail their checksums, one line each."""
    wrong = []
    for record in sorted(store.folder.glob(f"task*/{RECORD}")):
        folder = record.parent
        if not _valid(folder, store.transitions):
            continue  # made again when next needed
        for name, expected in json.loads(record.read_text())["crc32"].items():
            if checksum(folder / name) != expected:
                again = f"delete {folder} to have it made again"
                wrong.append(f"{folder / name} fails its checksum; {again}")
    return wrong


def _valid(folder: Path, transitions: int) -> bool:
    """Whether a task's labels are there in full, from the installed version of OGBench."""
    try:
        record = json.loads((folder / RECORD).read_text())
        current = record["ogbench"] == versions()["ogbench"] and len(record["crc32"]) == 2
        sizes = [(folder / name).stat().st_size for name in (REWARDS, MASKS)]
    except (OSError, ValueError, TypeError, LookupError):
        return False
    return current and sizes == [4 * transitions, transitions]


def _make(store: Store, folder: Path, name: str, task_env: gymnasium.Env) -> None:
    temporary = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
    try:
        _compute(store, temporary, name, task_env)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _compute(store: Store, folder: Path, name: str, task_env: gymnasium.Env) -> None:
    folder.mkdir()
    keys = store.manifest["arrays"].keys() & {"qpos", "button_states"}
    states = {key: store.array(key) for key in keys}
    with (folder / REWARDS).open("wb") as rewards, (folder / MASKS).open("wb") as masks:
        for start in range(0, store.transitions, BLOCK):
            part = {key: np.array(array[start : start + BLOCK]) for key, array in states.items()}
            relabel_dataset(name, task_env, part)
            rewards.write(part["rewards"].astype(np.float32).tobytes())
            masks.write(part["masks"].astype(np.uint8).tobytes())
    sums = {}
    for file in (REWARDS, MASKS):
        sync(folder / file)
        sums[file] = checksum(folder / file)
    save_json(folder / RECORD, {"ogbench": versions()["ogbench"], "crc32": sums})
