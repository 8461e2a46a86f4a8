"""Evaluation during training."""

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from qam_lightning.callbacks.base import Callback
from qam_lightning.callbacks.evaluation import Evaluate
from qam_lightning.envs.rollout import RolloutPool
from qam_lightning.evaluation.episode_policy import EpisodePolicy, evaluating
from qam_lightning.util.errors import UserError

from .conftest import fit, tiny_qam

LONG = 50
"""Steps of a chunk: an episode of the point maze has 1,000."""


class Listener(Callback):
    """Notes what it is told."""

    def __init__(self):
        self.heard = []

    def on_evaluation(self, trainer, pl_module, results):
        self.heard.append((pl_module.gradient_step, pl_module.training, dict(results)))


def test_evaluates_when_due_and_at_the_end():
    listener, evaluate = Listener(), Evaluate(every_n_steps=2, episodes=1, workers=0, at_start=True)
    fit(tiny_qam(LONG), 5, [evaluate, listener])
    assert [step for step, _, _ in listener.heard] == [0, 2, 4, 5]
    assert all(training for _, training, _ in listener.heard)
    assert evaluate.latest == listener.heard[-1][2]
    assert set(evaluate.latest) == {"success", "return", "length", "discarded", "seconds"}


def test_the_last_evaluation_is_not_repeated_at_the_end():
    listener = Listener()
    fit(tiny_qam(LONG), 4, [Evaluate(every_n_steps=4, episodes=1, workers=0), listener])
    assert [step for step, _, _ in listener.heard] == [4]


def test_an_interrupted_run_does_not_evaluate_at_the_end():
    class Stop(pl.Callback):
        def on_train_batch_end(self, trainer, *args):
            trainer.should_stop = True

    listener = Listener()
    fit(tiny_qam(LONG), 9, [Evaluate(every_n_steps=5, episodes=1, workers=0), Stop(), listener])
    assert listener.heard == []


def test_a_failed_fit_ends_the_worker_processes():
    class Fail(Callback):
        def on_evaluation(self, trainer, pl_module, results):
            processes.extend(worker.process for worker in evaluate._pool.workers)
            raise RuntimeError("failed")

    processes, evaluate = [], Evaluate(every_n_steps=1, episodes=1, workers=1)
    with pytest.raises(RuntimeError, match="failed"):
        fit(tiny_qam(LONG), 2, [evaluate, Fail()])
    assert [process.returncode for process in processes] == [0]


def test_evaluation_does_not_touch_training():
    with_it, without = tiny_qam(LONG), tiny_qam(LONG)
    fit(with_it, 4, [Evaluate(every_n_steps=1, episodes=1, workers=0)])
    fit(without, 4, [])
    for name, weights in without.state_dict().items():
        torch.testing.assert_close(with_it.state_dict()[name], weights, rtol=0, atol=0)


def test_results_are_those_of_a_rollout():
    method, listener = tiny_qam(LONG), Listener()
    fit(method, 2, [Evaluate(every_n_steps=2, episodes=3, workers=2, seed=7), listener])
    with RolloutPool("pointmaze-medium", 1, workers=0) as pool:
        episodes = pool.run(EpisodePolicy(method, 7), episodes=3, seed=7)
    (_, _, results), mean = listener.heard[0], np.mean([e.episode_return for e in episodes])
    assert results["return"] == mean


def test_noise_belongs_to_the_episode():
    method = tiny_qam()
    states = np.zeros((3, 2), np.float32)
    both = EpisodePolicy(method, seed=0)
    first = both(states, [0, 1, 2])
    assert first.shape == (3, 2, 2)
    assert np.abs(first).max() <= 1.0
    assert not np.allclose(first[0], first[1])
    assert not np.allclose(both(states, [0, 1, 2]), first)  # the stream moves on
    swapped = EpisodePolicy(method, seed=0)(states, [1, 0, 5])
    np.testing.assert_array_equal(swapped[:2], first[[1, 0]])
    assert not np.allclose(EpisodePolicy(method, seed=1)(states, [0, 1, 2]), first)


def test_the_behaviour_policy_ignores_the_residual():
    method = tiny_qam()
    states = np.ones((2, 2), np.float32)
    before = EpisodePolicy(method, 0, behavior=True)(states, [0, 1])
    learned = EpisodePolicy(method, 0)(states, [0, 1])
    assert not np.allclose(before, learned)
    with torch.no_grad():
        for parameter in method.critic.parameters():
            parameter.add_(1.0)
    np.testing.assert_array_equal(EpisodePolicy(method, 0, behavior=True)(states, [0, 1]), before)


def test_modes_are_put_back_one_by_one():
    module = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Dropout())
    module[1].eval()
    with evaluating(module):
        assert not module[0].training
    assert [module.training, module[0].training, module[1].training] == [True, True, False]


@pytest.mark.parametrize(
    "wrong", [{"every_n_steps": 0}, {"episodes": 0}, {"num_envs": 0}, {"workers": -1}, {"seed": -1}]
)
def test_impossible_settings_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(UserError, match=f"Evaluate: {name} is .*, expected at least"):
        Evaluate(**wrong)
