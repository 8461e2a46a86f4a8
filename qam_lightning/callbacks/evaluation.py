"""Periodic evaluation during training."""

import sys
import time
from typing import Any, cast

import lightning.pytorch as pl
import torch

from qam_lightning.callbacks.base import Callback, Order, ours
from qam_lightning.envs.chunked import EnvSettings, check_in_process
from qam_lightning.envs.rollout import MOST_ENVS, Episode, RolloutPool, Share, WorkerError
from qam_lightning.evaluation.episode_policy import EpisodePolicy
from qam_lightning.evaluation.limits import check_rollouts
from qam_lightning.evaluation.statistics import summarize
from qam_lightning.methods.base import Method, TaskData
from qam_lightning.util.errors import UserError, require

_ATTEMPTS = 3  # of an evaluation whose environments die, before giving up


class Evaluate(Callback):
    """Rolls the policy out every ``every_n_steps`` gradient steps and at the end of each phase.

    Results are ``success`` (at the last step, in [0, 1]), ``return``, ``length`` (means over
    episodes), ``discarded`` (episodes run again because an environment's process died) and
    ``seconds``. `Callback.on_evaluation` passes them to every callback. A run that was stopped is
    not evaluated at its end.

    Every evaluation runs the same episodes, so differences come from the policy. Each rank
    simulates a share of the environments; the results are those of one rank, to the bit.

    Attributes:
        latest: the latest results, empty before the first.
    """

    order = Order.EVALUATION

    def __init__(
        self,
        every_n_steps: int = 50_000,
        episodes: int = 50,
        num_envs: int = 8,
        workers: int | None = None,
        seed: int = 0,
        at_start: bool = False,
    ) -> None:
        """Check the settings.

        Args:
            every_n_steps: gradient steps between evaluations.
            episodes: episodes per evaluation.
            num_envs: environments that run at once, 1 to 10,000, over all ranks: the policy's
                batch.
            workers: processes that simulate, on every rank; 0 simulates in this one; None uses all
                cores. The results do not depend on it.
            seed: seed of the episodes and of the policy's noise.
            at_start: evaluate before the first gradient step too.

        Raises:
            ArgumentError: a number is out of range.
        """
        require(num_envs <= MOST_ENVS, Evaluate, "num_envs", num_envs, f"at most {MOST_ENVS}")
        for name, value, least in (
            ("every_n_steps", every_n_steps, 1),
            ("episodes", episodes, 1),
            ("num_envs", num_envs, 1),
            ("workers", workers, 0),
            ("seed", seed, 0),
        ):
            require(value is None or value >= least, Evaluate, name, value, f"at least {least}")
        self.every_n_steps, self.episodes, self.num_envs = every_n_steps, episodes, num_envs
        self.workers, self.seed, self.at_start = workers, seed, at_start
        self.latest: dict[str, float] = {}
        self._evaluated: int | None = None
        self._pool: RolloutPool | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check that the data say which environment they are of, and that evaluations are possible.

        Raises:
            UserError: the data module does not name it, or it does not work in another process.
            ArgumentError: an evaluation needs more memory than there is.
        """
        super().setup(trainer, pl_module, stage)
        self._evaluated = None  # the fit before left it
        data = trainer.datamodule  # type: ignore[attr-defined]
        if stage != "fit":
            return
        if not isinstance(data, TaskData):
            found = f"data module is {type(data).__name__}" if data else "data have no data module"
            raise UserError(f"Evaluate: the trainer's {found}, expected ChunkDataModule")
        method, sizes = cast(Method, pl_module), (self.episodes, self.num_envs, self.workers)
        check_rollouts(Evaluate, method, data.env, *sizes)
        if self.workers != 0:
            check_in_process(EnvSettings(data.env, data.task, data.sparse))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate the untrained policy if ``at_start``."""
        method = cast(Method, pl_module)
        if self.at_start and method.gradient_step == 0:
            self._evaluate(trainer, method)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: object
    ) -> None:
        """Evaluate when it is due, and at the end of the offline phase."""
        method = cast(Method, pl_module)
        step = method.gradient_step
        if step % self.every_n_steps == 0 or any(c.ends_phase(step) for c in ours(trainer)):
            self._evaluate(trainer, method)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate the final policy, unless training was stopped."""
        if not trainer.should_stop:
            self._evaluate(trainer, cast(Method, pl_module))

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """End the worker processes."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None
        super().teardown(trainer, pl_module, stage)

    def state_dict(self) -> dict[str, Any]:
        """Return the latest results, and the gradient step they are of."""
        return {"latest": dict(self.latest), "evaluated": self._evaluated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.latest, self._evaluated = state_dict["latest"], state_dict["evaluated"]

    def _evaluate(self, trainer: pl.Trainer, method: Method) -> None:
        if self._evaluated == method.gradient_step:
            return  # at the last step, `on_train_batch_end` and `on_train_end` both ask
        found = self._roll_out(trainer, method)
        self._evaluated = method.gradient_step  # only now: an interrupted one is done again
        self.latest = trainer.strategy.broadcast(found)  # rank 0 says how long it took
        for callback in ours(trainer):
            callback.on_evaluation(trainer, method, self.latest)

    def _roll_out(self, trainer: pl.Trainer, method: Method) -> dict[str, float]:
        start = time.perf_counter()
        if self._pool is None:
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            share = Share(trainer.global_rank, trainer.world_size, _gather)
            settings = (data.env, data.task, data.sparse, self.workers, self.num_envs)
            self._pool = RolloutPool(*settings, share=share)
        episodes, discarded = self._insist(self._pool, method)
        seconds = time.perf_counter() - start
        return {**summarize(episodes), "discarded": discarded, "seconds": seconds}

    def _insist(self, pool: RolloutPool, method: Method) -> tuple[list[Episode], float]:
        """Run all episodes, again if an environment's process dies: they come out the same."""
        discarded, failures = 0.0, 0
        while True:
            policy = EpisodePolicy(method, self.seed)
            try:
                return pool.run(policy, self.episodes, self.seed), discarded
            except WorkerError as error:
                failures += 1
                if failures == _ATTEMPTS:
                    raise
                print(f"evaluation: {error}\nevaluation: runs its episodes again", file=sys.stderr)
                discarded += min(policy.begun, self.episodes)  # the policy's batch may have more


def _gather(mine: Any) -> list[Any]:
    """Return what every rank gave, in their order."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [mine]
    everyone: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, mine)
    return everyone
