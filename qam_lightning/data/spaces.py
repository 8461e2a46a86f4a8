"""The sizes that a method takes from its environment."""

from typing import NamedTuple


class Spaces(NamedTuple):
    """Sizes of observations, actions and action chunks.

    Attributes:
        obs_dim: O >= 1, the size of an observation.
        action_dim: A >= 1, the size of one environment step's action.
        horizon: H >= 1, environment steps per action chunk.
    """

    obs_dim: int
    action_dim: int
    horizon: int = 1

    @property
    def chunk_dim(self) -> int:
        """D = H · A, the size of a flattened action chunk."""
        return self.horizon * self.action_dim
