"""A method as the policy of a rollout: noise belongs to the episode, not to the batch."""

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from qam_lightning.methods.base import Method
from qam_lightning.methods.noise import map_noise
from qam_lightning.util.rng import Stream, torch_generator


class EpisodePolicy:
    """A method as a rollout policy whose noise depends on (seed, episode, chunk) alone.

    Every episode has a generator of its own on the CPU. So an episode goes the same way whatever
    runs beside it, and torch's global generators are left alone.

    Args:
        method: the method, on any device.
        seed: seed of the policy's noise.
        behavior: act with the cloned behaviour instead of the learned policy.
        stream: the random stream of the noise.
    """

    def __init__(
        self,
        method: Method,
        seed: int,
        behavior: bool = False,
        stream: Stream = Stream.EVALUATION_NOISE,
    ) -> None:
        self._method, self._seed, self._stream = method, seed, stream
        self._act = method.behavior_act if behavior else method.act
        self._generators: dict[int, torch.Generator] = {}

    @torch.no_grad()
    def __call__(self, observations: np.ndarray, episodes: list[int]) -> np.ndarray:
        """Return action chunks (N, H, A) for ``observations`` (N, O) of these episodes."""
        weights = next(self._method.parameters())  # where, and in which precision, they are
        drawn = [self._method.acting_noise(1, self._generator(episode)) for episode in episodes]
        noise = map_noise(lambda *rows: torch.cat(rows).to(weights), *drawn)
        with evaluating(self._method):
            actions: Tensor = self._act(torch.from_numpy(observations).to(weights), noise)
        return actions.float().cpu().numpy()

    @property
    def begun(self) -> int:
        """How many episodes it has acted in."""
        return len(self._generators)

    def _generator(self, episode: int) -> torch.Generator:
        if episode not in self._generators:
            made = torch_generator(self._seed, self._stream, episode)
            self._generators[episode] = made
        return self._generators[episode]


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
