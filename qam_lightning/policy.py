"""A trained policy for environments of your own: observation in, action out."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from qam_lightning.export import EPISODES
from qam_lightning.util.errors import ArgumentError, UserError, require

if TYPE_CHECKING:
    import gymnasium

    from qam_lightning.methods.base import Method


class Policy:
    """Acts as a trained method: samples a chunk of H actions and executes it open loop.

    >>> policy = load_policy("runs/quickstart")
    >>> env = policy.make_env()
    >>> observation, _ = env.reset(seed=0)
    >>> policy.reset()
    >>> observation, reward, terminated, truncated, info = env.step(policy(observation))

    Seeded alike, it acts as ``eval.py --num_envs 1`` does: after n calls of `reset`, as in episode
    n - 1. With more environments ``eval.py`` draws the same noise but computes all their actions in
    one batch, which may round the last bits differently.

    Args:
        method: the trained method, on any device.
        metadata: what the checkpoint says of the method and its training.
        seed: seed of the policy's noise, at least 0.
        compile: sample chunks with one compiled graph. The first chunk takes the time to compile
            it; the actions may differ in the last bits.
        temperature: standard deviation of the noise that the flow starts from, at least 0; None
            is 1, as trained.
        run: the folder of its run, for `export`.

    Raises:
        ArgumentError: the seed is negative, nothing can be compiled here, or the method has no
            such noise.
    """

    def __init__(
        self,
        method: "Method",
        metadata: Mapping[str, Any],
        seed: int = 0,
        compile: bool = False,
        temperature: float | None = None,
        run: Path | None = None,
    ) -> None:
        self.run = run
        """The folder of the run that it was loaded from; None if it was not."""
        self.method = method
        """The method; its networks are ordinary modules."""
        self.metadata = dict(metadata)
        """Method, environment, configuration, counters and versions of the checkpoint."""
        require(seed >= 0, Policy, "seed", seed, "at least 0")
        self._compile, self._temperature = compile, temperature
        self._seed(seed)

    def _seed(self, seed: int) -> None:
        from qam_lightning.evaluation.episode_policy import EpisodePolicy

        self._act = EpisodePolicy(
            self.method, seed, compiled=self._compile, temperature=self._temperature
        )
        self._episode = -1
        self._chunk: Iterator[np.ndarray] = iter(())

    def reset(self, seed: int | None = None) -> None:
        """Begin an episode: forget the current chunk, and take the next stream of noise.

        Args:
            seed: start again with the first episode of another seed, at least 0.

        Raises:
            ArgumentError: the seed is negative.
        """
        if seed is not None:
            require(seed >= 0, "reset", "seed", seed, "at least 0")
            self._seed(seed)
        self._episode += 1
        self._chunk = iter(())

    def __call__(self, observation: np.ndarray) -> np.ndarray:
        """Return the action (A,) in [-1, 1] at an observation (O,).

        Every H-th call samples a chunk; the calls between return its remaining actions, whatever
        they observe.

        Raises:
            ArgumentError: the observation has another shape, for example that of a batch, or
                numbers that are not finite.
        """
        for action in self._chunk:
            return action
        self._chunk = iter(self.sample_chunk(observation))
        return next(self._chunk)

    def sample_chunk(self, observation: np.ndarray) -> np.ndarray:
        """Return a chunk of actions (H, A) in [-1, 1] at an observation (O,).

        Raises:
            ArgumentError: the observation has another shape, or numbers that are not finite.
        """
        observation = np.asarray(observation, np.float32)
        size = (self.method.spaces.obs_dim,)
        shape = observation.shape
        require(shape == size, "Policy", "the shape of observation", shape, f"{size}, no batch")
        finite = bool(np.isfinite(observation).all())
        require(finite, "Policy", "observation", observation, "finite numbers")
        self._episode = max(self._episode, 0)  # reset before the first episode may be left out
        return self._act(observation[None], [self._episode])[0]

    def make_env(self, **settings: Any) -> "gymnasium.Env":
        """Make the environment that the policy was trained in.

        Args:
            settings: arguments of `qam_lightning.make_env` to use instead, for example
                ``task=2`` or ``render_size=(320, 240)``.

        Raises:
            UserError: the checkpoint names no environment, as it was trained on other data than
                those of a `ChunkDataModule`; or it names one of a module that is not imported.
        """
        from qam_lightning.checkpoints import check_env
        from qam_lightning.envs.make import make_env

        trained = self.metadata["environment"]
        named = {
            key: trained[key] for key in ("env", "task", "sparse") if key in trained
        } | settings
        if not {"env", "task"} <= named.keys():
            raise UserError(
                "Policy: the checkpoint names no environment; give make_env env and task"
            )
        if "env" not in settings:
            check_env(named["env"], "Policy")
        return make_env(**named)

    def export(
        self, output: str | Path, formats: Sequence[str] = ("onnx",), episodes: int = EPISODES
    ) -> None:
        """Write the policy as a folder that needs no PyTorch, see `qam_lightning.runtime`.

        Args:
            output: the folder, which must not exist.
            formats: graphs to write besides the weights: ``"onnx"``, ``"pt2"``.
            episodes: episodes in which the folder's success is compared with the policy's.

        Raises:
            UserError: the policy cannot be exported, a package is missing, or the export acts in
                another way.
            ArgumentError: the folder exists, or the policy has a temperature of its own.
        """
        from qam_lightning.export.write import export

        problem = "is set, and an export acts at temperature 1; load the policy without it"
        if self._temperature not in (None, 1.0):
            raise ArgumentError("export", "temperature", problem)
        export(self.method, self.metadata, Path(output).expanduser(), self.run, formats, episodes)


def load_policy(
    run_or_checkpoint: str | Path,
    best_of_n: int | None = None,
    device: str = "cpu",
    seed: int = 0,
    method: "type[Method] | None" = None,
    compile: bool = False,
    flow_steps: int | None = None,
    temperature: float | None = None,
    vartheta: float | None = None,
    sampler: str | None = None,
) -> Policy:
    """Load a trained policy.

    Nothing is imported because a checkpoint names it. So import a method of your own first, or give
    its class.

    Args:
        run_or_checkpoint: a run folder, whose ``last.ckpt`` is taken; a checkpoint file; an
            exported folder; or ``hf://owner/name``, an exported folder on the Hugging Face hub.
        best_of_n: act with the best of N candidates by the critic, at least 1; as trained by
            default.
        device: where the networks compute, for example ``"cuda"``.
        seed: seed of the policy's noise, at least 0.
        method: the method's class, if it is not of this package.
        compile: see `Policy`. How the method was trained does not matter.
        flow_steps: integration steps of the flow that acts, at least 1; as trained by default.
        temperature: see `Policy`.
        vartheta: strength of the guidance of CGQL and its kin, at least 0; as trained by default.
        sampler: how the flow that acts is integrated, ``"euler"``, ``"ab2"`` or ``"etd2"``; as
            trained by default.

    Raises:
        UserError: there is no such checkpoint, or it is damaged or of another version.
        ArgumentError: an argument is out of range, the method's policy does not have it, there is
            no such device here, or nothing can be compiled here.
    """
    from qam_lightning.checkpoints import load_method, run_of
    from qam_lightning.export.folder import WEIGHTS
    from qam_lightning.runtime import CONFIG
    from qam_lightning.util.hub import policy_folder

    path = policy_folder(run_or_checkpoint, CONFIG, WEIGHTS)
    wanted = {
        "best_of_n": best_of_n,
        "flow_steps": flow_steps,
        "sampler": sampler,
        "vartheta": vartheta,
    }
    acting: dict[str, Any] = {name: value for name, value in wanted.items() if value is not None}
    require(seed >= 0, "load_policy", "seed", seed, "at least 0")
    loaded, metadata = load_method(path, method, **acting)
    try:
        loaded.to(device)
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        reason = str(error).split("\n")[0]
        problem = f"is {device}, expected a device such as cpu or cuda: {reason}"
        raise ArgumentError("load_policy", "device", problem) from error
    return Policy(loaded, metadata, seed, compile, temperature, run_of(path))
