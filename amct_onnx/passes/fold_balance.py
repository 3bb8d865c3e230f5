"""Divides a tensor, channel by channel, where it is produced, so that no Mul is left at run time.

What stands between must let a positive factor through: relu(x / f) = relu(x) / f, and so with the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from amct_onnx.passes.graph import (
    Array,
    Graph,
    Node,
    Tensor,
    constant_input,
    has_input,
    is_constant,
    is_standard,
    producer,
    set_input,
    sole_consumer,
    unique_name,
)
from amct_onnx.passes.layers import along_channels, bias_input, has_weight, last_node, why_not

Floats = NDArray[np.float32]

_Operand = tuple[Node, int, Floats]
"""A constant input of a node, and what divides it."""


def divide(graph: Graph, readers: Sequence[Node], factors: Floats, *, axis: int, rank: int, names: set[str]) -> bool:
    """Divide input 0 of `readers`, which is one tensor, by `factors` [C] along `axis`, without a new node.

    Tensors whose values change get other names. False, and nothing is changed, where the tensor has other uses, where
    what produces it cannot take the factors in, or where its constants would not stay finite.
    """
    tensor = readers[0].inputs[0]
    if graph.is_output(tensor) or any(not any(user is reader for reader in readers) for user in tensor.outputs):
        return False
    path, source = _way_back(graph, tensor, axis=axis, rank=rank)
    if source is None:
        return False
    with np.errstate(over="ignore"):
        fresh = [(node, i, _divided(node, i, by)) for node, i, by in _operands(graph, source, factors, axis, rank)]
    if not fresh or not all(np.isfinite(values).all() for _, _, values in fresh):
        return False
    for node, index, values in fresh:
        old = node.inputs[index]
        name = old.name if len(old.outputs) == 1 else unique_name(f"{node.name}.balanced", names)
        set_input(node, index, graph.new_constant(name, values))
    for changed in path:
        changed.name = unique_name(f"{changed.name}.balanced", names)
    return True


def _way_back(graph: Graph, tensor: Tensor, *, axis: int, rank: int) -> tuple[list[Tensor], Node | None]:
    """The tensors from `tensor` back to the output of the first node that does not just let factors through."""
    path, node = [tensor], producer(tensor)
    while node is not None and _lets_through(node, axis=axis, rank=rank):
        if sole_consumer(graph, node.inputs[0]) is not node:
            return path, None
        path.append(node.inputs[0])
        node = producer(node.inputs[0])
    if node is not None and node.op == "Add" and is_standard(node):
        matmul = producer(node.inputs[0])
        if matmul is None or last_node(graph, matmul) is not node:
            return path, None
        path.append(node.inputs[0])
        node = matmul
    return path, node if node is not None and node.outputs[0] is path[-1] else None


def _lets_through(node: Node, *, axis: int, rank: int) -> bool:
    if not is_standard(node):
        return False
    return node.op in ("Relu", "LeakyRelu") or (node.op in ("MaxPool", "AveragePool") and axis == 1 and rank > 2)


def _operands(graph: Graph, source: Node, factors: Floats, axis: int, rank: int) -> Iterator[_Operand]:
    """The constants of the node that are to be divided; none where it cannot take the factors in."""
    if not is_standard(source):
        return
    if source.op in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        own_axis = rank - 1 if source.op in ("Gemm", "MatMul") else 1
        if has_weight(source) and why_not(source) is None and axis == own_axis:
            yield source, 1, along_channels(source, factors)
            if (place := bias_input(graph, source)) is not None:
                yield *place, factors
    elif source.op in ("BatchNormalization", "LayerNormalization"):
        if _normalises(source, factors.size, axis, rank):
            yield source, 1, factors
            if has_input(source, 2):
                yield source, 2, factors
    elif source.op == "Mul":
        index = 1 if is_constant(source.inputs[1]) else 0
        other = source.inputs[index]
        if is_constant(other) and not is_constant(source.inputs[1 - index]) and len(other.shape) <= rank:
            yield source, index, factors.reshape(-1, *([1] * (rank - 1 - axis)))


def _normalises(norm: Node, channels: int, axis: int, rank: int) -> bool:
    """Whether its scale and bias are constants, one value per channel of that axis, and its mode is inference."""
    own_axis = 1 if norm.op == "BatchNormalization" else int(norm.attrs.get("axis", -1)) % rank
    if axis != own_axis or (norm.op == "LayerNormalization" and axis != rank - 1):
        return False
    if norm.attrs.get("training_mode", 0) or norm.attrs.get("spatial", 1) != 1:
        return False
    given = [norm.inputs[index] for index in (1, 2) if has_input(norm, index)]
    return all(is_constant(tensor) and tuple(tensor.shape) == (channels,) for tensor in given)


def _divided(node: Node, index: int, by: Floats) -> Array:
    values = constant_input(node, index)
    assert values is not None, f"input {index} of {node.name} is no constant"
    return np.asarray((values.astype(np.float32) / by).astype(values.dtype))
