"""A method as the policy of a rollout: noise belongs to the episode, not to the batch."""

import contextlib
import math
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from qam_lightning.methods.base import Method
from qam_lightning.methods.compiled import Compiled, check_compiler, naming_the_setting
from qam_lightning.methods.noise import map_noise
from qam_lightning.util.errors import require
from qam_lightning.util.rng import Stream, torch_generator


class EpisodePolicy:
    """A method as a rollout policy whose noise depends on (seed, episode, chunk) alone.

    Every episode has a generator of its own on the CPU. So an episode goes the same way whatever
    runs beside it, and torch's global generators are left alone.

    Args:
        method: the method, on any device.
        seed: seed of the policy's noise.
        behavior: act with the cloned behaviour instead of the learned policy.
        compiled: act through one compiled graph for each number of states. It is compiled when it
            is first called with that number, and once for all policies of a method.
        temperature: standard deviation of the noise that the flow starts from, at least 0; None
            is 1, as trained.

    Raises:
        ArgumentError: the policy has no such noise; or it is to be compiled, and nothing can be
            compiled here; also when it is called, where the method's own acting cannot be compiled.
    """

    def __init__(
        self,
        method: Method,
        seed: int,
        behavior: bool = False,
        compiled: bool = False,
        temperature: float | None = None,
    ) -> None:
        if temperature is not None:
            method.check_acting("temperature", temperature, behavior)
            fine = temperature >= 0 and math.isfinite(temperature)
            require(fine, type(method), "temperature", temperature, "at least 0 and finite")
        self._temperature = temperature
        self._method, self._seed = method, seed
        with naming_the_setting("acting"):
            make = _compiled_acting if compiled else ActingModule
            self._act: Callable[[Tensor, Any], Tensor] = make(method, behavior)
        self._generators: dict[int, torch.Generator] = {}

    @torch.no_grad()
    def __call__(self, observations: np.ndarray, episodes: list[int]) -> np.ndarray:
        """Return action chunks (N, H, A) for ``observations`` (N, O) of these episodes."""
        weights = next(self._method.parameters())  # where, and in which precision, they are
        drawn = [self._method.acting_noise(1, self._generator(episode)) for episode in episodes]
        noise = map_noise(lambda *rows: torch.cat(rows).to(weights), *drawn)
        if self._temperature is not None:
            noise = noise._replace(z=self._temperature * noise.z)
        with naming_the_setting("acting"):
            actions = self._act(torch.from_numpy(observations).to(weights), noise)
        return actions.float().cpu().numpy()

    @property
    def begun(self) -> int:
        """How many episodes it has acted in."""
        return len(self._generators)

    def _generator(self, episode: int) -> torch.Generator:
        if episode not in self._generators:
            made = torch_generator(self._seed, Stream.EVALUATION_NOISE, episode)
            self._generators[episode] = made
        return self._generators[episode]


class ActingModule(nn.Module):
    """How a method acts, in evaluation mode.

    Args:
        method: acts.
        behavior: the cloned behaviour acts.
    """

    def __init__(self, method: Method, behavior: bool) -> None:
        super().__init__()
        self.method, self._behavior = method, behavior

    def forward(self, s: Tensor, noise: Any) -> Tensor:
        """Return chunks (n, H, A); see `Method.act`."""
        with evaluating(self.method):
            act = self.method.behavior_act if self._behavior else self.method.act
            return act(s, noise)


_compiled: weakref.WeakKeyDictionary[Method, dict[Any, Compiled]] = weakref.WeakKeyDictionary()


def _compiled_acting(method: Method, behavior: bool) -> Compiled:
    """Return the compiled `ActingModule` of a method, the same one at every call.

    The graph reads the method's own tensors, so it follows them through training and loading. A
    method that was moved has other buffers, and gets another graph.
    """
    weights = next(method.parameters())
    check_compiler("default", weights.device)
    tensors = {**dict(method.named_parameters()), **dict(method.named_buffers())}
    known = _compiled.setdefault(method, {})
    key = behavior, weights.device, *map(id, tensors.values())
    if key not in known:
        owner = weakref.ref(method)  # what is kept for a method must not keep it alive

        def act(state: dict[str, Tensor], s: Tensor, noise: Any) -> Tensor:
            acting = ActingModule(owner(), behavior)  # type: ignore[arg-type]
            return functional_call(acting, state, (s, noise))

        state = {f"method.{name}": x for name, x in tensors.items()}
        known[key] = Compiled(act, state, "default")
    return known[key]


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
