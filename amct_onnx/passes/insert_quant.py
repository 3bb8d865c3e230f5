"""Puts AscendQuant in front of every layer: q = round(x * scale) + offset, with the reciprocal as `scale`."""

from __future__ import annotations

import numpy as np

from amct_onnx.passes.graph import set_input, unique_name
from amct_onnx.passes.invariants import ACTIVATIONS_KNOWN, PLANNED, STANDARD_ONLY
from amct_onnx.passes.state import Pass, QuantState


def _run(state: QuantState) -> None:
    names = state.graph.tensor_names()
    nodes = {node.name: node for node in state.graph.nodes}
    for layer in state.layers():
        node, params = nodes[layer.name], state.activations[layer.name]
        output = state.graph.new_tensor(unique_name(f"{layer.name}.quant.output0", names))
        attributes = {
            "scale": float(np.float32(1.0) / np.float32(params.scale)),
            "offset": float(params.offset),
            "dst_type": f"INT{params.num_bits}",
        }
        name = f"{layer.name}.quant"
        state.graph.insert("AscendQuant", name, [node.inputs[0]], output, attributes, before=node)
        set_input(node, 0, output)


INSERT_QUANT = Pass(name="insert AscendQuant", run=_run, requires=(PLANNED, ACTIVATIONS_KNOWN, STANDARD_ONLY))
