"""D4RL's datasets of Minari's, whose observations are dictionaries, made here in their format."""

import shlex
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict

from qam_lightning.cli import main
from qam_lightning.data.datamodule import ChunkDataModule
from qam_lightning.data.minari import import_minari
from qam_lightning.util.errors import UserError
from qam_lightning.util.files import locked
from tests.app.conftest import read_csv
from tests.data.test_guide import SMALL, blocks

minari = pytest.importorskip("minari")
h5py = pytest.importorskip("h5py")


def vector(size):
    return Box(-np.inf, np.inf, (size,), np.float64)


MAZE = Dict({"observation": vector(4), "achieved_goal": vector(2), "desired_goal": vector(2)})
KITCHEN = Dict(
    {
        "observation": vector(5),
        "achieved_goal": Dict({"kettle": vector(7), "microwave": vector(1)}),
        "desired_goal": Dict({"kettle": vector(7), "microwave": vector(1)}),
    }
)
ACTIONS = Box(-0.5, 2.0, (2,), np.float32)


class Robot(gymnasium.Env):
    """An environment with observations of D4RL's kind."""

    action_space = ACTIONS

    def __init__(self, space):
        self.observation_space = space

    def reset(self, *, seed=None, options=None):
        return self.observation_space.sample(), {}

    def step(self, action):
        return self.observation_space.sample(), 0.0, False, False, {"success": False}


for name, space in (("Maze-v0", MAZE), ("Kitchen-v0", KITCHEN)):
    if name not in gymnasium.registry:
        gymnasium.register(name, Robot, max_episode_steps=5, kwargs={"space": space})


def play(space, seed, steps, terminated=False):
    """An episode at random, and its observations one by one."""
    space.seed(seed)
    ACTIONS.seed(seed)
    seen = [space.sample() for _ in range(steps + 1)]
    last = np.arange(steps) == steps - 1
    buffer = minari.data_collector.EpisodeBuffer(
        id=seed,
        observations=stacked(seen),
        actions=np.stack([ACTIONS.sample() for _ in range(steps)]),
        rewards=(np.arange(steps) % 3 == 2).astype(float),  # at the goal, again and again
        terminations=last & terminated,
        truncations=last & (not terminated),
    )
    return buffer, seen


def stacked(parts):
    if isinstance(parts[0], dict):
        return {key: stacked([part[key] for part in parts]) for key in parts[0]}
    return np.stack(parts)


def save(name, space, buffers):
    minari.create_dataset_from_buffers(
        name, buffers, observation_space=space, action_space=ACTIONS, algorithm_name="random"
    )


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path


def load(env, name, folder):
    data = ChunkDataModule(env, path=f"minari:{name}", directory=str(folder), horizon=1)
    data.prepare_data()
    data.setup("fit")
    return data


@pytest.mark.filterwarnings("ignore:.*is set to None")
def test_of_two_processes_one_waits_for_the_other(folder, monkeypatch, capsys):
    name = "D4RL/pointmaze/umaze-v2"
    save(name, MAZE, [play(MAZE, 0, 7)[0]])
    file = Path(import_minari(f"minari:{name}", str(folder)))
    content = file.read_bytes()
    file.unlink()
    monkeypatch.setattr(minari, "load_dataset", None)
    with ThreadPoolExecutor(1) as pool, locked(file.with_name(f"{file.name}.lock")):
        waiting = pool.submit(import_minari, f"minari:{name}", str(folder))
        while "waiting for another process" not in capsys.readouterr().err:
            assert not waiting.done()
            time.sleep(0.05)
        file.write_bytes(content)
    assert waiting.result() == str(file)


@pytest.mark.filterwarnings("ignore:.*is set to None")
@pytest.mark.parametrize(
    ("name", "space", "env"),
    [
        ("D4RL/pointmaze/umaze-v2", MAZE, "Maze-v0"),
        ("D4RL/kitchen/complete-v2", KITCHEN, "Kitchen-v0"),
    ],
)
def test_dictionaries_are_flattened_as_gymnasium_does(folder, name, space, env):
    episodes = [play(space, 0, 7), play(space, 1, 5, terminated=True)]
    save(name, space, [buffer for buffer, _ in episodes])
    data = load(env, name, folder)
    assert data.num_transitions == 12
    batch, at = data.train.gather(np.arange(12)), 0
    for buffer, seen in episodes:
        mine = slice(at, at := at + len(seen) - 1)
        flat = np.stack([gymnasium.spaces.flatten(space, one) for one in seen]).astype(np.float32)
        np.testing.assert_array_equal(batch.observations[mine], flat[:-1])
        np.testing.assert_array_equal(batch.next_observations[mine], flat[1:])
        scaled = (buffer.actions + 0.5) / 1.25 - 1
        np.testing.assert_allclose(batch.actions[mine], scaled, atol=1e-6)
        np.testing.assert_array_equal(batch.rewards[mine], buffer.rewards)
        np.testing.assert_array_equal(batch.masks[mine], ~buffer.terminations)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def without(key, rows=None):
    """Drop an array of the second episode, or all but some of its rows."""

    def change(path):
        with h5py.File(path, "a") as file:
            values = file[f"episode_1/{key}"][:rows]
            del file[f"episode_1/{key}"]
            if rows:
                file[f"episode_1/{key}"] = values

    return change


@pytest.mark.filterwarnings("ignore:.*is set to None")
@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (cut, "truncated file"),
        (without("actions"), "object 'actions' doesn't exist"),
        (without("rewards", 4), "an episode has 4 rewards, expected 7"),
        (without("observations", 5), "an episode has 7 actions, expected 4"),
        (lambda path: path.with_name("metadata.json").write_text("{"), "Expecting property name"),
        (lambda path: path.unlink(), "No data found"),
    ],
)  # fmt: skip
def test_a_damaged_dataset_is_told_in_one_line(folder, damage, told):
    save("test/plain-v0", vector(3), [play(vector(3), seed, 7)[0] for seed in range(3)])
    damage(folder / "minari/test/plain-v0/data/main_data.hdf5")
    with pytest.raises(UserError, match="Minari cannot load test/plain-v0: ") as caught:
        load("Maze-v0", "test/plain-v0", folder)
    message = str(caught.value)
    assert told in message and "\n" not in message
    assert message.endswith("is damaged, delete it, and it is downloaded again")
    assert [path.name for path in folder.iterdir()] == ["minari"]


@pytest.mark.filterwarnings("ignore:.*is set to None")
def test_the_example_of_d4rl_works(folder, monkeypatch, capsys):
    """The guide's last command, here with the environment `Robot` in place of D4RL's maze."""
    monkeypatch.chdir(folder)
    save("D4RL/pointmaze/umaze-v2", MAZE, [play(MAZE, seed, 7)[0] for seed in range(3)])
    Path("pendulum.yaml").write_text(blocks("yaml")[0])
    command = blocks("bash", "Minari and D4RL")[-1]
    assert "minari:D4RL/pointmaze/umaze-v2" in command
    arguments = shlex.split(command)[2:]
    assert main([*arguments, *SMALL, "--data.env=Maze-v0", f"--data.directory={folder}"]) == 0
    rows = read_csv(Path("runs/pointmaze/metrics/train.csv"))
    assert [row["gradient_step"] for row in rows] == ["1", "2"]
    assert len(read_csv(Path("runs/pointmaze/metrics/eval.csv"))) == 1


@pytest.mark.filterwarnings("ignore:.*is set to None")
def test_observations_of_another_kind_are_refused(folder):
    space = Dict({"observation": vector(2), "picture": Box(0, 255, (4, 4, 3), np.uint8)})
    save("D4RL/pictures-v0", space, [play(space, 0, 3)[0]])
    with pytest.raises(UserError, match=r"expected vectors \(Box\), or a Dict of them"):
        load("Maze-v0", "D4RL/pictures-v0", folder)


@pytest.mark.filterwarnings("ignore:.*is set to None")
def test_data_of_another_environment_are_refused(folder):
    save("D4RL/pointmaze/open-v2", MAZE, [play(MAZE, 0, 3)[0]])
    with pytest.raises(UserError, match=r"observations has shape \(4, 8\), expected \(4, 21\)"):
        load("Kitchen-v0", "D4RL/pointmaze/open-v2", folder)
