"""Collecting datasets in OGBench's format with OGBench's scripted oracles.

An episode is a function of its number, the seed and the installed versions. Neither the number of
worker processes nor an interruption changes a bit of it.
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
from qam_lightning.util.errors import ArgumentError, UserError, cannot_write, require
from qam_lightning.util.files import replacing, save_json
from qam_lightning.util.provenance import versions

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

Collector = ManipulationCollector | MazeCollector


def make_collector(env: str, dataset: str, episode_steps: int) -> Collector:
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
        raise ArgumentError(
            "generate",
            "env",
            f"is {env!r}, which has no scripted oracle, expected one of {', '.join(COLLECTABLE)}; "
            "data of ants and humanoids need trained experts: training downloads the official "
            f"files from {default_url()}, or takes them from its directory",
        )
    expected = " or ".join(COLLECTABLE[env])
    require(dataset in COLLECTABLE[env], "generate", "dataset", repr(dataset), expected)
    for name, value, least in (
        ("episodes", episodes, 1),
        ("seed", seed, 0),
        ("episode_steps", episode_steps, 2),
        ("workers", 1 if workers is None else workers, 1),
    ):
        require(value >= least, "generate", name, value, f"at least {least}")


def _claim(parts: Path, settings: dict[str, Any]) -> None:
    """Make the folder of parts, or check that the one found belongs to this collection."""
    # Episodes from other physics or random streams must not be mixed in after an upgrade.
    engines = {key: versions()[key] for key in ("mujoco", "ogbench", "qam_lightning")}
    expected = settings | engines
    record = parts / "settings.json"
    try:
        parts.mkdir(parents=True, exist_ok=True)
        if not record.exists():
            save_json(record, expected)
        found = json.loads(record.read_text())
    except OSError as error:
        raise cannot_write(parts, error, "directory") from None
    except ValueError:
        raise UserError(f"{record} is not valid JSON; delete {parts} to start afresh") from None
    for key, value in expected.items():
        if found.get(key) != value:
            raise UserError(
                f"{parts} holds an unfinished collection with {key} {found.get(key)!r}, not "
                f"{value!r}; continue that one with its own settings, or delete the folder"
            )


def _collect(parts: Path, wanted: list[Path], settings: dict[str, Any], workers: int) -> None:
    """Collect the missing episodes, in parallel."""
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
            raise UserError(
                f"{path}: cannot be read: {error}; delete it, and start again"
            ) from None
    return {key: np.concatenate(values) for key, values in pieces.items()}


def _save_npz(path: Path, arrays: Arrays) -> None:
    """Write a file that is either whole or absent."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
