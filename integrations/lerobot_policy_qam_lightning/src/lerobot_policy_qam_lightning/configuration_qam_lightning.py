"""The configuration: ``config.json`` of an exported folder, as LeRobot reads it."""

from dataclasses import dataclass, field
from typing import Any

from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.utils.constants import ACTION, OBS_STATE

TRAINED_ELSEWHERE = (
    "policies of qam_lightning are trained with qam_lightning and exported with its train.py "
    "export; LeRobot can only run them"
)


@PreTrainedConfig.register_subclass("qam_lightning")
@dataclass
class QAMLightningConfig(PreTrainedConfig):
    """What an exported folder says of its policy, and how LeRobot is to run it.

    The observation is that of ``input_features``, one after the other; by default it is
    ``observation.state`` alone.

    Attributes:
        device: where LeRobot puts observations; the policy itself runs on the CPU.
        n_action_steps: actions of a chunk that are executed before the next chunk is sampled, 1 to
            H; all H by default, as in training.
        seed: of the policy's noise, at least 0.
        threads: of onnxruntime, at least 1.
    """

    device: str | None = "cpu"
    n_action_steps: int | None = None
    seed: int = 0
    threads: int = 1

    # The rest is what the exporter wrote. LeRobot refuses a file with keys that are not here.
    format: int | None = None
    method: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    spaces: dict[str, int] = field(default_factory=dict)
    noise: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    control_period: float | None = None
    training: dict[str, Any] = field(default_factory=dict)
    score: dict[str, Any] | None = None
    versions: dict[str, str] = field(default_factory=dict)
    exported_with: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.spaces:
            return  # of no folder, which the policy refuses
        horizon = self.spaces["horizon"]
        self.n_action_steps = horizon if self.n_action_steps is None else self.n_action_steps
        if not 1 <= self.n_action_steps <= horizon:
            raise ValueError(f"n_action_steps is {self.n_action_steps}, expected 1 to {horizon}")
        state, action = (self.spaces["obs_dim"],), (self.spaces["action_dim"],)
        self.input_features = self.input_features or {
            OBS_STATE: PolicyFeature(FeatureType.STATE, state)
        }
        self.output_features = self.output_features or {
            ACTION: PolicyFeature(FeatureType.ACTION, action)
        }

    @property
    def chunk_size(self) -> int:
        """H, the actions of a chunk."""
        return self.spaces["horizon"]

    def validate_features(self) -> None:
        """Check the sizes of observations and actions.

        Raises:
            ValueError: they are not the policy's.
        """
        shapes = {name: feature.shape for name, feature in self.input_features.items()}
        flat = all(len(shape) == 1 for shape in shapes.values())
        if not flat or sum(shape[0] for shape in shapes.values()) != self.spaces["obs_dim"]:
            raise ValueError(
                f"the policy observes {self.spaces['obs_dim']} numbers, found input_features "
                f"{shapes}; name those that it was trained with"
            )
        action = self.action_feature
        if action is None or tuple(action.shape) != (self.spaces["action_dim"],):
            found = None if action is None else tuple(action.shape)
            raise ValueError(
                f"the policy's actions have shape {(self.spaces['action_dim'],)}, those of the "
                f"environment or robot {found}"
            )

    @property
    def observation_delta_indices(self) -> None:
        """None: the policy sees the newest observation only."""
        return None

    @property
    def action_delta_indices(self) -> list[int]:
        """The H actions of a chunk."""
        return list(range(self.chunk_size))

    @property
    def reward_delta_indices(self) -> None:
        """None: LeRobot does not train it."""
        return None

    def get_optimizer_preset(self) -> Any:
        """Refuse to train.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(TRAINED_ELSEWHERE)

    def get_scheduler_preset(self) -> Any:
        """Refuse to train.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(TRAINED_ELSEWHERE)
