"""Collecting datasets in OGBench's format with OGBench's scripted oracles.

Every episode is a function of ``(seed, episode)`` and the installed versions alone: neither the
number of worker processes nor an interruption changes a bit of it.
"""

import json
import os
import shutil
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np

from qam_lightning.data.manipulation import Arrays, ManipulationCollector
from qam_lightning.data.mazes import MazeCollector
from qam_lightning.data.source import COLLECTABLE, POINT_MAZES, dataset_name, default_url
from qam_lightning.data.workers import abandon, steps_bar, worker_pool
from qam_lightning.util.errors import UserError
from qam_lightning.util.files import replacing, save_json
from qam_lightning.util.provenance import versions

# Training episodes and steps of the official data: 1000 of 1001 steps unless named here. One more
# row than transitions: the last row of an episode only supplies the observation after the one
# before it.
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

Collector = ManipulationCollector | MazeCollector


def make_collector(env: str, dataset: str, episode_steps: int) -> Collector:
    """Makes what collects single episodes of an environment."""
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
    """Collects a dataset in OGBench's format with OGBench's scripted oracles.

    Writes ``<env>-<dataset>-v0.npz`` with ``episodes`` episodes, ``…-val.npz`` with a tenth as many
    further ones (at least one), and ``<env>-<dataset>-v0.json`` with what made them. Finished
    episodes wait in ``<env>-<dataset>-v0.parts``: after an interruption the same command goes on.

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
    _check(env, dataset, episodes, seed, workers, episode_steps)
    name = dataset_name(env, dataset)
    folder = Path(directory).expanduser()
    train, val = folder / f"{name}.npz", folder / f"{name}-val.npz"
    for path in (train, val):
        if path.exists():
            raise UserError(f"{path} exists already; move it away or choose another directory")
    settings = {"env": env, "dataset": dataset, "seed": seed, "episode_steps": episode_steps}
    parts = folder / f"{name}.parts"
    _claim(parts, settings)
    total = episodes + max(1, episodes // 10)
    wanted = [_part(parts, index) for index in range(total)]
    _collect(parts, wanted, settings, workers or os.cpu_count() or 1)

    # Validation first: the training file's existence tells that all is finished.
    for path, chosen in ((val, wanted[episodes:]), (train, wanted[:episodes])):
        _save_npz(path, _concatenate(chosen))
    record = settings | {
        "episodes": episodes,
        "validation_episodes": total - episodes,
        "versions": versions(),
    }
    save_json(folder / f"{name}.json", record)
    shutil.rmtree(parts)
    return train, val


def _check(
    env: str, dataset: str, episodes: int, seed: int, workers: int | None, episode_steps: int
) -> None:
    if env not in COLLECTABLE:
        raise UserError(
            f"cannot collect for environment {env!r}: there are scripted oracles for "
            f"{', '.join(COLLECTABLE)}; data of ants and humanoids need trained experts: have "
            f"`train.py fit` download the official files from {default_url()}, or put them into "
            "data.directory"
        )
    if dataset not in COLLECTABLE[env]:
        raise UserError(
            f"cannot collect dataset {dataset!r} for {env}: expected "
            f"{' or '.join(COLLECTABLE[env])}"
        )
    lowest = {"episodes": (episodes, 1), "seed": (seed, 0), "episode_steps": (episode_steps, 2)}
    if workers is not None:
        lowest["workers"] = (workers, 1)
    for key, (value, least) in lowest.items():
        if value < least:
            raise UserError(f"{key} is {value}, expected at least {least}")


def _claim(parts: Path, settings: dict[str, Any]) -> None:
    """Makes the folder of parts, or checks that the one found belongs to this collection."""
    # Episodes from other physics must not be mixed in after an upgrade.
    engines = {key: versions()[key] for key in ("mujoco", "ogbench")}
    expected = settings | engines
    record = parts / "settings.json"
    try:
        parts.mkdir(parents=True, exist_ok=True)
        if not record.exists():
            save_json(record, expected)
        found = json.loads(record.read_text())
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write to {parts}: {reason}; choose another --directory") from None
    except ValueError:
        raise UserError(f"{record} is not valid JSON; delete {parts} to start afresh") from None
    for key, value in expected.items():
        if found.get(key) != value:
            raise UserError(
                f"{parts} holds an unfinished collection with {key} {found.get(key)!r}, not "
                f"{value!r}; continue that one with its own settings, or delete the folder"
            )


def _collect(parts: Path, wanted: list[Path], settings: dict[str, Any], workers: int) -> None:
    """Collects the episodes that are still missing, in parallel."""
    steps = settings["episode_steps"]
    missing = [index for index, path in enumerate(wanted) if not path.exists()]
    if not missing:
        return
    arguments = (settings["env"], settings["dataset"], steps)
    count = min(workers, len(missing))
    with steps_bar() as progress, worker_pool(count, _start, arguments) as pool:
        task = progress.add_task(
            parts.stem, total=len(wanted) * steps, completed=(len(wanted) - len(missing)) * steps
        )
        futures = [pool.submit(_collect_part, parts, settings["seed"], i) for i in missing]
        try:
            for future in as_completed(futures):
                future.result()
                progress.advance(task, steps)
        except (KeyboardInterrupt, BrokenProcessPool, UserError) as error:
            abandon(pool)
            reasons: dict[type, str] = {
                KeyboardInterrupt: "interrupted",
                BrokenProcessPool: "a worker process died (out of memory?)",
            }
            reason = reasons.get(type(error), str(error))
            kept = sum(path.exists() for path in wanted)
            raise UserError(
                f"{reason}: {kept} of {len(wanted)} episodes are kept in {parts}; "
                "the same command continues from there"
            ) from None
        except BaseException:
            abandon(pool)
            raise


_collector: Collector | None = None


def _start(name: str, dataset: str, episode_steps: int) -> None:
    global _collector
    _collector = make_collector(name, dataset, episode_steps)


def _collect_part(parts: Path, seed: int, index: int) -> None:
    assert _collector is not None
    _save_npz(_part(parts, index), _collector.episode(seed, index))


def _part(parts: Path, index: int) -> Path:
    return parts / f"{index:06d}.npz"


def _concatenate(paths: list[Path]) -> Arrays:
    pieces: dict[str, list[np.ndarray]] = {}
    for path in paths:
        try:
            with np.load(path, allow_pickle=False) as file:
                for key in file.files:
                    pieces.setdefault(key, []).append(file[key])
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{path} cannot be read ({error}); delete it and start again") from None
    return {key: np.concatenate(values) for key, values in pieces.items()}


def _save_npz(path: Path, arrays: Arrays) -> None:
    """Writes under a temporary name, then renames: a file is either whole or absent."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
