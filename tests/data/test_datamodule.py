"""The DataModule against OGBench's own loader, and its batches under a Trainer."""

import errno
import functools
import inspect
import json
import math
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gymnasium
import lightning as L
import numpy as np
import ogbench
import pytest
import torch

from qam_lightning.cli.data import verify
from qam_lightning.data import datamodule, labels, source
from qam_lightning.data.batch import Batch
from qam_lightning.data.chunks import ACTION_LIMIT
from qam_lightning.data.datamodule import ChunkDataModule
from qam_lightning.data.generate import generate
from qam_lightning.data.layout import file_layout
from qam_lightning.data.npy import npy_header
from qam_lightning.data.spaces import Spaces
from qam_lightning.data.store import FORMAT
from qam_lightning.envs.make import is_ogbench, make_env
from qam_lightning.util.errors import UserError
from qam_lightning.util.provenance import versions
from tests.thinning import thinned


@functools.cache
def task_env(env, task):
    return make_env(env, task)


def load(env, folder, **settings):
    data = ChunkDataModule(env=env, directory=str(folder), **settings)
    if is_ogbench(env):
        data._task_env = task_env(env, data.task)  # shared: it takes most of a second to make
    data.prepare_data()
    data.setup("fit")
    return data


def put_goal(path, env, task):
    """Patches some rows of a collected file into the task's goal, which play rarely reaches."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    task_env = ogbench.make_env_and_datasets(
        f"{env}-play-singletask-task{task}-v0", env_only=True
    ).unwrapped
    goal = task_env.task_infos[task - 1]
    rows = slice(5, None, 9)
    if env == "scene":
        goal = goal["goal"]
        arrays["qpos"][rows, 14:17] = goal["block_xyzs"][0]
        arrays["qpos"][rows, 23:25] = goal["drawer_pos"], goal["window_pos"]
        arrays["button_states"][rows] = goal["button_states"]
    else:
        arrays["button_states"][rows] = goal["goal_button_states"]
    np.savez_compressed(path, **arrays)


def assert_equals_ogbench(env, task, folder):
    put_goal(folder / f"{env}-play-v0.npz", env, task)
    _, reference, _ = ogbench.make_env_and_datasets(
        f"{env}-play-singletask-task{task}-v0", dataset_dir=str(folder)
    )
    data = load(env, folder, task=task, horizon=1)
    count = len(reference["rewards"])
    assert data.train.num_chunks == data.num_transitions == count
    batch = data.train.gather(np.arange(count))
    assert len(set(reference["rewards"])) > 1
    assert 0 < reference["masks"].mean() < 1
    np.testing.assert_array_equal(batch.rewards, reference["rewards"])
    np.testing.assert_array_equal(batch.masks, reference["masks"])
    np.testing.assert_array_equal(batch.observations, reference["observations"])
    np.testing.assert_array_equal(batch.next_observations, reference["next_observations"])
    np.testing.assert_array_equal(
        batch.actions, np.clip(reference["actions"], -ACTION_LIMIT, ACTION_LIMIT)
    )
    dense = data.train.gather(np.arange(data.num_transitions))
    sparse = load(env, folder, task=task, horizon=1, sparse=True).train.gather(
        np.arange(data.num_transitions)
    )
    assert set(sparse.rewards.tolist()) == {-1.0, 0.0}
    np.testing.assert_array_equal(sparse.rewards == 0, dense.rewards == 0)
    np.testing.assert_array_equal(sparse.masks, dense.masks)


@pytest.fixture
def scene(collected, tmp_path):
    for path in collected.glob("*.*"):
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_sizes_of_an_environment_are_found_once_in_a_process(monkeypatch):
    """Planning a study builds a DataModule for each of its configurations."""
    made = []

    def noting(env, task):
        made.append((env, task))
        return make_env(env, task)

    monkeypatch.setattr(datamodule, "_SIZES", {})
    monkeypatch.setattr(datamodule, "make_env", noting)
    for task in (1, 2):
        assert ChunkDataModule("pointmaze-medium", "navigate", task, 3).spaces == Spaces(2, 2, 3)
    assert made == [("pointmaze-medium", 1)]
    with pytest.raises(UserError, match="task is 6, but pointmaze-medium has tasks 1 to 5"):
        assert ChunkDataModule("pointmaze-medium", "navigate", 6).spaces
    for _ in range(2):  # a name that is not OGBench's may come to mean another environment
        assert ChunkDataModule("Pendulum-v1", "none", path="x.npz", horizon=1).spaces.obs_dim == 3
    assert made[1:] == [("Pendulum-v1", 1)] * 2


@pytest.mark.parametrize(("task",), thinned([(1,), (4,)], 2))
def test_scene_equals_what_ogbench_loads(scene, task):
    assert_equals_ogbench("scene", task, scene)


@pytest.mark.slow
def test_puzzle_equals_what_ogbench_loads(tmp_path):
    generate("puzzle-3x3", "play", str(tmp_path), episodes=2, workers=2, episode_steps=60)
    assert_equals_ogbench("puzzle-3x3", 3, tmp_path)


def test_sizes_come_from_the_environment():
    data = ChunkDataModule("cube-triple")
    assert data.spaces == Spaces(obs_dim=46, action_dim=5, horizon=5)


class Recorder(L.LightningModule):
    """Notes the batches it is given, and counts steps the way a method does."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.register_buffer("steps", torch.tensor(0))
        self.seen = []

    @property
    def gradient_step(self):
        return int(self.steps)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.weight * batch.rewards.mean())
        optimizer.step()
        self.seen.append(batch)
        self.steps += 1


def fit(data, steps, folder, checkpoint=None):
    model = Recorder()
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    trainer.save_checkpoint(folder / "a.ckpt")
    return model.seen


def assert_same(batch, other):
    assert isinstance(batch, Batch)
    for field, expected in zip(batch, other, strict=True):
        assert torch.equal(field, expected)


def test_a_resumed_run_gets_the_batches_it_would_have_got(collected, tmp_path):
    settings = {"horizon": 5, "batch_size": 8, "seed": 2}
    seen = fit(load("scene", collected, **settings), 3, tmp_path)
    seen += fit(ChunkDataModule("scene", directory=str(collected), **settings), 7, tmp_path,
                tmp_path / "a.ckpt")  # fmt: skip
    data = load("scene", collected, **settings)
    assert len(seen) == 7
    for step, batch in enumerate(seen):
        assert_same(batch, data.batch_at(step))
    assert batch.observations.shape == (8, 40)
    assert batch.actions.shape == (8, 25)


def test_data_lie_where_ogbench_looks_for_them():
    for takes in (ChunkDataModule, generate):
        default = inspect.signature(takes).parameters["directory"].default
        assert default == ogbench.utils.DEFAULT_DATASET_DIR


def test_processes_share_a_batch(collected):
    data = load("scene", collected, batch_size=8)
    shares = [data.batch_at(3, rank, 2) for rank in range(2)]
    assert [len(share.rewards) for share in shares] == [4, 4]
    whole = data.batch_at(3)
    for name in whole._fields:
        parts = torch.cat([getattr(share, name) for share in shares])
        assert torch.equal(parts, getattr(whole, name))
    with pytest.raises(UserError, match="batch_size is 8, expected a multiple of the 3"):
        data.batch_at(3, 0, 3)


def test_where_the_data_are_kept_does_not_change_a_batch(collected):
    batches = [
        load("scene", collected, batch_size=64, sparse=True, storage=storage).batch_at(5)
        for storage in ("disk", "memory", "device")
    ]
    for other in batches[1:]:
        assert_same(batches[0], other)


@pytest.mark.parametrize(("fraction", "episodes"), [(1.0, 3), (0.75, 2), (0.5, 2), (0.25, 1)])
def test_a_fraction_is_of_whole_trajectories(collected, fraction, episodes):
    whole, part = load("scene", collected), load("scene", collected, fraction=fraction)
    assert part.num_transitions == 80 * episodes
    count = part.train.num_chunks
    for mine, theirs in zip(
        part.train.gather(np.arange(count)), whole.train.gather(np.arange(count)), strict=True
    ):
        assert torch.equal(mine, theirs)


def test_tasks_share_a_store_and_have_their_own_labels(scene):
    load("scene", scene, task=1)
    before = (scene / "scene-play-v0.store" / "manifest.json").stat().st_mtime_ns
    load("scene", scene, task=2)
    assert (scene / "scene-play-v0.store" / "manifest.json").stat().st_mtime_ns == before
    kept = scene / "scene-play-v0.store" / "task2"
    assert sorted(p.name for p in kept.iterdir()) == [
        "masks.npy",
        "record.json",
        "rewards.npy",
    ]
    good = (kept / "rewards.npy").read_bytes()
    (kept / "rewards.npy").write_bytes(good[:-4])  # found damaged, and made again
    load("scene", scene, task=2)
    assert (kept / "rewards.npy").read_bytes() == good


RECORDS = (
    "{",
    "[]",
    "{}",
    {"ogbench": 1},
    {"crc32": []},
    {"crc32": {"rewards.npy": 0}},
    {"crc32": {"rewards.npy": 0, "masks.npy": "0"}},
    {"crc32": {"rewards.npy": 0, "masks.npy": 0, "../../../x": 0}},
    np.zeros(240),
    np.zeros((240, 1), np.float32),
    np.zeros((), np.float32),
    np.full(240, None),
)


def test_labels_that_fit_nothing_are_made_again(scene, capsys):
    data = load("scene", scene)
    folder = scene / "scene-play-v0.store" / "task1"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for record in RECORDS:
        if isinstance(record, np.ndarray):
            np.save(folder / "rewards.npy", record, allow_pickle=True)
        else:
            known = json.loads(before["record.json"])
            text = record if isinstance(record, str) else json.dumps(known | record)
            (folder / "record.json").write_text(text)
        changed = {path.name: path.read_bytes() for path in folder.iterdir()}
        assert changed != before
        data.labels(data.open_store())
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert verify(data) == 0
    capsys.readouterr()


def test_runs_started_at_once_label_once(scene, monkeypatch):
    load("scene", scene)
    relabel, made = labels.relabel_dataset, []

    def slowly(*arguments):
        made.append(arguments)
        time.sleep(0.2)
        relabel(*arguments)

    monkeypatch.setattr(labels, "relabel_dataset", slowly)
    runs = [ChunkDataModule("scene", task=2, directory=str(scene)) for _ in range(3)]
    assert {run.spaces.obs_dim for run in runs} == {40}  # the environments are made, one by one
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda run: run.prepare_data(), runs))
    assert len(made) == 1
    store = scene / "scene-play-v0.store"
    assert {path.name for path in store.iterdir() if path.is_dir()} == {"task1", "task2"}


def test_a_finished_store_is_never_written_to(scene, monkeypatch):
    data = load("scene", scene)
    monkeypatch.setattr(source, "making_alone", None)
    before = {path: path.stat() for path in [scene, *scene.rglob("*")]}
    assert_same(load("scene", scene).batch_at(0), data.batch_at(0))
    for path, stat in before.items():
        assert path.stat().st_mtime_ns == stat.st_mtime_ns


def test_labels_that_cannot_be_written_are_explained(scene, monkeypatch):
    load("scene", scene)
    monkeypatch.setattr(labels, "relabel_dataset", refuse_to_write)
    with pytest.raises(
        UserError, match="task2, which cannot be written: No space left .*free some"
    ) as caught:
        load("scene", scene, task=2)
    assert "\n" not in str(caught.value)
    store = scene / "scene-play-v0.store"
    assert {path.name for path in store.iterdir() if path.is_dir()} == {"task1"}


def refuse_to_write(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_shards_train_like_one_file(scene):
    folder = scene / "shards"
    folder.mkdir()
    with np.load(scene / "scene-play-v0.npz") as file:
        arrays = {key: file[key] for key in file.files}
    for i, cut in enumerate((slice(0, 81), slice(81, 243))):
        np.savez(folder / f"scene-play-v0-{i:03d}.npz", **{k: v[cut] for k, v in arrays.items()})
    one, many = load("scene", scene), load("scene", scene, path=str(folder))
    assert_same(one.batch_at(3), many.batch_at(3))
    assert many.source(validation=True) is None


def test_the_store_can_be_elsewhere(scene):
    load("scene", scene, store=str(scene / "fast"))
    assert (scene / "fast" / "scene-play-v0.store").is_dir()
    assert not (scene / "scene-play-v0.store").exists()
    for path in scene.glob("*.npz"):
        path.unlink()  # the store is enough
    load("scene", scene, store=str(scene / "fast"))


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux how the files are mapped")
@pytest.mark.parametrize("memory", [1, 1 << 40])
def test_of_a_set_larger_than_memory_only_what_is_needed_is_read(scene, monkeypatch, memory):
    monkeypatch.setattr(datamodule, "PHYSICAL_MEMORY", memory)
    data = load("scene", scene)
    assert data.batch_at(0).observations.shape == (256, 40)
    train = data.train
    for array in (train._observations, train._actions, train._rewards, train._masks):
        # The system's word for random access.
        assert ("rr" in flags_of_mapping(array.data_ptr())) == (memory == 1)


def flags_of_mapping(address):
    """The flags of the mapping at an address; a file may be mapped elsewhere too."""
    found = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            found = int(bounds[1], 16) <= address < int(bounds[2], 16)
        elif found and line.startswith("VmFlags:"):
            return line.split()
    raise AssertionError(f"nothing is mapped at {address:#x}")


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the memory")
def test_a_hundred_million_transitions_take_no_memory(tmp_path):
    data = ChunkDataModule("cube-quadruple", "play-100m", directory=str(tmp_path), storage="disk")
    layout, episodes = file_layout(data._task_env), 100_000
    folder = data.source().store
    labelled = folder / f"task{data.task}"
    labelled.mkdir(parents=True)
    for key, column in layout.items():
        rows = episodes * (1001 if column.last_rows else 1000)
        sparse(folder / f"{key}.npy", column.shape(rows), column.dtype)
    np.save(folder / "ends.npy", np.arange(1, episodes + 1) * 1001 - 1)
    sums = dict.fromkeys([*layout, "ends"], 0)
    source = {"name": "a.npz", "fingerprint": "", "rows": 1001 * episodes}
    source["trajectories"] = episodes
    manifest = {"format": FORMAT, "crc32": sums, "layout": layout, "source": [source]}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    sparse(labelled / "rewards.npy", (10**8,), "float32")
    sparse(labelled / "masks.npy", (10**8,), "uint8")
    record = {"ogbench": versions()["ogbench"], "crc32": {"rewards.npy": 0, "masks.npy": 0}}
    (labelled / "record.json").write_text(json.dumps(record))

    before = memory()
    data.prepare_data()
    data.setup("fit")
    assert data.num_transitions == 10**8
    for step in range(50):
        assert data.batch_at(step).observations.shape == (256, 55)
    assert memory() - before < 100e6


def sparse(path, shape, dtype):
    """An array of zeros in its full length, without blocks on the disk."""
    header = npy_header(shape, dtype)
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + math.prod(shape) * np.dtype(dtype).itemsize)


def memory():
    """Bytes of this process that are not of mapped files."""
    return 1024 * int(Path("/proc/self/status").read_text().partition("RssAnon:")[2].split()[0])


def own_file(path, episodes=3, steps=20, **changes):
    """Pendulum data in the common format: an episode of n steps has n + 1 rows."""
    rng = np.random.default_rng(0)
    rows = episodes * (steps + 1)
    terminals = np.zeros(rows, bool)
    terminals[steps :: steps + 1] = True
    arrays = {
        "observations": rng.normal(size=(rows, 3)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (rows, 1)).astype(np.float32),
        "rewards": rng.normal(size=rows).astype(np.float32),
        "masks": rng.integers(0, 2, rows).astype(np.float32),
        "terminals": terminals,
    }
    np.savez(path, **{k: v for k, v in (arrays | changes).items() if v is not None})
    return {key: value[~terminals] for key, value in arrays.items()}


SMALL = {"width": 16, "depth": 1, "num_critics": 2, "flow_steps": 2, "compile": False}


def pendulum(folder, env="Pendulum-v1", **trainer):
    """A configuration of a small run on ``x.npz`` in that folder."""
    config = {
        "domain": "pendulum",
        "tuned_as": "cube-double",
        "data": {"env": env, "path": str(folder / "x.npz"), "horizon": 1, "batch_size": 16},
        "model": {"init_args": SMALL},
        "trainer": {"max_steps": 2, "accelerator": "cpu"} | trainer,
        "evaluation": {"every_n_steps": 10, "episodes": 1, "workers": 0},
    }
    path = folder / "pendulum.yaml"
    path.write_text(json.dumps(config))
    return path


def test_ones_own_data_for_any_environment(tmp_path):
    arrays = own_file(tmp_path / "mine.npz")
    data = load("Pendulum-v1", tmp_path, path=str(tmp_path / "mine.npz"), horizon=1)
    assert data.spaces == Spaces(3, 1, 1)
    batch = data.train.gather(np.arange(60))
    np.testing.assert_array_equal(batch.observations, arrays["observations"])
    np.testing.assert_array_equal(batch.rewards, arrays["rewards"])
    np.testing.assert_array_equal(batch.masks, arrays["masks"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rewards": None}, "no array 'rewards'"),
        ({"masks": np.full(63, 0.5)}, "masks reaches 0.5 .first in row 0., expected 0 and 1 only"),
        (
            {"observations": np.zeros((63, 5))},
            r"observations has shape \(63, 5\), expected \(63, 3\); is this the file of another",
        ),
    ],
)
def test_bad_data_of_ones_own_are_refused(tmp_path, changes, words):
    own_file(tmp_path / "mine.npz", **changes)
    with pytest.raises(UserError, match=words):
        load("Pendulum-v1", tmp_path, path=str(tmp_path / "mine.npz"))


def play_pendulum(minari, seed, steps, terminated):
    """An episode of Minari's, really played, with an end made up."""
    env = gymnasium.make("Pendulum-v1")
    env.action_space.seed(seed)
    seen, actions, rewards = [env.reset(seed=seed)[0]], [], []
    for _ in range(steps):
        actions.append(env.action_space.sample())
        observation, reward, *_ = env.step(actions[-1])
        seen.append(observation)
        rewards.append(reward)
    last = np.eye(steps, dtype=bool)[-1]
    ends = {"terminations": last & terminated, "truncations": last & (not terminated)}
    return minari.data_collector.EpisodeBuffer(
        id=seed, observations=np.stack(seen), actions=np.stack(actions), rewards=rewards, **ends
    )


def test_a_minari_dataset(tmp_path, monkeypatch):
    minari = pytest.importorskip("minari")
    pytest.importorskip("h5py")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    episodes = [play_pendulum(minari, 0, 30, False), play_pendulum(minari, 1, 20, True)]
    name = "test/pendulum-v0"
    minari.create_dataset_from_buffers(name, episodes, env="Pendulum-v1", algorithm_name="random")
    data = load("Pendulum-v1", tmp_path, path=f"minari:{name}", horizon=1)
    assert data.num_transitions == 50
    batch, at = data.train.gather(np.arange(50)), 0
    for episode in episodes:
        mine = slice(at, at := at + len(episode.actions))
        np.testing.assert_array_equal(batch.observations[mine], episode.observations[:-1])
        np.testing.assert_array_equal(batch.next_observations[mine], episode.observations[1:])
        np.testing.assert_allclose(batch.actions[mine], episode.actions / 2.0, atol=2e-5)
        np.testing.assert_allclose(batch.rewards[mine], episode.rewards, rtol=1e-6)
        np.testing.assert_array_equal(batch.masks[mine], ~episode.terminations)


def test_a_minari_dataset_that_is_not_there_is_explained(tmp_path, monkeypatch):
    pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.setenv("MINARI_REMOTE", "no_such_remote://x")
    with pytest.raises(UserError, match="Minari cannot load test/nothing-v0: ") as caught:
        load("Pendulum-v1", tmp_path, path="minari:test/nothing-v0")
    assert "\n" not in str(caught.value)


def test_minari_that_is_not_installed_is_explained(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(UserError, match="needs Minari: pip install"):
        load("Pendulum-v1", tmp_path, path="minari:test/pendulum-v0")


def test_data_from_other_physics_warn(scene):
    record = scene / "scene-play-v0.json"
    record.write_text('{"versions": {"mujoco": "2.0"}}')
    with pytest.warns(UserWarning, match="scene-play-v0.npz: made with mujoco 2.0"):
        load("scene", scene)
    for content in (
        "{",
        "[]",
        '{"versions": 1}',
        '{"versions": {"mujoco": 2}}',
        "\0",
    ):  # somebody else's file of that name
        record.write_text(content)
        load("scene", scene)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"env": "scenery"}, "env is 'scenery' .did you mean 'scene'"),
        ({"env": "visual-scene"}, "env is 'visual-scene'.*, expected a gymnasium id"),
        ({"task": 6}, "task is 6, but scene has tasks 1 to 5"),
        ({"task": 0}, "task is 0, expected at least 1"),
        ({"horizon": 0}, "ChunkDataModule: horizon is 0, expected at least 1"),
        ({"horizon": 100}, "horizon is 100, but every trajectory in .* is shorter; lower it"),
        ({"horizon": 500}, "horizon is 500, but .* holds 240 transitions"),
        ({"env": "Nothing-v1"}, "env is 'Nothing-v1', which gymnasium cannot make"),
        ({"env": "Pendulum-v1", "task": 2}, "task is 2, but Pendulum-v1 has one task only"),
        ({"env": "CartPole-v1"}, "whose actions are Discrete.*, expected vectors"),
        (
            {"env": "Pendulum-v1"},
            "path is not set, expected your own data, as OGBench has none for Pendulum",
        ),
        ({"path": "nowhere.npz"}, "path is nowhere.npz, which does not exist"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"discount": 0.0}, "discount is 0.0, expected above 0 and at most 1"),
        ({"discount": 1.5}, "discount is 1.5, expected above 0 and at most 1"),
        ({"fraction": 0.0}, "fraction is 0.0, expected above 0 and at most 1"),
        ({"fraction": 1.5}, "fraction is 1.5"),
        ({"prefetch": -1}, "prefetch is -1"),
    ],
)
def test_impossible_settings_are_refused(collected, settings, words):
    with pytest.raises(UserError, match=words) as caught:
        load(**{"env": "scene", "folder": collected} | settings)
    assert "\n" not in str(caught.value)


def test_a_file_of_another_environment_is_refused(scene):
    for suffix in ("", "-val"):
        (scene / f"scene-play-v0{suffix}.npz").rename(scene / f"cube-double-play-v0{suffix}.npz")
    with pytest.raises(
        UserError,
        match=r"observations has shape \(243, 40\), expected \(243, 37\); is this the file",
    ):
        load("cube-double", scene)
