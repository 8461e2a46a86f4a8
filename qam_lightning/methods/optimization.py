"""What every method does to its gradients: clipping and the step size's decay."""

import math
from collections.abc import Sequence

from torch import Tensor, nn


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


def clip_gradients(parameters: Sequence[nn.Parameter], bound: float, mode: str) -> Tensor:
    """Clip the gradients in place and return their joint norm before that, a scalar.

    Args:
        parameters: those without a gradient are left out.
        bound: 0 switches clipping off.
        mode: ``"norm"`` rescales to joint norm ``bound``; ``"value"`` clips element-wise.
    """
    trained = [p for p in parameters if p.grad is not None]
    if bound > 0 and mode == "norm":
        return nn.utils.clip_grad_norm_(trained, bound)
    norm = nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
    if bound > 0:
        nn.utils.clip_grad_value_(trained, bound)
    return norm
