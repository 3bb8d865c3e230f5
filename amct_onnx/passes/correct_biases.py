"""Takes out of the biases what the error of the weights adds to the outputs on average.

    E[W x + b] = E[Wq x] + b + (W - Wq) E[x]        with E[x] for each input channel, over the calibration data

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019. The corrections are found
once and written into the quantized models alone: the float graph keeps its biases.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from amct_onnx.kernels.adaround import AdaRound
from amct_onnx.passes.graph import (
    Array,
    Graph,
    Node,
    constant_input,
    is_standard,
    set_input,
    sole_consumer,
    unique_name,
)
from amct_onnx.passes.invariants import PLANNED
from amct_onnx.passes.layers import (
    bias_input,
    channels_first,
    group_of,
    has_weight,
    input_channels,
    is_recurrent,
    output_channels,
    weight_of,
)
from amct_onnx.passes.quantize_weights import fake_quantized
from amct_onnx.passes.state import Pass, QuantState


def _find(state: QuantState) -> None:
    nodes = {node.name: node for node in state.graph.nodes}
    for layer in state.layers():
        node = nodes[layer.name]
        if not layer.correct_bias or not has_weight(node):
            continue
        if reason := why_not_corrected(state.graph, node):
            state.remarks[node.name] = f"its bias is not corrected: {reason}"
            continue
        if isinstance(layer.weight, AdaRound) and bias_input(state.graph, node) is None and node.op == "MatMul":
            state.remarks[node.name] = "its bias is not corrected: its rounding is learned without the Add behind it"
            continue
        if node.name not in state.means:
            continue
        shift = mean_error(state, node, state.means[node.name]).astype(np.float32)
        if np.isfinite(shift).all():
            state.bias_shifts[node.name] = shift


def why_not_corrected(graph: Graph, node: Node) -> str | None:
    """Why the bias of a layer with weights cannot be corrected, or None where it can."""
    if is_recurrent(node):
        return "it has two weights"
    if node.op == "MatMul" and _bias_place(graph, node) is None:
        return "it has no bias"
    return None


def _bias_place(graph: Graph, node: Node) -> tuple[Node, int] | None:
    """The node and the input index that hold the bias, where it is a constant, or None.

    A bias that stands first in the Add behind a MatMul, as torch writes it, is none of AMCT's layer: that Add stays
    float in all models, but its constant can be corrected as well.
    """
    if (place := bias_input(graph, node)) is not None or node.op != "MatMul":
        return place
    add = sole_consumer(graph, node.outputs[0])
    if add is None or add.op != "Add" or not is_standard(add) or add.inputs[1] is not node.outputs[0]:
        return None
    bias = constant_input(add, 0)
    return (add, 0) if bias is not None and bias.shape == (output_channels(node),) else None


def mean_error(state: QuantState, node: Node, means: NDArray[np.float64]) -> NDArray[np.float64]:
    """(W - Wq) E[x]: what the outputs of a layer lack on average, [Cout].

    Paddings count as if they held the means; of a transposed convolution an output sees one in prod(strides) weights.
    """
    weight = channels_first(node, weight_of(node)).astype(np.float64)
    lost = weight - channels_first(node, fake_quantized(state, node).load()).astype(np.float64)
    if means.size != input_channels(node):
        return np.zeros(len(weight))
    lost = lost.reshape(*weight.shape[:2], -1).sum(axis=2)  # [Cout, Cin/g]
    grouped = lost.reshape(group_of(node), -1, lost.shape[1])
    shift = np.einsum("goi,gi->go", grouped, means.reshape(group_of(node), -1)).reshape(-1)
    if node.op == "ConvTranspose":
        shift = shift / np.prod(node.attrs.get("strides", [1]))
    return np.asarray(shift)


def corrected_bias(state: QuantState, node: Node) -> Array | None:
    """The bias that the layer has in the quantized models, [Cout]; None where there is none."""
    place = bias_input(state.graph, node) if has_weight(node) else None
    bias = None if place is None else constant_input(*place)
    shift = state.bias_shifts.get(node.name)
    if shift is None:
        return bias
    if bias is None and node.op == "MatMul":
        return None
    if bias is None:
        return shift.astype(node.inputs[1].dtype)
    return np.asarray((bias.astype(np.float32) + shift).astype(bias.dtype))


def _apply(state: QuantState) -> None:
    names = state.graph.tensor_names()
    nodes = {node.name: node for node in state.graph.nodes}
    for layer in state.layers():
        if layer.name not in state.bias_shifts:
            continue
        node = nodes[layer.name]
        holder, index = _bias_place(state.graph, node) or (node, 2)
        values = corrected_bias(state, node)
        if values is None:  # the Add behind a MatMul
            bias = constant_input(holder, index)
            assert bias is not None, "its shift was found for it"
            values = np.asarray((bias.astype(np.float32) + state.bias_shifts[node.name]).astype(bias.dtype))
        fresh = state.graph.new_constant(unique_name(f"{node.name}.corrected_bias", names), values)
        set_input(holder, index, fresh)


FIND_BIAS_SHIFTS = Pass(name="find bias shifts", run=_find, requires=(PLANNED,))
CORRECT_BIASES = Pass(name="correct biases", run=_apply, requires=(PLANNED,), ensures=(PLANNED,))
