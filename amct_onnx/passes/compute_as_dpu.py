"""Makes the float model compute what the DPU does where that is not what the operator says, if the plan asks for it.

The DPU divides by shifts: the mean of a window is off by a factor. Its LeakyRelu has the slope 26 / 256.
"""

from __future__ import annotations

import numpy as np

from amct_onnx.kernels.dpu import LEAKY_SLOPE, pooling_factor
from amct_onnx.passes.graph import Node, nodes_of, take_over_output, unique_name
from amct_onnx.passes.invariants import NAMED, PLANNED
from amct_onnx.passes.shapes import infer_types
from amct_onnx.passes.state import Pass, QuantState
from amct_onnx.passes.tensor_points import DPU_FACTOR


def _run(state: QuantState) -> None:
    if not state.plan.dpu_arithmetic:
        return
    for node in nodes_of(state.graph, "LeakyRelu"):
        node.attrs["alpha"] = LEAKY_SLOPE
    pools = nodes_of(state.graph, "AveragePool", "GlobalAveragePool")
    windows = {node.name: _window(state, node) for node in pools}
    nodes, tensors = state.graph.node_names(), state.graph.tensor_names()
    for node in pools:
        window = windows[node.name]
        if window is None:
            state.remarks[node.name] = "computed exactly: its window is unknown, or not of two dimensions"
        elif (factor := pooling_factor(window)) != 1:
            name = unique_name(f"{node.name}{DPU_FACTOR}", nodes)
            operand = state.graph.new_constant(unique_name(f"{name}.value", tensors), np.asarray(factor, np.float32))
            output = state.graph.new_tensor(unique_name(f"{name}.output0", tensors))
            mul = state.graph.insert("Mul", name, [node.outputs[0], operand], output, after=node)
            take_over_output(state.graph, node, mul, own_name=unique_name(f"{node.name}_output0", tensors))


def _window(state: QuantState, node: Node) -> tuple[int, int] | None:
    shape = node.attrs.get("kernel_shape")
    if node.op == "GlobalAveragePool":
        known = infer_types(state.graph).get(node.inputs[0].name)
        shape = None if known is None or known.shape is None else known.shape[2:]
    if shape is None or len(shape) != 2 or None in shape:
        return None
    return int(shape[0]), int(shape[1])


COMPUTE_AS_DPU = Pass(name="compute as the DPU", run=_run, requires=(NAMED, PLANNED), ensures=(NAMED, PLANNED))
