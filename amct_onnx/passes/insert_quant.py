"""Puts AscendQuant in front of every layer: q = round(x * scale) + offset, with the reciprocal as `scale`.

LSTM and GRU quantize by themselves.

A tensor that is quantized by itself goes through AscendQuant and back through AscendAntiQuant, whose `scale` is the
scale itself.
"""

from __future__ import annotations

import numpy as np

from amct_onnx.kernels.quant_params import QuantParams
from amct_onnx.passes.graph import Graph, Node, Tensor, set_input, unique_name
from amct_onnx.passes.invariants import ACTIVATIONS_KNOWN, PLANNED, STANDARD_ONLY
from amct_onnx.passes.layers import is_product, is_recurrent
from amct_onnx.passes.state import Pass, QuantState


def _run(state: QuantState) -> None:
    names = state.graph.tensor_names()
    nodes = {node.name: node for node in state.graph.nodes}
    for layer in state.layers():
        node, params = nodes[layer.name], state.activations[layer.name]
        if is_recurrent(node):
            continue
        set_input(node, 0, quantized_input(state.graph, node, 0, layer.name, params, names))
        if is_product(node):
            prefix, second = f"{layer.name}.input1", state.weights[layer.name]
            set_input(node, 1, quantized_input(state.graph, node, 1, prefix, second, names))
    for tensor in state.tensors():
        node, params = nodes[tensor.node], state.activations[tensor.key]
        prefix = f"{tensor.node}.input{tensor.index}"
        set_input(node, tensor.index, through_integers(state.graph, node, tensor.index, prefix, params, names))


def through_integers(graph: Graph, node: Node, index: int, prefix: str, params: QuantParams, names: set[str]) -> Tensor:
    """Input `index` of a node behind a new AscendQuant and a new AscendAntiQuant."""
    integers = quantized_input(graph, node, index, prefix, params, names)
    output = graph.new_tensor(unique_name(f"{prefix}.anti_quant.output0", names))
    attributes = {
        "scale": float(params.scale),
        "offset": float(params.offset),
        "dst_type": f"INT{params.num_bits}",
    }
    graph.insert("AscendAntiQuant", f"{prefix}.anti_quant", [integers], output, attributes, before=node)
    return output


def quantized_input(graph: Graph, node: Node, index: int, prefix: str, params: QuantParams, names: set[str]) -> Tensor:
    """Input `index` of a node behind a new AscendQuant."""
    output = graph.new_tensor(unique_name(f"{prefix}.quant.output0", names))
    attributes = {
        "scale": float(np.float32(1.0) / np.float32(params.scale)),
        "offset": float(params.offset),
        "dst_type": f"INT{params.num_bits}",
    }
    graph.insert("AscendQuant", f"{prefix}.quant", [node.inputs[index]], output, attributes, before=node)
    return output


INSERT_QUANT = Pass(name="insert AscendQuant", run=_run, requires=(PLANNED, ACTIVATIONS_KNOWN, STANDARD_ONLY))
