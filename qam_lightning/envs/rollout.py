"""Action-chunk rollouts: the policy is asked for H actions, they are executed open loop, repeat.

`ChunkedEnv` is one environment driven this way; online collection uses it directly. `RolloutPool`
runs many of them in worker processes for evaluation. Its episodes do not depend on the number of
workers, bit for bit: episode i is a function of (seed, i) and the policy, the number of
environments (the rows of the policy's batch) is fixed beforehand, and all of them proceed in step,
so that every row of every batch is the same whoever simulates it.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import Pipe
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import gymnasium
import numpy as np

from qam_lightning.envs.make import env_id, make_env

Policy = Callable[[np.ndarray, list[int]], np.ndarray]
"""``policy(observations (N, O) float32, episodes) -> actions (N, H, A)``; row j acts for
``episodes[j]``. A row whose episode has ended keeps its last observation; its actions are ignored.
"""


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


class Episode(NamedTuple):
    """One finished episode.

    Attributes:
        number: i, counted from 0.
        seed: what the environment was reset with, see `episode_seed`.
        success: the last step's success, 0 or 1.
        episode_return: undiscounted sum of rewards.
        length: environment steps.
        frames: recorded pictures, empty unless asked for.
    """

    number: int
    seed: int
    success: float
    episode_return: float
    length: int
    frames: list[np.ndarray]


def episode_seed(seed: int, index: int, *stream: int) -> int:
    """The reset seed (32 bits) of an episode.

    Args:
        seed: of all episodes.
        index: number of the episode.
        stream: tells series of episodes with the same seed apart; an evaluation's has none.
    """
    return int(np.random.SeedSequence((seed, index), spawn_key=stream).generate_state(1)[0])


def available_cores() -> int:
    """Number of cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class ChunkedEnv:
    """One environment driven by action chunks."""

    def __init__(self, env: gymnasium.Env):
        """Take charge of ``env``."""
        self.env = env
        self._every = 0
        self._steps = 0

    def reset(self, seed: int | None = None, frame_every: int = 0) -> tuple[np.ndarray, list]:
        """Start an episode.

        Args:
            seed: reset seed; None continues the environment's random stream.
            frame_every: record a frame every so many steps, besides the first and last; 0: none.

        Returns:
            The observation (O,) float32, and the frames recorded so far.
        """
        observation, _ = self.env.reset(seed=seed)
        self._every, self._steps = frame_every, 0
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
            if self._every and (done or self._steps % self._every == 0):
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
        """Close the environment."""
        self.env.close()


class EnvGroup:
    """The environments of one worker; every call serves several of them."""

    def __init__(self, env: str, task: int, sparse: bool, render_size: tuple[int, int] | None):
        """Remember what to make; environments are made when first reset."""
        self._make = lambda: ChunkedEnv(make_env(env, task, sparse, render_size))
        self._envs: dict[int, ChunkedEnv] = {}

    def reset(self, requests: list[tuple[int, int, int]]) -> list[tuple[np.ndarray, list]]:
        """Reset by (slot, seed, frame_every)."""
        for slot, _, _ in requests:
            if slot not in self._envs:
                self._envs[slot] = self._make()
        return [self._envs[slot].reset(seed, every) for slot, seed, every in requests]

    def execute(self, requests: list[tuple[int, np.ndarray]]) -> list[Chunk]:
        """Execute by (slot, actions)."""
        return [self._envs[slot].execute(actions) for slot, actions in requests]

    def follow(self, request: tuple[np.ndarray, int]) -> Iterator[Chunk | np.ndarray]:
        """Execute actions (H, A) in the first environment, and answer after each.

        Where they end the episode, another one begins at once.

        Args:
            request: the actions, and the seed of the next episode.

        Yields:
            A chunk of one step per action; after one that ended the episode only the first
            observation of the next.
        """
        actions, seed = request
        for action in actions:
            step = self._envs[0].execute(action[None])
            yield step
            if step.done:
                yield self._envs[0].reset(seed)[0]
                return

    def serve(self, verb: str, request: Any) -> Iterator[Any]:
        """Do what one of the other methods does; yields one answer, or those of `follow`."""
        answer = getattr(self, verb)(request)
        if isinstance(answer, Iterator):
            yield from answer
        else:
            yield answer

    def close(self) -> None:
        """Close all environments."""
        for env in self._envs.values():
            env.close()


class LocalWorker:
    """Runs its environments in this process, when an answer is fetched."""

    def __init__(self, *settings):
        """See `EnvGroup`."""
        self._group = EnvGroup(*settings)

    def send(self, verb: str, request: Any) -> None:
        """Accept work."""
        self._answers = self._group.serve(verb, request)

    def receive(self) -> Any:
        """Do the work, or the next part of it, and answer."""
        return next(self._answers)

    def close(self) -> None:
        """Close the environments."""
        self._group.close()


class WorkerError(RuntimeError):
    """An environment failed in its process, or the process died."""


class ProcessWorker:
    """Runs its environments in a process that imports the environments and nothing else.

    It is a fresh interpreter, not a fork or a re-import of the main script: no CUDA context, no
    torch, no demands on the caller's script. It ends when its end of the pipe does, so it cannot
    outlive this process.
    """

    def __init__(self, *settings):
        """Start the process. See `EnvGroup` for the settings."""
        self._pipe, theirs = Pipe()
        package = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "qam_lightning.envs.worker", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )
        theirs.close()
        self._pipe.send(settings)

    def send(self, verb: str, request: Any) -> None:
        """Hand over work."""
        try:
            self._pipe.send((verb, request))
        except OSError:
            raise self._death() from None

    def receive(self) -> Any:
        """Wait for the next answer to the work handed over."""
        try:
            answer = self._pipe.recv()
        except (EOFError, OSError):
            raise self._death() from None
        if isinstance(answer, str):
            raise WorkerError(f"an environment failed in a rollout worker:\n{answer}")
        return answer

    def close(self) -> None:
        """Ask the process to end, and see that it does."""
        self._pipe.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _death(self) -> WorkerError:
        code = self._process.wait()
        how = f"by signal {-code}" if code < 0 else f"with exit code {code}"
        return WorkerError(
            f"rollout worker (process {self._process.pid}) ended unexpectedly {how}; "
            "its own output, if any, stands above; was memory exhausted?"
        )


class Share(NamedTuple):
    """One of several programs that roll out the same episodes together.

    Each runs the same policy on all rows, but simulates its share of the environments only: slot j
    belongs to rank j mod ``ranks``. So the episodes are the same, bit for bit, as with one.

    Attributes:
        rank: which this is.
        ranks: how many there are.
        gather: ``gather(mine)`` gives what every rank gave, in their order; all call it at once.
    """

    rank: int = 0
    ranks: int = 1
    gather: Callable[[Any], list[Any]] = lambda mine: [mine]


ALONE = Share()
"""All of it."""


class RolloutPool:
    """Environments of one task, spread over worker processes, for use again and again.

    Processes start with the first call of `run` and end with `close` or the ``with`` block.
    """

    def __init__(
        self,
        env: str,
        task: int,
        sparse: bool = False,
        workers: int | None = None,
        slots: int = 8,
        render_size: tuple[int, int] = (320, 240),
        share: Share = ALONE,
    ):
        """Describe the pool.

        Args:
            env: environment name.
            task: 1 to 5.
            sparse: sparse rewards, see `make_env`.
            workers: processes; 0 runs everything in this one; None takes all cores.
            slots: environments to run at once (never more than episodes). It is the number of rows
                of the policy's batch, therefore independent of ``workers``.
            render_size: (width, height) of recorded frames.
            share: this program's part, where several roll out together.

        Raises:
            UserError: unknown environment or task.
        """
        env_id(env, task)
        self._share = share
        self._settings = (env, task, sparse, render_size)
        self._wanted = available_cores() if workers is None else workers
        self._slots = slots
        self._workers: list[LocalWorker | ProcessWorker] = []

    def run(
        self,
        policy: Policy,
        episodes: int,
        seed: int,
        frames: int = 0,
        frame_every: int = 1,
        on_episode: Callable[[Episode], None] = lambda episode: None,
    ) -> list[Episode]:
        """Run ``episodes`` episodes to their end, in order of their number.

        Args:
            policy: see `Policy`.
            episodes: how many, at least 1.
            seed: with an episode's number, it decides everything in an episode but the policy.
            frames: record the first so many episodes (call `headless_gl` before).
            frame_every: record every so many steps.
            on_episode: told about every episode when it ends.

        Returns:
            The episodes, in order of their number.

        Raises:
            RuntimeError: an environment failed or a worker died.
        """
        try:
            return self._run(policy, episodes, seed, frames, frame_every, on_episode)
        except BaseException:
            self.close()  # Workers may hold half-done work; the next run starts fresh ones.
            raise

    def _run(
        self,
        policy: Policy,
        episodes: int,
        seed: int,
        frames: int,
        frame_every: int,
        on_episode: Callable[[Episode], None],
    ) -> list[Episode]:
        slots = min(episodes, self._slots)
        self._start(slots)
        running = [Progress(i, episode_seed(seed, i)) for i in range(slots)]
        waiting = iter(range(slots, episodes))
        every = [frame_every if i < frames else 0 for i in range(episodes)]
        self._reset(running, range(slots), every)
        active, finished = list(range(slots)), []
        while active:
            observations = np.stack([p.observation for p in running])
            actions = policy(observations, [p.index for p in running])
            chunks = self._exchange("execute", [(slot, actions[slot]) for slot in active])
            over = []
            for slot, chunk in zip(active, chunks, strict=True):
                running[slot].add(chunk)
                if chunk.done:
                    finished.append(running[slot].episode(chunk.success))
                    on_episode(finished[-1])
                    over.append(slot)
            restarted = []
            for slot in over:
                index = next(waiting, None)
                if index is None:
                    active.remove(slot)
                else:
                    running[slot] = Progress(index, episode_seed(seed, index))
                    restarted.append(slot)
            self._reset(running, restarted, every)
        return sorted(finished, key=lambda episode: episode.number)

    def _reset(self, running: list["Progress"], slots: Sequence[int], every: list[int]) -> None:
        requests = [(s, running[s].seed, every[running[s].index]) for s in slots]
        for slot, answer in zip(slots, self._exchange("reset", requests), strict=True):
            running[slot].observation, running[slot].frames = answer

    def _exchange(self, verb: str, requests: list) -> list:
        """Has every request served by the rank that has its slot; the answers in their order."""
        if not requests:
            return []
        rank, ranks, gather = self._share
        mine: list | Exception
        try:
            mine = self._serve(verb, [r for r in requests if r[0] % ranks == rank])
        except Exception as error:  # the others wait for an answer too
            mine = error
        gathered = gather(mine)
        for answers in gathered:
            if isinstance(answers, Exception):
                raise answers
        parts = [iter(answers) for answers in gathered]
        return [next(parts[slot % ranks]) for slot, *_ in requests]

    def _serve(self, verb: str, requests: list) -> list:
        """One message to every worker concerned, one answer each, in the order of requests."""
        shares: dict[int, list[int]] = {}
        for position, (slot, *_) in enumerate(requests):
            worker = slot // self._share.ranks % len(self._workers)
            shares.setdefault(worker, []).append(position)
        for worker, positions in shares.items():
            self._workers[worker].send(verb, [requests[p] for p in positions])
        answers: list = [None] * len(requests)
        for worker, positions in shares.items():
            for position, answer in zip(positions, self._workers[worker].receive(), strict=True):
                answers[position] = answer
        return answers

    def _start(self, slots: int) -> None:
        if not self._workers:
            kind = ProcessWorker if self._wanted else LocalWorker
            mine = len(range(self._share.rank, slots, self._share.ranks))
            count = max(1, min(self._wanted, mine))
            self._workers = [kind(*self._settings) for _ in range(count)]

    def close(self) -> None:
        """End the workers; `run` may still be called and starts new ones."""
        workers, self._workers = self._workers, []
        for worker in workers:
            worker.close()

    def __enter__(self) -> Self:
        """Use as a context manager."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the pool."""
        self.close()


class Progress:
    """An episode under way."""

    def __init__(self, index: int, seed: int):
        """Before the first observation."""
        self.index, self.seed = index, seed
        self.observation = np.empty(0, np.float32)
        self.frames: list[np.ndarray] = []
        self._return, self._length = 0.0, 0

    def add(self, chunk: Chunk) -> None:
        """Take in what a chunk brought."""
        self.observation = chunk.observations[-1]
        self.frames += chunk.frames
        self._return += float(chunk.rewards.sum(dtype=np.float64))
        self._length += len(chunk.rewards)

    def episode(self, success: float) -> Episode:
        """The finished episode."""
        return Episode(self.index, self.seed, success, self._return, self._length, self.frames)


def run_episodes(
    env: str,
    task: int,
    sparse: bool,
    policy: Policy,
    episodes: int,
    seed: int,
    workers: int | None = None,
    frames: int = 0,
    frame_every: int = 1,
) -> list[Episode]:
    """Run episodes once, with workers that live only as long; see `RolloutPool`."""
    with RolloutPool(env, task, sparse, workers) as pool:
        return pool.run(policy, episodes, seed, frames, frame_every)
