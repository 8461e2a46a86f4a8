"""Collecting manipulation datasets with OGBench's scripted oracles.

The official ``play`` data follow noisy plans, the ``noisy`` data come from state-feedback (Markov)
oracles with Gaussian action noise. An oracle serves one target at a time; when it is done, the
environment draws the next target, so an episode is a stream of unrelated little tasks.

Every episode is a function of ``(seed, episode)`` and the installed versions alone: neither the
number of worker processes nor an interruption changes a bit of it.
"""

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from qam_lightning.data.files import DATASETS, ENVIRONMENTS, dataset_name
from qam_lightning.errors import UserError
from qam_lightning.provenance import versions

# One more row than the usual 1000 transitions: the last row of an episode only supplies the next
# observation of the row before it.
EPISODE_STEPS = 1001
# Chance that a cube's new target is on top of another cube, drawn per episode from these bounds.
STACKING = {
    "cube-single": (0.0, 0.0),
    "cube-double": (0.0, 0.25),
    "cube-triple": (0.05, 0.35),
    "cube-quadruple": (0.1, 0.5),
}
MAX_ACTION_NOISE = 0.1
# Relative noise of the five action dimensions x, y, z, yaw, gripper.
ACTION_NOISE = np.array([1.0, 1.0, 1.0, 3.0, 10.0])
MAX_ATTEMPTS = 100

Arrays = dict[str, np.ndarray]


def make_oracles(env: gymnasium.Env, name: str, dataset: str) -> dict[str, Any]:
    """Builds the oracle of every target kind that the environment sets.

    Args:
        env: The environment in data-collection mode.
        name: Its name, one of ``ENVIRONMENTS``.
        dataset: ``"play"`` for plan oracles, ``"noisy"`` for Markov oracles.

    Returns:
        Oracles by the value of ``info["privileged/target_task"]``.
    """
    # Imported here because importing the oracles imports mujoco, which other users of this module
    # (the command line's --help) should not pay for.
    from ogbench.manipspace.oracles.markov.button_markov import ButtonMarkovOracle
    from ogbench.manipspace.oracles.markov.cube_markov import CubeMarkovOracle
    from ogbench.manipspace.oracles.markov.drawer_markov import DrawerMarkovOracle
    from ogbench.manipspace.oracles.markov.window_markov import WindowMarkovOracle
    from ogbench.manipspace.oracles.plan.button_plan import ButtonPlanOracle
    from ogbench.manipspace.oracles.plan.cube_plan import CubePlanOracle
    from ogbench.manipspace.oracles.plan.drawer_plan import DrawerPlanOracle
    from ogbench.manipspace.oracles.plan.window_plan import WindowPlanOracle

    kinds: dict[str, type]
    options: dict[str, Any]
    if dataset == "play":
        kinds = {
            "cube": CubePlanOracle,
            "button": ButtonPlanOracle,
            "drawer": DrawerPlanOracle,
            "window": WindowPlanOracle,
        }
        options = {"noise": 0.1, "noise_smoothing": 0.5}
    else:
        kinds = {
            "cube": CubeMarkovOracle,
            "button": ButtonMarkovOracle,
            "drawer": DrawerMarkovOracle,
            "window": WindowMarkovOracle,
        }
        options = {"min_norm": 0.4}
    if name.startswith("cube"):
        return {"cube": kinds["cube"](env=env, **options)}
    if name.startswith("puzzle"):
        return {"button": kinds["button"](env=env, gripper_always_closed=True, **options)}
    oracles = {kind: make(env=env, **options) for kind, make in kinds.items() if kind != "cube"}
    patience = {"max_step": 100} if dataset == "noisy" else {}
    return oracles | {"cube": kinds["cube"](env=env, **patience, **options)}


def is_healthy(qpos: np.ndarray) -> bool:
    """Whether the scene's cube stayed where cubes can be.

    Rarely the contact solver ejects the cube, mostly out of the drawer while that is being locked.

    Args:
        qpos: (steps, nq) generalised positions of one scene episode.
    """
    y, z = qpos[:, 15], qpos[:, 16]
    in_drawer = y <= -0.3
    return not np.any((y >= 0.29) | (in_drawer & ((z < 0.06) | (z > 0.08))))


class Collector:
    """One environment with its oracles, collecting episodes in any order."""

    def __init__(self, name: str, dataset: str, episode_steps: int = EPISODE_STEPS):
        """Makes the environment.

        Args:
            name: One of ``ENVIRONMENTS``.
            dataset: One of ``DATASETS``.
            episode_steps: Environment steps per episode.
        """
        import ogbench  # noqa: F401  (registers the environments)

        self.name, self.dataset = name, dataset
        self.env = gymnasium.make(
            f"{name}-v0",
            terminate_at_goal=False,
            mode="data_collection",
            max_episode_steps=episode_steps,
        )
        self.oracles = make_oracles(self.env, name, dataset)

    def episode(self, seed: int, index: int) -> Arrays:
        """Collects episode ``index``, retrying with a new seed while the simulation misbehaves.

        Returns:
            Arrays with the episode's steps in their first dimension, under their file's keys.

        Raises:
            UserError: Every attempt ended in an impossible state of the simulation.
        """
        for attempt in range(MAX_ATTEMPTS):
            arrays = self._attempt(np.random.SeedSequence([seed, index, attempt]))
            if self.name != "scene" or is_healthy(arrays["qpos"]):
                return arrays
        raise UserError(
            f"episode {index} of {self.name}: the cube left the scene in {MAX_ATTEMPTS} attempts "
            "in a row; check the installed mujoco version"
        )

    def _attempt(self, seeds: np.random.SeedSequence) -> Arrays:
        env_seed, oracle_seed = (int(word) for word in seeds.generate_state(2))
        # The oracles draw from numpy's global generator; there is no other way to seed them.
        np.random.seed(oracle_seed)
        stacking = np.random.uniform(*STACKING.get(self.name, (0.5, 0.5)))
        noise = np.random.uniform(0, MAX_ACTION_NOISE) if self.dataset == "noisy" else 0.0

        observation, info = self.env.reset(seed=env_seed)
        oracle = self.oracles[info["privileged/target_task"]]
        oracle.reset(observation, info)
        rows: dict[str, list] = {}
        done = False
        while not done:
            action = np.asarray(oracle.select_action(observation, info))
            if noise:
                action = action + np.random.normal(0.0, noise * ACTION_NOISE)
            action = np.clip(action, -1.0, 1.0)
            row = {"observations": observation, "actions": action}
            observation, _, terminated, truncated, info = self.env.step(action)
            done = terminated or truncated
            row |= {"terminals": done, "qpos": info["prev_qpos"], "qvel": info["prev_qvel"]}
            if "prev_button_states" in info:
                row["button_states"] = info["prev_button_states"]
            for key, value in row.items():
                rows.setdefault(key, []).append(value)
            if oracle.done:
                # For the oracle's plan only: the next action is chosen, as in the official data,
                # from what the step showed, and so is the next row.
                target = self.env.unwrapped.set_new_target(p_stack=stacking)  # type: ignore[attr-defined]
                oracle = self.oracles[target[1]["privileged/target_task"]]
                oracle.reset(*target)
        dtypes = {"terminals": np.bool_, "button_states": np.int64}
        return {k: np.array(v, dtype=dtypes.get(k, np.float32)) for k, v in rows.items()}


def generate(
    env: str,
    dataset: str = "play",
    directory: str = "~/.ogbench/data",
    episodes: int = 1000,
    seed: int = 0,
    workers: int | None = None,
    episode_steps: int = EPISODE_STEPS,
) -> tuple[Path, Path]:
    """Collects a dataset in OGBench's format with OGBench's scripted oracles.

    Writes ``<env>-<dataset>-v0.npz`` with ``episodes`` episodes, ``…-val.npz`` with a tenth as many
    further ones (at least one), and ``<env>-<dataset>-v0.json`` with what made them. Finished
    episodes wait in ``<env>-<dataset>-v0.parts``: after an interruption the same command goes on.

    Args:
        env: A manipulation environment, such as ``cube-triple``, ``scene`` or ``puzzle-4x4``.
        dataset: ``play`` (plans with smooth noise) or ``noisy`` (feedback with action noise).
        directory: Where to write.
        episodes: Training episodes.
        seed: Determines, with the episode's number, everything random in an episode.
        workers: Processes to collect with; all cores if not given. Does not affect the result.
        episode_steps: Environment steps per episode; the official data have 1001.

    Returns:
        Paths of the training and the validation file.

    Raises:
        UserError: Unknown names, numbers out of range, files that exist already, parts of another
            collection in the way, or the user's interruption.
    """
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
    _save_text(folder / f"{name}.json", json.dumps(record, indent=2) + "\n")
    shutil.rmtree(parts)
    return train, val


def _check(
    env: str, dataset: str, episodes: int, seed: int, workers: int | None, episode_steps: int
) -> None:
    if env not in ENVIRONMENTS:
        raise UserError(
            f"cannot collect for environment {env!r}: collection covers the manipulation "
            f"environments {', '.join(ENVIRONMENTS)} only (ant and humanoid data need trained "
            "experts)"
        )
    if dataset not in DATASETS:
        raise UserError(
            f"cannot collect dataset {dataset!r}: expected one of {', '.join(DATASETS)}"
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
            _save_text(record, json.dumps(expected, indent=2) + "\n")
        found = json.loads(record.read_text())
    except OSError as error:
        raise UserError(f"cannot write to {parts}: {error.strerror or error}") from None
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
    with _progress() as progress, _pool(settings, min(workers, len(missing))) as pool:
        task = progress.add_task(
            parts.stem, total=len(wanted) * steps, completed=(len(wanted) - len(missing)) * steps
        )
        futures = [pool.submit(_collect_part, parts, settings["seed"], i) for i in missing]
        try:
            for future in as_completed(futures):
                future.result()
                progress.advance(task, steps)
        except (KeyboardInterrupt, BrokenProcessPool) as error:
            _abandon(pool)
            broken = isinstance(error, BrokenProcessPool)
            reason = "a worker process died (out of memory?)" if broken else "interrupted"
            kept = sum(path.exists() for path in wanted)
            raise UserError(
                f"{reason}: {kept} of {len(wanted)} episodes are kept in {parts}; "
                "the same command continues from there"
            ) from None
        except BaseException:
            _abandon(pool)
            raise


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.1f}%"),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} steps"),
        _SpeedColumn(),
        TimeRemainingColumn(),
        speed_estimate_period=300,
    )


class _SpeedColumn(ProgressColumn):
    """Steps per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} steps/s" if task.speed else "")


@contextlib.contextmanager
def _pool(settings: dict[str, Any], workers: int) -> Iterator[ProcessPoolExecutor]:
    """Worker processes, each with its own environment and a single numerical thread."""
    # A new interpreter each: a forked copy of a process with threads (torch, rich) may hang.
    context = multiprocessing.get_context("spawn")
    # Inherited, and there before a worker imports numpy and mujoco.
    inherited = {key: "1" for key in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    inherited["MUJOCO_GL"] = "disabled"  # nothing is rendered: no need for a display
    saved = {key: os.environ.get(key) for key in inherited}
    os.environ.update(inherited)
    arguments = (settings["env"], settings["dataset"], settings["episode_steps"])
    try:
        with ProcessPoolExecutor(workers, context, _start_worker, arguments) as pool:
            yield pool
    finally:
        for key, value in saved.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def _abandon(pool: ProcessPoolExecutor) -> None:
    """Stops the workers at once; an unfinished episode leaves no part behind."""
    processes = list((pool._processes or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()


_collector: Collector | None = None


def _start_worker(name: str, dataset: str, episode_steps: int) -> None:
    global _collector
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    warnings.filterwarnings("ignore", message=".*precision lowered by casting")
    parent = multiprocessing.parent_process()
    if parent is not None:
        # A worker whose parent was killed would wait for its next episode for ever.
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    _collector = Collector(name, dataset, episode_steps)


def _end_with(process: Any) -> None:
    process.join()
    os._exit(1)


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
    with _replacing(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        file.flush()
        os.fsync(file.fileno())


def _save_text(path: Path, text: str) -> None:
    with _replacing(path) as temporary:
        temporary.write_text(text)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)
