"""Every method's update runs on the meta device, which has shapes but no values.

So nothing in an update waits for a value on the host, takes a shape from one, or mixes devices:
the whole update can become one graph.
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qam_lightning.callbacks.ema import EmaTargets
from qam_lightning.data.batch import Batch
from qam_lightning.methods.base import Losses, Method, Metrics
from qam_lightning.methods.compiled import DECOMPOSITIONS
from qam_lightning.methods.noise import map_noise
from qam_lightning.methods.qam import QAM
from qam_lightning.methods.update import Layout, update
from tests.methods.test_every_method import METHODS, make

Build = Callable[..., Method]


class OneDevice(TorchDispatchMode):
    """Refuses operations between devices, also those with scalars, and copies."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        # torch has the fused Adam for real devices only.
        function = DECOMPOSITIONS[func] if "_fused_adam_" in str(func) else func
        result = function(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
        devices = sorted({x.device.type for x in tensors})
        if len(devices) > 1:
            raise RuntimeError(f"{func} works on {' and '.join(devices)}")
        return result


def update_on_meta(method: Method, batch: Batch) -> None:
    """Update once of each kind, without values, with nothing but tensors of the meta device."""
    noise = map_noise(lambda x: x.to("meta"), method.step_noise(len(batch.rewards)))
    batch, method = Batch(*(x.to("meta") for x in batch)), copy.deepcopy(method).to("meta")
    layout = Layout(method, method.configure_optimizers())
    state = layout.gather()
    targets = EmaTargets(method.target_rate)
    for step in range(1, method.actor_delay + 1):
        actor_step = method.is_actor_step(step)
        with OneDevice():
            values = update(method, layout, targets, state, batch, noise, actor_step)
        assert all(x.device.type == "meta" and x.shape == () for x in values.values())


@pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.__name__)
def test_an_update_waits_for_no_value(kind: type[Method], build: Build, batch: Batch) -> None:
    update_on_meta(make(kind, build), batch)


class Faulty(QAM):
    """QAM with one more loss, which `FAULTS` computes from the rewards (B,)."""

    def actor_losses(self, batch: Batch, noise: Any) -> tuple[Losses, Metrics]:
        losses, metrics = super().actor_losses(batch, noise)
        return losses | {"actor/loss": self.fault(batch.rewards)}, metrics


FAULTS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "reads a value": (lambda x: x / x.mean().item(), "meta"),
    "branches on a value": (lambda x: x if x.mean() < 0 else -x, "meta"),
    "size that depends on values": (lambda x: x[x < 0], "nonzero"),
    "tensor on the CPU": (lambda x: x * torch.linspace(0, 1, len(x)), "cpu"),
    "scalar on the CPU": (lambda x: x * torch.tensor(0.1), "works on cpu and meta"),
    "copy from the CPU": (lambda x: x * torch.ones(len(x)).to(x.device), "works on cpu and meta"),
}


@pytest.mark.parametrize(("fault", "told"), FAULTS.values(), ids=FAULTS)
def test_an_update_that_does_is_found(
    fault: Callable[[Tensor], Tensor], told: str, build: Build, batch: Batch
) -> None:
    method = make(Faulty, build)
    method.fault = lambda x: fault(x).mean()
    with pytest.raises(RuntimeError, match=told):
        update_on_meta(method, batch)
    method.losses(batch, method.step_noise(len(batch.rewards)))  # nobody sees it on a CPU
