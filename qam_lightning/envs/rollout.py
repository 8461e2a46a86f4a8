"""Rollouts: the policy is asked for H actions, they are executed open loop, and so on.

Episode i is a function of (seed, i), the policy and the number of environments, to the bit. It
depends neither on the number of workers or ranks nor on that of episodes: the policy's batch always
has a row for every environment, and all environments proceed in step, so that every row of every
batch is the same whoever simulates it. gymnasium's `AsyncVectorEnv` is not used: its spawned
processes import the main script again, which then needs a ``__main__`` guard, and a process that
dies is an `EOFError` without a cause. It also needs a process for every environment, where here a
few workers serve any number of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np

from qam_lightning.envs.chunked import Chunk, EnvSettings, Execute, Reset
from qam_lightning.envs.make import env_id
from qam_lightning.envs.worker import PROCESS_BYTES, LocalWorker, ProcessWorker, Request, Worker
from qam_lightning.envs.worker import WorkerError as WorkerError  # what `run` raises
from qam_lightning.util.devices import available_cores
from qam_lightning.util.errors import require, shown
from qam_lightning.util.memory import check_memory
from qam_lightning.util.rng import Stream, seed_of

MOST_ENVS = 10_000
"""More environments at once are taken for a mistake."""

Policy = Callable[[np.ndarray, list[int]], np.ndarray]
"""``policy(observations (N, O) float32, episodes) -> actions (N, H, A)``; row j acts for
``episodes[j]``. N is the number of environments at every call. Actions are ignored in rows whose
episode has ended, which keep its last observation, and in rows that never had one, where there are
fewer episodes than environments: these hold zeros, and their numbers are those of no episode.
"""


class Episode(NamedTuple):
    """One finished episode.

    Attributes:
        number: i, counted from 0.
        seed: the environment's reset seed, see `episode_seed`.
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


def episode_seed(seed: int, number: int) -> int:
    """The reset seed (32 bits) of an evaluation's episode."""
    return seed_of(seed, Stream.EVALUATION_EPISODE, number) % 2**32


class Share(NamedTuple):
    """This program's part, where several programs roll out the same episodes together.

    Each runs the same policy on all rows, but simulates its share of the environments only: slot j
    belongs to rank j mod ``ranks``. So the episodes are those of one program, to the bit.

    Attributes:
        rank: this program's number.
        ranks: number of programs.
        gather: ``gather(mine)`` gives every rank's value, in the order of ranks; all call it at
            once.
    """

    rank: int
    ranks: int
    gather: Callable[[Any], list[Any]]


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
        num_envs: int = 8,
        render_size: tuple[int, int] = (320, 240),
        share: Share | None = None,
    ):
        """Describe the pool.

        Args:
            env: environment name, see `make_env`.
            task: 1 to 5.
            sparse: sparse rewards, see `make_env`.
            workers: processes; 0 runs everything in this one; None takes all cores. Results do not
                depend on it.
            num_envs: environments to run at once, 1 to 10,000. It is the number of rows of the
                policy's batch, also where there are fewer episodes.
            render_size: (width, height) of recorded frames.
            share: this program's part, where several roll out together.

        Raises:
            ArgumentError: unknown environment or task, or a number out of range.
        """
        env_id(env, task)
        require(workers is None or workers >= 0, RolloutPool, "workers", workers, "at least 0")
        expected = f"1 to {MOST_ENVS}"
        require(1 <= num_envs <= MOST_ENVS, RolloutPool, "num_envs", num_envs, expected)
        many = f"is {shown(workers)}: so many processes"
        self._wanted = available_cores() if workers is None else workers
        count = min(self._wanted, num_envs)
        check_memory(count * PROCESS_BYTES, RolloutPool, "workers", many)
        self._settings = EnvSettings(env, task, sparse, render_size)
        self._num_envs = num_envs
        self._share = share
        self._rank, self._ranks = (0, 1) if share is None else share[:2]
        self.workers: list[Worker] = []

    def run(
        self,
        policy: Policy,
        episodes: int,
        seed: int,
        frames: int = 0,
        frame_every: int = 1,
        on_episode: Callable[[Episode], None] = lambda episode: None,
    ) -> list[Episode]:
        """Run episodes to their end.

        Args:
            policy: see `Policy`.
            episodes: how many, at least 1.
            seed: with an episode's number, it decides everything in an episode but the policy.
            frames: record the first so many episodes (call `headless_gl` before).
            frame_every: record every so many steps.
            on_episode: told about every episode when it ends.

        Returns:
            The episodes, in the order of their numbers.

        Raises:
            UserError: the environment cannot be made, or draws no frames although some are wanted.
            WorkerError: an environment failed in its process, or the process died.
        """
        try:
            every = [frame_every if i < frames else 0 for i in range(episodes)]
            return self._run(policy, every, seed, on_episode)
        except BaseException:
            self.close()  # workers may hold half-done work; the next run starts fresh ones
            raise

    def _run(
        self, policy: Policy, every: list[int], seed: int, on_episode: Callable[[Episode], None]
    ) -> list[Episode]:
        """Run ``len(every)`` episodes; ``every[i]`` is the ``frame_every`` of episode i."""
        episodes = len(every)
        running = [_Running(i, episode_seed(seed, i)) for i in range(self._num_envs)]
        following = min(episodes, self._num_envs)
        active, finished = list(range(following)), []
        self._start(following)
        self._reset(running, active, every)
        for idle in running[following:]:
            idle.observation = np.zeros_like(running[0].observation)
        while active:
            observations = np.stack([episode.observation for episode in running])
            actions = policy(observations, [episode.number for episode in running])
            chunks = self._exchange([Execute(slot, actions[slot]) for slot in active])
            over = []
            for slot, chunk in zip(active, chunks, strict=True):
                running[slot].add(chunk)
                if chunk.done:
                    finished.append(running[slot].finish(chunk.success))
                    on_episode(finished[-1])
                    over.append(slot)
            restarted = over[: episodes - following]
            for slot in restarted:
                running[slot] = _Running(following, episode_seed(seed, following))
                following += 1
            active = [slot for slot in active if slot not in over or slot in restarted]
            self._reset(running, restarted, every)
        return sorted(finished, key=lambda episode: episode.number)

    def _reset(self, running: list["_Running"], slots: Sequence[int], every: list[int]) -> None:
        """Start the episodes that ``running`` has in these slots."""
        requests = [Reset(s, running[s].seed, every[running[s].number]) for s in slots]
        for slot, answer in zip(slots, self._exchange(requests), strict=True):
            running[slot].observation, running[slot].frames = answer

    def _exchange(self, requests: Sequence[Request]) -> list[Any]:
        """Let the ranks serve the requests of their slots; return all answers, in order."""
        if self._share is None or not requests:
            return self._serve(requests)
        mine: list | Exception
        try:
            mine = self._serve([r for r in requests if r.slot % self._ranks == self._rank])
        except Exception as error:  # the other ranks wait for an answer too
            mine = error
        gathered = self._share.gather(mine)
        for answers in gathered:
            if isinstance(answers, Exception):
                raise answers
        parts = [iter(answers) for answers in gathered]
        return [next(parts[request.slot % self._ranks]) for request in requests]

    def _serve(self, requests: Sequence[Request]) -> list[Any]:
        """Let this rank's workers serve requests; return the answers, in order."""
        owners = [r.slot // self._ranks % len(self.workers) for r in requests]
        for number, worker in enumerate(self.workers):
            if work := [r for r, owner in zip(requests, owners, strict=True) if owner == number]:
                worker.send(work)
        return [self.workers[owner].receive() for owner in owners]

    def _start(self, slots: int) -> None:
        if not self.workers:
            kind = ProcessWorker if self._wanted else LocalWorker
            mine = len(range(self._rank, slots, self._ranks))
            count = max(1, min(self._wanted, mine))
            self.workers = [kind(self._settings) for _ in range(count)]

    def close(self) -> None:
        """End the workers; `run` may still be called and starts new ones."""
        workers, self.workers = self.workers, []
        for worker in workers:
            worker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


@dataclass
class _Running:
    """An episode under way; see `Episode` for the attributes."""

    number: int
    seed: int
    observation: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))
    frames: list[np.ndarray] = field(default_factory=list)
    total: float = 0.0
    length: int = 0

    def add(self, chunk: Chunk) -> None:
        self.observation = chunk.observations[-1]
        self.frames += chunk.frames
        self.total += float(chunk.rewards.sum(dtype=np.float64))
        self.length += len(chunk.rewards)

    def finish(self, success: float) -> Episode:
        return Episode(self.number, self.seed, success, self.total, self.length, self.frames)
