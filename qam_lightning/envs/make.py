"""The one factory of environments, for data, evaluation and collection.

An environment is one of OGBench's, by a name such as ``scene`` and a task, or any that gymnasium
can make, by its id. Three things are added: a mistaken name is answered with the valid ones, the
rewards may be those of the paper's sparse domains, and an episode depends on its seed alone (some
of OGBench's environments draw from numpy's global generator or from an unseeded action space).
"""

import difflib
import functools
import importlib
import os
import re
import subprocess
import sys
import warnings
from typing import Any

import gymnasium
import numpy as np
import ogbench  # noqa: F401  (registers the environments)
from numpy.random import mtrand

from qam_lightning.util.errors import ArgumentError

TASKS = range(1, 6)
_TASK_ID = re.compile(r"(?P<env>.+)-singletask-task(?P<task>\d+)-v0")
_VERSIONED = re.compile(r"-v\d+$")
_PROBE = "import mujoco; c = mujoco.GLContext(8, 8); c.make_current(); c.free()"


@functools.cache
def env_names() -> tuple[str, ...]:
    """Names of all state-based OGBench environments that have single-task variants, sorted."""
    matches = (_TASK_ID.fullmatch(name) for name in gymnasium.registry)
    names = {match["env"] for match in matches if match}
    # Pixel environments have no state observations, which every network here expects.
    return tuple(sorted(name for name in names if not name.startswith("visual-")))


def is_ogbench(env: str) -> bool:
    """Whether ``env`` names a state-based OGBench environment, rather than a gymnasium id."""
    return env in env_names()


def env_id(env: str, task: int) -> str:
    """The gymnasium id of one task, e.g. ``("scene", 1) -> "scene-singletask-task1-v0"``.

    Args:
        env: a name of `env_names`, e.g. ``cube-triple``; or a gymnasium id with its version, e.g.
            ``Pendulum-v1`` or ``my_package:MyEnv-v0``, which has one task.
        task: 1 to 5.

    Raises:
        ArgumentError: the environment or the task does not exist; the message lists the valid ones.
    """
    if _VERSIONED.search(env):
        return _own_id(env, task)
    if not is_ogbench(env):
        close = difflib.get_close_matches(str(env), env_names(), n=1)
        hint = f" (did you mean '{close[0]}'?)" if close else ""
        raise ArgumentError(
            "make_env",
            "env",
            f"is '{env}'{hint}, expected a gymnasium id such as Pendulum-v1, or one of "
            f"{', '.join(env_names())}",
        )
    if task not in TASKS:
        raise ArgumentError("make_env", "task", f"is {task}, but {env} has tasks 1 to 5")
    return f"{env}-singletask-task{task}-v0"


def _own_id(env: str, task: int) -> str:
    """Check the id of an environment that is not OGBench's."""
    module, _, name = env.rpartition(":")
    try:
        if module:  # registers its environments
            importlib.import_module(module)
        gymnasium.spec(name)
    except (gymnasium.error.Error, ImportError) as error:
        raise _cannot_make(env, error) from None
    if task != 1:
        raise ArgumentError("make_env", "task", f"is {task}, but {env} has one task only; use 1")
    return env


def _cannot_make(env: str, error: Exception) -> ArgumentError:
    reason = " ".join(str(error).split())
    return ArgumentError("make_env", "env", f"is '{env}', which gymnasium cannot make: {reason}")


def episode_steps(env: str, task: int) -> int:
    """The environment's own limit on the steps of an episode; 0 if it has none."""
    return int(gymnasium.spec(env_id(env, task).rpartition(":")[2]).max_episode_steps or 0)


def make_env(
    env: str, task: int, sparse: bool = False, render_size: tuple[int, int] | None = None
) -> gymnasium.Env:
    """Make one environment with one task.

    Args:
        env: see `env_id`.
        task: 1 to 5.
        sparse: map every reward r to -1 if r != 0, else 0.
        render_size: (width, height) in pixels of the frames that ``render()`` gives; None when no
            frames are wanted. Call `headless_gl` before mujoco's first import to get any.

    Returns:
        An environment with observations (O,), actions (A,) in [-1, 1], its own time limit, and
        ``info["success"]`` at every step.

    Raises:
        ArgumentError: unknown environment or task, or observations or actions that are no vectors.
    """
    name = env_id(env, task)
    size = {} if render_size is None else {"width": render_size[0], "height": render_size[1]}
    with warnings.catch_warnings():
        # mujoco's viewer, imported by OGBench, complains about a missing display that nobody needs.
        warnings.filterwarnings("ignore", message=".*DISPLAY.*")
        warnings.filterwarnings("ignore", message=".*precision lowered.*")
        made = Reproducible(_make(name, size))
    return SparseReward(made) if sparse else made


def _make(name: str, size: dict[str, int]) -> gymnasium.Env:
    if _TASK_ID.fullmatch(name):
        return gymnasium.make(name, disable_env_checker=True, **size)
    mode = "rgb_array" if size else None
    try:
        made = gymnasium.make(name, disable_env_checker=True, render_mode=mode)
    except (gymnasium.error.Error, ImportError) as error:
        raise _cannot_make(name, error) from None
    for role, space in (("observations", made.observation_space), ("actions", made.action_space)):
        vectors = isinstance(space, gymnasium.spaces.Box) and len(space.shape) == 1
        if not vectors or (role == "actions" and not space.is_bounded()):  # type: ignore[attr-defined]
            bounds = " with bounds" if role == "actions" else ""
            raise ArgumentError(
                "make_env", "env", f"is {name}, whose {role} are {space}, expected vectors{bounds}"
            )
    return SuccessAtEnd(gymnasium.wrappers.RescaleAction(made, np.float32(-1), np.float32(1)))


class SuccessAtEnd(gymnasium.Wrapper):
    """Counts reaching a terminal state as success, unless the environment reports its own."""

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        success = {"success": float(terminated)}
        return observation, reward, terminated, truncated, success | info


class SparseReward(gymnasium.RewardWrapper):
    """Reward 0 where the environment gives 0 (the goal is reached) and -1 everywhere else."""

    def reward(self, reward: Any) -> float:
        return -1.0 if reward != 0 else 0.0


class Reproducible(gymnasium.Wrapper):
    """Makes an episode a function of its reset seed and its actions, in any process and order.

    While the environment runs, it finds its own generator in the place of numpy's global one, so
    the environment and the rest of the program do not disturb each other. ``reset`` without a seed
    continues the current random streams.
    """

    def __init__(self, env: gymnasium.Env):
        super().__init__(env)
        space: gymnasium.Space = env.action_space
        self._action_space = space
        self._bits = np.random.MT19937()
        kind = type(env.unwrapped)
        if isinstance(getattr(kind, "action_space", None), property):
            # Manipulation resets draw a few actions from a space that this property builds anew at
            # every access, seeded by the system. Give them one space that can be seeded.
            fixed = {"action_space": space}
            env.unwrapped.__class__ = type(kind.__name__, (kind,), fixed)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Reset; with a seed (0 to 2^32 - 1), reseed every source of randomness."""
        if seed is not None:
            self._bits = np.random.MT19937(seed)
            self.action_space.seed(seed)
        return self._run(self.env.reset, seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        return self._run(self.env.step, action)

    def close(self) -> None:
        """Close the environment and its renderer, which OGBench would leave open."""
        for name in ("_renderer", "custom_renderer"):
            renderer = getattr(self.env.unwrapped, name, None)
            if renderer is not None:
                renderer.close()
        super().close()

    def _run(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        others = mtrand.get_bit_generator()
        mtrand.set_bit_generator(self._bits)
        try:
            return function(*args, **kwargs)
        finally:
            mtrand.set_bit_generator(others)


@functools.cache
def headless_gl() -> str | None:
    """Find a way to render frames and set ``MUJOCO_GL`` to it; must precede mujoco's first import.

    A value the user has set is the only one tried. Each candidate is tried in a process of its own,
    because a backend that does not work makes the import of mujoco fail.

    Returns:
        The backend (``glfw``, ``egl`` or ``osmesa``), or None if none works here.
    """
    chosen = os.environ.get("MUJOCO_GL")
    display = os.environ.get("DISPLAY") or sys.platform == "darwin"
    for backend in [chosen] if chosen else (["glfw"] if display else []) + ["egl", "osmesa"]:
        trial = {**os.environ, "MUJOCO_GL": backend}
        run = subprocess.run([sys.executable, "-c", _PROBE], env=trial, capture_output=True)
        if run.returncode == 0:
            os.environ["MUJOCO_GL"] = backend
            return backend
    return None
