"""The base class of this project's callbacks: typed hooks, and a declared order.

Lightning calls the hooks of one event in the order of ``trainer.callbacks``. Where one callback
needs another's work, either that work has a hook of its own here (such as
`Callback.on_gradient_step`, before any ``on_train_batch_end``), or `Order` says who comes first.
"""

import os
from collections.abc import Callable, Mapping
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_only

from qam_lightning.run_folder import Claim, check_files, check_unused
from qam_lightning.util.errors import UserError

if TYPE_CHECKING:
    from qam_lightning.methods.base import Method


_CLAIMED: set[Path] = set()
"""The folders of the runs of this process, in which a second fit may go on."""


class Order(IntEnum):
    """Who comes first after a gradient step, and in every other event of Lightning.

    The row of a step is on disk before the checkpoint of that step counts it. A checkpoint holds
    the result of its step's evaluation. The next environment step begins last, when everything
    that belongs to the gradient step is done.
    """

    ANY = 0
    """All others: callbacks of users and of Lightning come first, in the order of the list."""
    METRICS = 1
    EVALUATION = 2
    CHECKPOINTS = 3
    """Also Lightning's own ``ModelCheckpoint``."""
    PROGRESS = 4
    ONLINE = 5


class Callback(pl.Callback):
    """A Lightning callback with a declared order that also hears of the events of a run.

    `setup` sorts the trainer's callbacks by their `order`, so the position in the list that the
    trainer was given does not matter (LightningCLI puts the user's callbacks first).
    """

    order: ClassVar[Order] = Order.ANY

    _claims: tuple[Claim, ...] = ()

    config: str = ""
    """The run's resolved configuration as YAML, if the trainer was composed from one."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Sort the trainer's callbacks. An override must call ``super().setup(...)``."""
        super().setup(trainer, pl_module, stage)
        # Who is first is the trainer's to say: variables of a launcher may be left over.
        rank_zero_only.rank = trainer.global_rank  # type: ignore[attr-defined]
        # A new list: Lightning is iterating over the old one.
        trainer.callbacks = sorted(trainer.callbacks, key=_order)  # type: ignore[attr-defined]

    def claim(
        self,
        trainer: pl.Trainer,
        run_dir: str | Path,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Claim a run's folder until the fit ends; check that it holds no other run.

        All ranks call this at once, in ``on_fit_start``. The first one claims, and all raise the
        same error.

        Args:
            trainer: the fit's trainer.
            run_dir: the folder.
            check: what else the first rank checks there; raises a `UserError`.

        Raises:
            UserError: another process writes to the folder; or it holds a run, and the fit begins
                one or goes on with one of another process without resuming it.
        """
        problem = None
        if trainer.is_global_zero:
            try:
                self._claims += (Claim(run_dir),)
                folder = Path(os.path.realpath(run_dir))
                # A method that was loaded goes on without resuming, but not in any folder.
                goes_on = trainer.ckpt_path is not None or folder in _CLAIMED
                if begins_anew(trainer) or not goes_on:
                    check_unused(run_dir)
                check_files(run_dir)
                check()
                _CLAIMED.add(folder)
            except (UserError, OSError) as error:
                problem = str(error)
        if (problem := trainer.strategy.broadcast(problem)) is not None:
            raise UserError(problem)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Clean up after a fit, also after one that failed, and release the claims.

        An override must call ``super().teardown(...)``, last.
        """
        for claim in self._claims:
            claim.release()
        self._claims = ()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Tear down, which Lightning leaves out after a failure.

        An override must call ``super().on_exception(...)``, last.
        """
        self.teardown(trainer, pl_module, "fit")

    @property
    def mid_step(self) -> bool:
        """Whether this callback's state is between two steps and must not be saved."""
        return False

    def ends_phase(self, gradient_step: int) -> bool:
        """Whether another phase follows after a gradient step."""
        return False

    def on_gradient_step(self, trainer: pl.Trainer, method: "Method") -> None:
        """Hear that the optimizer has stepped; comes before every ``on_train_batch_end``."""

    def on_metrics(self, trainer: pl.Trainer, method: "Method", row: Mapping[str, Any]) -> None:
        """Hear a new row of metrics: numbers by name, and the text ``phase``."""

    def on_evaluation(
        self, trainer: pl.Trainer, method: "Method", result: Mapping[str, float]
    ) -> None:
        """Hear the result of an evaluation: ``success`` in [0, 1], ``return``, ``length``, ..."""

    def on_collection(self, trainer: pl.Trainer, method: "Method") -> None:
        """Hear of an environment step that no gradient step follows."""


def ours(trainer: pl.Trainer) -> list[Callback]:
    """Return the trainer's callbacks that have the hooks above, in their order."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, Callback)]


def begins_anew(trainer: pl.Trainer) -> bool:
    """Whether a fit begins a run, rather than resume one. Known from ``on_fit_start`` on."""
    method: Any = trainer.lightning_module
    return trainer.ckpt_path is None and method.gradient_step == method.env_step == 0


def _order(callback: pl.Callback) -> Order:
    if isinstance(callback, Callback):
        return callback.order
    return Order.CHECKPOINTS if isinstance(callback, pl.callbacks.Checkpoint) else Order.ANY
