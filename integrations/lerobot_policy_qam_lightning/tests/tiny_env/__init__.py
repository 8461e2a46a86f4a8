"""An environment for ``lerobot-eval`` that fits the tiny policy: three positions, two speeds."""

from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig

EPISODE = 10


class TinyEnv(gym.Env):
    """The first two positions move by the action; after `EPISODE` steps the episode succeeds."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    observation_space = gym.spaces.Dict({"agent_pos": gym.spaces.Box(-np.inf, np.inf, (3,))})
    action_space = gym.spaces.Box(-1.0, 1.0, (2,))
    _max_episode_steps = EPISODE

    def __init__(self, **_: Any) -> None:
        self.render_mode = "rgb_array"

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self._position = self.np_random.normal(size=3).astype(np.float32)
        self._steps = 0
        return {"agent_pos": self._position.copy()}, {"is_success": False}

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        self._position[:2] += 0.1 * action
        self._steps += 1
        done = self._steps == EPISODE
        reward = -float(np.abs(self._position).sum())
        return {"agent_pos": self._position.copy()}, reward, done, False, {"is_success": done}

    def render(self) -> np.ndarray:
        return np.zeros((64, 64, 3), np.uint8)


gym.register("tiny_env/reach", TinyEnv)


@EnvConfig.register_subclass("tiny")
@dataclass
class TinyEnvConfig(EnvConfig):
    """The environment for LeRobot."""

    task: str | None = "reach"
    features: dict[str, PolicyFeature] = field(
        default_factory=lambda: {
            "action": PolicyFeature(FeatureType.ACTION, (2,)),
            "agent_pos": PolicyFeature(FeatureType.STATE, (3,)),
        }
    )
    features_map: dict[str, str] = field(
        default_factory=lambda: {"action": "action", "agent_pos": "observation.state"}
    )

    @property
    def package_name(self) -> str:
        return "tiny_env"

    @property
    def gym_kwargs(self) -> dict:
        return {}
