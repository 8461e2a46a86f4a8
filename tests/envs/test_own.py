"""Environments of one's own: adapted where possible, and refused before anything relies on them."""

import sys

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, flatten

from qam_lightning.cli import main
from qam_lightning.data.datamodule import ChunkDataModule
from qam_lightning.envs.chunked import EnvSettings, check_in_process
from qam_lightning.envs.gl import headless_gl
from qam_lightning.envs.make import make_env
from qam_lightning.envs.rollout import RolloutPool
from qam_lightning.util.errors import ArgumentError, UserError
from tests.data.test_datamodule import own_file, pendulum

MODULE = '''
import gymnasium, numpy as np
from gymnasium.spaces import Box

class Plain(gymnasium.Env):
    observation_space = Box(-1, 1, (3,), np.float32)
    action_space = Box(-2, 2, (1,), np.float32)
    drawn = False

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(3, np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.full(3, float(action[0]) / 9, np.float32), -1, False, self.steps == 7, {}

class Painted(Plain):
    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def render(self):
        return np.full((4, 4, 3), self.steps, np.uint8)

class Promising(Plain):
    """Says that it draws, but its constructor takes no mode."""
    metadata = {"render_modes": ["rgb_array"], "render_fps": 5}

    def __init__(self):
        pass

for kind in (Plain, Painted, Promising):
    gymnasium.register(f"{kind.__name__}-v0", kind)
'''


@pytest.fixture
def plain(tmp_path, monkeypatch):
    """A module of environments that can be imported, here and in other processes."""
    (tmp_path / "own_environments.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_environments", raising=False)
    return "own_environments"


def still(observations, episodes):
    return np.ones((len(observations), 3, 1), np.float32)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("name", ["Plain", "Painted", "Promising"])
def test_a_constructor_need_not_take_a_render_mode(plain, name, workers):
    with RolloutPool(f"{plain}:{name}-v0", 1, workers=workers, num_envs=2) as pool:
        (episode,) = pool.run(still, 1, seed=0)
        assert (episode.length, episode.episode_return) == (7, -7.0)
        if name == "Painted":
            (filmed,) = pool.run(still, 1, seed=0, frames=1, frame_every=3)
            assert [frame[0, 0, 0] for frame in filmed.frames] == [0, 3, 6, 7]
            return
        with pytest.raises(UserError, match=f"{name}-v0 draws no frames: expected 'rgb_array'"):
            pool.run(still, 1, seed=0, frames=1)


def test_one_without_pictures_is_trained_and_evaluated(plain, tmp_path, capsys):
    """Through the front door, with a worker process."""
    own_file(tmp_path / "x.npz")
    drawing = headless_gl() is not None
    config, run = pendulum(tmp_path, f"{plain}:Plain-v0"), tmp_path / "r"
    assert main(["fit", f"--config={config}", f"--run_dir={run}", "--evaluation.workers=1"]) == 0
    assert main(["eval", str(run), "--episodes=1", "--workers=1"]) == 0
    capsys.readouterr()
    assert main(["eval", str(run), "--episodes=1", "--workers=0", "--video=1"]) == 2 * drawing
    assert ("Plain-v0 draws no frames" in capsys.readouterr().err) == drawing


def registered(monkeypatch, **members):
    """Register an environment with some members replaced, in this process alone."""

    class Mine(gymnasium.Env):
        observation_space = Box(-1, 1, (3,), np.float32)
        action_space = Box(-2, 2, (1,), np.float32)

        def reset(self, seed=None, options=None):
            super().reset(seed=seed)
            return np.zeros(3, np.float32), {}

        def step(self, action):
            return np.zeros(3, np.float32), 0.0, False, True, {}

    for name, member in members.items():
        setattr(Mine, name, member)
    monkeypatch.setitem(gymnasium.registry, "Mine-v0", None)
    del gymnasium.registry["Mine-v0"]
    gymnasium.register("Mine-v0", Mine)
    return "Mine-v0"


def failing(*_, **__):
    raise RuntimeError("out\nof order")


def stepping(observation=(0, 0, 0), reward=0.0, info=()):
    seen = np.array(observation, np.float32)
    return lambda self, action: (seen, reward, False, True, dict(info))


def resetting(observation):
    return lambda self, seed=None, options=None: (observation, {})


WRONG = {
    "unbounded": ({"action_space": Box(-np.inf, np.inf, (1,))}, "whose actions are Box"),
    "half bounded": ({"action_space": Box(0, np.inf, (1,))}, "expected vectors with bounds"),
    "equal bounds": ({"action_space": Box(1, 1, (1,))}, "expected vectors with bounds"),
    "discrete": ({"action_space": Discrete(3)}, "whose actions are Discrete"),
    "whole": ({"action_space": Box(0, 3, (1,), np.int64)}, "of floating-point numbers"),
    "no action": ({"action_space": Box(-1, 1, (0,))}, "whose actions are Box"),
    "matrix": ({"action_space": Box(-1, 1, (2, 2))}, "whose actions are Box"),
    "no space": ({"action_space": None}, "whose actions are None"),
    "picture": (
        {"observation_space": Dict(a=Box(-1, 1, (3,)), b=Box(0, 1, (2, 2)))},
        "whose observations are Dict.*, expected vectors, or dictionaries of them",
    ),
    "image": ({"observation_space": Box(0, 255, (8, 8, 3), np.uint8)}, "observations are Box"),
    "number": ({"observation_space": Discrete(3)}, "whose observations are Discrete"),
    "constructor": ({"__init__": failing}, "cannot make: RuntimeError: out of order"),
    "reset": ({"reset": failing}, "fails when it is reset or steps: RuntimeError: out of order"),
    "old reset": ({"reset": lambda self, **_: np.zeros(3)}, "fails when it is reset or steps"),
    "step": ({"step": failing}, "fails when it is reset or steps: RuntimeError: out of order"),
    "old step": ({"step": lambda s, a: (np.zeros(3), 0.0, True, {})}, "fails when it is reset or"),
    "shorter": ({"reset": resetting(np.zeros(2))}, r"observations of shape \(2,\) and type"),
    "wider": ({"step": stepping(np.zeros((1, 3)))}, r"observations of shape \(1, 3\)"),
    "objects": ({"reset": resetting(np.array([None] * 3))}, r"shape \(3,\) and type object"),
    "NaN": ({"step": stepping((0, np.nan, 0))}, "observations hold NaN"),
    "reward": (
        {"step": stepping(reward=np.zeros(1))},
        r"whose reward is \[0.\], expected a number",
    ),
    "text": ({"step": stepping(reward="1")}, "whose reward is 1, expected a number"),
    "success": ({"step": stepping(info={"success": None})}, "success'] is None, expected a number"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_cannot_be_trained_in_is_refused_at_once(monkeypatch, kind):
    members, words = WRONG[kind]
    name = registered(monkeypatch, **members)
    with pytest.raises(ArgumentError, match=words) as caught:
        ChunkDataModule(name, path="x.npz").spaces  # noqa: B018
    assert "Mine-v0" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["unbounded", "step", "shorter"])
def test_a_refused_environment_begins_no_run(monkeypatch, tmp_path, capsys, kind):
    own_file(tmp_path / "x.npz")
    config = pendulum(tmp_path, registered(monkeypatch, **WRONG[kind][0]))
    assert main(["fit", f"--config={config}", f"--run_dir={tmp_path}/r"]) == 2
    assert capsys.readouterr().err.startswith("error: data.env is Mine-v0, wh")
    assert not (tmp_path / "r").exists() and not (tmp_path / "x.store").exists()


def test_one_of_another_size_than_the_data_begins_no_run(monkeypatch, tmp_path, capsys):
    own_file(tmp_path / "x.npz")
    members = {"action_space": Box(-1, 1, (4,))}
    config = pendulum(tmp_path, registered(monkeypatch, **members))
    assert main(["fit", f"--config={config}", f"--run_dir={tmp_path}/r"]) == 2
    found = "x.npz: actions has shape (63, 1), expected (63, 4); is this the file of another env"
    assert found in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_one_that_only_this_process_knows_is_refused_before_training(monkeypatch, tmp_path, capsys):
    own_file(tmp_path / "x.npz")
    config = pendulum(tmp_path, registered(monkeypatch))
    command = ["fit", f"--config={config}", f"--run_dir={tmp_path}/r"]
    assert main([*command, "--evaluation.workers=1"]) == 2
    message = capsys.readouterr().err
    assert "data.env is Mine-v0, which does not work in a process of its own: " in message
    assert "register it in a module and name both" in message
    assert message.count("\n") == 1 or "Traceback" not in message
    assert not (tmp_path / "r").exists()
    assert main(command) == 0  # in this process it does


def test_ogbenchs_are_not_tried(monkeypatch):
    monkeypatch.setattr("qam_lightning.envs.chunked.ProcessWorker", None)
    check_in_process(EnvSettings("scene", 1))


@pytest.mark.parametrize(
    ("source", "words"),
    [("1 / 0", "ZeroDivisionError"), ("import nothing_at_all", "No module named"), ("(", "Syntax")],
)
def test_a_module_that_cannot_be_imported_is_refused(tmp_path, monkeypatch, source, words):
    (tmp_path / "broken_environments.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ArgumentError, match=f"which gymnasium cannot make: .*{words}"):
        make_env("broken_environments:Mine-v0", 1)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pointmaze-medium-singletask-task2-v0", "expected env pointmaze-medium with task 2"),
        ("pointmaze-medium-navigate-v0", "expected env pointmaze-medium with dataset navigate"),
        (
            "pointmaze-medium-navigate-singletask-task3-v0",
            "expected env .* and task 3",
        ),
        ("cube-triple-play-v0", "expected env cube-triple with dataset play"),
        ("cube-triple-play", "expected env cube-triple with dataset play"),
        ("puzzle-4x4-play-100m-v0", "expected env puzzle-4x4 with dataset play-100m"),
        ("scene-play-oraclerep-v0", "expected env scene with dataset play"),
        ("cube-triple-v0", "expected env cube-triple$"),
        ("antmaze-large-singletask-v0", "expected env antmaze-large$"),
    ],
)
def test_ogbenchs_other_names_are_taken_apart(name, words):
    with pytest.raises(ArgumentError, match=f"make_env: env is '{name}', {words}"):
        make_env(name, 1)


def test_a_dictionary_of_vectors_is_flattened_in_the_order_of_its_space(monkeypatch):
    one, two = Box(-9, 9, (1,)), Box(-9, 9, (2,))
    space = Dict({"goal": Dict({"z": one, "a": one}), "arm": two})
    seen = {"goal": {"z": [1.0], "a": [2.0]}, "arm": [3.0, 4.0]}
    env = make_env(registered(monkeypatch, observation_space=space, reset=resetting(seen)), 1)
    assert env.observation_space.shape == (4,)
    assert env.reset(seed=0)[0].tolist() == flatten(space, seen).tolist() == [3, 4, 2, 1]
