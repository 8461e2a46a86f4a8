"""The online phase: the policy acts in chunks, every step enters the replay, updates go on.

All of it is a function of counters. Before update g there have been n(g) environment steps, and
its batch is drawn from these; a chunk's actions are fixed at the step on which it starts, by the
weights of that moment and by noise that belongs to the step's number. So the environment can run
ahead through its chunk, in its own process, while updates go on, and nothing changes: a step is
waited for when the next one is due, or a batch holds it.

With E environments, step n is taken by environment (n - 1) mod E. On R processes, environment e
lives in process e mod R and its steps are sent to all others, so each has the whole replay, and
training does not depend on R.
"""

import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Literal, cast

import lightning.pytorch as pl
import numpy as np
import torch

from qam_lightning.callbacks.base import Callback, Order, ours
from qam_lightning.data.replay import (
    RUNNING,
    TERMINATED,
    TRUNCATED,
    Mixture,
    Replay,
    Schedule,
    read_rows,
    row_type,
)
from qam_lightning.envs.rollout import (
    Chunk,
    LocalWorker,
    ProcessWorker,
    WorkerError,
    episode_seed,
)
from qam_lightning.evaluation.episode_policy import EpisodePolicy
from qam_lightning.methods.base import Method
from qam_lightning.util.errors import UserError
from qam_lightning.util.files import writing

FILE = "replay.bin"
_ATTEMPTS = 3  # new environments for one step, before giving up
_COUNTS = ("counted", "episodes", "discarded", "recent")
_RECENT = 20  # episodes over which online results are averaged
_NOISE = 0  # spawn key of the noise in actions; those of environments follow

Act = Callable[[np.ndarray], np.ndarray]
"""``act(observation (O,)) -> actions (H, A)``, the chunk that starts with the coming step."""


class Stream:
    """One environment, the episode that runs in it, and the chunk that is being executed."""

    def __init__(self, number: int, seed: int, kind: np.dtype, make: Callable[[], Any]) -> None:
        """Starts nothing yet.

        Args:
            number: Which of the environments this is.
            seed: The run's seed.
            kind: Type of the replay's rows.
            make: Makes a worker with this environment.
        """
        self._number, self._seed, self._kind, self._make = number, seed, kind, make
        self._worker: LocalWorker | ProcessWorker | None = None
        self._observation: np.ndarray | None = None
        self._episode, self.length, self._discarded = 0, 0, 0
        self._chunk: np.ndarray | None = None
        self._used = 0

    def begin(self, act: Act) -> None:
        """Has the next step taken, unless the environment is on its way to it already."""
        self._insist(lambda: self._prepare(act))

    def take(self, act: Act) -> np.ndarray:
        """Waits for the next step, and returns its row."""
        return self._insist(lambda: self._step(act))

    def state(self) -> dict[str, Any]:
        """What `restore` needs besides the replay."""
        chunk = None if self._chunk is None else torch.from_numpy(self._chunk.copy())
        counts = {"episode": self._episode, "length": self.length, "used": self._used}
        return counts | {"discarded": self._discarded, "chunk": chunk}

    def restore(self, state: dict[str, Any], rows: np.ndarray) -> None:
        """Takes the running episode up again by repeating its actions.

        Args:
            state: What `state` returned.
            rows: The episode's steps so far, ``state["length"]`` of them.
        """
        self._episode, self.length, self._used = state["episode"], state["length"], state["used"]
        self._discarded = state.get("discarded", 0)
        self._chunk = None if state["chunk"] is None else state["chunk"].numpy()
        if not self.length:
            self._chunk = None
        elif not self._replays(rows):
            print(
                f"online: after {self.length} steps the running episode could not be brought back "
                "to where it was, as the environment no longer does what it did; the episode was "
                "discarded",
                file=sys.stderr,
            )
            self._discard()

    def close(self) -> None:
        """Ends the worker."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()

    def _replays(self, rows: np.ndarray) -> bool:
        """Whether the episode's actions lead where they led before, to the bit."""
        try:
            self._reset()
            same = np.array_equal(self._seen(), rows["observation"][0])
            assert self._worker is not None
            self._worker.send("execute", [(0, rows["action"])])
            chunk = self._worker.receive()[0]
        except WorkerError:
            return False
        same &= np.array_equal(chunk.observations, rows["next_observation"])
        same &= np.array_equal(chunk.rewards, rows["reward"]) and not chunk.done
        self._observation = chunk.observations[-1]
        if same and self._chunk is not None:
            self._follow(self._chunk[self._used :])
        return bool(same)

    def _prepare(self, act: Act) -> None:
        if self._worker is None:
            self._reset()
        if self._chunk is None:
            self._chunk, self._used = act(self._seen()), 0
            self._follow(self._chunk)

    def _step(self, act: Act) -> np.ndarray:
        self._prepare(act)
        assert self._worker is not None and self._chunk is not None
        chunk: Chunk = self._worker.receive()
        row = np.zeros((), self._kind)
        row["observation"], row["action"] = self._seen(), self._chunk[self._used]
        row["reward"], row["success"] = chunk.rewards[0], chunk.success
        row["next_observation"], row["end"] = chunk.observations[0], _ending(chunk)
        if self.length == 0:
            row["first"], self._discarded = 1 + self._discarded, 0
        self._observation = chunk.observations[0]
        self.length, self._used = self.length + 1, self._used + 1
        if chunk.done:
            # The first observation of the next episode is on its way.
            self._observation, self._episode, self.length = None, self._episode + 1, 0
        if chunk.done or self._used == len(self._chunk):
            self._chunk = None
        return row

    def _seen(self) -> np.ndarray:
        """The latest observation."""
        if self._observation is None:
            assert self._worker is not None
            self._observation = self._worker.receive()
        return self._observation

    def _reset(self) -> None:
        """Starts the episode from its beginning, in a new environment."""
        self.close()
        self._worker = self._make()
        self._worker.send("reset", [(0, self._reset_seed(self._episode), 0)])
        self._observation = self._worker.receive()[0][0]

    def _follow(self, actions: np.ndarray) -> None:
        assert self._worker is not None
        if len(actions):
            self._worker.send("follow", (actions, self._reset_seed(self._episode + 1)))

    def _reset_seed(self, episode: int) -> int:
        return episode_seed(self._seed, episode, _NOISE + 1 + self._number)

    def _insist(self, attempt: Callable[[], Any]) -> Any:
        """Tries again in a new environment where one died or failed."""
        for remaining in reversed(range(_ATTEMPTS)):
            try:
                return attempt()
            except WorkerError as error:
                if not remaining:
                    raise
                print(f"online: {error}\nonline: goes on with a new episode", file=sys.stderr)
                self._discard()

    def _discard(self) -> None:
        """Gives the running episode up; the replay keeps its steps."""
        self.close()
        self._episode, self.length, self._chunk = self._episode + 1, 0, None
        self._discarded += 1


def _ending(chunk: Chunk) -> int:
    if chunk.terminated:
        return TERMINATED
    return TRUNCATED if chunk.truncated else RUNNING


class Online(Callback):
    """Acts in the environment once the offline phase is over, and lets updates follow.

    Callbacks hear in `Callback.on_collection` of every step that no update follows.
    """

    order = Order.ONLINE

    def __init__(
        self,
        run_dir: str,
        steps: int = 0,
        start: int = 5_000,
        utd_ratio: int = 1,
        mix: Literal["uniform", "half"] = "uniform",
        envs: int | None = None,
        ahead: bool = True,
        seed: int = 0,
    ) -> None:
        """Notes the settings.

        Args:
            run_dir: Folder of the run; the replay lies beside its checkpoints.
            steps: Environment steps; 0 for a run that only trains offline.
            start: Environment steps before updates go on.
            utd_ratio: Updates per environment step.
            mix: Draw batches uniformly from the dataset and the replay together, or half of each
                from either.
            envs: Environments whose steps take turns; one per process if not given.
            ahead: Step environments in processes of their own, ahead of the updates; the results
                are the same without.
            seed: Determines the episodes and the noise in actions.

        Raises:
            UserError: A number out of range.
        """
        for name, value, least in (
            ("steps", steps, 0),
            ("start", start, 0),
            ("utd_ratio", utd_ratio, 1),
            ("envs", envs, 1),
        ):
            if value is not None and value < least:
                raise UserError(f"online.{name} is {value}, expected at least {least}")
        if 0 < steps <= start:
            raise UserError(f"online.steps is {steps}, expected 0 or more than start, {start}")
        self.run_dir, self.steps, self.start, self.utd_ratio = run_dir, steps, start, utd_ratio
        self.mix, self.envs, self.ahead, self.seed = mix, envs, ahead, seed
        self._mid_step = False
        # Environment steps in the counts that follow, which are those of the checkpoint.
        self.counted, self.episodes, self.discarded = 0, 0, 0
        self.recent: list[list[float]] = []
        self._streams: dict[int, Stream] = {}
        self._replay: Replay | None = None
        self._loaded: dict[str, Any] | None = None

    @property
    def mid_step(self) -> bool:
        """Whether a step is being taken, or a failure left one half done."""
        return self._mid_step

    @property
    def path(self) -> Path:
        """The replay's file."""
        return Path(self.run_dir) / "checkpoints" / FILE

    # -- beginning and end -------------------------------------------------------------------------

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Works out when training ends."""
        super().setup(trainer, pl_module, stage)
        if not self.steps:
            return
        offline = trainer.max_steps if cast(Method, pl_module).offline_phase else 0
        self._schedule = Schedule(offline, self.start, self.steps, self.utd_ratio)
        trainer.fit_loop.epoch_loop.max_steps = self._schedule.total

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Notes what a checkpoint says, which the replay is to be checked against.

        Raises:
            UserError: Settings were changed that cannot be.
        """
        counters = checkpoint["counters"]
        if counters["env_step"] and not self.steps:
            raise UserError(
                f"online.steps is 0, but the checkpoint has taken {counters['env_step']} "
                "environment steps; set it as it was, or higher"
            )
        if not self.steps:
            return
        self._loaded = checkpoint.get("online")
        offline = self._schedule.offline
        if not counters["env_step"] and counters["gradient_step"] > offline:
            raise UserError(
                f"trainer.max_steps is {offline}, but the checkpoint has taken "
                f"{counters['gradient_step']} gradient steps offline; the online phase begins then"
            )
        if counters["env_step"] and self._loaded:
            self._check_settings(trainer, self._loaded)

    def _settings(self, trainer: pl.Trainer, envs: int) -> dict[str, Any]:
        """What the rows of the replay, their places and their number before an update depend on."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        return {
            **{f"data.{name}": getattr(data, name) for name in ("env", "task", "sparse")},
            "trainer.max_steps": self._schedule.offline,
            "online.start": self.start,
            "online.utd_ratio": self.utd_ratio,
            "online.envs": envs,
        }

    def _check_settings(self, trainer: pl.Trainer, loaded: dict[str, Any]) -> None:
        now = self._settings(trainer, self.envs or loaded["settings"]["online.envs"])
        for key, value in loaded["settings"].items():
            if now[key] != value:
                raise UserError(
                    f"{key} was {value} and is {now[key]}, which cannot change once the online "
                    "phase has begun; set it back to resume"
                )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Opens the replay, and brings the running episodes back.

        Raises:
            UserError: The replay is not the checkpoint's, or cannot be written.
        """
        if not self.steps:
            return
        self._trainer, self._method = trainer, cast(Method, pl_module)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        known = self._loaded or {"rows": 0, "crc32": 0, "streams": []}
        ranks, rank = trainer.world_size, trainer.global_rank
        envs = self.envs or known.get("settings", {}).get("online.envs", ranks)
        self._check_data(data, envs)
        kind = row_type(data.obs_dim, data.action_dim)
        source = Path(trainer.ckpt_path or "").parent / FILE
        rows = read_rows(source, kind, known["rows"], known["crc32"])
        with writing(self.path):
            replay = Replay(self._open(rank), kind, data.horizon, data.discount, envs)
            replay.restore(rows)
        self._replay = replay
        data.online = Mixture(self._schedule, replay, self.mix == "half", self._fetch)
        worker = ProcessWorker if self.ahead else LocalWorker
        for number in range(rank, envs, ranks):
            self._streams[number] = Stream(
                number, self.seed, kind, lambda: worker(data.env, data.task, data.sparse, None)
            )
            if known["streams"]:
                state = known["streams"][number]
                self._streams[number].restore(state, replay.last(number, state["length"]))
        for name in _COUNTS:
            setattr(self, name, known.get(name, getattr(self, name)))

    def _check_data(self, data: Any, envs: int) -> None:
        least = (data.horizon - 1) * envs
        if self.start < least:
            raise UserError(
                f"online.start is {self.start}, expected at least {least}: (data.horizon - 1) x envs"
            )
        if self.mix == "half" and data.batch_size % 2:
            raise UserError(
                f"data.batch_size is {data.batch_size}, expected an even number for online.mix half"
            )

    def _open(self, rank: int) -> IO[bytes]:
        """Opens the replay's file; other processes than the first keep theirs to themselves."""
        if rank:
            return tempfile.TemporaryFile()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch()
        return self.path.open("r+b")

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Ends the environments and closes the replay."""
        for stream in self._streams.values():
            stream.close()
        self._streams = {}
        if self._replay is not None:
            self._replay.close()
            self._replay = None

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Ends the environments; the replay stays as the last checkpoint knows it, or longer."""
        for stream in self._streams.values():
            stream.close()

    # -- steps -------------------------------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes the steps before the first update, where there is no offline phase to come."""
        if self.steps:
            self._show_results()
        self._advance(trainer, cast(Method, pl_module))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: object
    ) -> None:
        """Begins the steps that the next update may see."""
        self._advance(trainer, cast(Method, pl_module))

    def _advance(self, trainer: pl.Trainer, method: Method) -> None:
        wanted = self._schedule.rows(method.gradient_step) if self.steps else 0
        while method.env_step < wanted and not trainer.should_stop:
            with self._stepping():
                method.phase = "online"
                self._receive()
                self._count()
                number = method.env_step % cast(Replay, self._replay).envs
                if number in self._streams:
                    self._streams[number].begin(self._act)
                method.env_step += 1
            if method.env_step < wanted:
                for callback in ours(trainer):
                    callback.on_collection(trainer, method)

    @contextlib.contextmanager
    def _stepping(self) -> Iterator[None]:
        """Marks a failure that leaves a step half done."""
        self._mid_step = True
        yield
        self._mid_step = False

    def _fetch(self) -> None:
        """Adds the row of the step that was begun last, as a batch holds it."""
        with self._stepping():
            self._receive()

    def _act(self, observation: np.ndarray) -> np.ndarray:
        """Samples the chunk (H, A) that starts with the step after the last row."""
        assert self._replay is not None
        step, method = self._replay.count + 1, self._method
        key = np.random.SeedSequence((self.seed, step), spawn_key=(_NOISE,))
        if not method.offline_phase and step <= self.start:
            shape = (method.spaces.horizon, method.spaces.action_dim)
            return np.random.default_rng(key).uniform(-1.0, 1.0, shape).astype(np.float32)
        policy = EpisodePolicy(method, int(key.generate_state(1)[0]))
        return policy(observation[None], [0])[0]

    def _receive(self) -> None:
        """Adds the row of the step that was begun last, once."""
        replay = self._replay
        if replay is None or replay.count == self._method.env_step:
            return
        with writing(self.path):
            replay.reserve()
        number = replay.count % replay.envs
        row = self._streams[number].take(self._act) if number in self._streams else None
        row = self._trainer.strategy.broadcast(row, number % self._trainer.world_size)
        replay.append(cast(np.ndarray, row))

    # -- results -----------------------------------------------------------------------------------

    def _count(self) -> None:
        """Takes the last row into the results, if it ended an episode or some were discarded."""
        replay = cast(Replay, self._replay)
        if self.counted == replay.count:
            return
        self.counted = replay.count
        row = replay.count - 1
        self.discarded += max(0, int(replay.rows["first"][row]) - 1)
        if replay.rows["end"][row]:
            self.episodes += 1
            lived = replay.episode(row)
            total = float(lived["reward"].sum(dtype=np.float64))
            self.recent.append([float(lived["success"][-1]), total, float(len(lived))])
            del self.recent[:-_RECENT]
        self._show_results()

    def _show_results(self) -> None:
        """Puts the results where the recorder finds them."""
        device = self._method.device
        for name, value in results(self.recent, self.episodes, self.discarded).items():
            self._method.metrics[name] = torch.tensor(value, device=device)

    # -- checkpoints -------------------------------------------------------------------------------

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Stores how many rows there are, and what brings the running episodes back."""
        replay = self._replay
        if replay is None:
            return
        self._receive()
        with writing(self.path):
            replay.sync()
        streams = []
        for number in range(replay.envs):
            state = self._streams[number].state() if number in self._streams else None
            streams.append(trainer.strategy.broadcast(state, number % trainer.world_size))
        checkpoint["online"] = {
            "settings": self._settings(trainer, replay.envs),
            "rows": replay.count,
            "crc32": replay.crc32,
            "streams": streams,
            **{name: getattr(self, name) for name in _COUNTS},
        }


def results(recent: list[list[float]], episodes: int, discarded: int) -> dict[str, float]:
    """The columns that collection adds to the metrics.

    Args:
        recent: Success, return and length of the latest episodes; without any, no means are given.
        episodes: Finished episodes.
        discarded: Episodes that broke off, as their environment died or could not be brought back.
    """
    names = ("online/success", "online/return", "online/length") if recent else ()
    means = np.mean(recent, axis=0).tolist() if recent else []
    counts = {"online/episodes": float(episodes), "online/discarded": float(discarded)}
    return {**dict(zip(names, means, strict=True)), **counts}
