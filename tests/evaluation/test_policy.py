"""`load_policy`: a trained policy in five lines, which acts as ``eval.py`` does."""

import json

import numpy as np
import pytest

from qam_lightning import UserError, load_policy
from qam_lightning.cli import main
from qam_lightning.envs.rollout import episode_seed
from tests.evaluation.conftest import CHUNK


def test_twenty_steps_in_five_lines(run):
    policy = load_policy(run)
    env = policy.make_env()
    observation, _ = env.reset(seed=0)
    for _ in range(20):
        observation, *_ = env.step(policy(observation))
    assert observation.shape == (2,)
    assert policy.metadata["environment"]["env"] == "pointmaze-medium"
    assert policy.metadata["gradient_step"] == 4


def test_it_executes_its_chunk_open_loop(run):
    policy, again = load_policy(run, seed=5), load_policy(run / "checkpoints/last.ckpt", seed=5)
    first, other = np.zeros(2), np.ones(2)
    chunk = again.sample_chunk(first)
    assert chunk.shape == (CHUNK, 2) and np.abs(chunk).max() <= 1
    seen = [first, *[other] * (CHUNK - 1)]
    np.testing.assert_array_equal([policy(observation) for observation in seen], chunk)
    np.testing.assert_array_equal(policy(other), again.sample_chunk(other)[0])
    policy.reset(seed=5)  # in the middle of a chunk
    np.testing.assert_array_equal(policy(first), chunk[0])
    policy.reset()
    assert not np.array_equal(policy(first), chunk[0])  # the next episode has its own noise


def test_its_episodes_are_those_of_an_evaluation(run, tmp_path):
    report = tmp_path / "report.json"
    arguments = ["--episodes=1", "--num_envs=1", "--workers=0", "--seed=3", "--best_of_n=2"]
    assert main(["eval", str(run), *arguments, f"--output={report}"]) == 0
    (scored,) = json.loads(report.read_text())["results"]
    policy = load_policy(run, best_of_n=2, seed=3)
    env = policy.make_env()
    observation, _ = env.reset(seed=episode_seed(3, 0))
    policy.reset()
    total, steps, done = 0.0, 0, False
    while not done:
        observation, reward, terminated, truncated, info = env.step(policy(observation))
        total, steps, done = total + reward, steps + 1, terminated or truncated
    assert (scored["return"], scored["length"]) == (total, steps)
    assert scored["success"] == info["success"]


def test_another_task_and_frames_can_be_asked_for(run):
    env = load_policy(run).make_env(task=2)
    assert "task2" in env.unwrapped.spec.id


@pytest.mark.parametrize("shape", [(3,), (1, 2), ()])
def test_a_batch_is_refused(run, shape):
    with pytest.raises(UserError, match=r"Policy: the shape of observation is .*, expected \(2,\)"):
        load_policy(run)(np.zeros(shape))


def test_an_observation_that_is_not_finite_is_refused(run):
    with pytest.raises(UserError, match=r"observation is \[ ?0\. inf\], expected finite numbers"):
        load_policy(run)(np.array([0, np.inf]))


def test_a_missing_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such checkpoint"):
        load_policy(tmp_path)
