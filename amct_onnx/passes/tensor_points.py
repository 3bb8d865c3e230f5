"""Where Vitis AI quantizes: behind groups of operators that its processor computes as one.

Operators that only move or clip values join the group of what they read, where nothing else reads that. A group is
quantized at its end, but in front of operators that only move values; the branches of a concatenation are quantized
behind it. What a norm that is written out in single operators divides by stays float: as integers it could be 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from onnx import TensorProto

from amct_onnx.passes.graph import Graph, Node, Tensor, is_constant, is_standard, nodes_of, producer, sole_consumer
from amct_onnx.passes.layers import bias_add
from amct_onnx.passes.shapes import TensorType

QUANTIZED = frozenset(
    {
        "Conv",
        "ConvTranspose",
        "Gemm",
        "MatMul",
        "BatchNormalization",
        "LayerNormalization",
        "InstanceNormalization",
        "GroupNormalization",
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Max",
        "Min",
        "Mean",
        "Sum",
        "ReduceMax",
        "ReduceMin",
        "ReduceMean",
        "ReduceSum",
        "MaxPool",
        "AveragePool",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "Concat",
        "Resize",
        "Upsample",
        "Pad",
        "HardSwish",
        "HardSigmoid",
        "Softmax",
        "PRelu",
        "Gelu",
        "Mish",
        "Sqrt",
    }
)
"""Operators whose result is quantized."""

_MOVING = frozenset(
    {"Split", "Slice", "Transpose", "Flatten", "Reshape", "DepthToSpace", "Squeeze", "Unsqueeze", "Identity"}
)
"""Operators that only move values: what comes out is on the grid of what goes in."""

DPU_FACTOR = ".dpu_factor"
"""What the names of multiplications end in that belong to the pooling in front of them."""

CAP = ".cap"
"""What the names of a Min end in that is the upper half of a Clip."""

_JOINING = _MOVING | frozenset({"Relu", "LeakyRelu", "Clip", "Tile", "Expand", "Dropout"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A tensor that is quantized where it is produced.

    nodes: the group that produces it; empty for an input of the model.
    """

    tensor: str
    nodes: tuple[Node, ...]


def find_points(graph: Graph, types: Mapping[str, TensorType]) -> list[Point]:
    """The points of a graph, in the order of their tensors; float32 tensors alone."""
    points = [Point(tensor=tensor.name, nodes=()) for tensor in graph.inputs if tensor.outputs]
    for group in _groups(graph):
        tensor = _end(graph, group)
        if tensor is not None:
            points.append(Point(tensor=tensor.name, nodes=tuple(group)))
    kept = _denominators(graph)
    points = [point for point in points if point.tensor not in kept]
    single = (TensorProto.FLOAT, None)
    return [p for p in points if p.tensor and (types[p.tensor].elem_type if p.tensor in types else None) in single]


_OF_VARIANCE = ("Sqrt", "Add", "Max", "ReduceMean", "ReduceSum", "Sub", "Pow", "Mul")


def _denominators(graph: Graph) -> set[str]:
    """The tensors from a variance to the square root of it that others are divided by."""
    found: set[str] = set()
    for node in nodes_of(graph, "Sqrt"):
        root = node.outputs[0]
        if graph.is_output(root) or not all(_divides_by(user, root) for user in root.outputs):
            continue
        tensor: Tensor | None = root
        while tensor is not None and (maker := producer(tensor)) is not None and maker.op in _OF_VARIANCE:
            found.add(tensor.name)
            source = _sole_source(maker)
            alone = source is not None and sole_consumer(graph, source) is maker
            tensor = source if alone and maker.op not in ("Pow", "Mul") else None
    return found


def _divides_by(node: Node, tensor: Tensor) -> bool:
    return node.op == "Reciprocal" or (node.op == "Div" and node.inputs[1] is tensor and node.inputs[0] is not tensor)


def _sole_source(node: Node) -> Tensor | None:
    """The one input that is no constant."""
    computed = [tensor for tensor in node.inputs if tensor.name and not is_constant(tensor)]
    return computed[0] if len(computed) == 1 else None


def _groups(graph: Graph) -> list[list[Node]]:
    groups: list[list[Node]] = []
    of_node: dict[int, list[Node]] = {}
    for node in graph.nodes:
        parent = _sole_parent(node) if is_standard(node) else None
        if parent is not None and not (_joins(node) or bias_add(graph, parent) is node):
            parent = None
        joined = of_node.get(id(parent)) if parent is not None else None
        if joined is None or parent is None or not _may_join(graph, node, parent, joined):
            joined = []
            groups.append(joined)
        joined.append(node)
        of_node[id(node)] = joined
    return groups


def _joins(node: Node) -> bool:
    added = {"Mul": DPU_FACTOR, "Min": CAP}.get(node.op)
    return node.op in _JOINING or (added is not None and node.name.endswith(added))


def _sole_parent(node: Node) -> Node | None:
    """What computes the one input that is no constant."""
    source = _sole_source(node)
    return None if source is None else producer(source)


def _may_join(graph: Graph, node: Node, parent: Node, group: list[Node]) -> bool:
    if len(parent.outputs) != 1 or group[-1] is not parent:
        return False
    return sole_consumer(graph, parent.outputs[0]) is node


def _end(graph: Graph, group: list[Node]) -> Tensor | None:
    """The tensor where a group is quantized; None where it is not."""
    last = group[-1]
    users = [user for output in last.outputs for user in output.outputs]
    if len(users) == 1 and users[0].op == "Concat" and not any(graph.is_output(out) for out in last.outputs):
        return None
    if not any(_is_quantized(node) for node in group):
        if not any(_is_quantized(user) and user.op != "Concat" for user in users):
            return None
        if all(node.op in _MOVING for node in group):
            return None  # what it moves is quantized where it comes from
    kept = len(group)
    while kept > 1 and group[kept - 1].op in _MOVING:
        kept -= 1
    end = group[kept - 1]
    return end.outputs[0] if len(end.outputs) == 1 or end.op in ("BatchNormalization", "MaxPool", "Dropout") else None


def _is_quantized(node: Node) -> bool:
    return node.op in QUANTIZED and is_standard(node)


def point_behind(tensor: Tensor, points: Mapping[str, object]) -> str | None:
    """The point on whose grid a tensor's values are: itself, or what operators that only move values made it of."""
    while tensor.name not in points:
        node = producer(tensor)
        if node is None or not is_standard(node) or node.op not in _MOVING:
            return None
        tensor = node.inputs[0]
    return tensor.name


def point_of_output(graph: Graph, node: Node, points: Mapping[str, object]) -> str | None:
    """The point at which the result of a node is quantized: its own output, or behind what joined its group."""
    tensor = node.outputs[0]
    while tensor.name not in points:
        user = sole_consumer(graph, tensor)
        if user is None or not _joins(user) or not is_standard(user) or len(user.outputs) != 1:
            return None
        tensor = user.outputs[0]
    return tensor.name
