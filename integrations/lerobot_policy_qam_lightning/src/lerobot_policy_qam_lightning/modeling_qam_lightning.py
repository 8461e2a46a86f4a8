"""The policy: an exported folder that acts on LeRobot's batches."""

from collections import deque
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import snapshot_download
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.pretrained import PreTrainedPolicy
from torch import Tensor

from lerobot_policy_qam_lightning.configuration_qam_lightning import (
    TRAINED_ELSEWHERE,
    QAMLightningConfig,
)


class QAMLightningPolicy(PreTrainedPolicy):
    """Runs the ONNX graph of an exported folder with onnxruntime. It has no parameters of torch's.

    B is the batch, H the chunk, A the action's size.

    Args:
        config: the configuration.
        folder: the exported folder; that of the configuration by default.

    Raises:
        ValueError: there is no folder, or observations or actions have other sizes.
        qam_lightning.UserError: the folder is damaged.
    """

    config_class = QAMLightningConfig
    name = "qam_lightning"

    def __init__(
        self, config: QAMLightningConfig, folder: str | Path | None = None, **_: Any
    ) -> None:
        super().__init__(config)
        folder = folder or config.pretrained_path
        if folder is None or not config.spaces:
            raise ValueError(f"{TRAINED_ELSEWHERE}; name the folder with --policy.path")
        try:
            from qam_lightning.runtime import ExportedPolicy
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"the policy needs {error.name}; see the installation in the plugin's README"
            ) from None
        config.validate_features()
        self._exported = ExportedPolicy(folder, seed=config.seed, threads=config.threads)
        self._left: deque[Tensor] = deque()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_name_or_path: str | Path,
        *,
        config: PreTrainedConfig | None = None,
        force_download: bool = False,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        **kwargs: Any,
    ) -> Self:
        """Load an exported folder, or a repository of one on the hub; see LeRobot's base class."""
        folder = Path(pretrained_name_or_path)
        if not folder.is_dir():
            folder = Path(
                snapshot_download(
                    str(pretrained_name_or_path),
                    revision=revision,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    token=token,
                    local_files_only=local_files_only,
                    allow_patterns=["config.json", "policy.onnx"],
                )
            )
        config = config or PreTrainedConfig.from_pretrained(folder)
        return cls(config, folder, **kwargs).eval()

    def reset(self) -> None:
        """Begin an episode: forget the current chunks, and take the next stream of noise."""
        self._exported.reset()
        self._left.clear()

    def select_action(self, batch: dict[str, Tensor], **kwargs: Any) -> Tensor:
        """Return the actions (B, A) in [-1, 1]; every ``n_action_steps`` calls sample chunks."""
        if not self._left:
            chunks = self.predict_action_chunk(batch, **kwargs)
            self._left.extend(chunks[:, : self.config.n_action_steps].unbind(1))
        return self._left.popleft()

    def predict_action_chunk(
        self, batch: dict[str, Tensor], noise: Tensor | None = None, **_: Any
    ) -> Tensor:
        """Return chunks of actions (B, H, A).

        Args:
            batch: observations (B, n) as the environment gives them: normalisation is inside.
            noise: standard normal numbers (B, N, P), see `qam_lightning.runtime`; drawn if left
                out.

        Raises:
            ValueError: the batch lacks an observation.
        """
        wanted = self.config.input_features
        if lacking := [name for name in wanted if name not in batch]:
            found = ", ".join(name for name in batch if name.startswith("observation"))
            raise ValueError(
                f"the policy observes {lacking[0]}, found {found or 'no observations'}; rename one "
                "(--rename_map), or name others (input_features)"
            )
        states = torch.cat([batch[name] for name in wanted], -1)
        given = None if noise is None else noise.cpu().numpy()
        chunks = self._exported.predict_action_chunk(states.cpu().numpy(), given)
        return torch.from_numpy(chunks).to(states.device)

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict | None]:
        """Refuse to train.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(TRAINED_ELSEWHERE)

    def get_optim_params(self) -> dict:
        """Refuse to train.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(TRAINED_ELSEWHERE)

    def _save_pretrained(self, save_directory: Path) -> None:
        raise NotImplementedError("copy the exported folder instead, it is the policy")
