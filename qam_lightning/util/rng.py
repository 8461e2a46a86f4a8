"""All randomness: named streams of generators keyed by (seed, stream, counters).

No generator state has to survive a crash, since every draw is a function of the run's seed, the
name of its stream, and counters such as the gradient step. Two streams of one seed never overlap.
"""

from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


class Stream(IntEnum):
    """What a generator is for. The numbers are part of every result: never reuse one."""

    DATASET_BATCH = 0
    """Counters: gradient step. The dataset's chunks of a batch."""
    REPLAY_BATCH = 1
    """Counters: gradient step. The replay's chunks of a batch whose halves are drawn apart."""
    TRAINING_NOISE = 2
    """Counters: gradient step. The noise of a method's losses."""
    EVALUATION_EPISODE = 3
    """Counters: episode. The reset of an evaluation's environment."""
    EVALUATION_NOISE = 4
    """Counters: episode. The policy's noise in an evaluation's episode."""
    ONLINE_EPISODE = 5
    """Counters: environment, episode. The reset of an environment that collects."""
    ONLINE_NOISE = 6
    """Counters: environment step. The noise of the chunk that starts with this step."""
    LABORATORY = 7
    """Counters: the laboratory's own."""


def seed_of(seed: int, stream: Stream, *counters: int) -> int:
    """Return the 63-bit seed of a stream at these counters, each at least 0."""
    sequence = np.random.SeedSequence(seed, spawn_key=(int(stream), *counters))
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def numpy_generator(seed: int, stream: Stream, *counters: int) -> np.random.Generator:
    """Return numpy's generator of a stream at these counters."""
    sequence = np.random.SeedSequence(seed, spawn_key=(int(stream), *counters))
    return np.random.Generator(np.random.Philox(sequence))


def collection_seeds(seed: int, *counters: int) -> tuple[int, int]:
    """Return two 32-bit seeds for an episode that scripted oracles collect.

    Simulators and oracles take seeds, not generators. The keys are those of version 0.1 and belong
    to no `Stream`, so that a collected dataset keeps its bytes.

    Args:
        seed: of the collection, at least 0.
        counters: the episode, and the attempt at it.
    """
    first, second = np.random.SeedSequence([seed, *counters]).generate_state(2)
    return int(first), int(second)


def torch_generator(
    seed: int, stream: Stream, *counters: int, device: "torch.device | str" = "cpu"
) -> "torch.Generator":
    """Return torch's generator of a stream at these counters, on a device."""
    import torch  # the processes that simulate environments do without it

    return torch.Generator(device).manual_seed(seed_of(seed, stream, *counters))
