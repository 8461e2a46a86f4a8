"""Robomimic's HDF5 files, made here in its format."""

import os
import sys

import gymnasium
import numpy as np
import pytest

from qam_lightning.cli import main
from qam_lightning.data import robomimic
from qam_lightning.data.datamodule import ChunkDataModule
from qam_lightning.data.episodes import save_episodes
from qam_lightning.data.source import own
from qam_lightning.util.errors import UserError

h5py = pytest.importorskip("h5py")

WIDTHS = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2, "object": 10}
ACTION = 7
KEYS = list(WIDTHS)


class Lift(gymnasium.Env):
    """Has the spaces of robomimic's ``lift``, and nothing else."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (19,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (ACTION,), np.float32)

    def reset(self, *, seed=None, options=None):
        return np.zeros(19, np.float32), {}

    def step(self, action):
        return np.zeros(19, np.float32), -1.0, False, False, {"success": False}


if "RobomimicLift-v0" not in gymnasium.registry:
    gymnasium.register("RobomimicLift-v0", Lift, max_episode_steps=5)


def demonstration(rng, steps, success=True, widths=None):
    """Arrays of a demonstration, by the names that robomimic gives them."""
    states = {k: rng.normal(size=(steps + 1, n)) for k, n in (widths or WIDTHS).items()}
    done = np.arange(steps) == steps - 1
    return {
        "actions": rng.uniform(-1, 1, (steps, ACTION)),
        "rewards": (done & success).astype(float),
        "dones": done.astype(np.int64),
        "states": rng.normal(size=(steps, 32)),
        **{f"obs/{key}": value[:-1] for key, value in states.items()},
        **{f"next_obs/{key}": value[1:] for key, value in states.items()},
    }


@pytest.fixture
def demos():
    """Eleven demonstrations, so that the names are not in the order of the numbers; 3 fails."""
    rng = np.random.default_rng(0)
    return {f"demo_{i}": demonstration(rng, 4 + i, success=i != 3) for i in range(11)}


def save(path, demos, valid=()):
    with h5py.File(path, "w") as file:
        file.create_group("data").attrs["env_args"] = "{}"
        for name, arrays in demos.items():
            group = file["data"].create_group(name)
            group.attrs["num_samples"] = len(arrays.get("actions", ()))
            for key, array in arrays.items():
                group[key] = array
        if valid:
            file["mask/valid"] = np.array(valid, "S")
    return path


def load(path, **settings):
    data = ChunkDataModule("RobomimicLift-v0", path=str(path), horizon=1, **settings)
    data.prepare_data()
    data.setup("fit")
    return data


def test_demonstrations_are_read_in_order_with_rewards_and_masks_of_success(tmp_path, demos):
    data = load(save(tmp_path / "low_dim.hdf5", demos))
    assert data.num_transitions == sum(4 + i for i in range(11))
    batch, at = data.train.gather(np.arange(data.num_transitions)), 0
    for demo in demos.values():
        mine = slice(at, at := at + len(demo["actions"]))
        seen, after = (
            np.concatenate([demo[f"{group}/{key}"] for key in KEYS], 1).astype(np.float32)
            for group in ("obs", "next_obs")
        )
        np.testing.assert_array_equal(batch.observations[mine], seen)
        np.testing.assert_array_equal(batch.next_observations[mine], after)
        np.testing.assert_allclose(batch.actions[mine], demo["actions"], atol=1e-6)
        np.testing.assert_array_equal(batch.rewards[mine], demo["rewards"] - 1)
        np.testing.assert_array_equal(batch.masks[mine], 1 - demo["rewards"])


def test_two_arms_come_before_the_object(tmp_path):
    arms = [
        f"robot{arm}_{part}" for arm in "01" for part in ("eef_pos", "eef_quat", "gripper_qpos")
    ]
    widths = dict(zip([*arms, "object"], (3, 2, 2, 3, 2, 2, 5), strict=True))
    demo = demonstration(np.random.default_rng(0), 6, widths=widths)
    data = load(save(tmp_path / "transport.hdf5", {"demo_0": demo}))
    expected = np.concatenate([demo[f"obs/{key}"] for key in widths], 1).astype(np.float32)
    np.testing.assert_array_equal(data.train.gather(np.arange(6)).observations, expected)


def test_without_next_observations_only_a_failures_last_step_is_lost(tmp_path, demos):
    bare = {
        name: {key: value for key, value in arrays.items() if not key.startswith("next_obs")}
        for name, arrays in demos.items()
    }
    data = load(save(tmp_path / "low_dim.hdf5", bare))
    steps = [4 + i - (i == 3) for i in range(11)]
    assert data.num_transitions == sum(steps)
    batch = data.train.gather(np.arange(sum(steps)))
    assert (np.flatnonzero(batch.masks == 0) == np.cumsum(steps)[np.arange(11) != 3] - 1).all()
    first = np.concatenate([demos["demo_0"][f"obs/{key}"] for key in KEYS], 1)
    np.testing.assert_allclose(batch.next_observations[:3], first[1:], atol=1e-6)


def test_demonstrations_held_out_are_the_validation_part(tmp_path, demos, capsys):
    path = save(tmp_path / "low_dim.hdf5", demos, valid=["demo_2", "demo_10"])
    assert load(path).num_transitions == sum(4 + i for i in range(11) if i not in (2, 10))
    (held_out,) = own(f"{path}.npz", validation=True).files
    with np.load(held_out) as file:
        assert file["terminals"].sum() == 2 and len(file["actions"]) == 6 + 14 + 2
    assert main(["data", "info", "--env=RobomimicLift-v0", f"--path={path}"]) == 0
    assert "9 trajectories of 4 to 13 transitions" in capsys.readouterr().out


def test_a_changed_file_that_holds_nothing_out_has_no_validation_part(tmp_path, demos):
    path = save(tmp_path / "low_dim.hdf5", demos, valid=["demo_2"])
    load(path)
    made = [tmp_path / f"low_dim.hdf5-val.{end}" for end in ("npz", "store")]
    made[1].mkdir()
    os.utime(save(path, demos), ns=(1, 1))
    load(path)
    assert not any(part.exists() for part in made)
    assert own(f"{path}.npz", validation=True) is None


def test_a_changed_file_is_read_again_and_a_store_needs_no_file(tmp_path, demos):
    path = save(tmp_path / "low_dim.hdf5", demos)
    before = load(path).fingerprint
    time = os.stat(tmp_path / "low_dim.hdf5.npz").st_mtime_ns
    assert load(path).fingerprint == before
    save(path, dict(list(demos.items())[:5]))
    os.utime(path, ns=(time - 10**12, time - 10**12))  # as of a file copied with its time
    assert load(path).num_transitions == 4 + 5 + 6 + 7 + 8
    path.unlink()
    (tmp_path / "low_dim.hdf5.npz").unlink()
    assert load(path).num_transitions == 4 + 5 + 6 + 7 + 8


def test_a_file_in_a_folder_that_cannot_be_written(tmp_path, demos, monkeypatch):
    path = save(tmp_path / "low_dim.hdf5", demos)
    (tmp_path / "low_dim.hdf5.npz.lock").mkdir()  # to be a folder without permission, also to root
    with pytest.raises(
        UserError, match=r"store leads to .*low_dim.hdf5.npz, which cannot .*another"
    ):
        load(path)
    made = tmp_path / "made"
    load(path, store=str(made))
    assert ChunkDataModule("RobomimicLift-v0", path=path, store=made).source().files  # as `Path`s
    names = {"low_dim.hdf5.npz", "low_dim.hdf5.store"}
    assert {file.name for file in made.iterdir()} == names
    monkeypatch.setattr(robomimic, "save_episodes", None)  # nor is it read again
    load(path, store=str(made))


def test_a_file_that_changes_while_it_is_read_is_read_again(tmp_path, demos, monkeypatch):
    path = save(tmp_path / "low_dim.hdf5", demos)

    def changing(*arguments):
        save_episodes(*arguments)
        save(tmp_path / "other.hdf5", dict(list(demos.items())[:5])).replace(path)

    with monkeypatch.context() as patch:
        patch.setattr(robomimic, "save_episodes", changing)
        load(path)
    assert load(path).num_transitions == 4 + 5 + 6 + 7 + 8


def without(*keys):
    return lambda demo: {key: value for key, value in demo.items() if key not in keys}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("obs/object"), "demo_4 holds no obs/object, found robot0_eef_pos, robot0_eef_q"),
        (without("rewards"), "demo_4 holds no rewards, found actions, dones, next_obs, obs"),
        (without(*(f"obs/{key}" for key in KEYS)), "demo_4 holds no obs/robot0_eef_pos, found"),
        (lambda demo: {k: v[:0] for k, v in demo.items()}, "demo_4 has no transitions"),
        (lambda demo: demo | {"rewards": demo["rewards"][:-1]}, "rewards has 7 rows, but actions"),
        (lambda demo: demo | {"rewards": 5 * demo["rewards"]}, "rewards reach 5, expected at most"),
        (lambda demo: demo | {"actions": 3 * demo["actions"]}, "expected values from -1 to 1"),
        (lambda demo: demo | {"rewards": np.array([b"a"] * 8)}, "cannot be read: Can't synchron"),
    ],
)  # fmt: skip
def test_demonstrations_that_do_not_fit_are_refused(tmp_path, demos, change, words):
    path = save(tmp_path / "low_dim.hdf5", demos | {"demo_4": change(demos["demo_4"])})
    with pytest.raises(UserError) as caught:
        load(path)
    message = str(caught.value)
    assert words in message and str(path) in message and "\n" not in message


def test_files_that_are_not_robomimics_are_refused(tmp_path, demos):
    path = tmp_path / "walker.h5"
    with pytest.raises(UserError, match="walker.h5, which does not exist"):
        load(path)
    path.write_text("nothing")
    with pytest.raises(UserError, match="walker.h5: cannot be read: .*signature"):
        load(path)
    path.unlink()
    with h5py.File(path, "w") as file:  # as D4RL had them
        file["observations"], file["actions"] = np.zeros((5, 3)), np.zeros((5, 2))
    with pytest.raises(UserError, match="not robomimic's: it holds actions, observations, expect"):
        load(path)
    save(path, demos, valid=list(demos))
    with pytest.raises(UserError, match="mask/valid names every demonstration"):
        load(path)
    assert list(tmp_path.iterdir()) == [path]


def test_h5py_that_is_not_installed_is_explained(tmp_path, monkeypatch):
    (tmp_path / "low_dim.hdf5").touch()
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match=r"needs h5py: pip install 'qam_lightning\[hdf5\]'"):
        load(tmp_path / "low_dim.hdf5")
