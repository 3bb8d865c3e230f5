"""Takes a strategy's decisions over into the table of Ascend's own, where its operators compute what was decided."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from amct_onnx.kernels.grid import Grid
from amct_onnx.kernels.quant_params import QuantParams
from amct_onnx.passes.graph import Node
from amct_onnx.passes.insert_grids import store_parameters
from amct_onnx.passes.invariants import ACTIVATIONS_KNOWN, PLANNED, UNSHARED, WEIGHTS_KNOWN
from amct_onnx.passes.layer_types import PER_CHANNEL
from amct_onnx.passes.layers import group_of, spatial_axes
from amct_onnx.passes.state import Pass, QuantState
from amct_onnx.passes.tensor_points import point_behind


def _run(state: QuantState) -> None:
    nodes = {node.name: node for node in state.graph.nodes}
    store_parameters(state)  # what is then rounded to the same scales gives the strategy's own integers
    for layer in state.layers():
        node = nodes[layer.name]
        activation, weight = _activation(state, node), _weight(state, node)
        if isinstance(activation, str) or isinstance(weight, str):
            state.left_float[layer.name] = activation if isinstance(activation, str) else str(weight)
            continue
        state.activations[layer.name], state.weights[layer.name] = activation, weight
    state.bias_shifts.clear()
    state.weight_grids.clear()


def _activation(state: QuantState, node: Node) -> QuantParams | str:
    name = point_behind(node.inputs[0], state.grids)
    if name is None:
        return f"its input {node.inputs[0].name!r} is not quantized"
    grid = state.grids[name]
    if grid.datatype != "int":
        return f"its input is {grid.datatype}"
    ranges = {(-128, 127): 0, (0, 255): -128}
    if (grid.low, grid.high) not in ranges:
        return f"its input has the integers {grid.low} to {grid.high}; Ascend takes -128 to 127, or 0 to 255"
    offset = int(grid.zero_point) + ranges[grid.low, grid.high]
    if not -128 <= offset <= 127:
        return f"its input has the zero point {int(grid.zero_point)}; Ascend takes {grid.low} to {grid.high}"
    if offset != 0 and node.op == "Conv" and spatial_axes(node) == 3:
        return "its input is asymmetric, which Ascend does not take in a 3-D convolution"
    return QuantParams(scale=_single(grid), offset=np.asarray(offset, np.int32))


def _weight(state: QuantState, node: Node) -> QuantParams | str:
    grid = state.weight_grids[node.name]
    if grid.datatype != "int":
        return f"its weight is {grid.datatype}"
    if grid.low >= 0 or grid.zero_point.any():
        return "its weight is unsigned or asymmetric; Ascend takes signed, symmetric weights"
    if grid.num_bits > 8:
        return f"its weight has {grid.num_bits} bits; Ascend takes 8"
    if grid.axis is None:
        return QuantParams(scale=_single(grid), offset=np.zeros((), np.int32))
    if node.op not in PER_CHANNEL:
        return f"its weight has a scale for each channel; Ascend takes one for {node.op}"
    groups = group_of(node) if node.op == "ConvTranspose" else 1
    scale = np.tile(_single(grid), groups)
    return QuantParams(scale=scale, offset=np.zeros(scale.shape, np.int32), axis=0)


def _single(grid: Grid) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """The scale as float32; that of zeros is one that the chip takes."""
    return np.asarray(grid.step, np.float32)


def with_own_tables(state: QuantState) -> QuantState:
    """The state over a copy of its graph, with tables that may be changed without changing those of `state`."""
    return replace(
        state,
        graph=state.graph.copy(),
        left_float=dict(state.left_float),
        bias_shifts=dict(state.bias_shifts),
        weight_grids=dict(state.weight_grids),
        remarks={},
        activations={},
        weights={},
    )


FIT_ASCEND = Pass(
    name="fit Ascend", run=_run, requires=(PLANNED, UNSHARED), ensures=(PLANNED, ACTIVATIONS_KNOWN, WEIGHTS_KNOWN)
)
