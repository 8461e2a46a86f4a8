"""The DataModule: an OGBench dataset, relabelled for one task, as an endless stream of batches."""

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import lightning as L
import numpy as np
import ogbench.utils
from lightning.pytorch.utilities import rank_zero_warn
from ogbench.relabel_utils import relabel_dataset

from qam_lightning.batch import Batch
from qam_lightning.data.chunks import ChunkStorage, sample_indices
from qam_lightning.data.files import fetch, load_arrays
from qam_lightning.errors import UserError
from qam_lightning.provenance import mismatches


class OGBenchData(L.LightningDataModule):
    """Batches of action chunks from an OGBench dataset, with the rewards of one task."""

    def __init__(
        self,
        env: str,
        dataset: str = "play",
        task: int = 1,
        chunk: int = 5,
        discount: float = 0.99,
        sparse: bool = False,
        batch_size: int = 256,
        directory: str = ogbench.utils.DEFAULT_DATASET_DIR,
        base_url: str = ogbench.utils.DATASET_URL,
        seed: int = 0,
    ):
        """Only notes the settings; nothing is read before ``prepare_data`` and ``setup``.

        Args:
            env: OGBench environment, such as ``cube-triple``, ``scene`` or ``antmaze-large``.
            dataset: Kind of dataset: ``play``, ``noisy``, ``navigate`` and so on.
            task: Task of the environment, 1 to 5, whose rewards the dataset is given.
            chunk: Environment steps per action chunk, H.
            discount: Discount γ per environment step, in [0, 1].
            sparse: Map every reward but 0 to -1.
            batch_size: Chunks per gradient step, over all processes together.
            directory: Where the dataset files are, or are downloaded to.
            base_url: Where to download missing files from.
            seed: Determines, with the gradient step, which chunks are drawn.

        Raises:
            UserError: A number out of range.
        """
        super().__init__()
        self.save_hyperparameters()
        self.env, self.dataset, self.task = env, dataset, task
        self.chunk, self.discount, self.sparse = chunk, discount, sparse
        self.batch_size, self.seed = batch_size, seed
        self.directory, self.base_url = directory, base_url
        self.train: ChunkStorage | None = None
        self.validation: ChunkStorage | None = None
        for key, least in {"task": 1, "chunk": 1, "batch_size": 1, "seed": 0}.items():
            if getattr(self, key) < least:
                raise UserError(f"data.{key} is {getattr(self, key)}, expected at least {least}")
        if not 0.0 <= discount <= 1.0:
            raise UserError(f"data.discount is {discount}, expected a number from 0 to 1")

    @functools.cached_property
    def _task_env(self) -> gymnasium.Env:
        return make_task_env(self.env, self.task)

    @property
    def obs_dim(self) -> int:
        """Size of an observation, O."""
        return self._task_env.observation_space.shape[0]  # type: ignore[index]

    @property
    def action_dim(self) -> int:
        """Size of one environment step's action, A."""
        return self._task_env.action_space.shape[0]  # type: ignore[index]

    @property
    def num_transitions(self) -> int:
        """Training transitions; available after ``setup``."""
        return self._storage.num_transitions

    @property
    def _storage(self) -> ChunkStorage:
        if self.train is None:
            raise RuntimeError("the dataset is not loaded yet: call setup('fit') first")
        return self.train

    def prepare_data(self) -> None:
        """Downloads the files if they are not there.

        Raises:
            UserError: They can be neither found nor downloaded.
        """
        self._files()

    def _files(self) -> tuple[Path, Path]:
        return fetch(self.env, self.dataset, self.directory, self.base_url, self._sizes())

    def setup(self, stage: str) -> None:
        """Loads and relabels the training and validation data.

        Args:
            stage: Only ``"fit"`` needs data.

        Raises:
            UserError: A file is damaged or belongs to another environment.
        """
        if stage != "fit" or self.train is not None:
            return
        train, validation = self._files()
        record = train.with_suffix(".json")
        if record.exists():
            for difference in mismatches(json.loads(record.read_text()).get("versions", {})):
                rank_zero_warn(f"{train.name}: {difference}")
        self.train, self.validation = self._load(train), self._load(validation)

    def _sizes(self) -> dict[str, int]:
        """Expected columns of each array in the file."""
        env = self._task_env.unwrapped
        sizes = {"observations": self.obs_dim, "actions": self.action_dim}
        sizes["qpos"] = env.model.nq  # type: ignore[attr-defined]
        if hasattr(env, "_cur_button_states"):
            sizes["button_states"] = len(env._cur_button_states)
        return sizes

    def _load(self, path: Path) -> ChunkStorage:
        arrays = load_arrays(path, self._sizes())
        rewards, masks = self._relabel(arrays)
        if self.chunk > len(rewards):
            raise UserError(
                f"{path} holds {len(rewards)} transitions, too few for data.chunk {self.chunk}"
            )
        return ChunkStorage(
            observations=arrays["observations"],
            actions=arrays["actions"],
            terminals=arrays["terminals"],
            rewards=rewards,
            masks=masks,
            chunk=self.chunk,
            discount=self.discount,
        )

    def _relabel(self, arrays: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Rewards and masks (N,) of the task, computed by OGBench's own code."""
        transitions = ~arrays["terminals"]
        states = {
            key: arrays[key][transitions] for key in arrays.keys() & {"qpos", "button_states"}
        }
        relabel_dataset(f"{self.env}-singletask-task{self.task}-v0", self._task_env, states)
        rewards = states["rewards"]
        if self.sparse:
            rewards = np.where(rewards != 0, -1.0, 0.0).astype(np.float32)
        return rewards, states["masks"]

    def batch_at(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        """Returns the batch of a gradient step: always the same for the same arguments.

        Args:
            step: Gradient step, at least 0.
            rank: This process among ``world_size``.
            world_size: Number of processes sharing the batch.

        Returns:
            ``batch_size / world_size`` chunks, on the CPU.

        Raises:
            UserError: The batch cannot be shared evenly.
        """
        if self.batch_size % world_size:
            raise UserError(
                f"data.batch_size {self.batch_size} cannot be shared evenly by {world_size} "
                "processes; choose a multiple"
            )
        share = self.batch_size // world_size
        # Every rank draws the whole batch and keeps its share, so that any number of ranks trains
        # on the same chunks.
        whole = sample_indices(self.seed, step, self.batch_size, self._storage.num_chunks)
        return self._storage.gather(whole[rank * share : (rank + 1) * share])

    def train_dataloader(self) -> "Batches":
        """An endless iterable of batches that starts at the model's gradient step."""
        return Batches(self)


class Batches:
    """Batches from the model's gradient step onwards, without end.

    Not a ``DataLoader``: a batch is a handful of look-ups in memory, so worker processes would cost
    more than they save, and without a sampler there is nothing for Lightning to replace.
    """

    def __init__(self, data: OGBenchData):
        """Reads nothing yet; the first step is taken from ``data.trainer`` on iteration."""
        self._data = data

    def __iter__(self) -> Iterator[Batch]:
        """Yields the batch of each gradient step in turn."""
        trainer: Any = self._data.trainer
        step = trainer.lightning_module.gradient_step
        while True:
            yield self._data.batch_at(step, trainer.global_rank, trainer.world_size)
            step += 1


def make_task_env(env: str, task: int) -> gymnasium.Env:
    """Makes an environment's single-task variant, whose reset sets the task's goal.

    Args:
        env: Environment name without dataset or version, such as ``scene``.
        task: Task number.

    Returns:
        The environment.

    Raises:
        UserError: No such state-based environment, or no such task.
    """
    suffix = "-singletask-v0"
    names = [
        name.removesuffix(suffix)
        for name in gymnasium.registry
        if name.endswith(suffix) and not name.startswith("visual-")
    ]
    if env not in names:
        raise UserError(
            f"data.env {env!r} is not a state-based OGBench environment: expected one of "
            f"{', '.join(names)}"
        )
    name = f"{env}-singletask-task{task}-v0"
    if name not in gymnasium.registry:
        raise UserError(f"data.task is {task}, but {env} has tasks 1 to 5")
    return gymnasium.make(name)
