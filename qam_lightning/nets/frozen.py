"""How a network takes part in a loss that must not train it."""

import copy
from typing import TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


def frozen(module: M) -> M:
    """Return a view of ``module`` whose parameters are detached but share its memory.

    Gradients pass through to the inputs and stop at the parameters; nothing is toggled on the
    original, so it can be trained by another term of the same loss.
    """
    view = copy.copy(module)
    view.__dict__["_parameters"] = {
        name: None if p is None else p.detach() for name, p in module._parameters.items()
    }
    view.__dict__["_modules"] = {
        name: None if m is None else frozen(m) for name, m in module._modules.items()
    }
    return view


def ema_copy(module: M) -> M:
    """Return a separate copy of ``module`` that no optimizer trains: the start of its EMA."""
    return copy.deepcopy(module).requires_grad_(False)
