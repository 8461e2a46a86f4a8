"""Collecting datasets in OGBench's format with OGBench's scripted oracles.

An episode is a function of its number, the seed and the installed versions. Neither the number of
worker processes nor an interruption changes a bit of it.
"""

import functools
import math
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from qam_lightning.data.bars import steps_bar
from qam_lightning.data.layout import Shapes, file_layout
from qam_lightning.data.manipulation import Arrays, ManipulationCollector
from qam_lightning.data.mazes import MazeCollector
from qam_lightning.data.npz import NpzFile
from qam_lightning.data.source import (
    COLLECTABLE,
    POINT_MAZES,
    base_urls,
    dataset_name,
    making,
    place,
)
from qam_lightning.data.workers import work_off
from qam_lightning.envs.make import make_env, parts_of
from qam_lightning.envs.worker import PROCESS_BYTES, WorkerError
from qam_lightning.util.devices import available_cores
from qam_lightning.util.errors import ArgumentError, UserError, require, shown
from qam_lightning.util.files import replacing, save_json
from qam_lightning.util.memory import check_memory
from qam_lightning.util.provenance import versions
from qam_lightning.util.schema import Count, Schema, Text, read_json

# Training episodes and steps of the official data: 1000 of 1001 steps unless named here. An episode
# has one row more than transitions: its last row only supplies the next observation.
EPISODES, EPISODE_STEPS = 1000, 1001
OFFICIAL = {
    **{
        (env, kind): (3000, 1001)
        for env in ("cube-triple", "puzzle-4x5")
        for kind in ("play", "noisy")
    },
    **{
        (env, kind): (5000, 1001)
        for env in ("cube-quadruple", "puzzle-4x6")
        for kind in ("play", "noisy")
    },
    **{(env, "stitch"): (5000, 201) for env in POINT_MAZES},
    ("pointmaze-giant", "navigate"): (500, 2001),
}

EpisodeCollector = ManipulationCollector | MazeCollector


def make_collector(env: str, dataset: str, episode_steps: int) -> EpisodeCollector:
    """Make the collector of an environment's episodes."""
    kind = MazeCollector if env in POINT_MAZES else ManipulationCollector
    return kind(env, dataset, episode_steps)


def generate(
    env: str,
    dataset: str = "play",
    directory: str = "~/.ogbench/data",
    episodes: int | None = None,
    seed: int = 0,
    workers: int | None = None,
    episode_steps: int | None = None,
) -> tuple[Path, Path]:
    """Collect a dataset in OGBench's format with OGBench's scripted oracles.

    Writes ``<env>-<dataset>-v0.npz`` with ``episodes`` episodes, ``…-val.npz`` with a tenth as many
    further ones (at least one), and ``<env>-<dataset>-v0.json`` with settings and versions.
    Finished episodes wait in ``<env>-<dataset>-v0.parts``; after an interruption the same call
    continues with them.

    Args:
        env: A manipulation environment, such as ``cube-triple``, ``scene`` or ``puzzle-4x4``, or a
            point maze, such as ``pointmaze-large``.
        dataset: ``play`` (plans with smooth noise) or ``noisy`` (feedback with action noise) for
            manipulation; ``navigate`` (from goal to goal) or ``stitch`` (short ways) for mazes.
        directory: Where to write.
        episodes: Training episodes; as many as in the official data if not given.
        seed: Determines, with the episode's number, everything random in an episode.
        workers: Processes to collect with; all cores if not given. Does not affect the result.
        episode_steps: Environment steps per episode; those of the official data if not given.

    Returns:
        Paths of the training and the validation file.

    Raises:
        UserError: Unknown names, numbers out of range, files that exist already, parts of another
            collection in the way, or the user's interruption.
    """
    usual = OFFICIAL.get((env, dataset), (EPISODES, EPISODE_STEPS))
    episodes = usual[0] if episodes is None else episodes
    episode_steps = usual[1] if episode_steps is None else episode_steps
    workers = available_cores() if workers is None else workers
    _check(env, dataset, episodes, seed, workers, episode_steps)
    name = dataset_name(env, dataset)
    folder = place("generate", "directory", directory)
    train, val = folder / f"{name}.npz", folder / f"{name}-val.npz"
    for path in (train, val):
        if path.exists():
            raise UserError(f"{path} exists already; move it away or choose another directory")
    total = episodes + max(1, episodes // 10)
    count = min(workers, total)
    many = f"is {shown(workers)}: so many processes"
    check_memory(count * PROCESS_BYTES, "generate", "workers", many)
    shapes = _shapes(env, episode_steps)
    size = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in shapes.values())
    long = f"is {shown(episodes)}: the arrays of so many episodes of {shown(episode_steps)} steps"
    check_memory(episodes * size, "generate", "episodes", long)

    settings = {"env": env, "dataset": dataset, "seed": seed, "episode_steps": episode_steps}
    parts = folder / f"{name}.parts"
    _claim(parts, settings)
    for index in _kept(parts, total):  # a bad one is better said before hours of work
        _read_part(_part(parts, index), shapes)
    _collect(parts, settings, total, count)

    # Validation first: the training file's existence tells that all is finished.
    for path, chosen in ((val, range(episodes, total)), (train, range(episodes))):
        _save_npz(path, _concatenate([_part(parts, index) for index in chosen], shapes))
    record = settings | {
        "episodes": episodes,
        "validation_episodes": total - episodes,
        "versions": versions(),
    }
    save_json(folder / f"{name}.json", record)
    shutil.rmtree(parts)
    return train, val


def _check(
    env: str, dataset: str, episodes: int, seed: int, workers: int, episode_steps: int
) -> None:
    if env not in COLLECTABLE:
        if parts := parts_of(env):
            raise ArgumentError("generate", "env", f"is '{env}', expected {parts}")
        raise ArgumentError(
            "generate",
            "env",
            f"is '{shown(env)}', which has no scripted oracle, expected one of "
            f"{', '.join(COLLECTABLE)}; "
            "data of ants and humanoids need trained experts: training downloads the official "
            f"files from {base_urls(None)[0]}, or takes them from its directory",
        )
    expected = " or ".join(COLLECTABLE[env])
    require(dataset in COLLECTABLE[env], "generate", "dataset", f"'{shown(dataset)}'", expected)
    for name, value, least in (
        ("episodes", episodes, 1),
        ("seed", seed, 0),
        ("episode_steps", episode_steps, 2),
        ("workers", workers, 1),
    ):
        require(value >= least, "generate", name, value, f"at least {least}")


@functools.cache
def _shapes(env: str, steps: int) -> Shapes:
    """What every episode's arrays look like."""
    made = make_env(env, 1)
    widths = {key: column.columns for key, column in file_layout(made).items()}
    widths["qvel"] = int(made.unwrapped.model.nv)  # type: ignore[attr-defined]
    made.close()
    order = ("observations", "actions", "terminals", "qpos", "qvel", "button_states")
    dtypes = {"terminals": "bool", "button_states": "int64"}
    return {
        key: ((steps, widths[key]) if key in widths else (steps,), dtypes.get(key, "float32"))
        for key in order
        if key in widths or key == "terminals"
    }


class _Collection(Schema, extra="allow"):
    """``settings.json``: the collection that the parts belong to, and what changes its bits."""

    env: Text
    dataset: Text
    seed: Count
    episode_steps: Count
    mujoco: Text
    ogbench: Text
    qam_lightning: Text


def _claim(parts: Path, settings: dict[str, Any]) -> None:
    """Make the folder of parts, or check that the one found belongs to this collection."""
    # Episodes from other physics or random streams must not be mixed in after an upgrade.
    engines = {key: versions()[key] for key in ("mujoco", "ogbench", "qam_lightning")}
    expected = settings | engines
    record = parts / "settings.json"
    with making(parts, "directory", "generate"):
        parts.mkdir(parents=True, exist_ok=True)
        if not record.exists():
            if any(not path.name.startswith(".") for path in parts.iterdir()):
                problem = "holds parts, but no settings.json that says of which collection"
                raise UserError(f"{parts}: {problem}; delete it to start afresh")
            save_json(record, expected)
    found = read_json(_Collection, record, "a collection", f"delete {parts} to start afresh")
    for key, value in expected.items():
        if getattr(found, key) != value:
            raise UserError(
                f"{parts} holds an unfinished collection with {key} "
                f"{shown(getattr(found, key))}, not {shown(value)}; continue that one with its own "
                "settings, or delete the folder"
            )


class CollectorSettings(NamedTuple):
    """The arguments of `make_collector`, to be sent to the process that makes the collector."""

    env: str
    dataset: str
    episode_steps: int

    def make(self) -> EpisodeCollector:
        """Make the collector."""
        warnings.filterwarnings("ignore", message=".*precision lowered by casting")
        return make_collector(*self)


class CollectPart(NamedTuple):
    """Answered by None when episode ``number`` is in its file."""

    parts: Path
    seed: int
    number: int
    slot: int = 0

    def answers(self, collector: EpisodeCollector) -> Iterator[None]:
        """Collect the episode."""
        _save_npz(_part(self.parts, self.number), collector.episode(self.seed, self.number))
        yield


def _collect(parts: Path, settings: dict[str, Any], total: int, workers: int) -> None:
    """Collect the missing ones of ``total`` episodes, in parallel."""
    steps = settings["episode_steps"]
    kept = set(_kept(parts, total))
    if len(kept) == total:
        return
    subject = CollectorSettings(settings["env"], settings["dataset"], steps)
    missing = (index for index in range(total) if index not in kept)
    requests = (CollectPart(parts, settings["seed"], index) for index in missing)
    try:
        with steps_bar() as progress:
            task = progress.add_task(parts.stem, total=total * steps, completed=len(kept) * steps)
            for _ in work_off(subject, requests, min(workers, total - len(kept))):
                progress.advance(task, steps)
    except (KeyboardInterrupt, WorkerError, UserError) as error:
        reason = str(error).strip().splitlines()[-1] if str(error) else "interrupted"
        raise UserError(
            f"{reason}: {len(_kept(parts, total))} of {total} episodes are kept in {parts}; the "
            "same command continues from there"
        ) from error


def _part(parts: Path, index: int) -> Path:
    return parts / f"{index:06d}.npz"


def _kept(parts: Path, total: int) -> list[int]:
    """The episodes below ``total`` that are there."""
    numbers = (int(path.stem) for path in parts.glob("*.npz") if path.stem.isdigit())
    return sorted(n for n in numbers if n < total and _part(parts, n).exists())


def _read_part(path: Path, shapes: Shapes) -> Arrays:
    """Read an episode's arrays.

    Raises:
        UserError: It is damaged, or not of this collection.
    """
    again = "delete it, and the same command collects it again"
    with NpzFile(path, again) as file:
        if set(file.keys()) != set(shapes):
            found, wanted = (", ".join(sorted(keys)) for keys in (file.keys(), shapes))
            raise UserError(f"{path}: holds {shown(found)}, expected {wanted}; {again}")
        for key, (shape, dtype) in shapes.items():
            if (header := file.shape(key)) != (shape, np.dtype(dtype)):
                raise UserError(
                    f"{path}: {key} is of shape {header[0]} and type {header[1]}, expected {shape} "
                    f"and {dtype}; {again}"
                )
        arrays = {key: np.concatenate(list(file.blocks(key))) for key in shapes}
    ends = np.flatnonzero(arrays["terminals"]).tolist()
    finite = all(np.isfinite(array).all() for array in arrays.values())
    if ends != [len(arrays["terminals"]) - 1] or not finite or np.abs(arrays["actions"]).max() > 1:
        raise UserError(
            f"{path}: is no episode (terminals in rows {shown(ends)}, expected the last; finite "
            f"numbers, actions from -1 to 1); {again}"
        )
    return arrays


def _concatenate(paths: list[Path], shapes: Shapes) -> Arrays:
    """Put episodes one behind the other."""
    whole = {
        key: np.empty((len(paths) * shape[0], *shape[1:]), dtype)
        for key, (shape, dtype) in shapes.items()
    }
    for number, path in enumerate(paths):
        for key, array in _read_part(path, shapes).items():
            whole[key][number * len(array) : (number + 1) * len(array)] = array
    return whole


def _save_npz(path: Path, arrays: Arrays) -> None:
    """Write a file that is either whole or absent."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
