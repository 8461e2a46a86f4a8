"""What the files of an environment's dataset must hold."""

from typing import NamedTuple

import gymnasium
import numpy as np


class Column(NamedTuple):
    """What one array of a dataset must look like.

    Attributes:
        columns: Numbers in a row; 0 for a one-dimensional array.
        dtype: The stored type: float32, int8 for small integers, uint8 for zeros and ones.
        last_rows: Whether the last row of a trajectory, which belongs to no transition, is kept.
    """

    columns: int
    dtype: str
    last_rows: bool = False

    def shape(self, rows: int) -> tuple[int, ...]:
        """The array's shape with so many rows."""
        return (rows, self.columns) if self.columns else (rows,)


Layout = dict[str, Column]
"""Arrays besides ``terminals``, by key."""

Shapes = dict[str, tuple[tuple[int, ...], str]]
"""Shape and type of every array, by key."""


def file_layout(env: gymnasium.Env) -> Layout:
    """Return the arrays that an environment's files must hold besides ``terminals``.

    OGBench's files hold states from which each task's rewards follow. Other environments' files
    hold the rewards themselves, and masks: 0 where a transition ended in a terminal state, else 1.
    """
    (o,), (a,) = env.observation_space.shape, env.action_space.shape  # type: ignore[misc]
    layout = {"observations": Column(o, "float32", True), "actions": Column(a, "float32")}
    inner = env.unwrapped
    if getattr(inner, "_reward_task_id", None) is None:
        return layout | {"rewards": Column(0, "float32"), "masks": Column(0, "uint8")}
    layout["qpos"] = Column(int(inner.model.nq), "float32")  # type: ignore[attr-defined]
    if hasattr(inner, "_cur_button_states"):
        layout["button_states"] = Column(len(np.atleast_1d(inner._cur_button_states)), "int8")
    return layout
