"""Takes the scales that the plan gives into the table: those of a record, or of a model quantized elsewhere."""

from __future__ import annotations

import numpy as np

from amct_onnx.kernels.quant_params import QuantParams
from amct_onnx.passes.invariants import ACTIVATIONS_KNOWN, PLANNED, UNSHARED, WEIGHTS_KNOWN
from amct_onnx.passes.layers import has_weight, is_product, is_recurrent
from amct_onnx.passes.quantize_weights import require_finite
from amct_onnx.passes.state import Pass, QuantState


def _run(state: QuantState) -> None:
    nodes = {node.name: node for node in state.graph.nodes}
    for layer in state.layers():
        assert isinstance(layer.activation, QuantParams), "the plan gives every scale"
        state.activations[layer.name] = layer.activation
        node = nodes[layer.name]
        if has_weight(node):
            require_finite(state, node)
        if has_weight(node) or is_product(node):
            assert isinstance(layer.weight, QuantParams), "the plan gives every scale"
            state.weights[layer.name] = layer.weight
        if is_recurrent(node):
            assert layer.hidden is not None, "the plan gives every scale"
            assert layer.recurrent is not None, "the plan gives every scale"
            state.hidden[layer.name], state.recurrent[layer.name] = layer.hidden, layer.recurrent
        if layer.cluster:
            state.clusters[layer.name] = np.array(sorted(layer.cluster), np.int8)
    for tensor in state.tensors():
        assert isinstance(tensor.activation, QuantParams), "the plan gives every scale"
        state.activations[tensor.key] = tensor.activation


TAKE_GIVEN = Pass(
    name="take given scales",
    run=_run,
    requires=(PLANNED, UNSHARED),
    ensures=(WEIGHTS_KNOWN, ACTIVATIONS_KNOWN),
)
