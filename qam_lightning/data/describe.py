"""What a dataset holds: trajectories, ranges, how often each task's goal is reached, returns."""

from typing import NamedTuple

import numpy as np

from qam_lightning.data.datamodule import ChunkDataModule
from qam_lightning.data.labels import task_labels
from qam_lightning.data.store import Store
from qam_lightning.envs.make import TASKS, is_ogbench, make_env

BLOCK = 1 << 20
SHOWN = 50_000  # rows whose positions are drawn
# OGBench's manipulation observations hold the hand's position from here on, shifted and scaled.
HAND, HAND_CENTRE, HAND_SCALE = 12, (0.425, 0.0), 10.0
CUBES, CUBE = 14, 7  # where cubes begin in qpos, and numbers per cube


class TaskFacts(NamedTuple):
    """Statistics of a dataset for one task.

    Attributes:
        task: Its number.
        reached: Share of the trajectories that reach its goal.
        at_goal: Share of the transitions that are at its goal.
        returns: Undiscounted sum of rewards of every trajectory.
    """

    task: int
    reached: float
    at_goal: float
    returns: np.ndarray


class Description(NamedTuple):
    """What a dataset holds.

    Attributes:
        name: Name of the store.
        lengths: Transitions of every trajectory.
        obs_dim: Size of an observation.
        action_low: Smallest value of every action dimension.
        action_high: Largest value of every action dimension.
        bytes: Size of the store, labels included.
        tasks: One entry per task.
        positions: Positions seen from above, by the name of what is there: (points, 2).
        walls: (rows, columns) bool of a maze with its unit and offset; None elsewhere.
    """

    name: str
    lengths: np.ndarray
    obs_dim: int
    action_low: np.ndarray
    action_high: np.ndarray
    bytes: int
    tasks: list[TaskFacts]
    positions: dict[str, np.ndarray]
    walls: tuple[np.ndarray, float, float] | None

    def lines(self) -> list[str]:
        """The description as text."""
        shortest, longest = self.lengths.min(), self.lengths.max()
        each = f"{shortest}" if shortest == longest else f"{shortest} to {longest}"
        ranges = zip(self.action_low, self.action_high, strict=True)
        spans = ", ".join(f"{low:.2f}..{high:.2f}" for low, high in ranges)
        return [
            f"{self.name}: {len(self.lengths):,} trajectories of {each} transitions, "
            f"{self.lengths.sum():,} in all, {self.bytes / 1e6:,.1f} MB",
            f"observations of {self.obs_dim}, actions of {len(self.action_low)}: {spans}",
            *map(_task_line, self.tasks),
        ]


def _task_line(facts: TaskFacts) -> str:
    counts, edges = np.histogram(facts.returns, bins=10)
    bars = "".join(" ▁▂▃▄▅▆▇█"[int(np.ceil(8 * count / counts.max()))] for count in counts)
    return (
        f"task {facts.task}: goal reached in {facts.reached:.1%} of the trajectories "
        f"({facts.at_goal:.2%} of the transitions), returns {edges[0]:.0f} [{bars}] {edges[-1]:.0f}"
    )


def describe(data: ChunkDataModule) -> Description:
    """Describe the training part of a dataset, fetching and converting it if need be.

    Args:
        data: The dataset.

    Raises:
        UserError: See `ChunkDataModule.open_store`.
    """
    store = data.open_store()
    starts = np.concatenate([[0], store.stops[:-1]])
    low, high = _ranges(store.arrays["actions"])
    rows = np.unique(np.linspace(0, store.transitions - 1, SHOWN, dtype=np.int64))
    positions, walls = _seen_from_above(data, store, rows)
    return Description(
        name=store.folder.stem,
        lengths=store.stops - starts,
        obs_dim=store.arrays["observations"].shape[1],
        action_low=low,
        action_high=high,
        tasks=_tasks(data, store, starts),
        bytes=sum(path.stat().st_size for path in store.folder.rglob("*")),
        positions=positions,
        walls=walls,
    )


def _ranges(actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    blocks = [actions[i : i + BLOCK] for i in range(0, len(actions), BLOCK)]
    return np.min([b.min(0) for b in blocks], 0), np.max([b.max(0) for b in blocks], 0)


def _tasks(data: ChunkDataModule, store: Store, starts: np.ndarray) -> list[TaskFacts]:
    facts = []
    for task in TASKS if is_ogbench(data.env) else [data.task]:
        if is_ogbench(data.env):
            labels = task_labels(store, data.env, task, make_env(data.env, task))
        else:
            labels = data.labels(store)
        rewards, masks = labels
        facts.append(
            TaskFacts(
                task,
                reached=float((np.minimum.reduceat(masks, starts) == 0).mean()),
                at_goal=1.0 - float(np.mean(masks, dtype=np.float64)),
                returns=np.add.reduceat(rewards, starts, dtype=np.float64),
            )
        )
    return facts


def _seen_from_above(
    data: ChunkDataModule, store: Store, rows: np.ndarray
) -> tuple[dict[str, np.ndarray], tuple[np.ndarray, float, float] | None]:
    inner = make_env(data.env, data.task).unwrapped
    if hasattr(inner, "maze_map"):
        walls = inner.maze_map == 1, inner._maze_unit, inner._offset_x  # type: ignore[attr-defined]
        return {"agent": np.array(store.arrays["qpos"][rows, :2])}, walls
    if cubes := getattr(inner, "_num_cubes", 0):
        qpos = store.arrays["qpos"][rows]
        first = [CUBES + CUBE * i for i in range(cubes)]
        return {f"cube {i + 1}": qpos[:, at : at + 2] for i, at in enumerate(first)}, None
    observations = store.arrays["observations"]
    row_of = rows + np.searchsorted(store.stops, rows, "right")
    if is_ogbench(data.env):
        hand = observations[row_of, HAND : HAND + 2] / HAND_SCALE + HAND_CENTRE
        return {"hand": hand}, None
    return {"observation": np.array(observations[row_of, :2])}, None
