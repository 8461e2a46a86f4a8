"""Collection: right rows, the same bits whatever happens, nothing overwritten."""

import json
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import ogbench
import pytest

from qam_lightning.cli.data import verify
from qam_lightning.data import manipulation
from qam_lightning.data.datamodule import ChunkDataModule
from qam_lightning.data.generate import generate, make_collector
from qam_lightning.data.manipulation import is_healthy
from qam_lightning.data.source import COLLECTABLE
from qam_lightning.util.errors import UserError
from qam_lightning.util.provenance import versions
from tests.thinning import thinned

ROOT = Path(__file__).parents[2]


def read(path):
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def test_the_files_have_the_official_layout(collected):
    assert sorted(path.name for path in collected.iterdir() if path.is_file()) == [
        "scene-play-v0-val.npz",
        "scene-play-v0.json",
        "scene-play-v0.npz",
    ]
    for name, episodes in (("scene-play-v0.npz", 3), ("scene-play-v0-val.npz", 1)):
        arrays = read(collected / name)
        layout = {key: (array.dtype.name, array.shape[1:]) for key, array in arrays.items()}
        assert layout == {
            "observations": ("float32", (40,)),
            "actions": ("float32", (5,)),
            "terminals": ("bool", ()),
            "qpos": ("float32", (25,)),
            "qvel": ("float32", (24,)),
            "button_states": ("int64", (2,)),
        }
        ends = np.flatnonzero(arrays["terminals"])
        np.testing.assert_array_equal(ends, 81 * np.arange(1, episodes + 1) - 1)


def test_every_row_holds_the_state_before_its_step(collected):
    arrays = read(collected / "scene-play-v0.npz")
    # The environment's observation starts with the arm's joint positions and velocities ...
    np.testing.assert_array_equal(arrays["observations"][:, :6], arrays["qpos"][:, :6])
    np.testing.assert_array_equal(arrays["observations"][:, 6:12], arrays["qvel"][:, :6])
    # ... and holds two one-hot button states with position and velocity after the cube.
    seen = arrays["observations"][:, [29, 33]]
    np.testing.assert_array_equal(seen, arrays["button_states"])
    assert np.abs(arrays["actions"]).max() <= 1.0
    # Consecutive rows of an episode are one control step apart.
    moved = np.abs(np.diff(arrays["qpos"][:80, :6], axis=0)).max(axis=1)
    assert moved.max() < 0.5
    assert np.median(moved) > 1e-3


def test_provenance_is_written_beside_the_data(collected):
    record = json.loads((collected / "scene-play-v0.json").read_text())
    assert record == {
        "env": "scene",
        "dataset": "play",
        "seed": 5,
        "episode_steps": 81,
        "episodes": 3,
        "validation_episodes": 1,
        "versions": versions(),
    }


def test_an_episode_is_the_same_in_any_process_and_order(collected):
    arrays = read(collected / "scene-play-v0.npz")
    collector = make_collector("scene", "play", 81)
    for index in (2, 0, 2):
        episode = collector.episode(5, index)
        for key, array in episode.items():
            np.testing.assert_array_equal(array, arrays[key][81 * index : 81 * (index + 1)])
    assert not np.array_equal(collector.episode(6, 2)["actions"], episode["actions"])


COMMAND = """
import sys
from qam_lightning.data.generate import generate
from qam_lightning.util.errors import UserError
if __name__ == "__main__":
    try:
        generate("scene", "play", sys.argv[1], 3, 5, 1, 81)
    except UserError as error:
        sys.exit(f"error: {error}")
"""


def start(folder, script):
    script.write_text(COMMAND)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, str(script), str(folder)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def children(pid):
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
def test_a_killed_and_interrupted_collection_continues_to_the_same_bits(collected, tmp_path):
    folder = tmp_path / "sets"
    parts = folder / "scene-play-v0.parts"
    done = lambda: len(list(parts.glob("*.npz")))  # noqa: E731

    killed = start(folder, tmp_path / "collect.py")
    wait_until(lambda: done() >= 1)
    workers = children(killed.pid)
    killed.kill()
    killed.communicate()
    assert workers
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))

    first = done()
    interrupted = start(folder, tmp_path / "collect.py")
    wait_until(lambda: done() > first)
    interrupted.send_signal(signal.SIGINT)
    _, message = interrupted.communicate(timeout=60)
    if interrupted.returncode:  # unless it was quicker than the signal
        assert message.startswith("error: interrupted")
        assert "the same command continues" in message
        assert "Traceback" not in message
        generate("scene", "play", str(folder), episodes=3, seed=5, workers=1, episode_steps=81)

    for path in (path for path in collected.iterdir() if path.is_file()):
        assert (folder / path.name).read_bytes() == path.read_bytes()
    assert not parts.exists()


@pytest.mark.slow
def test_the_death_of_a_worker_is_explained(tmp_path):
    process = start(tmp_path / "sets", tmp_path / "collect.py")
    wait_until(lambda: list((tmp_path / "sets").glob("*.parts/*.npz")))
    for pid in children(process.pid):
        if b"qam_lightning.envs.worker" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 1
    assert re.match(r"error: worker process \d+ ended unexpectedly by signal 9", message)
    assert "the same command continues" in message


def collect_with_little_space(folder, answers):
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))  # of which the worker hears too
    try:
        generate("pointmaze-medium", "stitch", str(folder), 1, workers=1, episode_steps=3000)
    except UserError as error:
        answers.put(str(error))


def test_a_disk_that_fills_up_is_explained(tmp_path):
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    run = context.Process(target=collect_with_little_space, args=(tmp_path, answers))
    run.start()
    message = answers.get(timeout=240)
    run.join()
    assert "\n" not in message
    assert "cannot be written" in message and "000000.npz" in message
    assert message.endswith("the same command continues from there")


def refused(words, **settings):
    with pytest.raises(UserError) as caught:
        generate(**{"env": "scene", "workers": 1, "episode_steps": 10} | settings)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"env": "antmaze-large"},
            ["env is 'antmaze-large'", "cube-triple", "experts", "download", "https://", "ogbench"],
        ),
        ({"env": "humanoidmaze-medium"}, ["humanoidmaze-medium", "experts", "directory"]),
        ({"env": "pointmaze-large"}, ["'play'", "navigate or stitch"]),
        ({"dataset": "navigate"}, ["navigate", "play or noisy"]),
        ({"episodes": 0}, ["episodes is 0", "at least 1"]),
        ({"seed": -1}, ["seed is -1"]),
        ({"workers": 0}, ["workers is 0"]),
        ({"episode_steps": 1}, ["episode_steps is 1", "at least 2"]),
    ],
)
def test_impossible_wishes_are_refused(tmp_path, settings, words):
    refused(words, directory=str(tmp_path), **settings)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["scene-play-v0.npz", "scene-play-v0-val.npz"])
def test_finished_files_are_never_overwritten(tmp_path, name):
    (tmp_path / name).write_bytes(b"precious")
    refused([name, "exists already"], directory=str(tmp_path))
    assert (tmp_path / name).read_bytes() == b"precious"
    assert len(list(tmp_path.iterdir())) == 1


def test_parts_of_another_collection_are_not_mixed_in(tmp_path):
    parts = tmp_path / "scene-play-v0.parts"
    parts.mkdir()
    settings = {"env": "scene", "dataset": "play", "seed": 0, "episode_steps": 10} | versions()
    (parts / "settings.json").write_text(json.dumps(settings))
    refused(["seed 0", "1", str(parts)], directory=str(tmp_path), seed=1)
    (parts / "settings.json").write_text(json.dumps(settings | {"mujoco": "2.0"}))
    refused(["mujoco 2.0", str(parts)], directory=str(tmp_path))
    (parts / "settings.json").write_text("{")
    refused(["settings.json", "JSON"], directory=str(tmp_path))


def test_a_folder_that_cannot_be_written_is_explained(tmp_path):
    (tmp_path / "file").write_text("")
    refused(["cannot be written", "choose another directory"], directory=str(tmp_path / "file"))


@pytest.mark.parametrize(
    ("y", "z", "healthy"),
    [
        (0.0, 0.02, True),
        (0.28, 0.02, True),
        (0.29, 0.02, False),
        (-0.29, 0.02, True),
        (-0.35, 0.066, True),
        (-0.35, 0.02, False),
        (-0.35, 0.09, False),
    ],
)
def test_an_ejected_cube_is_noticed(y, z, healthy):
    qpos = np.zeros((5, 25))
    qpos[:, 16] = 0.02
    qpos[3, 15:17] = y, z
    assert is_healthy(qpos) is healthy


def test_an_unhealthy_episode_is_collected_again(monkeypatch):
    verdicts = iter([False, True, True])
    monkeypatch.setattr("qam_lightning.data.manipulation.is_healthy", lambda _: next(verdicts))
    collector = make_collector("scene", "noisy", 10)
    retried = collector.episode(0, 0)
    assert not np.array_equal(retried["actions"], collector.episode(0, 0)["actions"])


@pytest.mark.slow
@pytest.mark.timeout(900)  # three processes build the scene
@pytest.mark.parametrize(
    ("env", "dataset"), [(env, kind) for env, kinds in COLLECTABLE.items() for kind in kinds]
)
def test_every_environment_can_be_collected(env, dataset, tmp_path, capsys):
    paths = generate(env, dataset, str(tmp_path), episodes=1, workers=2, episode_steps=150)
    collector = make_collector(env, dataset, 150)
    for index, path in enumerate(paths):  # this process finds what the two workers found
        arrays, episode = read(path), collector.episode(0, index)
        assert arrays.keys() == episode.keys()
        for key, array in arrays.items():
            np.testing.assert_array_equal(array, episode[key])
    data = ChunkDataModule(env, dataset, directory=str(tmp_path))
    data.prepare_data()
    assert verify(data) == 0
    assert capsys.readouterr().out.endswith(": good\n")
    _, train, val = ogbench.make_env_and_datasets(
        f"{env}-{dataset}-singletask-v0", dataset_dir=str(tmp_path)
    )
    for arrays in (train, val):
        assert len(arrays["rewards"]) == len(arrays["next_observations"]) == 149
        assert np.ptp(arrays["observations"], axis=0).max() > 0.1


# -- the official data, typed from the commands that made them -----------------------------------

TRIPLE, QUADRUPLE = ("cube-triple", "puzzle-4x5"), ("cube-quadruple", "puzzle-4x6")


def official_amount(env, dataset):
    if env.startswith("pointmaze"):
        if dataset == "stitch":
            return 5000, 201
        return (500, 2001) if env == "pointmaze-giant" else (1000, 1001)
    return 3000 if env in TRIPLE else 5000 if env in QUADRUPLE else 1000, 1001


class Noted(Exception):
    pass


@pytest.mark.parametrize(
    ("env", "dataset"), [(env, kind) for env, kinds in COLLECTABLE.items() for kind in kinds]
)
def test_as_much_is_collected_as_officially(env, dataset, tmp_path, monkeypatch):
    def note(parts, settings, total, workers):
        raise Noted(total, settings["episode_steps"])

    monkeypatch.setattr("qam_lightning.data.generate._collect", note)
    monkeypatch.setattr("qam_lightning.data.generate._shapes", lambda env, steps: {})
    with pytest.raises(Noted) as noted:
        generate(env, dataset, str(tmp_path))
    episodes, steps = official_amount(env, dataset)
    assert noted.value.args == (episodes + episodes // 10, steps)


def test_a_tenth_as_many_episodes_validate(tmp_path, monkeypatch):
    shapes = {"observations": ((2, 1), "int64"), "actions": ((2, 1), "float32")}
    shapes["terminals"] = ((2,), "bool")

    def collect(parts, settings, total, workers):
        for number in range(total):
            arrays = {"observations": np.full((2, 1), number), "terminals": [False, True]}
            np.savez(parts / f"{number:06d}.npz", actions=np.zeros((2, 1), np.float32), **arrays)

    monkeypatch.setattr("qam_lightning.data.generate._shapes", lambda env, steps: shapes)
    monkeypatch.setattr("qam_lightning.data.generate._collect", collect)
    train, val = generate("scene", "play", str(tmp_path), episodes=25)
    np.testing.assert_array_equal(read(train)["observations"][::2, 0], np.arange(25))
    np.testing.assert_array_equal(read(val)["observations"][::2, 0], [25, 26])


@pytest.mark.slow
def test_oracles_act_with_the_official_parameters():
    for env in ("cube-single", "puzzle-3x3", "scene"):
        play, noisy = (make_collector(env, kind, 10).oracles for kind in ("play", "noisy"))
        for oracle in play.values():
            assert (oracle._noise, oracle._noise_smoothing) == (0.1, 0.5)
        for oracle in noisy.values():
            assert oracle._min_norm == 0.4
        for oracles in (play, noisy):
            if "button" in oracles:
                assert oracles["button"]._gripper_always_closed == (env == "puzzle-3x3")
    assert noisy["cube"]._max_step == 100
    assert manipulation.MAX_ACTION_NOISE == 0.1
    np.testing.assert_array_equal(manipulation.ACTION_NOISE, [1, 1, 1, 3, 10])


@pytest.mark.parametrize(
    ("env", "least", "most"),
    thinned(
        [
            ("cube-double", 0.0, 0.25),
            ("cube-single", 0.0, 0.0),
            ("cube-triple", 0.05, 0.35),
            ("cube-quadruple", 0.1, 0.5),
            ("scene", 0.5, 0.5),
        ],
        3,
    ),
)
def test_cubes_are_stacked_as_often_as_officially(env, least, most, monkeypatch):
    collector = make_collector(env, "play", 4)
    inner, episodes = collector.env.unwrapped, []
    new_target = inner.set_new_target

    def note(**given):
        if "p_stack" in given:  # rather than the reset's first target
            episodes[-1].add(given["p_stack"])
        return new_target(**given)

    monkeypatch.setattr(inner, "set_new_target", note)
    for oracle in collector.oracles.values():
        monkeypatch.setattr(type(oracle), "done", True)  # a new target at every step
    for number in range(6):
        episodes.append(set())
        collector.episode(0, number)
    drawn = [chance for (chance,) in episodes]  # one for all of an episode
    assert all(least <= chance <= most for chance in drawn)
    assert len(set(drawn)) == (1 if least == most else 6)


def walls_and_cells(collector, positions):
    maze = collector.maze
    return np.array([maze.xy_to_ij(xy) for xy in positions])


@pytest.mark.parametrize("kind", ["medium", "teleport"])
def test_a_point_maze_is_walked_from_goal_to_goal(kind):
    collector = make_collector(f"pointmaze-{kind}", "navigate", 400)
    episode = collector.episode(3, 0)
    cells = walls_and_cells(collector, episode["observations"])
    assert not collector.maze.maze_map[cells[:, 0], cells[:, 1]].any()
    assert len(np.unique(cells, axis=0)) > 10
    np.testing.assert_array_equal(episode["observations"], episode["qpos"])
    assert np.flatnonzero(episode["terminals"]).tolist() == [399]
    # Half a unit of noise on a unit step towards the goal.
    assert np.abs(episode["actions"]).max() == 1.0
    again = make_collector(f"pointmaze-{kind}", "navigate", 400)
    again.episode(0, 1)
    for key, array in again.episode(3, 0).items():
        np.testing.assert_array_equal(array, episode[key])


def test_stitch_data_stay_near_where_they_began():
    collector = make_collector("pointmaze-medium", "stitch", 201)
    for index in range(3):
        observations = collector.episode(0, index)["observations"]
        first, last = walls_and_cells(collector, observations[[0, -1]])
        xy = collector.maze.ij_to_xy(tuple(first))
        _, distances = collector.maze.get_oracle_subgoal(xy, xy)
        assert 3 <= distances[tuple(last)] <= 5


def test_noisy_data_hold_a_share_of_random_actions(monkeypatch):
    assert (manipulation.RANDOM_ACTIONS, manipulation.RANDOM_ACTIONS_PUZZLE) == (0.1, 0.2)
    for share, clipped in ((0.0, True), (1.0, False)):
        monkeypatch.setattr(manipulation, "RANDOM_ACTIONS_PUZZLE", share)
        actions = make_collector("puzzle-3x3", "noisy", 40).episode(0, 0)["actions"]
        assert (np.abs(actions) == 1.0).any() == clipped


# -- bad parts, bad names, and too much ------------------------------------------------------------


@pytest.fixture(scope="module")
def maze(tmp_path_factory):
    """An episode of a point maze, and where another run of the same command expects it."""
    folder = tmp_path_factory.mktemp("maze")
    collector = make_collector("pointmaze-medium", "navigate", 12)
    return folder, {index: collector.episode(0, index) for index in range(3)}


def parts_of_maze(folder, episodes, **changes):
    parts = folder / "pointmaze-medium-navigate-v0.parts"
    parts.mkdir(parents=True)
    settings = {"env": "pointmaze-medium", "dataset": "navigate", "seed": 0, "episode_steps": 12}
    (parts / "settings.json").write_text(json.dumps(settings | versions() | changes))
    for index, arrays in episodes.items():
        np.savez_compressed(parts / f"{index:06d}.npz", **arrays)
    return parts


def collect_maze(folder):
    return generate("pointmaze-medium", "navigate", str(folder), 2, workers=1, episode_steps=12)


def test_good_parts_are_taken_as_they_are(maze, tmp_path):
    parts = parts_of_maze(tmp_path, maze[1])
    train, val = collect_maze(tmp_path)
    for path, numbers in ((train, (0, 1)), (val, (2,))):
        for key, array in read(path).items():
            np.testing.assert_array_equal(array, np.concatenate([maze[1][n][key] for n in numbers]))
    assert not parts.exists()


def test_what_a_kill_left_of_the_settings_stops_nothing(tmp_path):
    parts = tmp_path / "pointmaze-medium-navigate-v0.parts"
    (parts / ".settings.json.abcdefgh.tmp").mkdir(parents=True)
    assert all(path.exists() for path in collect_maze(tmp_path))


def without(arrays, key):
    return {k: v for k, v in arrays.items() if k != key}


WRONG_PARTS = {
    "no qvel": lambda a: without(a, "qvel"),
    "another array": lambda a: a | {"rewards": np.zeros(12, np.float32)},
    "shorter": lambda a: {k: v[1:] for k, v in a.items()},
    "other columns": lambda a: a | {"actions": np.zeros((12, 3), np.float32)},
    "other type": lambda a: a | {"actions": a["actions"].astype(np.float64)},
    "objects": lambda a: a | {"qpos": np.full((12, 2), None)},
    "no end": lambda a: a | {"terminals": np.zeros(12, bool)},
    "two ends": lambda a: a | {"terminals": np.arange(12) >= 10},
    "NaN": lambda a: a | {"observations": np.full((12, 2), np.nan, np.float32)},
    "actions": lambda a: a | {"actions": np.full((12, 2), 2, np.float32)},
}


@pytest.mark.parametrize("kind", [*WRONG_PARTS, "cut", "flipped", "empty", "folder"])
def test_a_bad_part_is_refused_by_name(maze, tmp_path, kind):
    parts = parts_of_maze(tmp_path, {0: maze[1][0]})
    bad = parts / "000001.npz"
    if kind in WRONG_PARTS:
        np.savez_compressed(bad, **WRONG_PARTS[kind](maze[1][1]))
    elif kind == "folder":
        bad.mkdir()
    else:
        content = bytearray((parts / "000000.npz").read_bytes())
        content[200] ^= 255
        bad.write_bytes({"cut": content[:-9], "flipped": content, "empty": b""}[kind])
    with pytest.raises(UserError, match="000001.npz: ") as caught:
        collect_maze(tmp_path)
    assert "\n" not in str(caught.value)
    if kind != "folder":
        assert "delete it, and the same command collects it again" in str(caught.value)
    assert sorted(p.name for p in parts.iterdir()) == ["000000.npz", "000001.npz", "settings.json"]
    assert [p.name for p in tmp_path.iterdir()] == [parts.name]


@pytest.mark.parametrize(
    ("key", "value"),
    [("env", 1), ("dataset", None), ("seed", "0"), ("seed", -1), ("episode_steps", 12.5),
     ("episode_steps", []), ("mujoco", 3), ("qam_lightning", {}), ("seed", True)],
)  # fmt: skip
def test_settings_of_another_type_are_refused(maze, tmp_path, key, value):
    parts = parts_of_maze(tmp_path, {0: maze[1][0]}, **{key: value})
    with pytest.raises(UserError, match=rf"settings.json: {key} is .*; delete {parts} to start"):
        collect_maze(tmp_path)


@pytest.mark.parametrize("text", ["[]", "null", "3", "", "\0", '{"env": "pointmaze-medium"}'])
def test_other_settings_are_refused(maze, tmp_path, text):
    parts = parts_of_maze(tmp_path, {0: maze[1][0]})
    (parts / "settings.json").write_text(text)
    with pytest.raises(UserError, match="settings.json: ") as caught:
        collect_maze(tmp_path)
    assert "\n" not in str(caught.value)
    (parts / "settings.json").unlink()
    with pytest.raises(UserError, match="holds parts, but no settings.json"):
        collect_maze(tmp_path)


def test_a_script_needs_no_main_guard(tmp_path):
    """Workers are fresh interpreters, which do not import the caller's script again."""
    script = tmp_path / "script.py"
    script.write_text(
        "from qam_lightning.data.generate import generate\n"
        "paths = generate('pointmaze-medium', 'stitch', 'sets', 1, workers=2, episode_steps=5)\n"
        "print(*(path.name for path in paths))\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.stderr == ""
    names = "pointmaze-medium-stitch-v0.npz pointmaze-medium-stitch-v0-val.npz"
    assert done.stdout.splitlines()[-1] == names


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"episodes": 10**9}, ["episodes is 1000000000: the arrays", "of 10 steps would take"]),
        ({"episodes": 10**400}, ["episodes is ", "more than 10^12 GB"]),
        ({"episodes": 1, "episode_steps": 10**12}, ["of so many episodes of 1000000000000 steps"]),
        ({"workers": 10**9, "episodes": 10**7}, ["workers is 1000000000: so many processes"]),
        (
            {"env": "scene-play-v0"},
            ["env is 'scene-play-v0', expected env scene with"],
        ),
        (
            {"env": "antmaze-large-navigate-v0"},
            ["env antmaze-large with dataset navigate"],
        ),
        ({"directory": "a\0b"}, ["directory is 'a\\x00b', which cannot be used"]),
        ({"directory": "x" * 5000}, ["directory is 'xxx", "cannot be used: File name too long"]),
        ({"dataset": "a\nb"}, ["dataset is 'a\\nb', expected play or noisy"]),
        ({"env": "a\nb" + "x" * 5000}, ["env is 'a\\nbxx", "no scripted oracle"]),
    ],
)
def test_too_much_and_too_strange_is_refused(tmp_path, monkeypatch, settings, words):
    monkeypatch.chdir(tmp_path)
    refused(words, **{"directory": str(tmp_path)} | settings)
    assert list(tmp_path.iterdir()) == []
