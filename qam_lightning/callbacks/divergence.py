"""Finding what is infinite or not a number in a run."""

import math
from collections.abc import Mapping
from typing import cast

import lightning.pytorch as pl
import torch

from qam_lightning.methods.base import Method


def culprit(metrics: Mapping[str, float]) -> str | None:
    """Name the first metric that is not finite; ``loss``, their sum, only if it is alone."""
    found = [name for name, value in metrics.items() if not math.isfinite(value)]
    return next((name for name in found if name != "loss"), found[0] if found else None)


def not_finite(trainer: pl.Trainer, losses: torch.Tensor | None) -> str | None:
    """Name something in a run's state that is not finite; None if everything is.

    Args:
        trainer: its method's weights and latest metrics are looked at, and its optimizers.
        losses: the sum of all losses since the last look; one synchronisation checks them all.

    Returns:
        The most telling name: a metric, else a tensor of the state.
    """
    method = cast(Method, trainer.lightning_module)
    state = {} if losses is None else {"loss": losses}
    state |= {f"the weight {name}": x for name, x in method.state_dict().items()}
    for optimizer in trainer.optimizers:
        for number, moments in enumerate(optimizer.state.values()):
            kept = {name: x for name, x in moments.items() if torch.is_tensor(x) and x.ndim}
            state |= {f"the optimizer's {name} {number}": x for name, x in kept.items()}
    finite = [x.isfinite().all() for x in state.values()]
    if not finite or torch.stack(finite).all():
        return None
    found = [name for name, fine in zip(state, finite, strict=True) if not fine]
    return culprit({name: float(x) for name, x in method.metrics.items()}) or found[0]
