"""Writes a deploy model out in standard operators that compute exactly what its integers do.

An int8 tensor between AscendQuant and a layer becomes a float32 tensor that holds q - offset, so that padding by zeros
is padding by the offset. A layer multiplies these by its integer weights in float32 where no sum can leave 2^24, which
the weights themselves show, and is exact then in whatever order it is added up; else in onnxruntime's integer
operators. Accumulators are int32. Casts stand between the layer and its scale: they keep onnxruntime from multiplying
the scale into the weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto

from amct_onnx.deploy.merging import MERGED
from amct_onnx.deploy.profiles import Profile
from amct_onnx.errors import ModelError, NotAvailableError
from amct_onnx.kernels.quant_params import truncate_to_s19
from amct_onnx.passes.graph import (
    Array,
    Graph,
    Node,
    Tensor,
    constant_input,
    derived,
    has_input,
    is_standard,
    producer,
    set_input,
    unique_name,
)
from amct_onnx.passes.layers import layout_of

EXACT = 1 << 24
"""Sums of integers up to here are exact in float32, whatever the order."""

_HALF_MAX = 65504.0
_HALF_MIN_NORMAL = 2.0**-14

_MOVES = frozenset({"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Split", "Concat", "Slice", "Identity"})
_MOVES |= {"Pad", "MaxPool", "DepthToSpace", "SpaceToDepth", "Expand", "Tile", "Gather"}
"""Operators that hand integers on as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Integers:
    """What a tensor of quantized values holds: q in [low, high], meaning (q - offset) * scale."""

    offset: int
    low: int
    high: int

    @property
    def largest(self) -> int:
        """Of |q - offset|."""
        return max(self.high - self.offset, self.offset - self.low)


def lower(graph: Graph, profile: Profile) -> None:
    """Rewrite a deploy model's graph in place.

    Raises:
        ModelError: the graph is no deploy model, or quantized values reach an operator that cannot take them.
        NotAvailableError: a form that is not simulated: shifts, 16-bit activations, recurrent layers.
    """
    lowering = _Lowering(graph, profile)
    for node in list(graph.nodes):
        lowering.lower(node)


class _Lowering:
    """The graph, and what is known of its quantized tensors on the way through it."""

    def __init__(self, graph: Graph, profile: Profile) -> None:
        self.graph = graph
        self.profile = profile
        self.names = graph.tensor_names()
        self.node_names = graph.node_names()
        self.integers: dict[int, Integers] = {}  # id of a tensor that holds q - offset as float32
        self.ranks: dict[int, int] = {}  # id of an accumulator -> axes behind its channel axis 1; 0: channels are last
        self._alive: list[Tensor] = []  # what these ids belong to

    def lower(self, node: Node) -> None:
        if is_standard(node) and node.op == "AscendQuant":
            self._quant(node)
        elif is_standard(node) and node.op == "AscendDequant":
            self._dequant(node)
        elif is_standard(node) and node.op == "AscendAntiQuant":
            self._anti_quant(node)
        elif is_standard(node) and node.op.startswith("Basic"):
            raise NotAvailableError(f"node {node.name!r}: {node.op} is not simulated yet")
        elif any(id(tensor) in self.integers for tensor in node.inputs):
            self._over_integers(node)
        else:
            found = [self.ranks[id(tensor)] for tensor in node.inputs if id(tensor) in self.ranks]
            if found:
                for tensor in node.outputs:
                    self._note_sum(tensor, found[0])

    def _note_sum(self, tensor: Tensor, axes: int) -> None:
        self._alive.append(tensor)
        self.ranks[id(tensor)] = axes

    def _note_integers(self, tensor: Tensor, known: Integers) -> None:
        self._alive.append(tensor)
        self.integers[id(tensor)] = known

    def _over_integers(self, node: Node) -> None:
        known = self.integers.get(id(node.inputs[0]))
        if is_standard(node) and node.op in _LAYERS and known is not None:
            _LAYERS[node.op](self, node, known)
        elif is_standard(node) and node.op in _MOVES:
            self._move(node)
        else:
            raise ModelError(
                f"node {node.name!r} ({node.op}) reads quantized values, which only Conv, ConvTranspose, Gemm, MatMul, "
                "AveragePool and operators that move data can take"
            )

    def _move(self, node: Node) -> None:
        found = {self.integers.get(id(tensor)) for tensor in _data_inputs(node)}
        if len(found) > 1 or None in found:
            raise ModelError(f"node {node.name!r} ({node.op}) joins tensors that are not quantized alike")
        (known,) = found
        assert known is not None
        if node.op == "Pad":
            value = constant_input(node, 2) if has_input(node, 2) else np.zeros(())
            if value is None or node.attrs.get("mode", "constant") != "constant":
                raise ModelError(f"Pad {node.name!r} of quantized values must have a constant value")
            padding = np.asarray(float(value.ravel()[0]) - known.offset, np.float32)
            set_input(node, 2, self._constant(f"{node.name}.value", padding))
        for tensor in node.outputs:
            self._note_integers(tensor, known)

    # AscendQuant and AscendAntiQuant

    def _quant(self, node: Node) -> None:
        known = _integers_of(node)
        scale, offset = np.float32(node.attrs["scale"]), np.float32(known.offset)
        steps = _Steps(self, node, node.inputs[0])
        steps.add("Cast", to=int(TensorProto.FLOAT))
        if node.attrs.get(MERGED):
            steps.add("Round")
            steps.add("Clip", np.float32(-256), np.float32(255))
            steps.add("Add", offset)
        elif self.profile.half_quant:
            self._half_quant(steps, scale, offset)
        else:
            steps.add("Mul", scale)
            if offset:
                steps.add("Add", offset)
        steps.add("Round")
        steps.add("Clip", np.float32(known.low), np.float32(known.high))
        if offset:
            steps.add("Sub", offset)
        self._stand_in(node, steps)
        self._note_integers(steps.value, known)

    def _half_quant(self, steps: _Steps, scale: np.float32, offset: np.float32) -> None:
        steps.add_half()
        if scale != 1:
            by_root = not _HALF_MIN_NORMAL <= scale <= _HALF_MAX
            factor = np.float32(np.float16(np.sqrt(scale) if by_root else scale))
            for _ in range(2 if by_root else 1):
                steps.add("Mul", factor)
                steps.add_half()
        if offset or scale == 1:
            steps.add("Add", np.float32(np.float16(offset)))
            steps.add_half()

    def _anti_quant(self, node: Node) -> None:
        known = self.integers.get(id(node.inputs[0]))
        if known is None or int(node.attrs.get("offset", 0)) != known.offset:
            raise ModelError(f"AscendAntiQuant {node.name!r} does not undo the AscendQuant before it")
        steps = _Steps(self, node, node.inputs[0])
        steps.add("Mul", np.float32(node.attrs["scale"]))
        if self.profile.half_result:
            steps.add_half()
        if node.attrs.get("dtype", 0) == 1:
            steps.add("Cast", to=int(TensorProto.FLOAT16))
        self._stand_in(node, steps)

    # Layers

    def conv(self, node: Node, known: Integers) -> None:
        """Conv, or ConvInteger where float32 would not be exact."""
        weight, bias, result = self._weight_of(node), self._bias_of(node), node.outputs[0]
        axes = weight.ndim - 2
        if self._exact(node, weight, bias, known):
            self._in_float(node, bias)
        else:
            self._in_integers(node, "ConvInteger", known, bias, (1, -1, *[1] * axes))
        self._note_sum(result, axes)

    def conv_transpose(self, node: Node, known: Integers) -> None:
        """ConvTranspose in float32; in two halves, 16 * high + low, where the whole would not be exact."""
        weight, bias, result = self._weight_of(node), self._bias_of(node), node.outputs[0]
        if self._exact(node, weight, bias, known):
            self._in_float(node, bias)
        else:
            self._in_halves(node, weight, bias, known)
        self._note_sum(result, weight.ndim - 2)

    def gemm(self, node: Node, known: Integers) -> None:
        """Gemm of [K, N] weights."""
        plain = {"transA": 0, "transB": 0, "alpha": 1.0, "beta": 1.0}
        if odd := [name for name, value in plain.items() if node.attrs.get(name, value) != value]:
            raise ModelError(f"Gemm {node.name!r} of quantized values has {odd[0]}={node.attrs[odd[0]]}")
        weight, bias, result = self._weight_of(node), self._bias_of(node), node.outputs[0]
        if self._exact(node, weight, bias, known):
            self._in_float(node, bias)
        else:
            node.attrs.clear()
            self._in_integers(node, "MatMulInteger", known, bias, (1, -1))
        self._note_sum(result, 0)

    def matmul(self, node: Node, known: Integers) -> None:
        """MatMul by constant weights; its bias is an Add of int32 behind it, which stays."""
        if self.integers.get(id(node.inputs[1])) is not None:
            raise NotAvailableError(f"MatMul {node.name!r} of two quantized activations is not simulated yet")
        weight, result = self._weight_of(node), node.outputs[0]
        if self._exact(node, weight, None, known):
            self._in_float(node, None)
        else:
            self._in_integers(node, "MatMulInteger", known, None, ())
        self._note_sum(result, 0)

    def average_pool(self, node: Node, known: Integers) -> None:
        """The exact sum of the window, divided by its size: sums are small, so rounding the mean back gives them."""
        result = node.outputs[0]
        area = np.float32(np.prod(node.attrs["kernel_shape"]))
        attributes = {**node.attrs, "count_include_pad": 1}
        steps = _Steps(self, node, node.inputs[0])
        if node.attrs.get("ceil_mode", 0):
            steps.add("AveragePool", **node.attrs)  # windows that hang over the edge have sizes of their own
        else:
            steps.add("AveragePool", **attributes)
            steps.add("Mul", area)
            steps.add("Round")
            padded = any(node.attrs.get("pads", [])) or node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
            if padded and not node.attrs.get("count_include_pad", 0):
                sizes = _Steps(self, node, node.inputs[0])
                sizes.add("Mul", np.float32(0))
                sizes.add("Add", np.float32(1))
                sizes.add("AveragePool", **attributes)
                sizes.add("Mul", area)
                sizes.add("Round")
                steps.add_between("Div", sizes.value)
            else:
                steps.add("Div", area)
        self._stand_in(node, steps)
        self._note_sum(result, 2)

    def _weight_of(self, node: Node) -> Array:
        weight = constant_input(node, 1) if has_input(node, 1) else None
        if weight is None or weight.dtype != np.int8:
            found = "none" if weight is None else str(weight.dtype)
            raise ModelError(
                f"{node.op} {node.name!r} reads quantized values, but its weight is no int8 constant: {found}"
            )
        return weight

    def _bias_of(self, node: Node) -> Array | None:
        if not has_input(node, 2):
            return None
        bias = constant_input(node, 2)
        if bias is None or bias.dtype != np.int32:
            raise ModelError(f"{node.op} {node.name!r} reads quantized values, but its bias is no int32 constant")
        return bias

    def _exact(self, node: Node, weight: Array, bias: Array | None, known: Integers) -> bool:
        """Whether no sum of the layer can leave what float32 counts exactly."""
        channels = layout_of(node).channels_first(weight)
        sums = np.abs(channels.astype(np.int64).reshape(channels.shape[0], -1)).sum(axis=1) * known.largest
        return bool((sums + (0 if bias is None else np.abs(bias.astype(np.int64)))).max(initial=0) <= EXACT)

    def _in_float(self, node: Node, bias: Array | None) -> None:
        old = node.inputs[1]
        as_float = derived(old, np.float32, old.shape, lambda w: w.astype(np.float32))
        set_input(node, 1, self.graph.new_constant(self._name(f"{old.name}.float"), as_float))
        if bias is not None:
            set_input(node, 2, self._constant(f"{node.name}.bias", bias.astype(np.float32)))
        self._insert_behind(node, "Cast", to=int(TensorProto.INT32))

    def _in_integers(self, node: Node, op: str, known: Integers, bias: Array | None, shape: tuple[int, ...]) -> None:
        """By an integer operator, over uint8: onnxruntime is slow over int8."""
        zero = -known.low + known.offset  # q - offset + zero = q - low is from 0 on
        steps = _Steps(self, node, node.inputs[0])
        steps.add("Add", np.float32(zero))
        steps.add("Cast", to=int(TensorProto.UINT8))
        weight = node.inputs[1]
        if bias is not None:
            node.inputs.pop()
        set_input(node, 0, steps.value)
        set_input(node, 1, weight)
        set_input(node, 2, self._constant(f"{node.name}.zero", np.asarray(zero, np.uint8)))
        node.op = op
        if bias is not None:
            self._insert_behind(node, "Add", bias.reshape(shape))

    def _in_halves(self, node: Node, weight: Array, bias: Array | None, known: Integers) -> None:
        high = (weight.astype(np.int32) + 8) >> 4
        low = weight - 16 * high
        if not all(self._exact(node, part, None, known) for part in (high, low)):
            raise NotAvailableError(f"{node.op} {node.name!r} has too many weights for one output to be simulated")
        attributes = dict(node.attrs)
        parts = []
        for part, name in ((high, "high"), (low, "low")):
            steps = _Steps(self, node, node.inputs[0])
            steps.add("ConvTranspose", part.astype(np.float32), **attributes)
            steps.add("Cast", to=int(TensorProto.INT32))
            if name == "high":
                steps.add("Mul", np.asarray(16, np.int32))
            parts.append(steps)
        parts[0].add_between("Add", parts[1].value)
        if bias is not None:
            parts[0].add("Add", bias.reshape(1, -1, *[1] * (weight.ndim - 2)))
        self._stand_in(node, parts[0])

    # AscendDequant

    def _dequant(self, node: Node) -> None:
        source = node.inputs[0]
        if id(source) not in self.ranks:
            raise ModelError(f"AscendDequant {node.name!r} reads {source.name!r}, which is no accumulator of a layer")
        words = constant_input(node, 1) if len(node.inputs) == 2 else None
        if words is None or words.dtype != np.uint64:
            raise ModelError(f"the scale of AscendDequant {node.name!r} is no constant of type uint64")
        if (words >> np.uint64(32)).any():
            raise NotAvailableError(f"AscendDequant {node.name!r} shifts its accumulator, which is not simulated")
        scale = words.astype(np.uint32).view(np.float32)
        steps = _Steps(self, node, source)
        steps.add("Cast", to=int(TensorProto.FLOAT))
        self._scale(steps, node, scale, self.ranks[id(source)])
        if node.attrs.get("relu_flag", 0):
            steps.add("Relu")
        if node.attrs.get("dtype", 0) == 1:
            steps.add("Cast", to=int(TensorProto.FLOAT16))
        self._stand_in(node, steps)

    def _scale(self, steps: _Steps, node: Node, scale: Array, axes: int) -> None:
        by_root = bool(node.attrs.get("sqrt_mode", 0))
        if self.profile.scale == "truncated":
            scale = truncate_to_s19(scale)
        elif self.profile.scale == "half":
            if not by_root and (scale < _HALF_MIN_NORMAL).any():
                by_root, scale = True, np.sqrt(scale)
            scale = np.clip(scale, 0, _HALF_MAX).astype(np.float16).astype(np.float32)
        if scale.size > 1 and axes:
            scale = scale.reshape(1, -1, *[1] * axes)
        for _ in range(2 if by_root else 1):
            steps.add("Mul", scale)
            if self.profile.half_result and not node.attrs.get(MERGED):
                steps.add("Clip", np.float32(-_HALF_MAX), np.float32(_HALF_MAX))
                steps.add_half()

    # Edits

    def _stand_in(self, node: Node, steps: _Steps) -> None:
        """Let the last of the steps give what the node gave, under its name."""
        result = node.outputs[0]
        last = producer(steps.value)
        assert last is not None
        result.dtype = result.shape = None
        self.graph.remove([node])
        last.outputs[0] = result
        steps.value = result

    def _insert_behind(self, node: Node, op: str, *operands: Array, **attributes: Any) -> None:
        """A node between this one and its consumers, which takes over the tensor's name."""
        result = node.outputs[0]
        inner = self.graph.new_tensor(self._name(f"{result.name}.sum"))
        node.outputs[0] = inner
        constants = [self._constant(f"{node.name}.{op}", np.asarray(operand)) for operand in operands]
        name = unique_name(f"{node.name}.{op}", self.node_names)
        self.graph.insert(op, name, [inner, *constants], result, attributes, after=node)

    def _constant(self, name: str, values: Array) -> Tensor:
        return self.graph.new_constant(self._name(name), values)

    def _name(self, wanted: str) -> str:
        return unique_name(wanted, self.names)


class _Steps:
    """A chain of new nodes in front of an old one."""

    def __init__(self, lowering: _Lowering, node: Node, value: Tensor) -> None:
        self._lowering = lowering
        self._node = node
        self.value = value

    def add(self, op: str, *operands: Any, **attributes: Any) -> None:
        """One node that reads the chain's end and constants."""
        constants = [self._lowering._constant(f"{self._node.name}.{op}", np.asarray(o)) for o in operands]
        self._append(op, constants, attributes)

    def add_between(self, op: str, other: Tensor) -> None:
        """One node that reads the chain's end and another tensor."""
        self._append(op, [other], {})

    def add_half(self) -> None:
        """Round to float16."""
        self.add("Cast", to=int(TensorProto.FLOAT16))
        self.add("Cast", to=int(TensorProto.FLOAT))

    def _append(self, op: str, operands: Iterable[Tensor], attributes: dict[str, Any]) -> None:
        lowering = self._lowering
        output = lowering.graph.new_tensor(lowering._name(f"{self._node.name}.{op}.output0"))
        name = unique_name(f"{self._node.name}.{op}", lowering.node_names)
        lowering.graph.insert(op, name, [self.value, *operands], output, attributes, before=self._node)
        self.value = output


_LAYERS = {
    "Conv": _Lowering.conv,
    "ConvTranspose": _Lowering.conv_transpose,
    "Gemm": _Lowering.gemm,
    "MatMul": _Lowering.matmul,
    "AveragePool": _Lowering.average_pool,
}


def _data_inputs(node: Node) -> list[Tensor]:
    """The inputs that hold data, not shapes or indices."""
    return list(node.inputs) if node.op == "Concat" else [node.inputs[0]]


def _integers_of(quant: Node) -> Integers:
    kind = quant.attrs.get("dst_type", f"INT{int(quant.attrs.get('quant_bit', 8))}")
    if kind == "INT16":
        raise NotAvailableError(f"AscendQuant {quant.name!r} gives INT16, which is not simulated yet")
    bits = {"INT8": 8, "INT4": 4}.get(str(kind))
    if bits is None or "scale" not in quant.attrs or "offset" not in quant.attrs:
        raise ModelError(
            f"AscendQuant {quant.name!r} must have a scale, an offset, and a dst_type of INT8, INT4 or INT16"
        )
    half = 1 << (bits - 1)
    return Integers(offset=int(quant.attrs["offset"]), low=-half, high=half - 1)
