"""An exported policy without PyTorch: numpy and onnxruntime are all that this module imports.

>>> from qam_lightning.runtime import ExportedPolicy
>>> policy = ExportedPolicy("cube", seed=0)
>>> policy.reset()
>>> action = policy.select_action(observation)

Its noise is that of `qam_lightning.load_policy` with the same seed, up to the last bits.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from qam_lightning.util.errors import UserError, reading, require, shown
from qam_lightning.util.hub import policy_folder
from qam_lightning.util.normal import Normal
from qam_lightning.util.rng import Stream, seed_of

CONFIG, ONNX = "config.json", "policy.onnx"
"""The files of an exported folder that are read here."""
FORMAT = 1
"""Number of the folder's format."""

_ADVICE = "export the policy anew"


class ExportedPolicy:
    """Acts as an exported policy: samples a chunk of H actions and executes some of it open loop.

    Args:
        folder: what ``train.py export`` wrote, of which ``config.json`` and ``policy.onnx`` are
            read; or ``hf://owner/name``, where it is on the Hugging Face hub.
        seed: seed of the noise, at least 0.
        execute: how many actions of a chunk to execute before the next chunk is sampled, 1 to H;
            all H by default, as in training.
        threads: of onnxruntime, at least 1.

    Raises:
        UserError: the folder is missing or damaged, its files do not belong together, or
            onnxruntime is not installed, or huggingface_hub for ``hf://``.
        ArgumentError: an argument is out of range.
    """

    def __init__(
        self, folder: str | Path, seed: int = 0, execute: int | None = None, threads: int = 1
    ) -> None:
        folder = policy_folder(folder, CONFIG, ONNX)
        self.config = _read_config(folder)
        """What ``config.json`` says."""
        spaces, noise = self.config["spaces"], self.config["noise"]
        self.horizon, self._observation = spaces["horizon"], (spaces["obs_dim"],)
        self.noise_shape = noise["candidates"], sum(noise["draws"])
        """(N, P): candidates, and the standard normal numbers that each takes."""
        self._execute = self.horizon if execute is None else execute
        expected = f"1 to {self.horizon}"
        require(1 <= self._execute <= self.horizon, ExportedPolicy, "execute", execute, expected)
        require(seed >= 0, ExportedPolicy, "seed", seed, "at least 0")
        require(threads >= 1, ExportedPolicy, "threads", threads, "at least 1")
        self._session = _session(_content(folder, ONNX, self.config), folder, threads)
        graph = self._session.get_inputs(), self._session.get_outputs()
        found = [[(x.name, *x.shape) for x in part] for part in graph]
        inputs = [("observation", "B", *self._observation), ("noise", "B", *self.noise_shape)]
        if found != [inputs, [("chunk", "B", self.horizon, spaces["action_dim"])]]:
            raise UserError(f"{folder}: {ONNX} and {CONFIG} tell of other sizes; {_ADVICE}")
        self._seed, self._episode = seed, -1
        self._left: list[np.ndarray] = []

    def reset(self, seed: int | None = None) -> None:
        """Begin an episode: forget the current chunk, and take the next stream of noise.

        Args:
            seed: start again with the first episode of another seed, at least 0.
        """
        if seed is not None:
            require(seed >= 0, "reset", "seed", seed, "at least 0")
            self._seed, self._episode = seed, -1
        self._episode += 1
        self._normal = Normal(seed_of(self._seed, Stream.EVALUATION_NOISE, self._episode))
        self._left = []

    def select_action(self, observation: np.ndarray) -> np.ndarray:
        """Return the action (A,) in [-1, 1] at an observation (O,).

        Raises:
            ArgumentError: the observation has another shape, for example that of a batch, or
                numbers that are not finite.
        """
        shape, size = np.shape(observation), self._observation
        require(shape == size, ExportedPolicy, "the shape of observation", shape, f"{size}")
        if not self._left:
            self._left = list(self.predict_action_chunk(observation)[: self._execute])
        return self._left.pop(0)

    def predict_action_chunk(
        self, observation: np.ndarray, noise: np.ndarray | None = None
    ) -> np.ndarray:
        """Return a chunk of actions (H, A), or (B, H, A) at a batch of observations.

        Args:
            observation: (O,) or (B, O), as the environment gives it.
            noise: standard normal numbers (N, P) or (B, N, P), see `noise_shape`; drawn if left
                out.

        Raises:
            ArgumentError: a shape does not fit, or an observation has numbers that are not finite.
        """
        states = np.asarray(observation, np.float32)
        batch, shape = states.shape[:-1], states.shape
        fits = len(batch) <= 1 and 0 not in batch and states.shape[-1:] == self._observation
        expected = f"{self._observation}, or a batch of them"
        require(fits, ExportedPolicy, "the shape of observation", shape, expected)
        finite = bool(np.isfinite(states).all())
        require(finite, ExportedPolicy, "observation", states, "finite numbers")
        given = self._noise(batch) if noise is None else np.asarray(noise, np.float32)
        wanted = (*batch, *self.noise_shape)
        require(
            given.shape == wanted, ExportedPolicy, "the shape of noise", given.shape, str(wanted)
        )
        inputs = {
            "observation": states.reshape(-1, *self._observation),
            "noise": given.reshape(-1, *self.noise_shape),
        }
        (chunks,) = self._session.run(["chunk"], inputs)
        return chunks if batch else chunks[0]

    def _noise(self, batch: tuple[int, ...]) -> np.ndarray:
        """Draw noise, one state after the other."""
        if self._episode < 0:  # the first call of `reset` may be left out
            self.reset()
        candidates, draws = self.config["noise"]["candidates"], self.config["noise"]["draws"]
        rows = [
            np.concatenate([self._normal(candidates * n).reshape(-1, n) for n in draws], 1)
            for _ in range(int(np.prod(batch)))
        ]
        return np.stack(rows).reshape(*batch, *self.noise_shape)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    with reading(path, "is it an exported folder?"):
        content = path.read_bytes()
    try:
        config = json.loads(content)
        if config["format"] != FORMAT:
            found = shown(config["format"])
            raise UserError(f"{path}: is of format {found}, expected {FORMAT}; {_ADVICE}")
        sizes = [config["spaces"][name] for name in ("obs_dim", "action_dim", "horizon")]
        sizes += [config["noise"]["candidates"], *config["noise"]["draws"]]
        if not (
            all(type(n) is int and n >= 1 for n in sizes) and isinstance(config["files"], dict)
        ):
            raise ValueError
        return config
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{path}: is no description of an exported policy; {_ADVICE}") from None


def _content(folder: Path, name: str, config: dict[str, Any]) -> bytes:
    """Read a file, if it is the one that the configuration was written with."""
    with reading(folder / name):
        content = (folder / name).read_bytes()
    if hashlib.sha256(content).hexdigest() != config["files"].get(name):
        raise UserError(f"{folder / name}: is not the file that {CONFIG} names; {_ADVICE}")
    return content


def _session(model: bytes, folder: Path, threads: int) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise UserError("onnxruntime is not installed; pip install onnxruntime") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common class
        reason = shown(str(error).partition("\n")[0])
        raise UserError(f"{folder / ONNX}: onnxruntime cannot load it: {reason}") from None
