"""The DataModule: a dataset, with the rewards of one task, as an endless stream of batches."""

import functools
import json
import math
from pathlib import Path
from typing import Literal

import gymnasium
import lightning as L
import numpy as np
import ogbench.utils
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from qam_lightning.data.batch import Batch
from qam_lightning.data.batches import Batches
from qam_lightning.data.chunks import ChunkStorage, sample_indices
from qam_lightning.data.convert import ensure_store
from qam_lightning.data.download import fetch
from qam_lightning.data.environment import file_layout, is_ogbench, make_task_env
from qam_lightning.data.labels import task_labels
from qam_lightning.data.minari import import_minari
from qam_lightning.data.replay import Mixture
from qam_lightning.data.source import Source, official, own
from qam_lightning.data.spaces import Spaces
from qam_lightning.data.store import PHYSICAL_MEMORY, Store, read_singly
from qam_lightning.util.errors import UserError
from qam_lightning.util.provenance import mismatches


class OGBenchData(L.LightningDataModule):
    """Batches of action chunks from a dataset of OGBench's or in its format."""

    def __init__(
        self,
        env: str,
        dataset: str = "play",
        task: int = 1,
        horizon: int = 5,
        discount: float = 0.99,
        sparse: bool = False,
        batch_size: int = 256,
        fraction: float = 1.0,
        directory: str = ogbench.utils.DEFAULT_DATASET_DIR,
        base_url: str | None = None,
        path: str | None = None,
        store: str | None = None,
        keep: Literal["disk", "memory", "device"] = "disk",
        prefetch: int = 4,
        seed: int = 0,
    ):
        """Only notes the settings; nothing is read before ``prepare_data`` and ``setup``.

        Args:
            env: OGBench environment, such as ``cube-triple``, ``scene`` or ``antmaze-large``; or a
                gymnasium id, for data of your own.
            dataset: Kind of dataset: ``play``, ``noisy``, ``navigate``, ``stitch``, ``play-100m``
                and so on.
            task: Task of the environment, 1 to 5, whose rewards the dataset is given.
            horizon: Environment steps per action chunk, H.
            discount: Discount γ per environment step, in [0, 1].
            sparse: Map every reward but 0 to -1.
            batch_size: Chunks per gradient step, over all processes together.
            fraction: Share of the dataset to use, in whole trajectories from its beginning.
            directory: Where the dataset files are, or are downloaded to.
            base_url: Where to download missing files from; the environment variable QAM_DATA_URL,
                or OGBench's own host, if not given.
            path: Your own npz file or folder of them, instead of one of OGBench's datasets; or
                ``minari:ID``, a Minari dataset.
            store: Folder for the memory-mapped copies; beside the files if not given.
            keep: Where the dataset is kept while training: on disk, mapped into memory; copied into
                memory; or copied to the device that trains.
            prefetch: Batches made ahead of the learner.
            seed: Determines, with the gradient step, which chunks are drawn.

        Raises:
            UserError: A number out of range.
        """
        super().__init__()
        self.save_hyperparameters()
        self.env, self.dataset, self.task = env, dataset, task
        self.horizon, self.discount, self.sparse = horizon, discount, sparse
        self.batch_size, self.fraction, self.seed = batch_size, fraction, seed
        self.directory, self.base_url = directory, base_url
        self.path, self.store, self.keep, self.prefetch = path, store, keep, prefetch
        self.train: ChunkStorage | None = None
        self.online: Mixture | None = None  # set by whoever acts
        lowest = {"task": 1, "horizon": 1, "batch_size": 1, "seed": 0, "prefetch": 0}
        for key, least in lowest.items():
            if getattr(self, key) < least:
                raise UserError(f"data.{key} is {getattr(self, key)}, expected at least {least}")
        if not 0.0 <= discount <= 1.0:
            raise UserError(f"data.discount is {discount}, expected a number from 0 to 1")
        if not 0.0 < fraction <= 1.0:
            raise UserError(f"data.fraction is {fraction}, expected a number above 0, at most 1")

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
    def spaces(self) -> Spaces:
        """The sizes of observations, actions and chunks."""
        return Spaces(self.obs_dim, self.action_dim, self.horizon)

    @property
    def num_transitions(self) -> int:
        """Training transitions; available after ``setup``."""
        return self._storage.num_transitions

    @property
    def _storage(self) -> ChunkStorage:
        if self.train is None:
            raise RuntimeError("the dataset is not loaded yet: call setup('fit') first")
        return self.train

    def source(self, validation: bool = False) -> Source | None:
        """Where the files and the store are; None where there is no such part.

        Args:
            validation: The validation part instead of the training part.

        Raises:
            UserError: There is nothing at ``path``, or no OGBench data of this environment.
        """
        if self.path is not None:
            return own(import_minari(self.path, self.directory), self.store, validation)
        if not is_ogbench(self.env):
            raise UserError(f"data.env {self.env} is not OGBench's: give your data as data.path")
        return official(
            self.env, self.dataset, self.directory, self.store, self.base_url, validation
        )

    def open_store(self, validation: bool = False) -> Store | None:
        """Opens the dataset's store, fetching and converting the files if need be.

        Args:
            validation: The validation part instead of the training part.

        Raises:
            UserError: Files can be neither found nor fetched, or are damaged or another's.
        """
        layout = file_layout(self._task_env)
        source = self.source(validation)
        if source is None:
            return None
        if source.url is not None:
            fetch(source, layout, self.env, self.dataset)
        for path in source.files[:1]:
            for difference in mismatches(_recorded_versions(path.with_suffix(".json"))):
                rank_zero_warn(f"{path.name}: {difference}")
        return ensure_store(source.files, source.store, layout)

    def labels(self, store: Store) -> tuple[np.ndarray, np.ndarray]:
        """Rewards and masks (N,) of the task: from the states, or as the files give them."""
        if is_ogbench(self.env):
            return task_labels(store, self.env, self.task, self._task_env)
        return store.array("rewards"), store.array("masks")

    def prepare_data(self) -> None:
        """Fetches, converts and labels the training data, in one process only.

        Raises:
            UserError: See `open_store`.
        """
        store = self.open_store()
        if store is not None:
            self.labels(store)

    def setup(self, stage: str) -> None:
        """Maps the training data.

        Args:
            stage: Only ``"fit"`` needs data.

        Raises:
            UserError: A file is damaged or belongs to another environment.
        """
        if stage == "fit" and self.train is None:
            self.train = self._load()

    @functools.cached_property
    def validation(self) -> ChunkStorage | None:
        """The validation part, read when first asked for; None if there is none."""
        return self._load(validation=True)

    def _load(self, validation: bool = False) -> ChunkStorage | None:
        store = self.open_store(validation)
        if store is None:
            return None
        ends = store.ends[: max(1, round(self.fraction * len(store.ends)))]
        rows = int(ends[-1]) + 1
        transitions = rows - len(ends)
        if self.horizon > transitions:
            raise UserError(
                f"{store.folder} holds {transitions} transitions, too few for data.horizon "
                f"{self.horizon}"
            )
        arrays = (store.array("actions"), *self.labels(store))
        actions, rewards, masks = (array[:transitions] for array in arrays)
        observations = store.array("observations")[:rows]
        size = sum(array.nbytes for array in (observations, *arrays))
        if self.keep == "disk" and size > PHYSICAL_MEMORY / 2:
            read_singly((observations, *arrays))
        made = ChunkStorage(
            observations,
            actions,
            ends,
            rewards,
            masks,
            horizon=self.horizon,
            discount=self.discount,
            sparse=self.sparse,
            device=self._device(size),
        )
        if not made.num_whole_chunks:
            raise UserError(
                f"{store.folder}: no trajectory is as long as data.horizon {self.horizon}; choose less"
            )
        return made

    def _device(self, size: int) -> torch.device | None:
        """Where the arrays are copied to: nowhere, unless ``keep`` says so and they fit."""
        if self.keep == "disk":
            return None
        device = torch.device("cpu")
        if self.trainer is not None and self.keep == "device":
            device = self.trainer.strategy.root_device
        if device.type not in ("cpu", "cuda"):
            raise UserError(f"data.keep device needs a CUDA accelerator, not {device.type}")
        if device.type == "cuda" and size > (free := torch.cuda.mem_get_info(device)[0]):
            raise UserError(
                f"data.keep device: the dataset takes {size / 1e9:.3g} GB, but {free / 1e9:.3g} GB "
                "are free on the device; use disk"
            )
        return device

    def batch_at(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        """Returns the batch of a gradient step: always the same for the same arguments.

        Args:
            step: Gradient step, at least 0.
            rank: This process among ``world_size``.
            world_size: Number of processes sharing the batch.

        Returns:
            ``batch_size / world_size`` chunks.

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
        mine = slice(rank * share, (rank + 1) * share)
        storage, known = self._storage, self._storage.num_chunks
        if self.online is None or step < self.online.schedule.offline:
            return storage.gather(sample_indices(self.seed, step, self.batch_size, known)[mine])
        whole = self.online.draw(self.seed, step, self.batch_size, known)
        self.online.wait(whole, known)
        return self.online.gather(storage, whole[mine])

    def observation_statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (O,) of the training observations."""
        return self._storage.observation_statistics()

    def train_dataloader(self) -> Batches:
        """An endless iterable of batches that starts at the model's gradient step."""
        assert self.trainer is not None
        resident = self.keep == "device"
        cuda = self.trainer.strategy.root_device.type == "cuda"
        ahead = 0 if resident else self.prefetch
        until = self.online.schedule.offline if self.online else math.inf
        return Batches(self.batch_at, self.trainer, ahead, cuda and not resident, until)


def _recorded_versions(record: Path) -> dict[str, str]:
    """What `generate` wrote beside its data; nothing if this is no such file."""
    try:
        return dict(json.loads(record.read_text())["versions"])
    except (OSError, ValueError, TypeError, LookupError):
        return {}
