"""Functions of tensors as one compiled graph, and on CUDA as one captured one.

A function is traced once, with its gradients, into one graph of tensor operations. What cannot be
in a graph, such as a value read on the host or a shape that depends on values, is an error then.
The compiler behind torch.compile turns the graph into kernels and keeps them on disk for the next
run. torch.compile itself translates Python code instead, which takes ten seconds longer here, and
checks in every call whether its translation still holds.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from qam_lightning.util.errors import ArgumentError, UserError

Kind = Literal["off", "default", "graph"]
"""What becomes of a function: nothing, one compiled graph, one that CUDA captures besides."""

aten = torch.ops.aten


class NotCompiled(UserError):
    """Why a function cannot be compiled."""


@contextmanager
def naming_the_setting(owner: type | str) -> Iterator[None]:
    """Turn a `NotCompiled` into an `ArgumentError` about ``owner``'s setting ``compile``."""
    try:
        yield
    except NotCompiled as error:
        raise ArgumentError(owner, "compile", str(error)) from error


def check_compiler(kind: Kind, device: torch.device, ranks: int = 1) -> None:
    """Check that functions can be compiled here, before anything is.

    Args:
        kind: what is wanted.
        device: where they would run.
        ranks: processes that train together.

    Raises:
        NotCompiled: they cannot.
    """
    if kind == "off":
        return
    if kind == "graph" and device.type != "cuda":
        raise NotCompiled(f"needs CUDA, and training is on {device.type}; set it to default or off")
    if kind == "graph" and ranks > 1:
        raise NotCompiled("captures one process, and there are several; set it to default or off")
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability < (7, 0):
            found = ".".join(map(str, capability))
            raise NotCompiled(f"needs a GPU of capability 7.0, found {found}; set it to off")
        return
    # Not at the top: importing the compiler takes seconds.
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        problem = "needs a C++ compiler; install one such as g++, or set it to off"
        raise NotCompiled(problem) from None


class Compiled:
    """A function of a fixed state and of inputs, compiled once for each shape of inputs and flags.

    Args:
        function: takes the state, the inputs and flags, and may change the state in place. It
            returns a tensor or a dict of scalars, and depends on nothing else.
        state: nested tuples and dicts of tensors, the same tensors in every call.
        kind: ``"default"`` or ``"graph"``.
        ranks: processes that train together.
    """

    def __init__(
        self, function: Callable[..., Any], state: Any, kind: Kind, ranks: int = 1
    ) -> None:
        self._function, self._kind, self._ranks = function, kind, ranks
        self._state, self._state_spec = tree_flatten(state)
        self._graphs: dict[Any, tuple[Callable[[list[Tensor]], Any], list[str]]] = {}

    def __call__(self, *inputs: Any, **flags: Any) -> Any:
        """Return what the function returns.

        Raises:
            NotCompiled: at the first call with these shapes and flags, where it cannot be compiled.
        """
        leaves, spec = tree_flatten(inputs)
        tensors = [x.contiguous() for x in leaves if x is not None]
        key = tuple(flags.items()), *((x.shape, x.dtype) for x in tensors)
        if key not in self._graphs:
            self._graphs[key] = self._build(leaves, spec, tensors, flags)
        run, names = self._graphs[key]
        with torch.autocast(tensors[0].device.type, enabled=False):  # the graph has its casts
            out = run(tensors)
        return dict(zip(names, out.unbind(), strict=True)) if names else out

    def _build(
        self, leaves: list[Any], spec: Any, tensors: list[Tensor], flags: dict[str, Any]
    ) -> tuple[Callable[[list[Tensor]], Any], list[str]]:
        from torch._inductor import standalone_compile
        from torch.fx.experimental.proxy_tensor import make_fx

        names: list[str] = []
        held = len(self._state)

        def flat(*given: Tensor) -> tuple[Tensor]:
            left = iter(given[held:])
            state = tree_unflatten(list(given[:held]), self._state_spec)
            inputs = tree_unflatten([None if x is None else next(left) for x in leaves], spec)
            out = self._function(state, *inputs, **flags)
            if isinstance(out, Tensor):
                return (out,)
            names[:] = out
            return (torch.stack([x.to(given[0].dtype) for x in out.values()]),)

        given = [*self._state, *tensors]
        try:
            # The compiler has no fused kernels for these, and writes better ones from their parts.
            traced = make_fx(flat, decomposition_table=DECOMPOSITIONS, tracing_mode="fake")(*given)
            for node in traced.graph.nodes:  # the compiler finds out shapes by itself
                node.meta.clear()
            options = {"config_patches": self._options(tensors[0].device)}
            run = standalone_compile(
                traced, given, dynamic_shapes="from_example_inputs", options=options
            )
            if self._kind == "graph":
                return _captured(run, self._state, tensors), names
        except Exception as error:
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            problem = f"failed ({type(error).__name__}: {reason}); set it to off"
            raise NotCompiled(problem) from error
        return lambda tensors: run(*self._state, *tensors)[0], names

    def _options(self, device: torch.device) -> dict[str, Any]:
        """Return the compiler's options: on CPUs one C++ file for the whole graph.

        A file for each of a hundred kernels takes twice the time to compile, and calling them from
        Python costs a millisecond. The collectives of several ranks cannot be called from C++.
        """
        if device.type != "cpu":
            return {}
        # The processor's own list of its instructions is believed; trying them takes eight seconds.
        return {"cpp_wrapper": self._ranks == 1, "cpp.vec_isa_ok": True}


def _captured(
    run: Callable[..., Any], state: list[Tensor], tensors: list[Tensor]
) -> Callable[[list[Tensor]], Tensor]:
    """Capture a call in a CUDA graph; calls then copy their inputs and replay it.

    The calls that warm up, on a stream of their own, leave the state as it was.
    """
    static = [x.clone() for x in tensors]
    before = [x.clone() for x in state]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run(*state, *static)
    torch.cuda.current_stream().wait_stream(stream)
    torch._foreach_copy_(state, before)
    del before
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        (out,) = run(*state, *static)

    def replay(tensors: list[Tensor]) -> Tensor:
        torch._foreach_copy_(static, tensors)
        graph.replay()
        return out.clone()

    return replay


def _addmm(b: Tensor, x: Tensor, w: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    if (beta, alpha) != (1, 1):
        return NotImplemented
    return x @ w - (-b)  # the compiler would make a sum one operation again


def _layer_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    if len(shape) != 1 or weight is not None or bias is not None:
        return NotImplemented
    mean = x.mean(-1, keepdim=True)
    centred = x - mean
    inverse = torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)
    return centred * inverse, mean, inverse


def _adam(
    weights: list[Tensor],
    gradients: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    max_exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    *,
    lr: Tensor,
    beta1: float,
    beta2: float,
    weight_decay: float,
    eps: float,
    amsgrad: bool,
    maximize: bool,
) -> None:
    for w, g, m, v, step in zip(weights, gradients, exp_avgs, exp_avg_sqs, steps, strict=True):
        if weight_decay:
            g = g + weight_decay * w
        m.lerp_(g, 1.0 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1.0 - beta2)
        # 1 - beta^step, without the cancellation of the first steps.
        unbias1, unbias2 = (-torch.expm1(step * math.log(beta)) for beta in (beta1, beta2))
        size, scale = _computed_once(lr / unbias1), _computed_once(unbias2.rsqrt())
        w.sub_(size * m / (v.sqrt() * scale + eps))


def _computed_once(x: Tensor) -> Tensor:
    """Return the scalar ``x``; without a reduction the compiler computes it for every weight."""
    return x.expand(16).amax()


DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    aten.addmm.default: _addmm,
    aten.baddbmm.default: _addmm,
    aten.native_layer_norm.default: _layer_norm,
    aten._fused_adam_.tensor_lr: _adam,
}
