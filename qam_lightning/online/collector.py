"""Taking environment steps in turns, on one process or several."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from qam_lightning.online.actor import Act, EnvActor
from qam_lightning.online.replay import Replay
from qam_lightning.online.statistics import EpisodeStatistics


class Collector:
    """Takes environment steps with a policy and appends them to the replay.

    On several processes each has a collector with the same replay, and all make the same calls.

    Attributes:
        steps: Environment steps begun so far. The replay holds all of them but perhaps the latest.
        statistics: Results of the steps that were followed by another.
        mid_step: Whether a step is being taken; after a failure, whether one was left half done.
    """

    def __init__(
        self,
        act: Act,
        actors: Mapping[int, EnvActor],
        replay: Replay,
        broadcast: Callable[[Any, int], Any],
    ) -> None:
        """Start with the replay's rows.

        Args:
            act: The policy, see `Act`.
            actors: This process's environments by number; numbers are those below
                ``replay.num_envs``.
            replay: Where steps go.
            broadcast: ``broadcast(value, number)`` returns, on all processes, the value that the
                process of environment ``number`` gave; the others gave None.
        """
        self.act, self.actors, self.replay, self.broadcast = act, actors, replay, broadcast
        self.steps, self.statistics, self.mid_step = replay.count, EpisodeStatistics(), False

    def advance(self) -> None:
        """Finish the step that was begun last, and begin the next one.

        Raises:
            WorkerError: Environments keep dying.
            UserError: The replay cannot be written.
        """
        with self._stepping():
            self._receive()
            for n in range(self.statistics.rows, self.replay.count):
                self.statistics.update(self.replay.rows[n], n % self.replay.num_envs)
            number = self.steps % self.replay.num_envs
            if number in self.actors:
                self.actors[number].begin(self.act, self.steps + 1)
            self.steps += 1

    def receive(self) -> None:
        """Append the step that was begun last, if that was not done yet.

        Raises:
            WorkerError: Environments keep dying.
            UserError: The replay cannot be written.
        """
        with self._stepping():
            self._receive()

    def wait(self, count: int) -> None:
        """Return when the replay holds ``count`` rows, at most `steps`."""
        while self.replay.count < count:
            self.receive()

    def state_dict(self) -> dict[str, Any]:
        """Finish the latest step, force all to disk, and return what `restore` needs."""
        self.receive()
        self.replay.sync()
        states = []
        for number in range(self.replay.num_envs):
            actor = self.actors.get(number)
            states.append(self.broadcast(actor and actor.state_dict(), number))
        return {
            "rows": self.replay.count,
            "crc32": self.replay.crc32,
            "actors": states,
            "statistics": self.statistics.state_dict(),
        }

    def restore(self, state: dict[str, Any], rows: np.ndarray) -> None:
        """Go on from a saved state.

        Args:
            state: What `state_dict` returned.
            rows: The replay's rows then, see `read_rows`.
        """
        self.replay.restore(rows)
        self.steps = self.replay.count
        self.statistics.load_state_dict(state["statistics"])
        for number, actor in self.actors.items():
            own = state["actors"][number]
            actor.restore(own, self.replay.last(number, own["length"]))

    def close(self) -> None:
        """Close this process's environments and the replay."""
        for actor in self.actors.values():
            actor.close()
        self.replay.close()

    def _receive(self) -> None:
        if self.replay.count == self.steps:
            return
        self.replay.reserve()
        number = self.replay.count % self.replay.num_envs
        actor = self.actors.get(number)
        step = actor and actor.take(self.act, self.replay.count + 1)
        self.replay.append(self.broadcast(step, number))

    @contextlib.contextmanager
    def _stepping(self) -> Iterator[None]:
        """Leave `mid_step` set where a failure leaves a step half done."""
        self.mid_step = True
        yield
        self.mid_step = False
