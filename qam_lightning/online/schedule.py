"""How long a run is, and when environment steps are taken, counted in gradient steps."""

from collections.abc import Mapping
from typing import Any, NamedTuple, Self


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


class Length(NamedTuple):
    """How long a run is.

    Attributes:
        gradient_steps: of the offline phase, ``trainer.max_steps``; 0 if the method has none.
        env_steps: of the online phase, ``online.steps``.
        updates: gradient steps of the online phase.
    """

    gradient_steps: int = 0
    env_steps: int = 0
    updates: int = 0

    @classmethod
    def of(cls, settings: Mapping[str, Any], offline: int | None = None) -> Self:
        """Return how long a run with a resolved configuration is; 0 steps if it is empty.

        Args:
            settings: the configuration.
            offline: gradient steps of the offline phase if they are not ``trainer.max_steps``.
        """
        keys = ("learning_starts", "steps", "utd_ratio")
        schedule = Schedule(0, *(_steps(settings.get("online"), key) for key in keys))
        if offline is None:
            offline = _steps(settings.get("trainer"), "max_steps")
        return cls(offline, schedule.steps, max(0, schedule.gradient_steps))

    def is_reached(self, gradient_step: int, env_step: int) -> bool:
        """Whether a run that has taken so many steps is finished; False if the length is 0."""
        updated = gradient_step >= self.gradient_steps + self.updates
        return any(self) and updated and env_step >= self.env_steps


def _steps(section: Any, key: str) -> int:
    found = section.get(key) if isinstance(section, dict) else None
    return found if type(found) is int else 0
