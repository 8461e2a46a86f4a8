"""A method as the policy of a rollout: noise belongs to the episode, not to the batch."""

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from qam_lightning.methods.base import Method


class EpisodePolicy:
    """A method as a rollout policy whose noise depends on (seed, episode, chunk) alone.

    Every episode has a random stream of its own on the CPU, so an episode goes the same way
    whatever runs beside it, and torch's global generators are left alone.

    """

    def __init__(self, method: Method, seed: int, behavior: bool = False) -> None:
        """Take up a method.

        Args:
            method: the method, on any device.
            seed: seed of the policy's noise.
            behavior: act with the cloned behaviour instead of the learned policy.
        """
        self._method, self._seed = method, seed
        self._act = method.behavior_act if behavior else method.act
        self._streams: dict[int, torch.Generator] = {}

    @torch.no_grad()
    def __call__(self, observations: np.ndarray, episodes: list[int]) -> np.ndarray:
        """Return action chunks (N, H, A) for ``observations`` (N, O) of these episodes."""
        drawn = [self._method.policy_noise(1, self._stream(episode)) for episode in episodes]
        weights = next(self._method.parameters())  # where, and in which precision, they are
        noise = {name: torch.cat([d[name] for d in drawn]).to(weights) for name in drawn[0]}
        with evaluating(self._method):
            actions = self._act(torch.from_numpy(observations).to(weights), noise)
        return actions.float().cpu().numpy()

    @property
    def begun(self) -> int:
        """How many episodes it has acted in."""
        return len(self._streams)

    def _stream(self, episode: int) -> torch.Generator:
        if episode not in self._streams:
            state = np.random.SeedSequence((self._seed, episode)).generate_state(1, np.uint64)
            self._streams[episode] = torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))
        return self._streams[episode]


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module and its parts in evaluation mode, and each back in its own mode afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
