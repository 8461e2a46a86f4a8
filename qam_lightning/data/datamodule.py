"""The DataModule: a dataset, with the rewards of one task, as an endless stream of batches."""

import functools
from pathlib import Path
from typing import Any, Literal

import gymnasium
import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from qam_lightning.data.batch import Batch
from qam_lightning.data.batches import Batches
from qam_lightning.data.chunks import ChunkStorage
from qam_lightning.data.convert import ensure_store
from qam_lightning.data.download import fetch
from qam_lightning.data.labels import task_labels
from qam_lightning.data.layout import Layout, file_layout
from qam_lightning.data.minari import import_minari
from qam_lightning.data.robomimic import import_robomimic
from qam_lightning.data.sampler import OfflineSampler, Sampler
from qam_lightning.data.source import Source, official, own
from qam_lightning.data.spaces import Spaces
from qam_lightning.data.store import Store, read_singly
from qam_lightning.envs.make import env_id, is_ogbench, make_env, try_env
from qam_lightning.util.errors import ArgumentError, UserError, require, shown
from qam_lightning.util.memory import PHYSICAL_MEMORY, check_memory, gigabytes
from qam_lightning.util.provenance import mismatches
from qam_lightning.util.schema import Schema, Text, read_json

MOST_PREFETCHED = 256
LONGEST = 10_000

_SIZES: dict[str, tuple[int, int]] = {}
"""Sizes of observations and actions of OGBench's environments that this process has made."""


class _Record(Schema, extra="allow"):
    """What ``generate`` wrote beside its data, as far as it matters here."""

    versions: dict[Text, Text]


class ChunkDataModule(L.LightningDataModule):
    """Batches of action chunks from a dataset of OGBench's or in its format.

    ``trainer.fit(method, data)`` trains on the dataset alone. `use_sampler` replaces the source of
    batches, which is how `Online` adds the replay.
    """

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
        directory: str = "~/.ogbench/data",
        base_url: list[str] | str | None = None,
        path: str | None = None,
        store: str | None = None,
        storage: Literal["disk", "memory", "device"] = "disk",
        prefetch: int = 4,
        seed: int = 0,
    ):
        """Note the settings; nothing is read before ``prepare_data`` and ``setup``.

        Args:
            env: OGBench environment, such as ``cube-triple``, ``scene`` or ``antmaze-large``; or a
                gymnasium id, for data of your own.
            dataset: Kind of dataset: ``play``, ``noisy``, ``navigate``, ``stitch``, ``play-100m``,
                ``play-10m`` and so on.
            task: Task of the environment, 1 to 5, whose rewards the dataset is given.
            horizon: Environment steps per action chunk, H, 1 to 10,000.
            discount: Discount γ per environment step, above 0 and at most 1.
            sparse: Map every reward but 0 to -1.
            batch_size: Chunks per gradient step, over all processes together.
            fraction: Share of the dataset to use, in whole trajectories from its beginning.
            directory: Folder of the dataset files; missing ones are downloaded to it.
            base_url: Where to download missing files from: a URL, or several, which are tried in
                order, as a list or with commas between them. ``hf://owner/name`` is a dataset
                repository on the Hugging Face hub. If not given, the environment variable
                QAM_DATA_URL, or OGBench's own host.
            path: Your own npz file or folder of them, instead of one of OGBench's datasets; or
                ``minari:ID``, a Minari dataset; or ``FILE.hdf5``, robomimic's low-dimensional
                data.
            store: Folder for the memory-mapped copies; beside the files if not given.
            storage: Where the dataset is kept while training: on disk, mapped into memory; copied
                into memory; or copied to the device that trains.
            prefetch: Batches made ahead of the learner, 0 to 256.
            seed: Determines, with the gradient step, which chunks are drawn.

        Raises:
            ArgumentError: A number out of range.
        """
        super().__init__()
        self.save_hyperparameters()
        self.env, self.dataset, self.task = env, dataset, task
        self.horizon, self.discount, self.sparse = horizon, discount, sparse
        self.batch_size, self.fraction, self.seed = batch_size, fraction, seed
        self.directory, self.base_url = directory, base_url
        self.path, self.store, self.storage, self.prefetch = path, store, storage, prefetch
        self.train: ChunkStorage | None = None
        self._fingerprint = ""
        self._sampler: Sampler | None = None
        own = type(self)
        lowest = {"task": 1, "horizon": 1, "batch_size": 1, "seed": 0, "prefetch": 0}
        for name, least in lowest.items():
            value = getattr(self, name)
            require(value >= least, own, name, value, f"at least {least}")
        for name in ("discount", "fraction"):
            value = getattr(self, name)
            require(0.0 < value <= 1.0, own, name, value, "above 0 and at most 1")
        for name, most in {"prefetch": MOST_PREFETCHED, "horizon": LONGEST}.items():
            value = getattr(self, name)
            require(value <= most, own, name, value, f"at most {most}")

    @functools.cached_property
    def _task_env(self) -> gymnasium.Env:
        env = make_env(self.env, self.task)
        if not is_ogbench(self.env):
            try_env(env, self.env)
        return env

    @property
    def spaces(self) -> Spaces:
        """The sizes that a method takes from the environment and the horizon."""
        env_id(self.env, self.task)
        if (sizes := _SIZES.get(self.env)) is None:
            env = self._task_env
            (o,), (a,) = env.observation_space.shape, env.action_space.shape  # type: ignore[misc]
            sizes = o, a
            if is_ogbench(self.env):  # any other name may come to mean something else
                _SIZES[self.env] = sizes
        return Spaces(*sizes, self.horizon)

    @property
    def num_transitions(self) -> int:
        """Training transitions; available after ``setup``."""
        return self._chunks.num_transitions

    @property
    def fingerprint(self) -> str:
        """A digest of the dataset, 16 hexadecimal digits; available after ``setup``.

        It is of all that the store holds: neither the files' names nor ``fraction`` or the task
        change it.
        """
        return self._fingerprint if self._chunks else ""

    @property
    def identity(self) -> dict[str, str | float]:
        """What a behaviour cloned from these data depends on, as far as it is known.

        The task is no part of it, which changes rewards alone. After ``setup``, the fingerprint is.
        """
        found: dict[str, str | float] = {"env": self.env, "fraction": float(self.fraction)}
        if self.path is None:
            found["dataset"] = self.dataset
        if self.train is not None:
            found["fingerprint"] = self.fingerprint
        return found

    @property
    def _chunks(self) -> ChunkStorage:
        if self.train is None:
            raise RuntimeError("the dataset is not loaded yet: call setup('fit') first")
        return self.train

    @property
    def offline_sampler(self) -> OfflineSampler:
        """Draws from the dataset alone; available after ``setup``."""
        return OfflineSampler(self._chunks, self.batch_size, self.seed)

    @property
    def sampler(self) -> Sampler:
        """Draws the batches; available after ``setup``."""
        return self._sampler or self.offline_sampler

    def use_sampler(self, sampler: Sampler | None) -> None:
        """Draw the batches from another sampler; None returns to the dataset alone."""
        self._sampler = sampler

    def source(self, validation: bool = False) -> Source | None:
        """Name the files and the store; None where there is no such part.

        Args:
            validation: Name the validation part instead of the training part.

        Raises:
            UserError: There is nothing at ``path``, or no OGBench data of this environment.
        """
        if self.path is not None:
            path = import_minari(str(self.path), self.directory, self.store)
            return own(import_robomimic(path, self.store), self.store, validation)
        if not is_ogbench(self.env):
            problem = f"is not set, expected your own data, as OGBench has none for {self.env}"
            raise ArgumentError(type(self), "path", problem)
        return official(
            self.env, self.dataset, self.directory, self.store, self.base_url, validation
        )

    def open_store(self) -> Store:
        """Open the store of the training data, fetching and converting the files if need be.

        Raises:
            UserError: Files can be neither found nor fetched, or are damaged or another's.
        """
        layout = file_layout(self._task_env)
        source = self.source()
        assert source is not None  # only validation parts may be missing
        if source.urls:
            fetch(source, layout, self.env, self.dataset)
        for path in source.files[:1]:
            for difference in mismatches(_recorded_versions(path.with_suffix(".json"))):
                rank_zero_warn(f"{path.name}: {difference}")
        return ensure_store(source.files, source.store, layout)

    def labels(self, store: Store) -> tuple[np.ndarray, np.ndarray]:
        """Return rewards and masks (N,) of the task: from the states, or as the files give them."""
        if is_ogbench(self.env):
            return task_labels(store, self.env, self.task, self._task_env)
        return store.arrays["rewards"], store.arrays["masks"]

    def prepare_data(self) -> None:
        """Fetch, convert and label the training data, in one process only.

        Raises:
            UserError: See `open_store`.
        """
        self.labels(self.open_store())

    def setup(self, stage: str) -> None:
        """Map the training data.

        Args:
            stage: Only ``"fit"`` needs data.

        Raises:
            UserError: A file is damaged or belongs to another environment.
        """
        if stage == "fit" and self.train is None:
            self.train = self._load()

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run compares its data with."""
        return {} if self.train is None else {"fingerprint": self.fingerprint}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Tell, once, if the data are not those of the checkpoint; one without any says nothing."""
        before = state_dict.get("fingerprint") if isinstance(state_dict, dict) else None
        if not isinstance(before, str) or self.train is None or before == self.fingerprint:
            return
        if self.trainer is None or self.trainer.is_global_zero:
            change = f"{shown(before)} -> {self.fingerprint} (fingerprint of the dataset)"
            print(f"changed since the checkpoint: data: {change}")

    def _load(self) -> ChunkStorage:
        store = self.open_store()
        self._fingerprint = store.fingerprint
        ends = store.ends[: max(1, round(self.fraction * len(store.ends)))]
        rows = int(ends[-1]) + 1
        transitions = rows - len(ends)
        if self.horizon > transitions:
            problem = f"is {self.horizon}, but {store.folder} holds {transitions} transitions"
            raise ArgumentError(type(self), "horizon", problem)
        arrays = (store.arrays["actions"], *self.labels(store))
        actions, rewards, masks = (array[:transitions] for array in arrays)
        observations = store.arrays["observations"][:rows]
        used = (observations, actions, rewards, masks)
        size = sum(array.nbytes for array in used)
        self._check_batches(store.layout)
        if self.storage == "disk" and size > PHYSICAL_MEMORY / 2:
            read_singly(used)
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
            found = f"every trajectory in {store.folder} is shorter"
            problem = f"is {self.horizon}, but {found}; lower it"
            raise ArgumentError(type(self), "horizon", problem)
        return made

    def _check_batches(self, layout: Layout) -> None:
        """Compare batches with the memory that there is."""
        row = 2 * layout["observations"].columns + self.horizon * layout["actions"].columns + 3
        # Steps are drawn as indices and doubles of 8 bytes, three to a step of a chunk.
        batch = self.batch_size * (4 * row + 24 * self.horizon)
        problem = f"is {shown(self.batch_size)}: {self.prefetch + 1} batches"
        check_memory(batch * (self.prefetch + 1), type(self), "batch_size", problem)

    def _device(self, size: int) -> torch.device | None:
        """The device to copy the arrays to, which has the memory; None leaves them mapped."""
        if self.storage == "disk":
            return None
        device = torch.device("cpu")
        if self.trainer is not None and self.storage == "device":
            device = self.trainer.strategy.root_device
        if device.type not in ("cpu", "cuda"):
            problem = f"is device, but training runs on {device.type}; use disk or memory"
            raise ArgumentError(type(self), "storage", problem)
        if device.type == "cpu":
            check_memory(size, type(self), "storage", f"is {self.storage}: the dataset")
        elif size > (free := torch.cuda.mem_get_info(device)[0]):
            problem = (
                f"is device, but the dataset takes {gigabytes(size)} and {gigabytes(free)} are "
                "free there; use disk"
            )
            raise ArgumentError(type(self), "storage", problem)
        return device

    def batch_at(self, step: int, rank: int = 0, world_size: int = 1) -> Batch:
        """Return the batch of a gradient step: always the same for the same arguments.

        Args:
            step: Gradient step, at least 0.
            rank: This process among ``world_size``.
            world_size: Number of processes sharing the batch.

        Returns:
            ``batch_size / world_size`` chunks.

        Raises:
            ArgumentError: The batch cannot be shared evenly.
        """
        share = self._share(world_size)
        # Every rank draws the whole batch and keeps its share, so that any number of ranks trains
        # on the same chunks.
        sampler = self.sampler
        whole = sampler.indices(step)
        return sampler.gather(whole[rank * share : (rank + 1) * share])

    def _share(self, world_size: int) -> int:
        """The chunks of a process in every batch; an `ArgumentError` if that is no whole number."""
        expected = f"a multiple of the {world_size} processes"
        whole = self.batch_size % world_size == 0
        require(whole, type(self), "batch_size", self.batch_size, expected)
        return self.batch_size // world_size

    def observation_statistics(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation (O,) of the training observations."""
        return self._chunks.observation_statistics()

    def train_dataloader(self) -> Batches:
        """Return an endless iterable of batches that starts at the method's gradient step.

        Raises:
            UserError: Nothing would end the training.
            ArgumentError: The batch cannot be shared evenly.
        """
        assert self.trainer is not None
        trainer = self.trainer
        _check_end(trainer)
        self._share(trainer.world_size)
        method: Any = trainer.lightning_module  # a Method, which counts its gradient steps
        ranks = {"rank": trainer.global_rank, "world_size": trainer.world_size}
        on_device = self.storage == "device"
        return Batches(
            functools.partial(self.batch_at, **ranks),
            first_step=lambda: method.gradient_step,
            prefetch=0 if on_device else self.prefetch,
            may_prefetch=self.sampler.may_prefetch,
            pin=trainer.strategy.root_device.type == "cuda" and not on_device,
        )


def _check_end(trainer: L.Trainer) -> None:
    """Raise a `UserError` if a trainer would take batches for ever: an epoch has no end here."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    timed = any(isinstance(callback, Timer) for callback in callbacks)
    if trainer.max_steps == -1 and isinstance(trainer.limit_train_batches, float) and not timed:
        problem = "is not set, expected a number, because the data are endless"
        raise ArgumentError(L.Trainer, "max_steps", problem)


def _recorded_versions(record: Path) -> dict[str, str]:
    """The versions that `generate` wrote beside its data; none if this is no such file."""
    try:
        return read_json(_Record, record, "a record", "").versions
    except UserError:
        return {}
