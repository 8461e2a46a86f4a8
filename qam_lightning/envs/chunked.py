"""An environment driven by action chunks, and the requests that one in a worker answers."""

from collections.abc import Iterator
from typing import NamedTuple

import gymnasium
import numpy as np

from qam_lightning.envs.make import is_ogbench, make_env
from qam_lightning.envs.worker import ProcessWorker, WorkerError
from qam_lightning.util.errors import ArgumentError, UserError, shown


class EnvSettings(NamedTuple):
    """The arguments of `make_env`, to be sent to the process that makes the environment."""

    env: str
    task: int
    sparse: bool = False
    render_size: tuple[int, int] | None = None

    def make(self) -> "ChunkedEnv":
        """Make the environment."""
        return ChunkedEnv(make_env(*self))


class Chunk(NamedTuple):
    """What came of executing one action chunk, of which h <= H steps were taken.

    Attributes:
        observations: (h, O) float32, after each step.
        rewards: (h,) float32.
        terminated: whether the last step reached the goal (no bootstrap).
        truncated: whether the last step hit the time limit.
        success: ``info["success"]`` of the last step, 0 or 1.
        frames: (height, width, 3) uint8 pictures taken along the chunk, usually none.
    """

    observations: np.ndarray
    rewards: np.ndarray
    terminated: bool
    truncated: bool
    success: float
    frames: list[np.ndarray]

    @property
    def done(self) -> bool:
        """Whether the episode is over."""
        return self.terminated or self.truncated


class ChunkedEnv:
    """One environment driven by action chunks."""

    def __init__(self, env: gymnasium.Env):
        self.env = env
        self._frame_every, self._steps = 0, 0

    def reset(self, seed: int | None = None, frame_every: int = 0) -> tuple[np.ndarray, list]:
        """Start an episode.

        Args:
            seed: reset seed, 0 to 2^32 - 1; None continues the environment's random stream.
            frame_every: record a frame every so many steps, besides the first and last; 0: none.

        Returns:
            The observation (O,) float32, and the frames recorded so far.

        Raises:
            UserError: frames are wanted, and the environment draws none.
        """
        # OGBench's own draw whatever their render_mode says.
        spec = self.env.spec
        ogbench = spec is not None and str(spec.entry_point).startswith("ogbench.")
        if frame_every and not ogbench and self.env.render_mode != "rgb_array":
            name = self.env.spec.id if self.env.spec else "the environment"
            raise UserError(
                f"{name} draws no frames: expected 'rgb_array' among the render_modes of its "
                "metadata and an argument render_mode of its constructor; or want no frames"
            )
        observation, _ = self.env.reset(seed=seed)
        self._frame_every, self._steps = frame_every, 0
        return np.asarray(observation, np.float32), [self._frame()] if frame_every else []

    def execute(self, actions: np.ndarray) -> Chunk:
        """Execute up to H ``actions`` (H, A), stopping where the episode ends."""
        observations, rewards = [], []
        frames: list[np.ndarray] = []
        for action in actions:
            observation, reward, terminated, truncated, info = self.env.step(action)
            observations.append(np.asarray(observation, np.float32))
            rewards.append(reward)
            self._steps += 1
            done = bool(terminated or truncated)
            if self._frame_every and (done or self._steps % self._frame_every == 0):
                frames.append(self._frame())
            if done:
                break
        return Chunk(
            np.stack(observations),
            np.asarray(rewards, np.float32),
            bool(terminated),
            bool(truncated),
            float(info["success"]),
            frames,
        )

    def _frame(self) -> np.ndarray:
        return np.asarray(self.env.render())

    def close(self) -> None:
        self.env.close()


class Reset(NamedTuple):
    """Answered by the first observation (O,) and the frames, see `ChunkedEnv.reset`."""

    slot: int
    seed: int
    frame_every: int = 0

    def answers(self, env: ChunkedEnv) -> Iterator[tuple[np.ndarray, list]]:
        yield env.reset(self.seed, self.frame_every)


class Execute(NamedTuple):
    """Answered by the `Chunk` that comes of ``actions`` (H, A)."""

    slot: int
    actions: np.ndarray

    def answers(self, env: ChunkedEnv) -> Iterator[Chunk]:
        yield env.execute(self.actions)


class RunAhead(NamedTuple):
    """Answered after each of ``actions`` (h, A) by a `Chunk` of one step.

    Where a step ends the episode, the next episode begins with ``next_seed``; its first observation
    (O,) is the last answer.
    """

    slot: int
    actions: np.ndarray
    next_seed: int

    def answers(self, env: ChunkedEnv) -> Iterator[Chunk | np.ndarray]:
        for action in self.actions:
            step = env.execute(action[None])
            yield step
            if step.done:
                yield env.reset(self.next_seed)[0]
                return


def check_in_process(settings: EnvSettings) -> None:
    """Reset an environment of one's own in a worker process, before anything relies on it.

    OGBench's environments work there, so they are not tried.

    Raises:
        ArgumentError: it does not work there, for example as only the main script registers it.
    """
    if is_ogbench(settings.env):
        return
    worker = ProcessWorker(settings)
    try:
        worker.send([Reset(0, 0)])
        worker.receive()
    except (UserError, WorkerError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise ArgumentError(
            "make_env",
            "env",
            f"is {shown(settings.env)}, which does not work in a process of its own: "
            f"{shown(reason, 400)}; register it in a module and name both, as in "
            "my_package:MyEnv-v0, or simulate without worker processes",
        ) from error
    finally:
        worker.close()
