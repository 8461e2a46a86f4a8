"""Environments by name: which exist, what sparse means, and that a seed decides an episode."""

import mujoco
import numpy as np
import pytest

from qam_lightning.envs.make import env_id, env_names, episode_steps, make_env
from qam_lightning.util.errors import UserError


def test_names_cover_the_benchmarks_domains():
    assert {"scene", "cube-triple", "puzzle-4x4", "antmaze-large", "pointmaze-medium"} <= set(
        env_names()
    )
    assert not any("visual" in name for name in env_names())


def test_env_id():
    assert env_id("scene", 1) == "scene-singletask-task1-v0"
    assert env_id("humanoidmaze-medium", 5) == "humanoidmaze-medium-singletask-task5-v0"
    assert episode_steps("cube-single", 2) == 200


@pytest.mark.parametrize(
    ("env", "task", "named"),
    [
        ("scen", 1, ["'scen'", "did you mean 'scene'?", "cube-double"]),
        ("visual-scene", 1, ["'visual-scene'", "cube-double"]),
        ("scene", 6, ["task is 6, but scene has tasks 1 to 5"]),
        ("scene", 0, ["task is 0, but scene has tasks 1 to 5"]),
        ("CartPole-v1", 1, ["whose actions are Discrete", "expected vectors with bounds"]),
    ],
)
def test_unknown_names_are_answered_with_the_valid_ones(env, task, named):
    with pytest.raises(UserError) as error:
        make_env(env, task)
    assert all(part in str(error.value) for part in named)
    assert "\n" not in str(error.value)


def test_sparse_rewards_are_zero_at_the_goal_and_minus_one_elsewhere():
    dense, sparse = make_env("scene", 2), make_env("scene", 2, sparse=True)
    rewards = []
    for env in (dense, sparse):
        env.reset(seed=0)
        rewards.append(env.step(np.zeros(5, np.float32))[1])
    # Scene's own reward counts the unmet parts of the goal; task 2 begins with more than one.
    assert rewards[0] < -1.0
    assert rewards[1] == -1.0

    env = make_env("pointmaze-medium", 1, sparse=True)
    env.reset(seed=0)
    env.unwrapped.set_xy(env.unwrapped.cur_goal_xy)
    _, reward, terminated, _, info = env.step(np.zeros(2, np.float32))
    assert (reward, terminated, info["success"]) == (0.0, True, 1.0)


def play(env, seed, steps=25):
    """Goal and observations of an episode with actions that depend on the seed alone."""
    rng = np.random.default_rng(seed)
    first, info = env.reset(seed=seed)
    seen = [info["goal"], first]
    for _ in range(steps):
        seen.append(env.step(rng.uniform(-1, 1, env.action_space.shape).astype(np.float32))[0])
    return np.stack(seen)


# Resets settle the goal state with actions drawn from an unseeded space (in scene, a new one every
# time) and the mazes place the agent with numpy's global generator.
@pytest.mark.parametrize("name", ["scene", "antmaze-medium", "pointmaze-medium"])
def test_an_episode_depends_on_its_seed_alone(name):
    env = make_env(name, 1)
    first = play(env, 3)
    assert not np.array_equal(play(env, 4), first)
    np.random.uniform(size=7)
    np.testing.assert_array_equal(play(env, 3), first)


def test_numpys_global_generator_is_left_alone():
    env = make_env("pointmaze-teleport", 1)
    np.random.seed(5)
    expected = np.random.uniform(size=3)
    np.random.seed(5)
    play(env, 0)
    np.testing.assert_array_equal(np.random.uniform(size=3), expected)


# -- the whole benchmark -------------------------------------------------------------------------

# Typed from the benchmark's tables: observation and action sizes, steps of an episode, and the
# number of things that can be right, of which the dense reward counts the wrong ones.
DOMAINS = {
    "antmaze-large": (29, 8, 1000, 1),
    "antmaze-giant": (29, 8, 1000, 1),
    "humanoidmaze-medium": (69, 21, 2000, 1),
    "humanoidmaze-large": (69, 21, 2000, 1),
    "scene": (40, 5, 750, 5),
    "puzzle-3x3": (55, 5, 500, 9),
    "puzzle-4x4": (83, 5, 500, 16),
    "cube-double": (37, 5, 500, 2),
    "cube-triple": (46, 5, 1000, 3),
    "cube-quadruple": (55, 5, 1000, 4),
}


def reach_goal(env):
    """Puts the simulation into the goal of its task."""
    inner = env.unwrapped
    if hasattr(inner, "set_xy"):
        inner.set_xy(inner.cur_goal_xy)
        return
    for i in range(getattr(inner, "_num_cubes", 0)):
        inner._data.joint(f"object_joint_{i}").qpos[:3] = inner._data.mocap_pos[i]
    if hasattr(inner, "_target_button_states"):
        inner._cur_button_states = inner._target_button_states.copy()
        inner._apply_button_states()
    for thing in ("drawer", "window"):
        if hasattr(inner, f"_target_{thing}_pos"):
            place = getattr(inner, f"_target_{thing}_pos")
            inner._data.joint(f"{thing}_slide").qpos[0] = place
    mujoco.mj_forward(inner._model, inner._data)
    inner.post_step()  # here the environment judges success, for the next step to report


@pytest.mark.slow
@pytest.mark.parametrize("task", range(1, 6))
@pytest.mark.parametrize("name", DOMAINS)
def test_all_fifty_environments(name, task):
    obs, act, steps, parts = DOMAINS[name]
    assert episode_steps(name, task) == steps
    dense, sparse = make_env(name, task), make_env(name, task, sparse=True)
    assert dense.observation_space.shape == (obs,)
    assert dense.action_space.shape == (act,)
    assert (dense.action_space.low == -1).all() and (dense.action_space.high == 1).all()
    rng = np.random.default_rng(task)
    for env in (dense, sparse):
        env.reset(seed=task)
    for _ in range(10):
        action = rng.uniform(-1, 1, act).astype(np.float32)
        (seen, reward, terminated, truncated, info), (_, mapped, *_) = (
            env.step(action) for env in (dense, sparse)
        )
        assert seen.shape == (obs,) and np.isfinite(seen).all()
        assert reward == int(reward) and -parts <= reward <= 0
        assert mapped == (0.0 if reward == 0 else -1.0)
        assert info["success"] == float(reward == 0) == float(terminated) == 0.0
        assert not truncated
    for env in (dense, sparse):
        reach_goal(env)
        _, reward, terminated, _, info = env.step(np.zeros(act, np.float32))
        assert (reward, terminated, info["success"]) == (0.0, True, 1.0)


def test_any_gymnasium_environment_can_be_made():
    env = make_env("Pendulum-v1", 1)
    assert episode_steps("Pendulum-v1", 1) == 200
    assert (env.action_space.low, env.action_space.high) == (-1.0, 1.0)
    assert env.reset(seed=0)[0].shape == (3,)
    *_, info = env.step(np.ones(1, np.float32))
    assert info["success"] == 0.0
    np.testing.assert_array_equal(play_own(env, 3), play_own(env, 3))
    for name, task, says in [
        ("Nothing-v1", 1, "is 'Nothing-v1', which gymnasium cannot make: "),
        ("no_such_module:Some-v1", 1, "No module named 'no_such_module'"),
        ("Pendulum-v1", 2, "task is 2, but Pendulum-v1 has one task only"),
    ]:
        with pytest.raises(UserError, match=says):
            make_env(name, task)


def play_own(env, seed):
    env.reset(seed=seed)
    return np.stack([env.step(np.full(1, 0.5, np.float32))[0] for _ in range(5)])
