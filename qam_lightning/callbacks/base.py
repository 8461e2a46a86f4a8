"""The base class of this project's callbacks: typed hooks beyond Lightning's own.

Lightning calls the hooks of one event in the order of ``trainer.callbacks``. Where one callback
needs another's work, that work has an event of its own here, so that the order of the list does
not matter: targets move in `on_gradient_step`, before any `on_train_batch_end`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl

if TYPE_CHECKING:
    from qam_lightning.methods.base import Method


class Callback(pl.Callback):
    """A Lightning callback that may also hear of gradient steps, evaluations and collection."""

    @property
    def mid_step(self) -> bool:
        """Whether this callback's state is between two steps and must not be saved."""
        return False

    def on_gradient_step(self, trainer: pl.Trainer, method: "Method") -> None:
        """Hear that the optimizer has stepped; comes before every ``on_train_batch_end``."""

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
