"""The online phase: the policy acts in the environment, and updates go on.

`qam_lightning.online` takes the steps; the callback here connects it with Lightning: settings,
phases, counters and checkpoints.
"""

from pathlib import Path
from typing import Any, Literal, cast

import lightning.pytorch as pl
import numpy as np
import torch

from qam_lightning.callbacks.base import Callback, Order, ours
from qam_lightning.data.datamodule import ChunkDataModule
from qam_lightning.envs.chunked import EnvSettings, check_in_process
from qam_lightning.envs.rollout import MOST_ENVS
from qam_lightning.envs.worker import LocalWorker, ProcessWorker
from qam_lightning.evaluation.episode_policy import EpisodePolicy
from qam_lightning.methods.base import Method
from qam_lightning.online.actor import Act, EnvActor
from qam_lightning.online.collector import Collector
from qam_lightning.online.replay import Replay, read_rows, row_type
from qam_lightning.online.sampler import MixedSampler
from qam_lightning.online.schedule import Schedule
from qam_lightning.online.state import online_state
from qam_lightning.util.errors import ArgumentError, UserError, require
from qam_lightning.util.rng import Stream, numpy_generator, seed_of

FILE = "replay.bin"


class Online(Callback):
    """Collects in the environment once the offline phase is over, while updates go on.

    It comes last among the callbacks. Its ``on_train_batch_end`` begins the environment steps that
    the next update may see, so logs and checkpoints of this update come before them; and after a
    failure it ends the environments, which the checkpoint of this failure still needs.
    Other callbacks of this project hear ``on_collection`` after every step that no update follows.
    """

    order = Order.ONLINE

    def __init__(
        self,
        run_dir: str,
        steps: int = 0,
        learning_starts: int = 5_000,
        utd_ratio: int = 1,
        sampling: Literal["uniform", "half"] = "uniform",
        num_envs: int | None = None,
        async_env: bool = True,
        seed: int = 0,
    ) -> None:
        """Note the settings.

        Args:
            run_dir: Folder of the run; the replay lies beside its checkpoints.
            steps: Environment steps; 0 trains offline only.
            learning_starts: Environment steps before the first online update.
            utd_ratio: Updates per environment step.
            sampling: Draw batches uniformly from the dataset and the replay together, or half of
                each batch from either.
            num_envs: Environments whose steps take turns; one per process if not given.
            async_env: Step environments in processes of their own, ahead of the updates; results do
                not depend on it.
            seed: Determines the episodes and the noise in actions.

        Raises:
            ArgumentError: A number out of range.
        """
        for name, value, least in (
            ("steps", steps, 0),
            ("learning_starts", learning_starts, 0),
            ("utd_ratio", utd_ratio, 1),
            ("num_envs", 1 if num_envs is None else num_envs, 1),
        ):
            require(value >= least, Online, name, value, f"at least {least}")
        most = f"at most {MOST_ENVS}"
        require((num_envs or 1) <= MOST_ENVS, Online, "num_envs", num_envs, most)
        expected = f"0 or more than learning_starts, {learning_starts}"
        require(steps == 0 or steps > learning_starts, Online, "steps", steps, expected)
        self.run_dir, self.steps, self.learning_starts = run_dir, steps, learning_starts
        self.utd_ratio, self.sampling = utd_ratio, sampling
        self.num_envs, self.async_env, self.seed = num_envs, async_env, seed
        self.collector: Collector | None = None
        self._schedule = Schedule(0, learning_starts, steps, utd_ratio)
        self._loaded: dict[str, Any] | None = None
        self._max_steps: int | None = None  # the trainer's own, while it counts our updates too

    @property
    def path(self) -> Path:
        """The replay's file."""
        return Path(self.run_dir) / "checkpoints" / FILE

    @property
    def mid_step(self) -> bool:
        """Whether an environment step is being taken, or was left half done by a failure."""
        return self.collector is not None and self.collector.mid_step

    def ends_phase(self, gradient_step: int) -> bool:
        """Whether the offline phase ends with a gradient step."""
        return self.steps > 0 and gradient_step == self._schedule.offline

    # -- beginning and end -------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Add the online updates to the trainer's ``max_steps``, until `teardown`.

        Raises:
            ArgumentError: the trainer does not say how long the offline phase is.
        """
        super().setup(trainer, pl_module, stage)
        if self.steps and stage == "fit":
            offline = trainer.max_steps if cast(Method, pl_module).offline_phase else 0
            expected = "the number of gradient steps of the offline phase"
            require(offline >= 0, pl.Trainer, "max_steps", offline, expected)
            self._max_steps = trainer.max_steps
            self._schedule = self._schedule._replace(offline=offline)
            trainer.fit_loop.epoch_loop.max_steps = self._schedule.gradient_steps

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Claim the folder, open the replay, and restore the running episodes.

        The data module gets its sampler.

        Raises:
            UserError: See `Callback.claim`; or the replay is not the checkpoint's, or cannot be
                written.
        """
        if not self.steps:
            return
        self.claim(trainer, self.run_dir)
        data = _data(trainer)
        num_envs = self._environments(trainer)
        self._check_data(data, num_envs)
        if self.async_env:
            check_in_process(EnvSettings(data.env, data.task, data.sparse))
        kind = row_type(data.spaces.obs_dim, data.spaces.action_dim)
        loaded = self._loaded
        rows = np.empty(0, kind)
        if loaded is not None:
            source = Path(trainer.ckpt_path or "").parent / FILE
            rows = read_rows(source, kind, loaded["rows"], loaded["crc32"])
        # Other processes than the first keep their replay to themselves.
        path = self.path if trainer.is_global_zero else None
        replay = Replay(path, kind, data.horizon, data.discount, num_envs)
        act = online_policy(cast(Method, pl_module), self.seed, self.learning_starts)
        actors = self._actors(trainer, data, num_envs)
        self.collector = Collector(
            act,
            actors,
            replay,
            lambda value, number: trainer.strategy.broadcast(value, number % trainer.world_size),
        )
        if loaded is None:
            replay.restore(rows)
        else:
            self.collector.restore(loaded, rows)
        half = self.sampling == "half"
        data.use_sampler(
            MixedSampler(data.offline_sampler, self._schedule, replay, half, self.collector.wait)
        )

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """End the environments, close the replay, and leave the trainer as it was."""
        if self.collector is not None:
            self.collector.close()
            self.collector = None
            _data(trainer).use_sampler(None)
        self._loaded = None
        if self._max_steps is not None:
            trainer.fit_loop.epoch_loop.max_steps = self._max_steps
            self._max_steps = None
        super().teardown(trainer, pl_module, stage)

    def _environments(self, trainer: pl.Trainer) -> int:
        """The number of environments: as set, else the checkpoint's, else one per process."""
        loaded = self._loaded["settings"]["online.num_envs"] if self._loaded else None
        return self.num_envs or loaded or trainer.world_size

    def _actors(
        self, trainer: pl.Trainer, data: ChunkDataModule, num_envs: int
    ) -> dict[int, EnvActor]:
        """Make the actors of this process's environments."""
        settings = EnvSettings(data.env, data.task, data.sparse)
        kind = ProcessWorker if self.async_env else LocalWorker
        mine = range(trainer.global_rank, num_envs, trainer.world_size)
        return {number: EnvActor(number, self.seed, lambda: kind(settings)) for number in mine}

    def _check_data(self, data: ChunkDataModule, num_envs: int) -> None:
        least = (data.horizon - 1) * num_envs
        expected = f"at least {least}, (horizon - 1) x num_envs"
        starts = self.learning_starts
        require(starts >= least, Online, "learning_starts", starts, expected)
        if self.sampling == "half" and data.batch_size % 2:
            problem = f"is {data.batch_size}, expected an even number where sampling is half"
            raise ArgumentError(ChunkDataModule, "batch_size", problem)

    # -- steps -------------------------------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the steps before the first update, where no offline phase comes first."""
        self._show(cast(Method, pl_module))
        self._advance(trainer, cast(Method, pl_module))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: object
    ) -> None:
        """Begin the steps that the next update may see."""
        self._advance(trainer, cast(Method, pl_module))

    def _advance(self, trainer: pl.Trainer, method: Method) -> None:
        visible = self._schedule.visible(method.gradient_step) if self.collector else 0
        while (
            self.collector is not None
            and self.collector.steps < visible
            and not trainer.should_stop
        ):
            method.phase = "online"
            self.collector.advance()
            method.env_step = self.collector.steps
            self._show(method)
            if method.env_step < visible:
                for callback in ours(trainer):
                    callback.on_collection(trainer, method)

    def _show(self, method: Method) -> None:
        """Put the results among the method's metrics."""
        results = self.collector.statistics.metrics() if self.collector else {}
        for name, value in results.items():
            method.metrics[name] = torch.tensor(value, device=method.device)

    # -- checkpoints -------------------------------------------------------------------------------

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Store the replay's checksum and what restores the running episodes."""
        if self.collector is not None:
            settings = self._settings(trainer, self.collector.replay.num_envs)
            checkpoint["online"] = {"settings": settings, **self.collector.state_dict()}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the checkpoint's entry for `on_fit_start`.

        Raises:
            UserError: A setting was changed that cannot change.
        """
        counters = checkpoint["counters"]
        taken, updates = counters["env_step"], counters["gradient_step"]
        if not self.steps:
            if taken:
                problem = (
                    f"is 0, but the checkpoint has taken {taken} environment steps; set it back"
                )
                raise ArgumentError(Online, "steps", problem)
            return
        spaces = cast(Method, pl_module).spaces
        chunk = (spaces.horizon, spaces.action_dim)
        self._loaded = online_state(checkpoint, chunk, trainer.ckpt_path)
        offline = self._schedule.offline
        if not taken and updates > offline:
            raise ArgumentError(
                pl.Trainer,
                "max_steps",
                f"is {offline}, expected at least {updates}, the gradient steps that the "
                "checkpoint has taken offline; the online phase begins then",
            )
        if taken and self._loaded:
            self._check_settings(trainer, self._loaded["settings"])

    def _settings(self, trainer: pl.Trainer, num_envs: int) -> dict[str, Any]:
        """The settings on which the replay's rows, their order and their schedule depend."""
        data = _data(trainer)
        return {
            **{f"data.{name}": getattr(data, name) for name in ("env", "task", "sparse")},
            "trainer.max_steps": self._schedule.offline,
            "online.learning_starts": self.learning_starts,
            "online.utd_ratio": self.utd_ratio,
            "online.num_envs": num_envs,
        }

    def _check_settings(self, trainer: pl.Trainer, loaded: dict[str, Any]) -> None:
        now = self._settings(trainer, self._environments(trainer))
        for key, value in loaded.items():
            if now[key] != value:
                raise UserError(
                    f"{key} is {now[key]}, expected {value} as in the checkpoint, because the "
                    "online phase has begun; set it back to resume"
                )


def online_policy(method: Method, seed: int, learning_starts: int) -> Act:
    """Return the policy of the online phase, whose noise belongs to the environment step.

    A method without an offline phase acts at random for ``learning_starts`` steps.
    """
    shape = (method.spaces.horizon, method.spaces.action_dim)

    def act(observation: np.ndarray, step: int) -> np.ndarray:
        if not method.offline_phase and step <= learning_starts:
            rng = numpy_generator(seed, Stream.ONLINE_NOISE, step)
            return rng.uniform(-1.0, 1.0, shape).astype(np.float32)
        policy = EpisodePolicy(method, seed_of(seed, Stream.ONLINE_NOISE, step))
        return policy(observation[None], [0])[0]

    return act


def _data(trainer: pl.Trainer) -> ChunkDataModule:
    data = trainer.datamodule  # type: ignore[attr-defined]
    if not isinstance(data, ChunkDataModule):
        found = type(data).__name__
        raise UserError(f"Online: the trainer's data module is {found}, expected ChunkDataModule")
    return data
