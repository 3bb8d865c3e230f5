"""Makes the positions of neighbours fit what the DPU computes: shifts of 0 to 16 bits, branches on one grid."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from amct_onnx.kernels.dpu import LayerPositions, shifted_within_reach
from amct_onnx.kernels.grid import Grid
from amct_onnx.passes.graph import Node, Tensor, nodes_of
from amct_onnx.passes.invariants import PLANNED
from amct_onnx.passes.layers import last_node
from amct_onnx.passes.state import Pass, QuantState
from amct_onnx.passes.tensor_points import point_behind, point_of_output

_POOLS = ("MaxPool", "AveragePool", "GlobalAveragePool")


def _run(state: QuantState) -> None:
    grids = (*state.grids.values(), *state.weight_grids.values(), *state.bias_grids.values())
    if any(grid.datatype != "int" for grid in grids):
        return  # with float types among them Vitis AI aligns nothing
    for node in reversed(nodes_of(state.graph, *_aligned_to_output(state))):
        _give_inputs(state, node)
    for node in list(state.graph.nodes):
        if node.op in ("Pad", "Resize", "Upsample") and (node.op == "Pad" or _is_nearest(node)):
            _take_from_input(state, node)
        if state.plan.dpu_shifts and node.name in state.weight_grids:
            _shift(state, node)
        if state.plan.dpu_shifts and node.op in ("HardSigmoid", "HardSwish"):
            _limit_activation(state, node)


def _aligned_to_output(state: QuantState) -> tuple[str, ...]:
    return (("Concat",) if state.plan.align_concat else ()) + (_POOLS if state.plan.align_pool else ())


def _is_nearest(node: Node) -> bool:
    return bool(node.attrs.get("mode", "nearest") == "nearest")


def _give_inputs(state: QuantState, node: Node) -> None:
    end = point_of_output(state.graph, node, state.grids)
    if end is None:
        return
    for tensor in node.inputs:
        name = point_behind(tensor, state.grids)
        if name is not None:
            state.grids[name] = replace(state.grids[end])


def _take_from_input(state: QuantState, node: Node) -> None:
    source, end = point_behind(node.inputs[0], state.grids), point_of_output(state.graph, node, state.grids)
    if source is not None and end is not None and end == node.outputs[0].name:
        state.grids[end] = replace(state.grids[source])


def _shift(state: QuantState, node: Node) -> None:
    source, end = point_behind(node.inputs[0], state.grids), _layer_end(state, node)
    if source is None or end is None:
        return
    bias = state.bias_grids.get(node.name)
    found = shifted_within_reach(
        LayerPositions(
            input=_position(state.grids[source]),
            weight=_position(state.weight_grids[node.name]),
            output=_position(state.grids[end]),
            bias=None if bias is None else _position(bias),
        )
    )
    state.weight_grids[node.name] = _at(state.weight_grids[node.name], found.weight)
    state.grids[end] = _at(state.grids[end], found.output)
    if bias is not None and found.bias is not None:
        state.bias_grids[node.name] = _at(bias, found.bias)


def _limit_activation(state: QuantState, node: Node) -> None:
    """HardSigmoid is computed in 7 bits behind the point, from an input that has no negative position."""
    source, end = point_behind(node.inputs[0], state.grids), point_of_output(state.graph, node, state.grids)
    given = 0 if source is None else max(_position(state.grids[source]), 0)
    if source is not None:
        state.grids[source] = _at(state.grids[source], given)
    if end is None:
        return
    position = _position(state.grids[end])
    wanted = max(position, 7) if node.op == "HardSigmoid" else min(position, given + 7)
    state.grids[end] = _at(state.grids[end], wanted)


def _layer_end(state: QuantState, node: Node) -> str | None:
    last: Tensor = last_node(state.graph, node).outputs[0]
    return point_of_output(state.graph, last.inputs[0], state.grids)


def _position(grid: Grid) -> int:
    return round(-float(np.log2(grid.scale)))


def _at(grid: Grid, position: int) -> Grid:
    return replace(grid, scale=np.asarray(2.0**-position))


ALIGN_POSITIONS = Pass(name="align positions", run=_run, requires=(PLANNED,))
