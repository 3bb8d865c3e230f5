"""Finds the layers of a deploy model whose weights have two 4-bit integers in a byte, and takes them apart.

Nothing in the file says so: the weight has half of the channels that the layer's input has. How many these are follows
from the shapes of the float network around the integers.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from amct_onnx.kernels.int4 import unpacked
from amct_onnx.passes.graph import Graph, Node, derived, has_input, is_constant, is_standard, nodes_of, set_input
from amct_onnx.passes.layers import group_of, input_axis
from amct_onnx.passes.shapes import infer_types

_ENDS = ("AscendQuant", "AscendAntiQuant", "AscendDequant")
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def unpack_weights(graph: Graph) -> None:
    """Give every layer with 4-bit weights one byte for each, where the shape of its input can be told."""
    layers = [node for node in nodes_of(graph, *_LAYERS) if _has_bytes(node)]
    if not layers:
        return
    types = infer_types(_float_twin(graph))
    for node in layers:
        known = types.get(node.inputs[0].name)
        shape, axis, old = None if known is None else known.shape, input_axis(node), node.inputs[1]
        if not shape or len(shape) < 2 or len(old.shape) < 2:
            continue
        channels = shape[1 if node.op in ("Conv", "ConvTranspose") else -1]
        if channels != 2 * old.shape[axis]:
            continue
        dims = [2 * size if i == axis else size for i, size in enumerate(old.shape)]
        values = derived(old, np.int8, dims, partial(unpacked, axis=axis))
        set_input(node, 1, graph.new_constant(f"{old.name}.{node.name}.unpacked", values))


def _has_bytes(node: Node) -> bool:
    if not has_input(node, 1) or not is_constant(node.inputs[1]) or group_of(node) != 1:
        return False
    return node.inputs[1].dtype is not None and np.dtype(node.inputs[1].dtype) == np.int8


def _float_twin(graph: Graph) -> Graph:
    """A graph of the same shapes that is standard ONNX, but for element types. The inner size of a product is free."""
    twin = graph.copy()
    for node in twin.nodes:
        if is_standard(node) and node.op in _ENDS:
            node.op = "Identity"
            node.attrs.clear()
            while len(node.inputs) > 1:
                node.inputs.pop()
        elif is_standard(node) and node.op == "MatMul" and _has_bytes(node):
            weight = node.inputs[1]
            fresh = twin.new_input(f"{weight.name}.{node.name}", weight.dtype, ("K", *weight.shape[1:]))
            set_input(node, 1, fresh)
    return twin
