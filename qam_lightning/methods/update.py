"""A training step as one function: losses, gradient, clip, targets and Adam.

All that a step changes lies in a few vectors (`State`); parameters and Adam's moments are views of
them. So ranks average one vector, clipping and Adam are a few operations on vectors, and the whole
step can be traced into one graph (`qam_lightning.methods.compiled`).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.func import functional_call
from torch.optim.adam import adam

from qam_lightning.callbacks.ema import EmaTargets
from qam_lightning.data.batch import Batch
from qam_lightning.methods.compiled import Compiled, Kind, naming_the_setting
from qam_lightning.methods.noise import StepNoise
from qam_lightning.methods.optimization import clip_gradients, mean_over_ranks
from qam_lightning.util.errors import UserError

if TYPE_CHECKING:
    from qam_lightning.methods.base import Method, Metrics

_ALIGNMENT = 16
"""Numbers in 64 bytes. Matrix products of tensors that begin elsewhere are slower, and may round
otherwise in another process, so that a resumed run would not be the same to the bit."""


class Adam(torch.optim.Adam):
    """Adam whose step may be left to a closure: `update` steps Adam's moments by itself."""

    def step(self, closure: Any = None) -> Any:
        """Return what ``closure`` returns; without one, step as Adam does."""
        return super().step() if closure is None else closure()


class Part(NamedTuple):
    """Parameters that are always trained together, P in all, of which the first E have a target.

    Attributes:
        weights: (P,), the parameters.
        targets: (E,), their targets.
        exp_avg: (P,), Adam's first moments.
        exp_avg_sq: (P,), Adam's second moments.
        step: scalar, how many steps Adam took.
    """

    weights: Tensor
    targets: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: Tensor


class State(NamedTuple):
    """What a training step reads and changes.

    Attributes:
        parts: the critics, which some steps train alone, and all else.
        learning_rate: scalar, Adam's step size.
        others: the method's other tensors by name; a training step changes those of
            `Method.adapted` alone.
    """

    parts: tuple[Part, ...]
    learning_rate: Tensor
    others: dict[str, Tensor]


class Layout:
    """Which parameter lies where in a `State`.

    Args:
        method: the method, on the device where it is trained.
        optimizer: what its `configure_optimizers` returned.

    Raises:
        UserError: the optimizer is not one `Adam` over all trained parameters.
    """

    def __init__(self, method: "Method", optimizer: torch.optim.Optimizer) -> None:
        tensors = {**dict(method.named_parameters()), **dict(method.named_buffers())}
        names = {x: name for name, x in tensors.items()}
        target_of = {
            names[online]: names[target]
            for pair in method.ema_pairs()
            for online, target in zip(*(module.parameters() for module in pair), strict=True)
        }
        trained = [name for name, x in tensors.items() if x.requires_grad]
        _check_optimizer(method, optimizer, [tensors[name] for name in trained])
        self.optimizer: Any = optimizer
        self.parts: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
        """Parameters and targets of every part, by name and in order."""
        for critic in (True, False):
            own = [name for name in trained if name.startswith("critic.") == critic]
            followed = [name for name in own if name in target_of]
            order = [*followed, *(name for name in own if name not in target_of)]
            targets = [target_of[name] for name in followed]
            part = {name: tensors[name] for name in order}, {n: tensors[n] for n in targets}
            self.parts += [part] if own else []
        moved = {name for part in self.parts for named in part for name in named}
        self.others = {name: x for name, x in tensors.items() if name not in moved}

    def gather(self) -> State:
        """Copy parameters and moments into new vectors, and make them views of these."""
        parts = tuple(self._gather(*part) for part in self.parts)
        rate = torch.zeros((), dtype=torch.float32, device=parts[0].weights.device)
        return State(parts, rate, self.others)

    def _gather(self, trained: dict[str, Tensor], targets: dict[str, Tensor]) -> Part:
        parameters = list(trained.values())
        moments = [self.optimizer.state[p] for p in parameters]
        for p, own in zip(parameters, moments, strict=True):  # Adam itself makes them when it steps
            own.setdefault("step", torch.zeros((), device=p.device))
            own.setdefault("exp_avg", torch.zeros_like(p))
            own.setdefault("exp_avg_sq", torch.zeros_like(p))
        part = Part(
            weights=joined(parameters),
            targets=joined([*targets.values(), parameters[0][:0]]),
            exp_avg=joined([own["exp_avg"] for own in moments]),
            exp_avg_sq=joined([own["exp_avg_sq"] for own in moments]),
            step=torch.stack([own["step"] for own in moments]).amax(),
        )
        for vector, tensors in ((part.weights, trained), (part.targets, targets)):
            for name, view in views(vector, tensors).items():
                tensors[name].data = view
        averages = (views(v, trained).values() for v in (part.exp_avg, part.exp_avg_sq))
        for own, first, second in zip(moments, *averages, strict=True):
            own |= {"step": part.step, "exp_avg": first, "exp_avg_sq": second}
        return part


def _check_optimizer(
    method: "Method", optimizer: torch.optim.Optimizer, trained: Sequence[Tensor]
) -> None:
    given = [id(p) for group in optimizer.param_groups for p in group["params"]]
    ours = isinstance(optimizer, Adam) and len(optimizer.param_groups) == 1
    if not ours or sorted(given) != sorted(map(id, trained)):
        raise UserError(
            f"{type(method).__name__}: Method.training_step needs the optimizer of "
            "Method.configure_optimizers, over all parameters that require a gradient; override "
            "both to train in another way"
        )
    if kinds := {p.dtype for p in trained} - {trained[0].dtype}:
        raise UserError(
            f"{type(method).__name__}: some parameters are of {kinds.pop()}, expected one precision"
        )


def _padded(length: int) -> int:
    return -(-length // _ALIGNMENT) * _ALIGNMENT


def joined(tensors: Sequence[Tensor]) -> Tensor:
    """Return a vector of tensors, each followed by zeros up to the next aligned place."""
    parts: list[Tensor] = []
    for x in tensors:
        rest = _padded(x.numel()) - x.numel()
        parts += [x.flatten(), *([x.new_zeros(rest)] if rest else [])]
    return torch.cat(parts).detach()


def views(vector: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the parts of a vector that `joined` made, with the names and shapes of others."""
    parts = vector.detach().split([_padded(x.numel()) for x in like.values()])
    named = zip(parts, like.items(), strict=True)
    return {name: part[: x.numel()].view_as(x) for part, (name, x) in named}


def update(
    method: "Method",
    layout: Layout,
    targets: EmaTargets | None,
    state: State,
    batch: Batch,
    noise: StepNoise,
    actor_step: bool,
) -> "Metrics":
    """Take one training step, in place in ``state``; pure in everything else.

    Args:
        method: gives the losses; their tensors are those of ``state``.
        layout: of ``state``.
        targets: moves the targets after an actor step; None if there are none.
        state: what the step starts from, and then what came out.
        batch: B chunks.
        noise: what `Method.step_noise` draws.
        actor_step: whether to train everything, not the critics alone.

    Returns:
        The step's metrics, scalars without gradient.
    """
    tensors, learned = dict(state.others), list[list[Tensor]]()
    for i, (part, named) in enumerate(zip(state.parts, layout.parts, strict=True)):
        weights, followers = (views(v, x) for v, x in zip(part[:2], named, strict=True))
        tensors |= weights | followers
        if i == 0 or actor_step:
            learned.append([w.requires_grad_() for w in weights.values()])
    losses, metrics = functional_call(method, tensors, (batch, noise, actor_step))
    loss = torch.stack(list(losses.values())).sum()
    found = iter(torch.autograd.grad(loss, list(chain(*learned)), materialize_grads=True))
    with torch.no_grad():
        gradients = [joined([next(found) for _ in own]) for own in learned]
        gradients = [mean_over_ranks(g, method.ranks) for g in gradients]
        norm = clip_gradients(gradients, method.grad_clip, method.grad_clip_mode)
        stepped = state.parts[: len(gradients)]
        if actor_step and targets is not None:  # before Adam: by the weights of the losses
            targets.move(
                [part.targets for part in stepped],
                [part.weights[: len(part.targets)] for part in stepped],
            )
        if actor_step:
            method.adapt(metrics, state.others)
        _adam_step(layout.optimizer.param_groups[0], stepped, gradients, state.learning_rate)
    single = {name: value.detach() for name, value in losses.items()}
    return {"loss": loss.detach(), **single, **metrics, "grad_norm": norm}


def prepare_update(
    method: "Method", optimizer: torch.optim.Optimizer, targets: EmaTargets | None
) -> "Callable[[Batch, StepNoise, float, bool], Metrics]":
    """Return `update` as a function of batch, noise, step size and whether it is an actor step.

    It is compiled if the method's setting says so. From now on, the parameters and moments are
    views of vectors.

    Args:
        method: the method, on the device where it is trained.
        optimizer: what its `configure_optimizers` returned, with moments or without.
        targets: see `update`.

    Raises:
        UserError: the optimizer is another one.
        ArgumentError: in the first call, where the update cannot be compiled.
    """
    layout, kind = Layout(method, optimizer), cast(Kind, method.compile)
    state = layout.gather()
    pure = partial(update, method, layout, targets)
    one_step: Callable[..., Metrics] = (
        partial(pure, state) if kind == "off" else Compiled(pure, state, kind, method.ranks)
    )

    def run(batch: Batch, noise: StepNoise, step_size: float, actor_step: bool) -> "Metrics":
        state.learning_rate.fill_(step_size)
        with naming_the_setting(type(method)):
            return one_step(batch, noise, actor_step=actor_step)

    return run


def _adam_step(
    group: dict[str, Any], parts: Sequence[Part], gradients: list[Tensor], learning_rate: Tensor
) -> None:
    beta1, beta2 = group["betas"]
    adam(
        [part.weights for part in parts],
        gradients,
        [part.exp_avg for part in parts],
        [part.exp_avg_sq for part in parts],
        [],
        [part.step for part in parts],
        fused=True,
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=learning_rate,
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )
