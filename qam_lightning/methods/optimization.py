"""What every method does to its gradient: clipping and the step size's decay."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def decayed_learning_rate(learning_rate: float, step: int, decay_steps: int) -> float:
    """Return Adam's step size after ``step`` gradient steps.

    Args:
        learning_rate: the step size at step 0.
        step: gradient steps done, at least 0.
        decay_steps: gradient steps in which it falls to 0 along half a cosine; 0 keeps it constant.
    """
    if decay_steps == 0:
        return learning_rate
    done = min(step / decay_steps, 1.0)
    return learning_rate * 0.5 * (1.0 + math.cos(math.pi * done))


def clip_gradients(gradients: Sequence[Tensor], bound: float, mode: str) -> Tensor:
    """Clip gradients in place and return their joint norm before that, a scalar.

    Args:
        gradients: of any shapes.
        bound: 0 switches clipping off.
        mode: ``"norm"`` rescales to joint norm ``bound``; ``"value"`` clips element-wise.
    """
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
    for gradient in gradients if bound > 0 else ():
        if mode == "norm":
            gradient.mul_((bound / (norm + 1e-6)).clamp(max=1.0))
        else:
            gradient.clamp_(-bound, bound)
    return norm


def mean_over_ranks(x: Tensor, ranks: int) -> Tensor:
    """Return the mean of ``x`` over all ranks, without gradient; ``x`` itself where there is one.

    Args:
        x: any shape, the same on every rank.
        ranks: how many there are.
    """
    if ranks == 1:
        return x.detach()
    # Not at the top: one rank does without. Unlike torch.distributed.all_reduce it can be traced.
    from torch.distributed._functional_collectives import all_reduce

    world: Any = torch.distributed.group.WORLD
    return all_reduce(x.detach(), "sum", world) / ranks
