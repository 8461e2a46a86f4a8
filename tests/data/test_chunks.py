"""Chunk arithmetic against a plain loop over a dataset written out transition by transition."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from qam_lightning.data.chunks import ACTION_LIMIT, ChunkStorage
from qam_lightning.data.sampler import sample_indices
from qam_lightning.util.errors import ArgumentError


def make_arrays(lengths, goal_rate=0.2, seed=0):
    """Trajectories with the given numbers of rows; one transition fewer each."""
    rng = np.random.default_rng(seed)
    rows, transitions = sum(lengths), sum(lengths) - len(lengths)
    terminals = np.zeros(rows, bool)
    terminals[np.cumsum(lengths) - 1] = True
    return {
        "observations": rng.normal(size=(rows, 3)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (rows, 2)).astype(np.float32)[~terminals],
        "ends": np.flatnonzero(terminals),
        "rewards": rng.integers(-5, 1, transitions).astype(np.float32),
        "masks": (rng.random(transitions) > goal_rate).astype(np.float32),
    }


def write_out(arrays):
    """The dataset as a list of transitions, each knowing its successor and its trajectory's end."""
    transitions = []
    ends = set(arrays["ends"].tolist())
    for row in range(len(arrays["observations"])):
        if row not in ends:
            number = len(transitions)
            transitions.append(
                {
                    "s": arrays["observations"][row],
                    "a": arrays["actions"][number],
                    "next": arrays["observations"][row + 1],
                    "r": float(arrays["rewards"][number]),
                    "mask": float(arrays["masks"][number]),
                    "ends": row + 1 in ends,
                }
            )
    return transitions


def expected_chunk(transitions, start, chunk, discount):
    """One chunk, step by step, as the definition says."""
    reward, mask, valid, after = 0.0, 1.0, 1.0, None
    running = True
    for i in range(chunk):
        step = transitions[start + i]
        if not running:
            valid = 0.0
            continue
        reward += discount**i * step["r"]
        mask = min(mask, step["mask"])
        after = step["next"]
        running = not step["ends"]
    actions = np.concatenate([transitions[start + i]["a"] for i in range(chunk)])
    return transitions[start]["s"], actions, reward, after, mask, valid


@pytest.mark.parametrize("chunk", [1, 2, 5, 11])
@pytest.mark.parametrize("lengths", [[12], [7, 3, 2, 9, 2, 2, 4]])
def test_every_chunk_equals_a_plain_loop(chunk, lengths):
    arrays = make_arrays(lengths)
    storage = ChunkStorage(**arrays, horizon=chunk, discount=0.9)
    transitions = write_out(arrays)
    assert storage.num_transitions == len(transitions)
    assert storage.num_chunks == len(transitions) - chunk + 1

    batch = storage.gather(np.arange(storage.num_chunks))
    assert all(field.dtype == torch.float32 and field.is_contiguous() for field in batch)
    for start in range(storage.num_chunks):
        s, a, reward, after, mask, valid = expected_chunk(transitions, start, chunk, 0.9)
        np.testing.assert_array_equal(batch.observations[start], s)
        np.testing.assert_array_equal(batch.actions[start], np.clip(a, -ACTION_LIMIT, ACTION_LIMIT))
        np.testing.assert_allclose(batch.rewards[start], reward, rtol=1e-6)
        np.testing.assert_array_equal(batch.next_observations[start], after)
        assert batch.masks[start] == mask
        assert batch.valid[start] == valid


@given(
    lengths=st.lists(st.integers(2, 9), min_size=1, max_size=12),
    chunk=st.integers(1, 7),
    sparse=st.booleans(),
    seed=st.integers(0, 99),
    step=st.integers(0, 10**9),
)
@settings(max_examples=150, deadline=None)
def test_every_sampled_chunk_is_a_real_one(lengths, chunk, sparse, seed, step):
    arrays = make_arrays(lengths, seed=seed)
    transitions = write_out(arrays)
    assume(chunk <= len(transitions))
    storage = ChunkStorage(**arrays, horizon=chunk, discount=0.9, sparse=sparse)
    assert storage.num_whole_chunks == sum(max(0, n - chunk) for n in lengths)
    for transition in transitions:
        transition["r"] = -float(transition["r"] != 0) if sparse else transition["r"]
    drawn = sample_indices(seed, step, 16, storage.num_chunks)
    assert 0 <= drawn.min() and drawn.max() < storage.num_chunks
    batch = storage.gather(drawn)
    for i, start in enumerate(drawn):
        s, a, reward, after, mask, valid = expected_chunk(transitions, int(start), chunk, 0.9)
        np.testing.assert_array_equal(batch.observations[i], s)
        np.testing.assert_array_equal(batch.actions[i], np.clip(a, -ACTION_LIMIT, ACTION_LIMIT))
        assert batch.rewards[i] == np.float32(reward)
        np.testing.assert_array_equal(batch.next_observations[i], after)
        assert (batch.masks[i], batch.valid[i]) == (mask, valid)


def test_a_goal_before_the_end_stops_the_bootstrap_but_not_the_chunk():
    arrays = make_arrays([6], goal_rate=0.0)
    arrays["masks"][1] = 0.0
    arrays["rewards"][:] = [-1, 0, -1, -1, -1]
    batch = ChunkStorage(**arrays, horizon=3, discount=0.5).gather(np.array([0, 1, 2]))
    assert batch.masks.tolist() == [0, 0, 1]
    assert batch.valid.tolist() == [1, 1, 1]
    assert batch.rewards.tolist() == [-1.25, -0.75, -1.75]
    np.testing.assert_array_equal(batch.next_observations[0], arrays["observations"][3])


def test_a_goal_in_the_next_trajectory_is_not_seen():
    arrays = make_arrays([3, 4], goal_rate=0.0)
    arrays["masks"][2] = 0.0  # the second trajectory's first transition
    batch = ChunkStorage(**arrays, horizon=2, discount=1.0).gather(np.array([1, 2]))
    assert batch.masks.tolist() == [1, 0]
    assert batch.valid.tolist() == [0, 1]
    np.testing.assert_array_equal(batch.next_observations[0], arrays["observations"][2])


def test_actions_are_kept_inside_the_open_box():
    arrays = make_arrays([5])
    arrays["actions"][0] = [1.0, -1.0]
    actions = ChunkStorage(**arrays, horizon=1, discount=1.0).gather(np.array([0])).actions
    assert actions.abs().max() < 1.0
    assert torch.atanh(actions).isfinite().all()


def test_batches_do_not_share_memory_with_the_storage():
    storage = ChunkStorage(**make_arrays([9]), horizon=2, discount=1.0)
    for field in storage.gather(np.array([3, 4])):
        field.fill_(77.0)
    assert not any((field == 77.0).any() for field in storage.gather(np.array([3, 4])))


@pytest.mark.parametrize("chunk", [0, 5])
def test_a_chunk_that_does_not_fit_is_refused(chunk):
    with pytest.raises(ArgumentError, match="horizon is ., expected 1 to .* transitions, 4"):
        ChunkStorage(**make_arrays([5]), horizon=chunk, discount=1.0)


def test_arrays_of_other_lengths_are_refused():
    arrays = make_arrays([5])
    arrays["rewards"] = arrays["rewards"][:-1]
    with pytest.raises(ArgumentError, match="rewards has 3 rows, .* each of 4 transitions"):
        ChunkStorage(**arrays, horizon=2, discount=1.0)


@given(
    lengths=st.lists(st.integers(2, 9), min_size=8, max_size=30),
    chunk=st.integers(1, 7),
    seed=st.integers(0, 2**32 - 1),
    first=st.integers(0, 10**9),
    batch=st.sampled_from([64, 256, 1000]),
)
@settings(max_examples=30, deadline=None, derandomize=True)
def test_sampling_is_uniform_over_all_starts(lengths, chunk, seed, first, batch):
    bins = ChunkStorage(**make_arrays(lengths), horizon=chunk, discount=1.0).num_chunks
    assert bins == sum(lengths) - len(lengths) - chunk + 1
    steps = range(first, first + 64_000 // batch)
    counts = np.bincount(np.concatenate([sample_indices(seed, s, batch, bins) for s in steps]))
    assert len(counts) == bins
    mean = len(steps) * batch / bins
    statistic, freedom = ((counts - mean) ** 2 / mean).sum(), bins - 1
    # Chi-square: its mean is the degrees of freedom, its variance twice that.
    assert abs(statistic - freedom) < 5 * np.sqrt(2 * freedom)


def test_sampling_depends_on_nothing_but_its_arguments():
    wanted = sample_indices(1, 10, 64, 10**6)
    for step in (3, 99, 11):
        sample_indices(1, step, 64, 10**6)
    np.testing.assert_array_equal(sample_indices(1, 10, 64, 10**6), wanted)
    for other in [(2, 10), (1, 11)]:
        assert len(np.intersect1d(sample_indices(*other, 64, 10**6), wanted)) < 5
