"""Environments by name: which exist, what sparse means, and that a seed decides an episode."""

import numpy as np
import pytest

from qam_lightning.envs.make import env_id, env_names, episode_steps, make_env
from qam_lightning.errors import UserError


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
        ("scene", 6, ["'scene' has no task 6", "1, 2, 3, 4, 5"]),
        ("scene", 0, ["'scene' has no task 0"]),
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
