"""How channels pass through each operator. Whatever is not listed here needs all of its channels."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from amct_onnx.passes.channel_shape_rules import SHAPE_RULES
from amct_onnx.passes.channel_walk import Channels, Use, Walk
from amct_onnx.passes.graph import Node, Tensor, constant_input, has_input, is_constant
from amct_onnx.passes.layers import group_of

Rule = Callable[[Walk, Node], None]

_UNARY = (
    *("Abs", "Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "Cast", "Ceil", "Celu", "Clip", "Cos", "Cosh"),
    *("Dropout", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "Identity", "IsNaN", "LeakyRelu"),
    *("Log", "Mish", "Neg", "Not", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh"),
    *("Softplus", "Softsign", "Sqrt", "Tan", "Tanh", "ThresholdedRelu"),
)
_POOLING = ("AveragePool", "GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "LpPool", "MaxPool")
_ELEMENTWISE = (
    *("Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Mean", "Min", "Mul"),
    *("Or", "PRelu", "Pow", "Sub", "Sum", "Where", "Xor"),
)


def visit(walk: Walk, node: Node, *, standard: bool) -> None:
    """Take note of what a node does to channels."""
    rule = _RULES.get(node.op) if standard else None
    if rule is not None and (node.op in _LAYERS or any(walk.of(tensor) is not None for tensor in node.inputs)):
        rule(walk, node)
    else:
        walk.fix_reads(node)


def _pass_on(walk: Walk, node: Node) -> None:
    walk.mark(node.outputs[0], walk.of(node.inputs[0]))


def _pool(walk: Walk, node: Node) -> None:
    given = walk.of(node.inputs[0])
    if given is None or given.axis != 1 or len(node.outputs) != 1:
        walk.fix_reads(node)
        return
    walk.mark(node.outputs[0], given)


def _per_channel(walk: Walk, node: Node) -> None:
    """Normalizations with a number per channel, along axis 1."""
    given = walk.of(node.inputs[0])
    if given is None or given.axis != 1 or not all(is_constant(tensor) for tensor in node.inputs[1:]):
        walk.fix_reads(node)
        return
    for index in range(1, len(node.inputs)):
        walk.cut(node, index, 0, given.atoms, Use.FOLLOWS)
    walk.mark(node.outputs[0], given)


def _over_axis(walk: Walk, node: Node) -> None:
    """Softmax and its like: along one axis from opset 13 on, along all behind `axis` before."""
    given = walk.of(node.inputs[0])
    assert given is not None, "called for nodes that read channels"
    is_new = walk.graph.opset >= 13
    axis = int(node.attrs.get("axis", -1 if is_new else 1)) % given.rank
    if given.axis == axis or (not is_new and given.axis > axis):
        walk.fix_reads(node)
        return
    walk.mark(node.outputs[0], given)


def _elementwise(walk: Walk, node: Node) -> None:
    """Channels that meet become one; constants along them shrink."""
    marked = [(tensor, found) for tensor in node.inputs if (found := walk.of(tensor)) is not None]
    ranks = [_rank(walk, tensor) for tensor in node.inputs]
    behind = {found.axis - found.rank for _, found in marked}
    counts = {len(found.atoms) for _, found in marked}
    if None in ranks or len(behind) != 1 or len(counts) != 1:
        walk.fix_reads(node)
        return
    from_end, count, atoms = behind.pop(), counts.pop(), marked[0][1].atoms
    for index, tensor in enumerate(node.inputs):
        if (found := walk.of(tensor)) is not None:
            walk.join(atoms, found.atoms, f"they meet others at {node.name!r} ({node.op}) that stay")
            continue
        size = _size(walk, tensor, from_end)
        if size == 1:
            continue
        if is_constant(tensor) and size == count:
            walk.cut(node, index, len(tensor.shape) + from_end, atoms, Use.FOLLOWS)
        else:
            walk.fix_reads(node)
            return
    rank = max(rank for rank in ranks if rank is not None)
    walk.mark(node.outputs[0], Channels(axis=rank + from_end, rank=rank, atoms=atoms))


def _rank(walk: Walk, tensor: Tensor) -> int | None:
    if (found := walk.of(tensor)) is not None:
        return found.rank
    shape = tensor.shape if is_constant(tensor) else walk.shape(tensor)
    return None if shape is None else len(shape)


def _size(walk: Walk, tensor: Tensor, from_end: int) -> int | None:
    """The size of an axis counted from the end, 1 where the tensor has fewer; None where it is not known."""
    shape = tensor.shape if is_constant(tensor) else walk.shape(tensor)
    assert shape is not None, "the rank is known"
    return 1 if len(shape) < -from_end else shape[from_end]


def _conv(walk: Walk, node: Node) -> None:
    given, weight, group = walk.of(node.inputs[0]), node.inputs[1], group_of(node)
    if not _has_constants(node) or (given is not None and given.axis != 1):
        walk.fix_reads(node)
        return
    if group > 1 and weight.shape[1] == 1:
        _depthwise(walk, node, given, weight.shape[0] // group)
        return
    if given is not None:
        if group > 1:
            walk.blocks.append((given.atoms, group))
        walk.cut(node, 1, 1, given.atoms, Use.READS, group)
    _produce(walk, node, axis=0, channel_axis=1, rank=len(weight.shape), count=weight.shape[0], group=group)


def _conv_transpose(walk: Walk, node: Node) -> None:
    given, weight, group = walk.of(node.inputs[0]), node.inputs[1], group_of(node)
    if not _has_constants(node) or (given is not None and given.axis != 1):
        walk.fix_reads(node)
        return
    if group > 1 and group == weight.shape[0] and weight.shape[1] == 1:
        _depthwise(walk, node, given, 1)
    elif group > 1:
        walk.fix_reads(node)
    else:
        if given is not None:
            walk.cut(node, 1, 0, given.atoms, Use.READS)
        _produce(walk, node, axis=1, channel_axis=1, rank=len(weight.shape), count=weight.shape[1])


def _depthwise(walk: Walk, node: Node, given: Channels | None, multiplier: int) -> None:
    """Every channel by itself: the outputs are the inputs', `multiplier` in a row for each."""
    if given is None:
        return
    atoms = np.repeat(given.atoms, multiplier)
    walk.cut(node, 1, 0, atoms, Use.FOLLOWS)
    if has_input(node, 2):
        walk.cut(node, 2, 0, atoms, Use.FOLLOWS)
    walk.edits.append(lambda kept: node.attrs.update(group=int(kept(given.atoms).sum())))
    walk.mark(node.outputs[0], Channels(axis=1, rank=given.rank, atoms=atoms))


def _gemm(walk: Walk, node: Node) -> None:
    given, weight = walk.of(node.inputs[0]), node.inputs[1]
    if not _has_constants(node) or node.attrs.get("transA", 0) or (given is not None and given.axis != 1):
        walk.fix_reads(node)
        return
    axis = 0 if node.attrs.get("transB", 0) else 1
    if given is not None:
        walk.cut(node, 1, 1 - axis, given.atoms, Use.READS)
    _produce(walk, node, axis=axis, channel_axis=1, rank=2, count=weight.shape[axis])


def _matmul(walk: Walk, node: Node) -> None:
    given, weight = walk.of(node.inputs[0]), node.inputs[1]
    rank = _rank(walk, node.inputs[0])
    if not is_constant(weight) or len(weight.shape) != 2 or is_constant(node.inputs[0]):
        walk.fix_reads(node)
        return
    if rank is None or rank < 2 or (given is not None and given.axis != rank - 1):
        walk.fix_reads(node)
        return
    if given is not None:
        walk.cut(node, 1, 0, given.atoms, Use.READS)
    _produce(walk, node, axis=1, channel_axis=rank - 1, rank=rank, count=weight.shape[1])


def _produce(walk: Walk, node: Node, *, axis: int, channel_axis: int, rank: int, count: int, group: int = 1) -> None:
    """New channels, along `axis` of the weight, if the layer may lose some."""
    if node.name not in walk.enabled or count < 2:
        return
    atoms = walk.new_atoms(count)
    walk.cut(node, 1, axis, atoms, Use.PRODUCES)
    bias = constant_input(node, 2)
    if bias is not None and bias.ndim and bias.shape[-1] == count:
        walk.cut(node, 2, bias.ndim - 1, atoms, Use.FOLLOWS)
    if group > 1:
        walk.blocks.append((atoms, group))
    walk.mark(node.outputs[0], Channels(axis=channel_axis, rank=rank, atoms=atoms))


def _has_constants(node: Node) -> bool:
    """Whether weight and bias are initializers, so that both can shrink."""
    return is_constant(node.inputs[1]) and (not has_input(node, 2) or is_constant(node.inputs[2]))


_LAYERS: Mapping[str, Rule] = {"Conv": _conv, "ConvTranspose": _conv_transpose, "Gemm": _gemm, "MatMul": _matmul}

_RULES: Mapping[str, Rule] = {
    **_LAYERS,
    **dict.fromkeys(_UNARY, _pass_on),
    **dict.fromkeys(_POOLING, _pool),
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), _over_axis),
    "BatchNormalization": _per_channel,
    "InstanceNormalization": _per_channel,
    **SHAPE_RULES,
}
