"""The one factory of environments, for data, evaluation and collection.

An environment is one of OGBench's, by a name such as ``scene`` and a task, or any that gymnasium
can make, by its id. Three things are added: a mistaken name is answered with the valid ones, the
rewards may be those of the paper's sparse domains, and an episode depends on its seed alone (some
of OGBench's environments draw from numpy's global generator or from an unseeded action space).
"""

import contextlib
import difflib
import functools
import importlib
import re
import warnings
from typing import Any

import gymnasium
import numpy as np
import ogbench  # noqa: F401  (registers the environments)
from numpy.random import mtrand

from qam_lightning.envs.gl import gl_problem, import_mujoco
from qam_lightning.util.errors import ArgumentError, UserError, shown

TASKS = range(1, 6)
_TASK_ID = re.compile(r"(?P<env>.+)-singletask-task(?P<task>\d+)-v0")
_VERSIONED = re.compile(r"-v\d+$")
# What OGBench's ids and datasets are called, behind the environment's name.
_REST = re.compile(
    r"(-(?P<dataset>(play|noisy|navigate|stitch|explore)(-\d+m)?))?(-oraclerep)?"
    r"(-singletask(-task(?P<task>\d+))?)?(-v\d+)?"
)


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
    if is_ogbench(env):
        if task not in TASKS:
            raise ArgumentError("make_env", "task", f"is {shown(task)}, but {env} has tasks 1 to 5")
        return f"{env}-singletask-task{task}-v0"
    if parts := parts_of(env):
        raise ArgumentError("make_env", "env", f"is '{env}', expected {parts}")
    if _VERSIONED.search(env):
        return _own_id(env, task)
    close = difflib.get_close_matches(str(env), env_names(), n=1)
    hint = f" (did you mean '{close[0]}'?)" if close else ""
    raise ArgumentError(
        "make_env",
        "env",
        f"is '{shown(env)}'{hint}, expected a gymnasium id such as Pendulum-v1, or one of "
        f"{', '.join(env_names())}",
    )


def parts_of(name: str) -> str | None:
    """Take an id or a dataset's name of OGBench's apart, e.g. ``scene-play-singletask-task2-v0``.

    Returns:
        What each argument is then, e.g. ``env scene with dataset play and task 2``; None if it is
        no such name.
    """
    for env in sorted(env_names(), key=len, reverse=True):
        rest = _REST.fullmatch(name[len(env) :]) if name.startswith(env) else None
        if rest and rest[0]:
            others = [f"{key} {value}" for key, value in rest.groupdict().items() if value]
            return f"env {env}" + (f" with {' and '.join(others)}" if others else "")
    return None


def _own_id(env: str, task: int) -> str:
    """Check the id of an environment that is not OGBench's."""
    module, _, name = env.rpartition(":")
    try:
        if module:  # registers its environments
            import_mujoco()  # in case it does
            importlib.import_module(module)
        gymnasium.spec(name)
    except Exception as error:  # the module is the user's
        raise _cannot_make(env, error) from error
    if task != 1:
        problem = f"is {shown(task)}, but {shown(env)} has one task only; use 1"
        raise ArgumentError("make_env", "task", problem)
    return env


def _cannot_make(env: str, error: Exception) -> ArgumentError:
    reason = f"{type(error).__name__}: {error}"
    if isinstance(error, gymnasium.error.Error | ImportError):
        reason = str(error)
    problem = (
        f"is '{shown(env)}', which gymnasium cannot make: {shown(' '.join(reason.split()), 400)}"
    )
    return ArgumentError("make_env", "env", problem)


def episode_steps(env: str, task: int) -> int:
    """The environment's own limit on the steps of an episode; 0 if it has none."""
    return int(gymnasium.spec(env_id(env, task).rpartition(":")[2]).max_episode_steps or 0)


def control_period(env: str, task: int) -> float | None:
    """Return the seconds between two actions; None if the environment does not say."""
    made = make_env(env, task)
    try:
        for name in ("control_timestep", "dt"):  # OGBench's manipulation, gymnasium's mujoco
            found = getattr(made.unwrapped, name, None)
            found = found() if callable(found) else found
            if isinstance(found, int | float) and found > 0:
                return float(found)
        return None
    finally:
        made.close()


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
    import_mujoco()
    if _TASK_ID.fullmatch(name):
        return gymnasium.make(name, disable_env_checker=True, **size)
    made = _make_own(name, bool(size))
    seen = made.observation_space
    if isinstance(seen, gymnasium.spaces.Dict) and made_of_vectors(seen):
        made = gymnasium.wrappers.FlattenObservation(made)
    spaces = {"observations": made.observation_space, "actions": made.action_space}
    for role, space in spaces.items():
        expected = "vectors, or dictionaries of them"
        fits = isinstance(space, gymnasium.spaces.Box) and len(space.shape) == 1 and space.shape[0]
        if role == "actions":
            expected = "vectors with bounds, of floating-point numbers"
            fits = fits and np.issubdtype(space.dtype, np.floating)
            fits = fits and space.is_bounded() and (space.low < space.high).all()  # type: ignore[attr-defined]
        if not fits:
            problem = f"is {name}, whose {role} are {shown(space)}, expected {expected}"
            raise ArgumentError("make_env", "env", problem)
    return SuccessAtEnd(gymnasium.wrappers.RescaleAction(made, np.float32(-1), np.float32(1)))


def made_of_vectors(space: gymnasium.Space) -> bool:
    """Whether a space is one of vectors, perhaps in dictionaries."""
    if isinstance(space, gymnasium.spaces.Dict):
        return all(map(made_of_vectors, space.spaces.values()))
    return isinstance(space, gymnasium.spaces.Box) and len(space.shape) == 1


def _make_own(name: str, render: bool) -> gymnasium.Env:
    """Make an environment that is not OGBench's; it draws if that is wanted and it can."""
    make = functools.partial(gymnasium.make, name, disable_env_checker=True)
    try:
        if render and _draws(name):
            with contextlib.suppress(TypeError):  # its constructor may not take the argument
                return make(render_mode="rgb_array")
        return make()
    except Exception as error:  # the constructor is the user's
        raise _cannot_make(name, error) from error


def _draws(name: str) -> bool:
    """Whether an environment says that it can draw itself into an array."""
    maker: Any = gymnasium.spec(name.rpartition(":")[2]).entry_point
    if isinstance(maker, str):
        maker = gymnasium.envs.registration.load_env_creator(maker)
    return "rgb_array" in getattr(maker, "metadata", {}).get("render_modes", ())


def try_env(env: gymnasium.Env, name: str) -> None:
    """Reset an environment of one's own and take a step, before anything relies on it.

    Args:
        env: the environment, from `make_env`.
        name: its name, for the message.

    Raises:
        ArgumentError: it fails, or gives something else than its spaces say.
    """
    try:
        reset, _ = env.reset(seed=0)
        stepped, reward, _, _, info = env.step(np.zeros(env.action_space.shape, np.float32))
    except Exception as error:  # the environment is the user's
        reason = shown(" ".join(f"{type(error).__name__}: {error}".split()), 400)
        problem = f"is {shown(name)}, which fails when it is reset or steps: {reason}"
        raise ArgumentError("make_env", "env", problem) from error
    for observation in (reset, stepped):
        seen = np.asarray(observation)
        if seen.shape != env.observation_space.shape or seen.dtype.kind not in "biuf":
            problem = (
                f"is {shown(name)}, which gives observations of shape {seen.shape} and type "
                f"{seen.dtype}, expected {shown(env.observation_space)} as it says itself"
            )
            raise ArgumentError("make_env", "env", problem)
        if not np.isfinite(seen).all():
            problem = f"is {shown(name)}, whose observations hold NaN or infinity"
            raise ArgumentError("make_env", "env", problem)
    for what, number in (("reward", reward), ("info['success']", info["success"])):
        value = np.asarray(number)
        if value.shape or value.dtype.kind not in "biuf":
            problem = f"is {shown(name)}, whose {what} is {shown(value)}, expected a number"
            raise ArgumentError("make_env", "env", problem)


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

    def render(self) -> Any:
        """Draw the environment.

        Raises:
            UserError: MUJOCO_GL names a library that does not work here.
        """
        problem = gl_problem()
        if problem is not None and hasattr(self.env.unwrapped, "model"):  # it is mujoco's
            raise UserError(problem)
        return super().render()

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
