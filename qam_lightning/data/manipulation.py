"""Collecting manipulation episodes with OGBench's scripted oracles.

The official ``play`` data follow noisy plans; the ``noisy`` data come from state-feedback (Markov)
oracles with Gaussian action noise and a share of random actions. An oracle serves one target at a
time; then the environment draws the next one, so an episode is a stream of unrelated little tasks.
"""

from typing import Any

import gymnasium
import numpy as np

from qam_lightning.util.errors import UserError
from qam_lightning.util.rng import collection_seeds

# Chance that a cube's new target is on top of another cube, drawn per episode from these bounds.
STACKING = {
    "cube-single": (0.0, 0.0),
    "cube-double": (0.0, 0.25),
    "cube-triple": (0.05, 0.35),
    "cube-quadruple": (0.1, 0.5),
    "cube-octuple": (0.0, 0.35),
}
MAX_ACTION_NOISE = 0.1
# Relative noise of the five action dimensions x, y, z, yaw, gripper.
ACTION_NOISE = np.array([1.0, 1.0, 1.0, 3.0, 10.0])
# Chance of a random action in noisy data.
RANDOM_ACTIONS, RANDOM_ACTIONS_PUZZLE = 0.1, 0.2
MAX_ATTEMPTS = 100

Arrays = dict[str, np.ndarray]


def make_oracles(env: gymnasium.Env, name: str, dataset: str) -> dict[str, Any]:
    """Build an oracle for every kind of target that the environment sets.

    Args:
        env: The environment in data-collection mode.
        name: Its name, such as ``scene``.
        dataset: ``"play"`` for plan oracles, ``"noisy"`` for Markov oracles.

    Returns:
        Oracles by the value of ``info["privileged/target_task"]``.
    """
    # Imported lazily: importing the oracles imports MuJoCo.
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


class ManipulationCollector:
    """One environment with its oracles, collecting episodes in any order."""

    def __init__(self, name: str, dataset: str, episode_steps: int):
        """Make the environment.

        Args:
            name: A manipulation environment, such as ``scene``.
            dataset: ``play`` or ``noisy``.
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
        """Collect episode ``index``, retrying with a new seed while the simulation misbehaves.

        Returns:
            Arrays with the episode's steps in their first dimension, under their file's keys.

        Raises:
            UserError: Every attempt ended in an impossible state of the simulation.
        """
        for attempt in range(MAX_ATTEMPTS):
            arrays = self._attempt(*collection_seeds(seed, index, attempt))
            if self.name != "scene" or is_healthy(arrays["qpos"]):
                return arrays
        raise UserError(
            f"episode {index} of {self.name}: the cube left the scene in {MAX_ATTEMPTS} attempts "
            "in a row; check the installed mujoco version"
        )

    def _attempt(self, env_seed: int, oracle_seed: int) -> Arrays:
        # The oracles draw from numpy's global generator; there is no other way to seed them.
        np.random.seed(oracle_seed)
        stacking = np.random.uniform(*STACKING.get(self.name, (0.5, 0.5)))
        noisy = self.dataset == "noisy"
        noise = np.random.uniform(0, MAX_ACTION_NOISE) if noisy else 0.0
        random = RANDOM_ACTIONS_PUZZLE if self.name.startswith("puzzle") else RANDOM_ACTIONS

        observation, info = self.env.reset(seed=env_seed)
        oracle = self.oracles[info["privileged/target_task"]]
        oracle.reset(observation, info)
        rows: dict[str, list] = {}
        done = False
        while not done:
            if noisy and np.random.uniform() < random:
                action = np.random.uniform(-1.0, 1.0, len(ACTION_NOISE))
            else:
                action = np.asarray(oracle.select_action(observation, info))
                if noisy:
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
                # Only the oracle's plan sees the new target's observation. As in the official
                # data, the next action and the next row come from the step's own observation.
                target = self.env.unwrapped.set_new_target(p_stack=stacking)  # type: ignore[attr-defined]
                oracle = self.oracles[target[1]["privileged/target_task"]]
                oracle.reset(*target)
        dtypes = {"terminals": np.bool_, "button_states": np.int64}
        return {k: np.array(v, dtype=dtypes.get(k, np.float32)) for k, v in rows.items()}
