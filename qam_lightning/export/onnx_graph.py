"""From a traced graph of PyTorch's core operations to an ONNX model.

PyTorch's own exporter traces a graph twice more, and takes a minute for a guided policy of ten
steps. Acting consists of some fifty operations, which this file translates one by one. What depends
on weights alone is computed here.
"""

import hashlib
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import Tensor, fx

from qam_lightning.util.errors import UserError

OPSET, IR_VERSION = 18, 9
_END = 2**63 - 1

aten = torch.ops.aten

_UNARY = {
    aten.abs: "Abs", aten.cos: "Cos", aten.erf: "Erf", aten.exp: "Exp", aten.log: "Log",
    aten.neg: "Neg", aten.reciprocal: "Reciprocal", aten.relu: "Relu", aten.sigmoid: "Sigmoid",
    aten.sign: "Sign", aten.sin: "Sin", aten.sqrt: "Sqrt", aten.tanh: "Tanh",
    aten.logical_not: "Not",
}  # fmt: skip
_BINARY = {
    aten.add: "Add", aten.sub: "Sub", aten.mul: "Mul", aten.div: "Div", aten.pow: "Pow",
    aten.maximum: "Max", aten.minimum: "Min", aten.mm: "MatMul", aten.bmm: "MatMul",
    aten.gt: "Greater", aten.ge: "GreaterOrEqual", aten.lt: "Less", aten.le: "LessOrEqual",
    aten.eq: "Equal", operator.add: "Add", operator.sub: "Sub", operator.mul: "Mul",
    operator.floordiv: "Div",
}  # fmt: skip
_REDUCTIONS = {
    aten.sum: "ReduceSum", aten.mean: "ReduceMean", aten.amax: "ReduceMax", aten.amin: "ReduceMin",
}  # fmt: skip
_SAME = {aten.clone, aten.alias, aten.detach, aten.lift_fresh_copy}


def onnx_model(graph: fx.GraphModule, inputs: Sequence[str], output: str) -> ModelProto:
    """Translate a graph whose inputs and output have batches of B rows, for any B.

    Args:
        graph: see `qam_lightning.export.graph.trace`.
        inputs: names of its inputs.
        output: name of its output.

    Raises:
        UserError: an operation in it is unknown here.
    """
    return _Translation(graph, inputs, output).model()


class _Translation:
    """The nodes of an ONNX model, and what each node of the traced graph has become.

    A value is a tensor or a number where it is known, else the name of an ONNX value. A size that
    depends on B is the name of a vector of one integer.
    """

    def __init__(self, graph: fx.GraphModule, inputs: Sequence[str], output: str) -> None:
        self._graph, self._inputs, self._output = graph, inputs, output
        self._nodes: list[Any] = []
        self._constants: dict[Any, tuple[str, Tensor]] = {}
        self._values: dict[fx.Node, Any] = {}
        self._node = next(iter(graph.graph.nodes))  # under translation
        self._batch = _shape(self._node)[0].node.expr

    def model(self) -> ModelProto:
        names = iter(self._inputs)
        for node in self._graph.graph.nodes:
            self._node = node
            if node.op == "placeholder":
                self._values[node] = next(names)
            elif node.op == "get_attr":
                self._values[node] = getattr(self._graph, str(node.target)).detach()
            elif node.op == "call_function":
                self._values[node] = self._call(node)
        given = self._graph.graph.find_nodes(op="placeholder")
        (result,) = self._graph.graph.output_node().all_input_nodes
        last = helper.make_node("Identity", [self._named(self._values[result])], [self._output])
        made = helper.make_graph(
            [*self._nodes, last],
            "policy",
            [_info(name, node) for name, node in zip(self._inputs, given, strict=True)],
            [_info(self._output, result)],
            [numpy_helper.from_array(x.numpy(), name) for name, x in self._constants.values()],
        )
        opset = [helper.make_opsetid("", OPSET)]
        return helper.make_model(made, opset_imports=opset, ir_version=IR_VERSION)

    def _call(self, node: fx.Node) -> Any:
        """Return what a node becomes, computing it where everything it takes is known."""
        target: Any = node.target
        val = node.meta.get("val")
        if isinstance(val, torch.SymInt) and self._batch not in val.node.expr.free_symbols:
            return _hint(val)
        packet = getattr(target, "overloadpacket", target)
        name = getattr(packet, "__name__", "")
        in_place = name.endswith("_") and not name.startswith("_")
        if in_place:
            packet = getattr(aten, name[:-1])
            target = getattr(packet, target._overloadname)
        args, kwargs = fx.map_arg((node.args, node.kwargs), self._values.__getitem__)  # type: ignore[misc]
        known = not _depends(args) and not _depends(kwargs)
        result = target(*args, **kwargs) if known else self._translate(packet, *args, **kwargs)
        if in_place:  # the result takes the place of what is changed
            self._values[node.args[0]] = result  # type: ignore[index]
        return result

    def _translate(self, op: Any, *args: Any, **kwargs: Any) -> Any:
        if op in _SAME:
            return args[0]
        if op is operator.getitem:
            return args[0][args[1]]
        if op in _UNARY:
            return self.emit(_UNARY[op], args[0])
        if op in _BINARY:
            return self._binary(_BINARY[op], *args, **kwargs)
        if op in _REDUCTIONS:
            return self._reduce(_REDUCTIONS[op], *args, **kwargs)
        own: Callable[..., Any] | None = getattr(self, f"_{getattr(op, '__name__', '')}", None)
        if own is None or getattr(op, "_qualified_op_name", "").partition("::")[0] != "aten":
            raise UserError(f"its acting takes the operation {op}, which is unknown to the export")
        return own(*args, **kwargs)

    def emit(self, op: str, *inputs: Any, **attributes: Any) -> str:
        """Add an ONNX node, and return the name of its output."""
        name = f"{op}_{len(self._nodes)}"
        given = [self._named(x) for x in inputs]
        self._nodes.append(helper.make_node(op, given, [name], **attributes))
        return name

    def _named(self, x: Any) -> str:
        """Return the name of a value; a known tensor that recurs has one name."""
        if isinstance(x, str):
            return x
        if not isinstance(x, Tensor):
            x = torch.as_tensor(x, dtype=torch.float32 if isinstance(x, float) else torch.int64)
        x = x.contiguous()
        content = hashlib.sha256(x.numpy().tobytes()).digest()
        name = f"constant_{len(self._constants)}"
        return self._constants.setdefault((x.dtype, x.shape, content), (name, x))[0]

    def _like_result(self, x: Any) -> Any:
        """Return a number or a known tensor in the floating-point type of the node's result."""
        val = self._node.meta.get("val")
        if isinstance(x, str) or not isinstance(val, Tensor):
            return torch.tensor([x]) if isinstance(x, int) else x
        return torch.as_tensor(x, dtype=val.dtype)

    def _given(self) -> Tensor:
        """Return the shape and type of the first tensor that the node takes."""
        return self._node.all_input_nodes[0].meta["val"]

    def _ints(self, sizes: Sequence[Any]) -> Any:
        """Return a vector of sizes, some of which depend on B."""
        if not any(isinstance(size, str) for size in sizes):
            return torch.tensor(sizes, dtype=torch.int64)
        parts = [size if isinstance(size, str) else torch.tensor([size]) for size in sizes]
        return self.emit("Concat", *parts, axis=0)

    # Operations --------------------------------------------------------------------------------

    def _binary(self, op: str, a: Any, b: Any, alpha: float = 1) -> str:
        if op in ("Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal"):
            dtype = self._given().dtype
            return self.emit(
                op, *(x if isinstance(x, str) else torch.as_tensor(x, dtype=dtype) for x in (a, b))
            )
        if alpha != 1:
            b = self.emit("Mul", b, self._like_result(alpha))
        return self.emit(op, self._like_result(a), self._like_result(b))

    def _reduce(self, op: str, x: str, dims: Any = None, keepdim: bool = False, **_: Any) -> str:
        axes = [torch.tensor(list(dims))] if dims else []  # without axes, all are reduced
        return self.emit(op, x, *axes, keepdims=int(keepdim))

    def _log1p(self, x: str) -> str:
        return self.emit("Log", self.emit("Add", x, self._like_result(1.0)))

    def _rsqrt(self, x: str) -> str:
        return self.emit("Reciprocal", self.emit("Sqrt", x))

    def _addmm(self, bias: Any, x: Any, weight: Any, beta: float = 1, alpha: float = 1) -> str:
        return self.emit("Gemm", x, weight, bias, alpha=float(alpha), beta=float(beta))

    def _permute(self, x: str, dims: list[int]) -> str:
        return self.emit("Transpose", x, perm=[d % len(dims) for d in dims])

    def _view(self, x: str, sizes: list[Any]) -> str:
        return self.emit("Reshape", x, self._ints(sizes))

    _reshape = _unsafe_view = _view

    def _expand(self, x: Any, sizes: list[Any], implicit: bool = False) -> str:
        return self.emit("Expand", x, self._ints([1 if s == -1 else s for s in sizes]))

    def _unsqueeze(self, x: str, dim: int) -> str:
        return self.emit("Unsqueeze", x, torch.tensor([dim]))

    def _squeeze(self, x: str, dims: Any) -> str:
        shape = self._given().shape
        wanted = [dims] if isinstance(dims, int) else dims
        single = [d for d in wanted if _hint(shape[d]) == 1]
        return self.emit("Squeeze", x, torch.tensor(single)) if single else x

    def _select(self, x: str, dim: int, index: int) -> str:
        return self.emit("Gather", x, torch.tensor(index), axis=dim)

    def _slice(
        self, x: str, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
    ) -> str:
        bounds = [0 if start is None else start, _END if end is None else end]
        if bounds == [0, _END] and step == 1:
            return x
        ints = [self._ints([bound]) for bound in (*bounds, dim, step)]
        return self.emit("Slice", x, *ints)

    def _split_with_sizes(self, x: str, sizes: list[int], dim: int = 0) -> list[str]:
        ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
        return [self._slice(x, dim, e - size, e) for e, size in zip(ends, sizes, strict=True)]

    def _cat(self, parts: list[Any], dim: int = 0) -> str:
        return self.emit("Concat", *parts, axis=dim)

    def _native_layer_norm(
        self, x: str, shape: list[int], weight: Any, bias: Any, eps: float
    ) -> list[str]:
        """Return the normalised values, the mean and 1 / std, which only a gradient reads."""
        dtype = self._given().dtype
        if all(user.args[1] == 0 for user in self._node.users):
            scale = torch.ones(shape, dtype=dtype) if weight is None else weight
            given = [x, scale] if bias is None else [x, scale, bias]
            return [self.emit("LayerNormalization", *given, axis=-len(shape), epsilon=eps)]
        axes = torch.arange(-len(shape), 0)
        mean = self.emit("ReduceMean", x, axes)
        centred = self.emit("Sub", x, mean)
        variance = self.emit("ReduceMean", self.emit("Mul", centred, centred), axes)
        inverse = self._rsqrt(self.emit("Add", variance, torch.tensor(eps, dtype=dtype)))
        normed = self.emit("Mul", centred, inverse)
        normed = normed if weight is None else self.emit("Mul", normed, weight)
        return [normed if bias is None else self.emit("Add", normed, bias), mean, inverse]

    def _argmax(self, x: str, dim: int, keepdim: bool = False) -> str:
        return self.emit("ArgMax", x, axis=dim, keepdims=int(keepdim))

    def _index(self, x: Any, indices: list[Any]) -> str:
        vectors = [self.emit("Unsqueeze", i, torch.tensor([-1])) for i in indices]
        return self.emit("GatherND", x, self.emit("Concat", *vectors, axis=-1))

    def _arange(self, start: Any, end: str, step: Any = 1, **_: Any) -> str:
        count = self.emit("Squeeze", end, torch.tensor([0]))
        return self.emit("Range", torch.tensor(start), count, torch.tensor(step))

    def _where(self, condition: str, a: Any, b: Any) -> str:
        return self.emit("Where", condition, self._like_result(a), self._like_result(b))

    def _clamp(self, x: str, least: Any = None, most: Any = None) -> str:
        bounds = ["" if bound is None else self._like_result(bound) for bound in (least, most)]
        return self.emit("Clip", x, *bounds)

    def _full(self, sizes: list[Any], value: float, **_: Any) -> str:
        return self._expand(self._like_result(value), sizes)

    def _full_like(self, x: str, value: float, **_: Any) -> str:
        return self.emit("Expand", self._like_result(value), self.emit("Shape", x))

    def _sym_size(self, x: str, dim: int) -> str:
        return self.emit("Shape", x, start=dim, end=dim + 1)


def _shape(node: Any) -> Any:
    return node.meta["val"].shape


def _hint(size: Any) -> int:
    return size if isinstance(size, int) else size.node.hint


def _depends(value: Any) -> bool:
    """Whether a value, or one in a list or a mapping, is the name of an ONNX value."""
    if isinstance(value, dict):
        return any(_depends(x) for x in value.values())
    if isinstance(value, list | tuple):
        return any(_depends(x) for x in value)
    return isinstance(value, str)


def _info(name: str, node: fx.Node) -> Any:
    double = node.meta["val"].dtype == torch.float64
    sizes = ["B", *(_hint(size) for size in _shape(node)[1:])]
    kind = TensorProto.DOUBLE if double else TensorProto.FLOAT
    return helper.make_tensor_value_info(name, kind, sizes)  # type: ignore[arg-type]
