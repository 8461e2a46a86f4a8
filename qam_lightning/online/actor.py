"""One environment that collects: its worker, its episode, and the chunk that it executes."""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from qam_lightning.envs.chunked import Chunk, Execute, Reset, RunAhead
from qam_lightning.envs.worker import Worker, WorkerError
from qam_lightning.online.replay import Ending, Step
from qam_lightning.util.rng import Stream, seed_of

ATTEMPTS = 3
"""New environments that are tried for one step before giving up."""

Act = Callable[[np.ndarray, int], np.ndarray]
"""``act(observation (O,) float32, step) -> actions (H, A)``: the chunk that starts with environment
step ``step``, counted from 1 over all environments."""


def reset_seed(seed: int, number: int, episode: int) -> int:
    """The reset seed (32 bits) of an episode, from 0, in environment ``number`` of a run."""
    return seed_of(seed, Stream.ONLINE_EPISODE, number, episode) % 2**32


class EnvActor:
    """One environment, the episode that runs in it, and the chunk that is being executed.

    The worker is sent a whole chunk at once, so one in a process of its own runs ahead through it.
    Where the worker dies, or cannot bring a saved episode back, the episode is discarded and the
    next one begins in a new environment.
    """

    def __init__(self, number: int, seed: int, make: Callable[[], Worker]) -> None:
        """Start nothing yet.

        Args:
            number: The environment's number in the run, which decides its episodes' seeds.
            seed: The run's seed.
            make: Makes a worker, whose slot 0 is this environment.
        """
        self._number, self._seed, self._make = number, seed, make
        self._worker: Worker | None = None
        self._latest: np.ndarray | None = None
        self._chunk: np.ndarray | None = None
        self._executed = 0  # steps of the chunk that were taken
        self.episode, self.length, self._discarded = 0, 0, 0

    def begin(self, act: Act, step: int) -> None:
        """Start environment step ``step`` unless it is already in flight."""
        self._retry(lambda: self._begin(act, step))

    def take(self, act: Act, step: int) -> Step:
        """Wait for environment step ``step``, begun or not, and return it.

        Raises:
            WorkerError: `ATTEMPTS` environments in a row died or failed.
        """
        return self._retry(lambda: self._take(act, step))

    def state_dict(self) -> dict[str, Any]:
        """Return what `restore` needs besides the replay: numbers and lists."""
        return {
            "episode": self.episode,
            "length": self.length,
            "discarded": self._discarded,
            "executed": self._executed,
            "chunk": None if self._chunk is None else self._chunk.tolist(),
        }

    def restore(self, state: dict[str, Any], rows: np.ndarray) -> None:
        """Restore the episode in progress by replaying its actions.

        Args:
            state: What `state_dict` returned.
            rows: The episode's rows so far, ``state["length"]`` of them.
        """
        self.episode, self.length = state["episode"], state["length"]
        self._discarded, self._executed = state["discarded"], state["executed"]
        chunk = state["chunk"]
        self._chunk = np.array(chunk, np.float32) if chunk is not None and self.length else None
        if self.length and not self._replays(rows):
            print(
                f"online: after {self.length} steps the running episode could not be restored, as "
                "the environment no longer does what it did; the episode was discarded",
                file=sys.stderr,
            )
            self.discard()

    def discard(self) -> None:
        """Give the running episode up; its rows stay in the replay."""
        self.close()
        self.episode, self.length, self._chunk = self.episode + 1, 0, None
        self._discarded += 1

    def close(self) -> None:
        """Close the environment; the next step starts a new one."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()

    def _begin(self, act: Act, step: int) -> Worker:
        worker = self._worker or self._reset()
        if self._chunk is None:
            self._chunk, self._executed = act(self._observation(worker), step), 0
            self._run_ahead(worker, self._chunk)
        return worker

    def _take(self, act: Act, step: int) -> Step:
        worker = self._begin(act, step)
        assert self._chunk is not None
        result: Chunk = worker.receive()
        taken = Step(
            observation=self._observation(worker),
            action=self._chunk[self._executed],
            reward=result.rewards[0],
            next_observation=result.observations[0],
            success=result.success,
            first=self.length == 0,
            ending=_ending(result),
            discarded=self._discarded if self.length == 0 else 0,
        )
        self._latest, self._discarded = taken.next_observation, 0
        self.length, self._executed = self.length + 1, self._executed + 1
        if result.done:
            # The first observation of the next episode is on its way.
            self._latest, self.episode, self.length = None, self.episode + 1, 0
        if result.done or self._executed == len(self._chunk):
            self._chunk = None
        return taken

    def _observation(self, worker: Worker) -> np.ndarray:
        """Return the latest observation, waiting for an episode's first one."""
        if self._latest is None:
            self._latest = worker.receive()
        return self._latest

    def _reset(self) -> Worker:
        """Start the episode from its beginning, in a new environment."""
        self.close()
        self._worker = self._make()
        self._worker.send([Reset(0, reset_seed(self._seed, self._number, self.episode))])
        self._latest = self._worker.receive()[0]
        return self._worker

    def _run_ahead(self, worker: Worker, actions: np.ndarray) -> None:
        following = reset_seed(self._seed, self._number, self.episode + 1)
        worker.send([RunAhead(0, actions, following)])

    def _replays(self, rows: np.ndarray) -> bool:
        """Whether the episode's actions lead where they led before, to the bit."""
        try:
            worker = self._reset()
            same = np.array_equal(self._observation(worker), rows["observation"][0])
            worker.send([Execute(0, rows["action"])])
            result: Chunk = worker.receive()
        except WorkerError:
            return False
        same &= np.array_equal(result.observations, rows["next_observation"])
        same &= np.array_equal(result.rewards, rows["reward"]) and not result.done
        self._latest = result.observations[-1]
        if same and self._chunk is not None:
            self._run_ahead(worker, self._chunk[self._executed :])
        return bool(same)

    def _retry(self, attempt: Callable[[], Any]) -> Any:
        """Try again in a new environment where one died or failed."""
        for remaining in reversed(range(ATTEMPTS)):
            try:
                return attempt()
            except WorkerError as error:
                if not remaining:
                    raise
                print(f"online: {error}\nonline: goes on with a new episode", file=sys.stderr)
                self.discard()
        raise AssertionError("unreachable")


def _ending(step: Chunk) -> Ending:
    if step.terminated:
        return Ending.TERMINATED
    return Ending.TRUNCATED if step.truncated else Ending.RUNNING
