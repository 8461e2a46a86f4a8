"""Rewards and masks of a task, computed from the stored states by OGBench's own code, and kept."""

import shutil
from pathlib import Path
from typing import Literal

import gymnasium
import numpy as np
from ogbench.relabel_utils import relabel_dataset

from qam_lightning.data.npy import map_npy, npy_header
from qam_lightning.data.source import made_once
from qam_lightning.data.store import Store
from qam_lightning.util.errors import UserError
from qam_lightning.util.files import checksum, save_json, sync
from qam_lightning.util.provenance import versions
from qam_lightning.util.schema import Count, Schema, Text, read_json

BLOCK = 1 << 18  # transitions whose states are in memory at a time
REWARDS, MASKS, RECORD = "rewards.npy", "masks.npy", "record.json"
Labels = tuple[np.ndarray, np.ndarray]


class _Record(Schema):
    """``record.json``: the OGBench that computed the labels, and the checksums of their files."""

    ogbench: Text
    crc32: dict[Literal["rewards.npy", "masks.npy"], Count]


def task_labels(store: Store, env: str, task: int, task_env: gymnasium.Env) -> Labels:
    """Return rewards (N,) float32 and masks (N,) uint8 of every transition, mapped read-only.

    Args:
        store: The dataset.
        env: OGBench environment.
        task: Its task, 1 to 5.
        task_env: The task's environment.

    Raises:
        UserError: They cannot be written.
    """
    folder = store.folder / f"task{task}"
    return made_once(
        folder,
        "store",
        found=lambda: _load(folder, store.transitions),
        make=lambda: _make(store, folder, f"{env}-singletask-task{task}-v0", task_env),
    )


def damaged_labels(store: Store) -> list[str]:
    """The files of any task's labels that fail their checksums, one line each."""
    wrong = []
    for record in sorted(store.folder.glob(f"task*/{RECORD}")):
        folder = record.parent
        if _load(folder, store.transitions) is None:
            continue  # made again when next needed
        for name, expected in _record(folder).crc32.items():
            if checksum(folder / name) != expected:
                again = f"delete {folder}, and the next run computes it again"
                wrong.append(f"{folder / name} fails its checksum; {again}")
    return wrong


def _record(folder: Path) -> _Record:
    return read_json(_Record, folder / RECORD, "a record of labels", f"delete {folder}")


def _load(folder: Path, transitions: int) -> Labels | None:
    """A task's labels; None unless complete and from the installed version of OGBench."""
    try:
        record = _record(folder)
        rewards, masks = (map_npy(folder / name) for name in (REWARDS, MASKS))
    except (OSError, ValueError, UserError):
        return None
    current = record.ogbench == versions()["ogbench"] and len(record.crc32) == 2
    fits = rewards.shape == masks.shape == (transitions,)
    types = (rewards.dtype, masks.dtype) == (np.float32, np.uint8)
    return (rewards, masks) if current and fits and types else None


def _make(store: Store, folder: Path, name: str, task_env: gymnasium.Env) -> Labels:
    temporary = folder.with_name(f"{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
    try:
        _compute(store, temporary, name, task_env)
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    labels = _load(folder, store.transitions)
    assert labels is not None
    return labels


def _compute(store: Store, folder: Path, name: str, task_env: gymnasium.Env) -> None:
    folder.mkdir()
    states = {key: store.arrays[key] for key in store.arrays.keys() & {"qpos", "button_states"}}
    with (folder / REWARDS).open("wb") as rewards, (folder / MASKS).open("wb") as masks:
        rewards.write(npy_header((store.transitions,), "float32"))
        masks.write(npy_header((store.transitions,), "uint8"))
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
