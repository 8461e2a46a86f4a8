"""Schedule, replay and batches against plain loops over the rows."""

import numpy as np
import pytest
import torch

from qam_lightning.data.chunks import ACTION_LIMIT, ChunkStorage
from qam_lightning.data.sampler import OfflineSampler, sample_indices
from qam_lightning.online import replay as module
from qam_lightning.online.replay import Ending, Replay, Step, read_rows, row_type
from qam_lightning.online.sampler import MixedSampler
from qam_lightning.online.schedule import Schedule
from qam_lightning.util.errors import UserError

KIND = row_type(3, 2)


def random_rows(count, envs=1, seed=0):
    """Episodes of a few steps in every environment; some break off without an end."""
    rng = np.random.default_rng(seed)
    rows = np.zeros(count, KIND)
    for name in ("observation", "next_observation"):
        rows[name] = rng.normal(size=(count, 3))
    rows["action"] = rng.uniform(-1, 1, (count, 2)).round()
    rows["reward"] = rng.integers(-5, 1, count)
    first = [True] * envs
    for n in range(count):
        rows["first"][n] = first[n % envs]
        ending = rng.choice(list(Ending), p=[0.6, 0.2, 0.2])
        rows["ending"][n] = ending
        first[n % envs] = ending != Ending.RUNNING or rng.random() < 0.1
    return rows


def filled(path, rows, chunk=3, envs=1):
    made = Replay(path, KIND, chunk, 0.9, envs)
    for row in rows:
        made.append(Step(*row))
    return made


def expected_chunk(rows, start, chunk, envs):
    """One chunk, step by step, as the definition says."""
    steps = rows[start::envs][:chunk]
    reward, mask, valid, after, running = 0.0, 1.0, 1.0, None, True
    for i, step in enumerate(steps):
        running = running and not (i and step["first"])
        if not running:
            valid = 0.0
            continue
        reward += 0.9**i * float(step["reward"])
        mask = 0.0 if step["ending"] == Ending.TERMINATED else mask
        after = step["next_observation"]
    actions = np.clip(steps["action"].ravel(), -ACTION_LIMIT, ACTION_LIMIT)
    return steps["observation"][0], actions, np.float32(reward), after, mask, valid


@pytest.mark.parametrize("envs", [1, 3])
@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_every_chunk_equals_a_plain_loop(chunk, envs, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 16)  # so that the file grows on the way
    rows = random_rows(60, envs)
    replay = filled(tmp_path / "a", rows, chunk, envs)
    assert len(replay.rows) == 60
    np.testing.assert_array_equal(replay.rows, rows)
    count = replay.num_chunks(60)
    assert count == 60 - (chunk - 1) * envs
    batch = replay.gather(np.arange(count))
    assert all(field.dtype == torch.float32 and field.is_contiguous() for field in batch)
    for start in range(count):
        for field, value in zip(batch, expected_chunk(rows, start, chunk, envs), strict=True):
            np.testing.assert_array_equal(field[start], value)
    if chunk > 1:
        assert 0 < batch.valid.mean() < 1
    assert 0 < batch.masks.mean() < 1


def test_a_batch_does_not_change_when_rows_follow(tmp_path):
    rows = random_rows(40)
    replay = filled(tmp_path / "a", rows[:20])
    before = replay.gather(np.arange(replay.num_chunks(20)))
    for row in rows[20:]:
        replay.append(Step(*row))
    after = replay.gather(np.arange(replay.num_chunks(20)))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_the_last_rows_of_an_environment(tmp_path):
    rows = random_rows(30, envs=2)
    replay = filled(tmp_path / "a", rows, envs=2)
    np.testing.assert_array_equal(replay.last(1, 3), rows[[25, 27, 29]])
    assert len(replay.last(0, 0)) == 0


@pytest.mark.parametrize(("offline", "start", "steps", "ratio"), [(4, 3, 9, 1), (0, 2, 7, 3)])
def test_the_schedule_counts_as_a_loop_would(offline, start, steps, ratio):
    schedule = Schedule(offline, start, steps, ratio)
    seen = [0] * offline
    for step in range(1, steps + 1):
        if step > start:
            seen += [step] * ratio
    assert [schedule.visible(g) for g in range(schedule.gradient_steps)] == seen
    assert schedule.visible(schedule.gradient_steps) == steps


# -- batches -------------------------------------------------------------------------------------


def dataset():
    rng = np.random.default_rng(5)
    return ChunkStorage(
        observations=rng.normal(size=(40, 3)).astype(np.float32),
        actions=rng.uniform(-1, 1, (38, 2)).astype(np.float32),
        ends=np.array([19, 39]),
        rewards=-rng.random(38).astype(np.float32),
        masks=np.ones(38, np.uint8),
        horizon=3,
        discount=0.9,
    )


def mixed(tmp_path, half, size, offline=0):
    replay = filled(tmp_path / "a", random_rows(30))
    sampler = OfflineSampler(dataset(), size, seed=7)
    return MixedSampler(sampler, Schedule(offline, 9, 30, 1), replay, half, lambda count: None)


def test_offline_batches_are_those_of_the_dataset_alone(tmp_path):
    sampler = mixed(tmp_path, half=True, size=8, offline=2)
    np.testing.assert_array_equal(sampler.indices(1), sampler.offline.indices(1))
    assert (sampler.indices(2)[1::2] >= dataset().num_chunks).all()
    assert [sampler.may_prefetch(step) for step in (0, 1, 2, 3)] == [True, True, False, False]


def test_uniform_batches_draw_every_chunk_equally_often(tmp_path):
    known = dataset().num_chunks
    whole = known + 20 - 2  # twenty rows before update 10
    drawn = mixed(tmp_path, half=False, size=200 * whole).indices(10)
    np.testing.assert_array_equal(drawn, sample_indices(7, 10, 200 * whole, whole))
    counts = np.bincount(drawn, minlength=whole)
    assert len(counts) == whole
    assert ((counts - 200) ** 2 / 200).sum() < whole + 4 * np.sqrt(2 * whole)  # chi-square


def test_half_batches_alternate(tmp_path):
    known = dataset().num_chunks
    drawn = mixed(tmp_path, half=True, size=4000).indices(0)
    assert (drawn[::2] < known).all() and (drawn[1::2] >= known).all()
    assert set(drawn[::2]) == set(range(known))
    assert set(drawn[1::2] - known) == set(range(10 - 2))  # ten rows before the first update
    assert not np.array_equal(drawn[::2] % 8, drawn[1::2] % 8)


def test_a_mixed_batch_keeps_the_order_in_which_it_was_drawn(tmp_path):
    sampler, storage = mixed(tmp_path, half=False, size=1), dataset()
    known = storage.num_chunks
    indices = np.array([known + 4, 3, known, 0, known - 1, known + 27])
    batch = sampler.gather(indices)
    for i, index in enumerate(indices):
        one = np.array([index])
        alone = storage.gather(one) if index < known else sampler.replay.gather(one - known)
        assert all(torch.equal(a[i], b[0]) for a, b in zip(batch, alone, strict=True))
    only = sampler.gather(np.array([2, 1]))
    assert torch.equal(only.actions, storage.gather(np.array([2, 1])).actions)


def test_rows_are_waited_for_only_where_a_batch_holds_them(tmp_path):
    """Twenty rows are visible to update 10, of which the replay holds 19."""
    rows, waited, known = random_rows(20), {True: 0, False: 0}, dataset().num_chunks
    for seed in range(40):
        replay, counts = filled(tmp_path / f"{seed}", rows[:19]), []

        def wait(count, replay=replay, counts=counts):
            counts.append(count)
            while replay.count < count:
                replay.append(Step(*rows[replay.count]))

        sampler = MixedSampler(
            OfflineSampler(dataset(), 8, seed), Schedule(0, 9, 30, 1), replay, False, wait
        )
        drawn = sampler.indices(10)
        assert counts == ([drawn.max() - known + 3] if drawn.max() >= known else [])
        assert replay.count == (20 if drawn.max() - known == 17 else 19)
        waited[replay.count == 20] += 1
        sampler.gather(drawn)
    assert min(waited.values()) > 0


# -- the file ------------------------------------------------------------------------------------


def test_a_longer_file_is_cut_back(tmp_path):
    rows = random_rows(20)
    replay = filled(tmp_path / "a", rows)
    kept = filled(tmp_path / "b", rows[:12])
    replay.close()
    assert (tmp_path / "a").stat().st_size == 20 * KIND.itemsize
    known = read_rows(tmp_path / "a", KIND, 12, kept.crc32)
    again = Replay(tmp_path / "a", KIND, 3, 0.9, 1)
    again.restore(known)
    np.testing.assert_array_equal(again.rows, rows[:12])
    assert again.crc32 == kept.crc32
    again.append(Step(*rows[19]))
    kept.append(Step(*rows[19]))
    assert (again.count, again.crc32) == (13, kept.crc32)
    again.close()
    kept.close()
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_short_or_damaged_file_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "replay.bin"
    with pytest.raises(
        UserError, match="replay.bin holds 0 environment steps, but .* refers to 5;"
    ):
        read_rows(path, KIND, 5, 0)
    assert not path.exists()
    replay = filled(path, random_rows(20))
    crc32 = replay.crc32
    replay.close()
    with pytest.raises(UserError, match="holds 20 environment steps, but the checkpoint .* 21"):
        read_rows(path, KIND, 21, crc32)
    damaged = bytearray(path.read_bytes())
    damaged[100] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(UserError, match="its first 20 environment steps are not those"):
        read_rows(path, KIND, 20, crc32)
    assert path.read_bytes() == damaged
