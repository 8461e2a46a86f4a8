"""Periodic evaluation during training."""

import sys
import time
from typing import Any, cast

import lightning.pytorch as pl
import torch

from qam_lightning.envs.rollout import Episode, RolloutPool, Share, WorkerError
from qam_lightning.evaluation.episode_policy import EpisodePolicy
from qam_lightning.evaluation.statistics import summarize
from qam_lightning.methods.base import Method
from qam_lightning.util.errors import UserError

_ATTEMPTS = 3  # of an evaluation whose environments die, before giving up


class Evaluate(pl.Callback):
    """Rolls the policy out every so many gradient steps and tells the other callbacks.

    Results are ``success`` (last step, in [0, 1]), ``return``, ``length`` (means over episodes),
    ``discarded`` (episodes run anew, as an environment's process died) and ``seconds``. They are
    kept in ``latest``, set as the method's attribute ``evaluation``, and given to every callback
    that has a method ``on_evaluation(trainer, pl_module, results)``, in the order of the callbacks.
    Also evaluates at the end of training, unless it was interrupted.

    The same episodes are run every time, so that differences come from the policy. Several ranks
    simulate a share of the environments each, and the results are those of one, to the bit.
    """

    def __init__(
        self,
        every: int = 50_000,
        episodes: int = 50,
        workers: int | None = None,
        seed: int = 0,
        at_start: bool = False,
    ) -> None:
        """Note the settings.

        Args:
            every: gradient steps between evaluations.
            episodes: episodes per evaluation.
            workers: processes that simulate, on every rank; 0 simulates in this one; None uses all
                cores. The results do not depend on it.
            seed: seed of the episodes and of the policy's noise.
            at_start: evaluate before the first step too.

        Raises:
            UserError: a number out of range.
        """
        for name, value, least in (
            ("every", every, 1),
            ("episodes", episodes, 1),
            ("workers", workers, 0),
            ("seed", seed, 0),
        ):
            if value is not None and value < least:
                raise UserError(f"evaluation.{name}: must be at least {least}, found {value}")
        self.every, self.episodes, self.workers = every, episodes, workers
        self.seed, self.at_start = seed, at_start
        self.latest: dict[str, float] = {}
        self._evaluated: int | None = None
        self._pool: RolloutPool | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate the untrained policy if asked to."""
        method = cast(Method, pl_module)
        if self.at_start and method.gradient_step == 0:
            self._evaluate(trainer, method)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: object
    ) -> None:
        """Evaluate when due."""
        method = cast(Method, pl_module)
        if method.gradient_step % self.every == 0:
            self._evaluate(trainer, method)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Evaluate the final policy, unless somebody asked training to stop."""
        if not trainer.should_stop:
            self._evaluate(trainer, cast(Method, pl_module))

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """End the worker processes."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def state_dict(self) -> dict[str, Any]:
        """What the last evaluation found, and when."""
        return {"latest": dict(self.latest), "evaluated": self._evaluated}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue after the last evaluation."""
        self.latest, self._evaluated = state_dict["latest"], state_dict["evaluated"]

    def _evaluate(self, trainer: pl.Trainer, method: Method) -> None:
        if self._evaluated == method.gradient_step:
            return  # Online, several environment steps may pass without a gradient step.
        found = self._roll_out(trainer, method)
        self._evaluated = method.gradient_step  # only now: an interrupted one is done again
        self.latest = trainer.strategy.broadcast(found)  # the first rank's, for the time it took
        method.evaluation = self.latest  # type: ignore[assignment]
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            listener = getattr(callback, "on_evaluation", None)
            if listener is not None:
                listener(trainer, method, self.latest)

    def _roll_out(self, trainer: pl.Trainer, method: Method) -> dict[str, float]:
        start = time.perf_counter()
        if self._pool is None:
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            ranks = trainer.world_size

            def gather(mine: Any) -> list[Any]:
                gathered: list[Any] = [None] * ranks
                torch.distributed.all_gather_object(gathered, mine)
                return gathered

            share = Share(trainer.global_rank, ranks, gather) if ranks > 1 else None
            settings = (data.env, data.task, data.sparse, self.workers)
            self._pool = RolloutPool(*settings, share=share)
        episodes, discarded = self._insist(self._pool, method)
        seconds = time.perf_counter() - start
        return {**summarize(episodes), "discarded": discarded, "seconds": seconds}

    def _insist(self, pool: RolloutPool, method: Method) -> tuple[list[Episode], float]:
        """Runs all episodes anew where an environment's process dies: they come out the same."""
        discarded, failures = 0.0, 0
        while True:
            policy = EpisodePolicy(method, self.seed)
            try:
                return pool.run(policy, self.episodes, self.seed), discarded
            except WorkerError as error:
                failures += 1
                if failures == _ATTEMPTS:
                    raise
                print(f"evaluation: {error}\nevaluation: runs its episodes anew", file=sys.stderr)
                discarded += policy.begun
