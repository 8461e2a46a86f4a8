"""Acting through one compiled graph: the actions are those of acting eagerly."""

import copy
import gc
import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qam_lightning import load_policy
from qam_lightning.callbacks.checkpoints import Checkpoints
from qam_lightning.cli import main
from qam_lightning.data.batch import Batch
from qam_lightning.envs.rollout import RolloutPool
from qam_lightning.evaluation.episode_policy import EpisodePolicy
from qam_lightning.methods.base import Method
from qam_lightning.methods.qam import QAM
from qam_lightning.util.errors import ArgumentError
from tests.conftest import SPACES
from tests.evaluation.conftest import fit, tiny_qam
from tests.methods.test_every_method import METHODS, SOME_METHODS, Build, make, spread
from tests.methods.test_update import fit as train

STATES = np.random.default_rng(0).standard_normal((6, SPACES.obs_dim)).astype(np.float32)


def act(method: Method, states: np.ndarray, **options: Any) -> np.ndarray:
    return EpisodePolicy(method, 3, **options)(states, list(range(len(states))))


def equal(method: Method, states: np.ndarray, behavior: bool = False) -> None:
    """Compare actions; of best-of-N too, where one of another candidate would be far away."""
    found = act(method, states, behavior=behavior, compiled=True)
    np.testing.assert_allclose(found, act(method, states, behavior=behavior), atol=1e-5, rtol=0)


def settings(kind: type[Method], best_of_n: int) -> dict[str, Any]:
    return {"best_of_n": best_of_n if kind.has_critic else 1, "standardize": True}


@pytest.mark.parametrize("best_of_n", [3, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", SOME_METHODS)
def test_every_method_acts_through_one_graph(
    kind: type[Method], best_of_n: int, build: Build, traced: list[Any]
) -> None:
    method = make(kind, build, **settings(kind, best_of_n))
    spread(method)
    equal(method, STATES)
    equal(method, STATES)  # another policy needs no other graph
    assert len(traced) == 1
    if method.clones_behavior:
        equal(method, STATES, behavior=True)
        assert len(traced) == 2


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("best_of_n", [1, 3])
@pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.__name__)
def test_every_method_acts_compiled(kind: type[Method], best_of_n: int, build: Build) -> None:
    method = make(kind, build, **settings(kind, best_of_n))
    spread(method)
    for states in (STATES, STATES[:1]):
        equal(method, states)


def test_the_graph_follows_the_method(
    build: Build, batch: Batch, traced: list[Any], tmp_path: Path
) -> None:
    """Training moves parameters to other memory; loading writes into it."""
    method = make(QAM, build, best_of_n=2)
    before = act(method, STATES, compiled=True)
    train(method, batch, tmp_path)
    equal(method, STATES)
    spread(method)
    equal(method, STATES)
    assert not np.allclose(act(method, STATES), before)
    method.load_state_dict(make(QAM, build, best_of_n=2).state_dict())
    np.testing.assert_array_equal(act(method, STATES, compiled=True), before)
    assert len(traced) == 1
    method.double()
    found = act(method, STATES, compiled=True)
    np.testing.assert_allclose(found, act(method, STATES), atol=1e-7, rtol=0)
    equal(copy.deepcopy(method), STATES)


def test_each_number_of_states_has_a_graph(build: Build, traced: list[Any]) -> None:
    method = make(QAM, build)
    for count in (6, 1, 6, 1):
        equal(method, STATES[:count])
    assert len(traced) == 2


def test_a_graph_does_not_keep_its_method(build: Build, traced: list[Any]) -> None:
    method = make(QAM, build)
    act(method, STATES, compiled=True)
    alive = weakref.ref(method)
    del method
    gc.collect()
    assert alive() is None


def test_a_method_in_training_stays_in_training(build: Build, traced: list[Any]) -> None:
    method = make(QAM, build).train()
    act(method, STATES, compiled=True)
    assert all(part.training for part in method.modules())


class ReadsOnHost(QAM):
    """Acts in another way where the first state says so."""

    def policy(self, s: torch.Tensor, noise: Any) -> torch.Tensor:
        return super().policy(s, noise) if s[0, 0] > 0 else noise.z.tanh()


def test_a_method_that_cannot_be_compiled_is_answered_with_the_option(build: Build) -> None:
    method = make(ReadsOnHost, build)
    act(method, STATES)
    with pytest.raises(ArgumentError, match=r"^acting: compile failed .*set it to off$"):
        act(method, STATES, compiled=True)


def test_without_a_compiler_nothing_begins(
    run: Path, no_compiler: None, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.setattr(RolloutPool, "_start", lambda *args: pytest.fail("environments started"))
    problem = "compile needs a C++ compiler; install one such as g++, or set it to off"
    before = list(run.glob("eval/*"))
    assert main(["eval", str(run), "--episodes=1", "--compile"]) == 2
    assert capsys.readouterr().err == f"error: {problem}\n"
    assert list(run.glob("eval/*")) == before
    with pytest.raises(ArgumentError) as error:
        load_policy(run, compile=True)
    assert str(error.value) == f"acting: {problem}"


def test_a_checkpoint_of_a_compiled_training_acts_without_a_compiler(
    tmp_path: Path, traced: list[Any]
) -> None:
    method = tiny_qam(compile="default")
    fit(method, 1, [Checkpoints(str(tmp_path))])
    assert traced
    traced.clear()
    policy = load_policy(tmp_path)
    assert policy.method.compile == "default" and policy.sample_chunk(np.zeros(2)).shape == (2, 2)
    assert not traced


def test_the_front_doors_compile(run: Path, tmp_path: Path) -> None:
    """With the compiler itself, on a tiny network."""
    results = {}
    for options in ([], ["--compile"]):
        report = tmp_path / f"{len(options)}.json"
        arguments = ["--episodes=2", "--num_envs=1", "--workers=0", *options]
        assert main(["eval", str(run), *arguments, f"--output={report}"]) == 0
        found = json.loads(report.read_text())
        assert found["compile"] is bool(options)
        results[bool(options)] = found["success"], [r["success"] for r in found["results"]]
    assert results[True] == results[False]

    policies = [load_policy(run, seed=5, compile=compile) for compile in (True, False)]
    for seed in (None, None, 7):
        chunks = []
        for policy in policies:
            policy.reset(seed)
            chunks.append(policy.sample_chunk(np.ones(2)))
        np.testing.assert_allclose(*chunks, atol=1e-5, rtol=0)
