"""Puts AscendDequant behind every layer, and turns its bias into int32.

The dequantization scale of a channel, scale_d * scale_w, is stored as the bits of a float32 in the low word of a
uint64; the high word (shift and weight offset) is 0.
"""

from __future__ import annotations

import numpy as np

from amct_onnx.kernels.dequant import dequant_scale, quantize_bias
from amct_onnx.kernels.quant_params import truncate_to_s19
from amct_onnx.passes.graph import Node, constant_input, set_input, take_over_output, unique_name
from amct_onnx.passes.invariants import ACTIVATIONS_KNOWN, ASCEND_PAIRS, INTEGER_BIASES, PLANNED, WEIGHTS_KNOWN
from amct_onnx.passes.layers import bias_input, has_weight, last_node
from amct_onnx.passes.state import Pass, QuantState


def _run(state: QuantState) -> None:
    graph, names = state.graph, state.graph.tensor_names()
    nodes = {node.name: node for node in graph.nodes}
    for layer in state.layers():
        node = nodes[layer.name]
        scale = scale_of(state, node)
        bias = bias_input(graph, node)
        last = last_node(graph, node)
        stored = truncate_to_s19(scale) if layer.name in state.plan.cut_scales else scale
        words = stored.view(np.uint32).astype(np.uint64)
        param = graph.new_constant(unique_name(f"{layer.name}.dequant.param", names), words)
        output = graph.new_tensor(unique_name(f"{layer.name}.dequant.output0", names))
        is_half = has_weight(node) and np.dtype(node.inputs[1].dtype) == np.float16
        dequant = graph.insert(
            "AscendDequant",
            f"{layer.name}.dequant",
            [last.outputs[0], param],
            output,
            {"dtype": int(is_half)},
            after=last,
        )
        take_over_output(graph, last, dequant, own_name=unique_name(f"{layer.name}_output0", names))
        node.outputs[0].dtype = node.outputs[0].shape = None  # also in front of a bias Add it gives integers now
        if bias is not None:
            holder, index = bias
            values = constant_input(holder, index)
            assert values is not None
            fresh = graph.new_constant(holder.inputs[index].name, quantize_bias(values, scale))
            set_input(holder, index, fresh)


def scale_of(state: QuantState, node: Node) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    """The dequantization scale of a layer, float32 [1] or [Cout]; the weight scale of a pooling is 1."""
    activation = state.activations[node.name].scale
    weight = state.weights[node.name].scale if node.name in state.weights else np.float32(1.0)
    return dequant_scale(activation, weight)


INSERT_DEQUANT = Pass(
    name="insert AscendDequant",
    run=_run,
    requires=(PLANNED, ACTIVATIONS_KNOWN, WEIGHTS_KNOWN),
    ensures=(ASCEND_PAIRS, INTEGER_BIASES),
)
