"""The environment behind a dataset: what its files must hold, for OGBench's and for others."""

import re

import gymnasium
import numpy as np
import ogbench  # noqa: F401  (registers the environments)

from qam_lightning.data.npz import Column, Layout
from qam_lightning.util.errors import UserError

_SUFFIX = "-singletask-v0"


def is_ogbench(env: str) -> bool:
    """Whether a name is that of a state-based OGBench environment, rather than a gymnasium id."""
    return f"{env}{_SUFFIX}" in gymnasium.registry and not env.startswith("visual-")


def make_task_env(env: str, task: int) -> gymnasium.Env:
    """Makes the environment whose data are read.

    Args:
        env: OGBench environment without dataset or version, such as ``scene``, whose single-task
            variant is made; or any gymnasium id, such as ``Pendulum-v1`` or ``module:Name-v0``.
        task: Task number of an OGBench environment; 1 for others.

    Returns:
        The environment.

    Raises:
        UserError: No such environment or task, or observations or actions that are not vectors.
    """
    if is_ogbench(env):
        name = f"{env}-singletask-task{task}-v0"
        if name not in gymnasium.registry:
            raise UserError(f"data.task is {task}, but {env} has tasks 1 to 5")
        return gymnasium.make(name)
    if not re.search(r"-v\d+$", env):
        names = [n.removesuffix(_SUFFIX) for n in gymnasium.registry if n.endswith(_SUFFIX)]
        raise UserError(
            f"data.env {env!r} is not a state-based OGBench environment: expected one of "
            f"{', '.join(n for n in names if is_ogbench(n))}, or a gymnasium id such as Pendulum-v1"
        )
    try:
        made = gymnasium.make(env)
    except (gymnasium.error.Error, ImportError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"data.env {env!r}: gymnasium cannot make it: {reason}") from None
    if task != 1:
        raise UserError(f"data.task is {task}, but {env} has one task only; leave it at 1")
    for role, space in (
        ("observations", made.observation_space),
        ("actions", made.action_space),
    ):
        if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
            raise UserError(f"data.env {env}: its {role} are {space}, expected vectors (Box)")
    return made


def file_layout(env: gymnasium.Env) -> Layout:
    """Which arrays an environment's files must hold besides ``terminals``.

    OGBench's files hold states from which each task's rewards follow; other environments' files
    hold the rewards themselves, and masks: 0 where a transition ended in a terminal state, else 1.
    """
    columns = {"observations": env.observation_space.shape, "actions": env.action_space.shape}
    o, a = (int(shape[0]) for shape in columns.values() if shape)
    layout = {"observations": Column(o, "float32", True), "actions": Column(a, "float32")}
    inner = env.unwrapped
    if getattr(inner, "_reward_task_id", None) is None:
        return layout | {"rewards": Column(0, "float32"), "masks": Column(0, "uint8")}
    layout["qpos"] = Column(int(inner.model.nq), "float32")  # type: ignore[attr-defined]
    if hasattr(inner, "_cur_button_states"):
        layout["button_states"] = Column(len(np.atleast_1d(inner._cur_button_states)), "int8")
    return layout
