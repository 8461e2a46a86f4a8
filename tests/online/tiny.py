"""An environment of a few lines: a point that is pushed towards the origin and never hits twice."""

import os
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

LIMIT = 7
DEATH = "QAM_TEST_DEATH"
"""Names a file; while it exists, an environment that is stepped takes it away and dies."""

TAKEN = "QAM_TEST_TAKEN"
"""Names a file that grows by a byte with every step."""


class Tiny(gymnasium.Env):
    """Observations (3,), actions (2,); terminates near the origin, mostly runs into its limit."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    observation_space = gymnasium.spaces.Box(-9.0, 9.0, (3,))
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,))

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = self.np_random.uniform(-1, 1, 3)
        return self.state, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        death = Path(os.environ.get(DEATH, "nothing"))
        if death.exists():
            death.unlink()
            os._exit(9)
        if TAKEN in os.environ:
            with open(os.environ[TAKEN], "ab") as file:
                file.write(b".")
        drift = np.array([action[0], action[1], action[0] * action[1]])
        self.state = np.sin(2 * self.state + drift + 0.1 * self.np_random.normal(size=3))
        near = bool(np.abs(self.state[:2]).sum() < 0.7)
        reward = 0.0 if near else -float(1 + (self.state[2] > 0))
        return self.state, reward, near, False, {"success": float(near)}


gymnasium.register("Tiny-v0", Tiny, max_episode_steps=LIMIT)
