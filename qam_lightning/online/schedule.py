"""When environment steps are taken, counted in gradient steps."""

from typing import NamedTuple


class Schedule(NamedTuple):
    """Numbers of gradient steps and environment steps in both phases.

    Attributes:
        offline: Gradient steps on the dataset alone, before the first environment step.
        learning_starts: Environment steps before the first online update.
        steps: Environment steps altogether, more than ``learning_starts``.
        utd_ratio: Updates per environment step from then on.
    """

    offline: int
    learning_starts: int
    steps: int
    utd_ratio: int

    @property
    def gradient_steps(self) -> int:
        """Gradient steps of both phases."""
        return self.offline + (self.steps - self.learning_starts) * self.utd_ratio

    def visible(self, step: int) -> int:
        """Return the environment steps before gradient step ``step`` (from 0), which it may see."""
        if step < self.offline:
            return 0
        updates = step - self.offline
        return min(self.learning_starts + 1 + updates // self.utd_ratio, self.steps)
