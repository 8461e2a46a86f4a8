"""A training step as one function: losses, gradient, clip, Adam and targets.

All that a step changes lies in a few vectors (`State`); parameters and Adam's moments are views of
them. So ranks average one vector, clipping and Adam are a few operations on vectors, and the whole
step can be traced into one graph (`qam_lightning.methods.compiled`).
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.func import functional_call
from torch.optim.adam import adam

from qam_lightning.callbacks.ema import EmaTargets
from qam_lightning.data.batch import Batch
from qam_lightning.methods.compiled import Compiled, Kind, NotCompiled
from qam_lightning.methods.noise import StepNoise
from qam_lightning.methods.optimization import clip_gradient, mean_over_ranks
from qam_lightning.util.errors import ArgumentError, UserError

if TYPE_CHECKING:
    from qam_lightning.methods.base import Method, Metrics

_ALIGNMENT = 16
"""Numbers in 64 bytes. Matrix products of tensors that begin elsewhere are slower, and may round
otherwise in another process, so that a resumed run would not be the same to the bit."""


class JointAdam(torch.optim.Adam):
    """Adam whose step may be left to a closure: `update` steps Adam's moments by itself."""

    def step(self, closure: Any = None) -> Any:
        """Return what ``closure`` returns; without one, step as Adam does."""
        return super().step() if closure is None else closure()


class State(NamedTuple):
    """What a training step reads and changes.

    Attributes:
        weights: (P,), all trained parameters.
        targets: (E,), the parameters of the target networks.
        exp_avg: (P,), Adam's first moments.
        exp_avg_sq: (P,), Adam's second moments.
        steps: (2,), the steps that Adam took for the critics, and for all else.
        learning_rate: scalar, Adam's step size.
        constants: the method's other tensors by name; a training step only reads them.
    """

    weights: Tensor
    targets: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    steps: Tensor
    learning_rate: Tensor
    constants: dict[str, Tensor]


class Layout:
    """Which parameter lies where in the vectors of a `State`.

    Critics come first, as some steps train them alone. Parameters with a target lie next to each
    other, in the order of their targets.

    Args:
        method: the method, on the device where it is trained.
        optimizer: what its `configure_optimizers` returned.

    Raises:
        UserError: the optimizer is not one `JointAdam` over all trained parameters.
    """

    def __init__(self, method: "Method", optimizer: torch.optim.Optimizer) -> None:
        tensors = {**dict(method.named_parameters()), **dict(method.named_buffers())}
        names = {x: name for name, x in tensors.items()}
        target_of = {
            names[online]: names[target]
            for pair in method.ema_pairs()
            for online, target in zip(*(module.parameters() for module in pair), strict=True)
        }

        def place(name: str) -> int:
            followed = name in target_of
            return int(followed) if name.startswith("critic.") else 3 - followed

        trained = sorted((name for name, x in tensors.items() if x.requires_grad), key=place)
        followed = [name for name in trained if name in target_of]
        self.trained = {name: tensors[name] for name in trained}
        self.targets = {target_of[name]: tensors[target_of[name]] for name in followed}
        moved = self.trained | self.targets
        self.constants = {name: x for name, x in tensors.items() if name not in moved}
        _check_optimizer(method, optimizer, self.trained)
        self.optimizer: Any = optimizer
        sizes = [0, 0, 0, 0]
        for name, p in self.trained.items():
            sizes[place(name)] += _padded(p.numel())
        self.critics = sizes[0] + sizes[1]
        """How many of the P numbers belong to critics."""
        self.followed = slice(sizes[0], sum(sizes[:3]))
        """Which of the P numbers have targets."""

    def gather(self) -> State:
        """Copy parameters and moments into new vectors, and make them views of these."""
        parameters, moments = list(self.trained.values()), self.optimizer.state
        device = parameters[0].device
        for p in parameters:  # Adam itself starts them at its first step
            for name in ("exp_avg", "exp_avg_sq"):
                moments[p].setdefault(name, torch.zeros_like(p))

        critics = [p for name, p in self.trained.items() if name.startswith("critic.")]
        parts = critics, parameters[len(critics) :]
        taken = [max((float(moments[p].get("step", 0)) for p in part), default=0) for part in parts]
        state = State(
            weights=joined([p.detach() for p in parameters]),
            targets=joined([x.detach() for x in (*self.targets.values(), parameters[0][:0])]),
            exp_avg=joined([moments[p]["exp_avg"] for p in parameters]),
            exp_avg_sq=joined([moments[p]["exp_avg_sq"] for p in parameters]),
            steps=torch.tensor(taken, dtype=torch.float32, device=device),
            learning_rate=torch.zeros((), dtype=torch.float32, device=device),
            constants=self.constants,
        )
        for vector, tensors in ((state.weights, self.trained), (state.targets, self.targets)):
            for name, view in views(vector, tensors).items():
                tensors[name].data = view
        for name in ("exp_avg", "exp_avg_sq"):
            for of, view in views(getattr(state, name), self.trained).items():
                moments[self.trained[of]][name] = view
        for step, part in zip(state.steps, parts, strict=True):
            for p in part:
                moments[p]["step"] = step
        return state


def _check_optimizer(
    method: "Method", optimizer: torch.optim.Optimizer, trained: Mapping[str, Tensor]
) -> None:
    given = [id(p) for group in optimizer.param_groups for p in group["params"]]
    ours = isinstance(optimizer, JointAdam) and len(optimizer.param_groups) == 1
    if not ours or sorted(given) != sorted(map(id, trained.values())):
        raise UserError(
            f"{type(method).__name__}: Method.training_step needs the optimizer of "
            "Method.configure_optimizers, over all parameters that require a gradient; override "
            "both to train in another way"
        )
    if kinds := {p.dtype for p in trained.values()} - {next(iter(trained.values())).dtype}:
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
    return torch.cat(parts)


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
    trained = views(state.weights, layout.trained)
    learned = {n: w for n, w in trained.items() if actor_step or n.startswith("critic.")}
    for w in learned.values():
        w.requires_grad_()
    tensors = trained | views(state.targets, layout.targets) | state.constants
    losses, metrics = functional_call(method, tensors, (batch, noise, actor_step))
    loss = torch.stack(list(losses.values())).sum()
    gradients = torch.autograd.grad(loss, list(learned.values()), materialize_grads=True)
    with torch.no_grad():
        gradient = joined(gradients)
        gradient = mean_over_ranks(gradient, method.ranks)
        norm = clip_gradient(gradient, method.grad_clip, method.grad_clip_mode)
        _adam_step(layout, state, gradient)
        if actor_step and targets is not None:
            targets.move([state.targets], [state.weights[layout.followed]])
    named = {name: value.detach() for name, value in losses.items()}
    return {"loss": loss.detach(), **named, **metrics, "grad_norm": norm}


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

    def run(
        batch: Batch, noise: StepNoise, step_size: float, actor_step: bool
    ) -> dict[str, Tensor]:
        state.learning_rate.fill_(step_size)
        try:
            return one_step(batch, noise, actor_step=actor_step)
        except NotCompiled as error:
            raise ArgumentError(type(method), "compile", str(error)) from error

    return run


def _adam_step(layout: Layout, state: State, gradient: Tensor) -> None:
    """Step the first numbers of the vectors, as many as ``gradient`` has."""
    cuts = [layout.critics, len(gradient) - layout.critics]
    used = [i for i, size in enumerate(cuts) if size]

    def parts(vector: Tensor) -> list[Tensor]:
        split = vector[: len(gradient)].split(cuts)
        return [split[i] for i in used]

    group = layout.optimizer.param_groups[0]
    beta1, beta2 = group["betas"]
    adam(
        parts(state.weights),
        parts(gradient),
        parts(state.exp_avg),
        parts(state.exp_avg_sq),
        [],
        [state.steps[i] for i in used],
        fused=True,
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=state.learning_rate,
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )
