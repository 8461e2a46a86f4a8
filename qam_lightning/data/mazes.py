"""Collecting point-maze episodes with OGBench's scripted oracle: shortest paths and much noise.

The official ``navigate`` data go from one random goal to the next through a whole episode; the
``stitch`` data go to a cell four cells away and stay there. (Ants and humanoids take the
same paths, but need a trained expert to walk.)
"""

from typing import Any, cast

import gymnasium
import numpy as np

from qam_lightning.util.rng import collection_seeds

ACTION_NOISE = 0.5
STITCH_DISTANCE = 4  # cells


class MazeCollector:
    """One point maze, collecting episodes in any order."""

    def __init__(self, name: str, dataset: str, episode_steps: int):
        """Make the environment.

        Args:
            name: A point maze, such as ``pointmaze-large``.
            dataset: ``navigate`` or ``stitch``.
            episode_steps: Environment steps per episode.
        """
        import ogbench  # noqa: F401  (registers the environments)

        self.dataset = dataset
        self.env = gymnasium.make(
            f"{name}-v0", terminate_at_goal=False, max_episode_steps=episode_steps
        )
        self.maze = cast(Any, self.env.unwrapped)
        walls = self.maze.maze_map == 1
        self.cells = np.argwhere(~walls)
        self.goals = np.array([cell for cell in self.cells if not _in_hallway(walls, *cell)])

    def episode(self, seed: int, index: int) -> dict[str, np.ndarray]:
        """Collect episode ``index``.

        Returns:
            Arrays with the episode's steps in their first dimension, under their file's keys.
        """
        env_seed, global_seed = collection_seeds(seed, index)
        # The maze draws from numpy's global generator; there is no other way to seed it.
        np.random.seed(global_seed)
        self.env.action_space.seed(env_seed)
        start = _choose(self.cells)
        goal = _choose(self.goals if self.dataset == "navigate" else self._cells_near(start))
        task = {"init_ij": tuple(start), "goal_ij": tuple(goal)}
        observation, _ = self.env.reset(seed=env_seed, options={"task_info": task})
        rows: dict[str, list] = {}
        done = False
        while not done:
            action = np.clip(self._towards_goal() + np.random.normal(0, ACTION_NOISE, 2), -1, 1)
            row: dict[str, Any] = {"observations": observation, "actions": action}
            observation, _, terminated, truncated, info = self.env.step(action)
            done = terminated or truncated
            row |= {"terminals": done, "qpos": info["prev_qpos"], "qvel": info["prev_qvel"]}
            for key, value in row.items():
                rows.setdefault(key, []).append(value)
            if info["success"] and self.dataset == "navigate":
                self.maze.set_goal(tuple(_choose(self.goals)))
        dtypes = {"terminals": np.bool_}
        return {k: np.array(v, dtype=dtypes.get(k, np.float32)) for k, v in rows.items()}

    def _towards_goal(self) -> np.ndarray:
        position = self.maze.get_xy()
        direction = self.maze.get_oracle_subgoal(position, self.maze.cur_goal_xy)[0] - position
        return direction / (np.linalg.norm(direction) + 1e-6)

    def _cells_near(self, start: np.ndarray) -> np.ndarray:
        xy = self.maze.ij_to_xy(tuple(start))
        _, distances = self.maze.get_oracle_subgoal(xy, xy)
        near = np.argwhere(distances == STITCH_DISTANCE)
        return near if len(near) else start[None]


def _choose(cells: np.ndarray) -> np.ndarray:
    return cells[np.random.randint(len(cells))]


def _in_hallway(walls: np.ndarray, i: int, j: int) -> bool:
    """Whether a cell is open on two opposite sides and closed on the others."""
    vertical, horizontal = walls[[i - 1, i + 1], j], walls[i, [j - 1, j + 1]]
    return bool(
        (not vertical.any() and horizontal.all()) or (not horizontal.any() and vertical.all())
    )
