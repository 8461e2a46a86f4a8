"""A policy as a function of an observation and normal numbers, and as a graph of operations."""

import contextlib
import copy
import io
import logging
import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from qam_lightning.evaluation.episode_policy import ActingModule
from qam_lightning.evaluation.limits import check_candidates
from qam_lightning.methods.base import Method
from qam_lightning.methods.noise import NoiseSource
from qam_lightning.util.errors import UserError, shown

INPUTS, OUTPUT = ("observation", "noise"), "chunk"
OPSET = 18
"""Of the operations in ONNX models."""

_BATCHES = ({0: torch.export.Dim("B")},) * len(INPUTS)


class Acting(ActingModule):
    """``(observation (B, O), noise (B, N, P)) -> chunk (B, H, A)``, all in the method's precision.

    N is the number of candidates, and P how many standard normal numbers a candidate takes: all
    that `Method.policy_noise` draws, one draw after the other.

    Args:
        method: acts, with its ``best_of_n``.
        behavior: the cloned behaviour acts.

    Raises:
        UserError: the policy draws other than normal noise.
    """

    def __init__(self, method: Method, behavior: bool = False) -> None:
        super().__init__(method, behavior)
        count = _Counting()
        method.policy_noise(count)
        self.draws = count.draws
        """How many numbers a candidate takes in each draw; their sum is P."""
        self.noise_shape = method.best_of_n, sum(count.draws)
        """(N, P)."""

    @property
    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of the inputs, without the batch."""
        return (self.method.spaces.obs_dim,), self.noise_shape

    def forward(self, s: Tensor, noise: Tensor) -> Tensor:
        """Return the chunks at observations ``s``."""
        return super().forward(s, self.method.policy_noise(_Given(noise.flatten(0, 1))))


class _Counting(NoiseSource):
    """Counts the normal numbers that a row takes, draw by draw."""

    def __init__(self) -> None:
        self.draws: list[int] = []

    def normal(self, *shape: int) -> Tensor:
        self.draws.append(math.prod(shape))
        return torch.zeros(1, *shape)

    def uniform(self, *shape: int) -> Tensor:
        raise UserError("its policy draws other than normal noise, which no file here can hold")


class _Given(NoiseSource):
    """Takes its draws from given normal numbers (B, P), in turn."""

    def __init__(self, numbers: Tensor) -> None:
        self._numbers, self._taken = numbers, 0

    def normal(self, *shape: int) -> Tensor:
        begin, self._taken = self._taken, self._taken + math.prod(shape)
        return self._numbers[:, begin : self._taken].unflatten(1, shape)


class Graph(NamedTuple):
    """The operations of acting, with its gradients where it differentiates.

    Attributes:
        module: takes and returns what `Acting` does, for any B.
        weights: names, in the method's ``state_dict``, of the tensors that it reads.
    """

    module: fx.GraphModule
    weights: list[str]


def trace(acting: Acting) -> Graph:
    """Write acting as a graph of elementary operations.

    Raises:
        UserError: it cannot be: it reads values on the host, for example.
        ArgumentError: there are more candidates than fit into memory.
    """
    from torch._decomp import core_aten_decompositions  # not at the top: it takes a second
    from torch.fx.experimental.proxy_tensor import make_fx

    method, weights = acting.method, next(acting.method.parameters())
    size = _distinct(method)
    check_candidates(method, size)
    inputs = [weights.new_zeros(size, *shape) for shape in acting.shapes]
    try:
        module = make_fx(
            acting,
            decomposition_table=dict(core_aten_decompositions()),
            tracing_mode="symbolic",
            _allow_non_fake_inputs=True,
        )(*inputs)
    except UserError:
        raise
    except Exception as error:  # whatever the tracer makes of code that is not its own
        problem = "its acting is no graph of tensor operations"
        raise UserError(f"{problem}: {_told(error)}") from error
    module.graph.eliminate_dead_code()
    module.recompile()
    tensors = {id(x): name for name, x in method.state_dict(keep_vars=True).items()}
    read = [getattr(module, str(n.target)) for n in module.graph.nodes if n.op == "get_attr"]
    return Graph(module, list(dict.fromkeys(tensors[id(x)] for x in read if id(x) in tensors)))


def _told(error: BaseException) -> str:
    """Return the first line of an error's first cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    return shown(str(error).strip().partition("\n")[0] or type(error).__name__)


def _distinct(method: Method) -> int:
    """Return a batch size that no other size equals: the tracer takes equal sizes for one."""
    sizes = {size for x in method.state_dict().values() for size in x.shape}
    sizes |= {method.best_of_n, method.flow_steps, *method.spaces, method.spaces.chunk_dim}
    return next(size for size in range(11, 10**9, 2) if size not in sizes)


def program_of(graph: Graph, shapes: Sequence[tuple[int, ...]]) -> ExportedProgram:
    """Return the graph as ``torch.export`` has it, for any B.

    Args:
        graph: from `trace`.
        shapes: of its inputs, without the batch, see `Acting.shapes`.
    """
    module = copy.deepcopy(graph.module).requires_grad_(False)  # it shares the weights
    inputs = tuple(torch.zeros(2, *shape) for shape in shapes)
    return torch.export.export(module, inputs, dynamic_shapes=_BATCHES, strict=False)


def onnx_of(program: ExportedProgram) -> bytes:
    """Return a program in single precision as an ONNX model: ``observation, noise -> chunk``.

    Raises:
        UserError: PyTorch's exporter cannot translate one of its operations.
    """
    from torch.onnx.errors import OnnxExporterError

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it tells of missing packages, and of what it does not fold
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            exported = torch.onnx.export(
                program,
                input_names=INPUTS,
                output_names=[OUTPUT],
                dynamic_shapes=_BATCHES,
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    except OnnxExporterError as error:
        raise UserError(f"PyTorch's ONNX exporter: {_told(error)}") from error
    finally:
        logging.disable(before)
    assert exported is not None
    return exported.model_proto.SerializeToString()
