"""Packs 4-bit weights, two input channels in a byte, as AMCT does: the weight becomes half as long along that axis."""

from __future__ import annotations

from functools import partial

from amct_onnx.kernels.int4 import packed
from amct_onnx.passes.graph import derived, set_input
from amct_onnx.passes.invariants import ASCEND_PAIRS
from amct_onnx.passes.layers import has_weight, input_axis, weight_indices
from amct_onnx.passes.state import Pass, QuantState


def _run(state: QuantState) -> None:
    nodes = {node.name: node for node in state.graph.nodes}
    for layer in state.layers():
        node = nodes[layer.name]
        if not has_weight(node) or state.weights[layer.name].num_bits != 4:
            continue
        for index in weight_indices(node):
            old, axis = node.inputs[index], input_axis(node)
            shape = [size // 2 if i == axis else size for i, size in enumerate(old.shape)]
            fresh = derived(old, "int8", shape, partial(packed, axis=axis))
            set_input(node, index, state.graph.new_constant(old.name, fresh))


PACK_INT4 = Pass(name="pack 4-bit weights", run=_run, requires=(ASCEND_PAIRS,), ensures=(ASCEND_PAIRS,))
