"""Results of the episodes that collection finishes."""

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

RECENT = 20
"""Episodes over which results are averaged."""


@dataclass
class EpisodeStatistics:
    """Counts and recent results of episodes, from the rows of the replay in their order.

    Attributes:
        rows: Rows counted so far.
        episodes: Finished episodes.
        discarded: Episodes that were given up, as their environment died or could not be restored.
        recent: Success, return and length of the latest `RECENT` finished episodes.
        running: Return and length so far of the episode in each environment, by its number.
    """

    rows: int = 0
    episodes: int = 0
    discarded: int = 0
    recent: list[list[float]] = field(default_factory=list)
    running: dict[int, list[float]] = field(default_factory=dict)

    def update(self, row: np.void, number: int) -> None:
        """Count the next row of the replay.

        Args:
            row: See `row_type`.
            number: Of the environment that took the step.
        """
        self.rows += 1
        self.discarded += int(row["discarded"])
        total, length = (0.0, 0.0) if row["first"] else self.running[number]
        total, length = total + float(row["reward"]), length + 1
        self.running[number] = [total, length]
        if row["ending"]:
            self.episodes += 1
            self.recent.append([float(row["success"]), total, length])
            del self.recent[:-RECENT]

    def metrics(self) -> dict[str, float]:
        """Return ``online/success``, ``return`` and ``length``, if any, and both counts."""
        names = ("online/success", "online/return", "online/length") if self.recent else ()
        means = np.mean(self.recent, axis=0).tolist() if self.recent else []
        counts = {
            "online/episodes": float(self.episodes),
            "online/discarded": float(self.discarded),
        }
        return {**dict(zip(names, means, strict=True)), **counts}

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` needs: lists and numbers."""
        own = {f.name: getattr(self, f.name) for f in fields(self)}
        return own | {"recent": [list(r) for r in self.recent], "running": dict(self.running)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        for name, value in state.items():
            setattr(self, name, value)
