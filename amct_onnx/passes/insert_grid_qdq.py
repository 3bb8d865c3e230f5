"""Rewrites the float graph with QuantizeLinear and DequantizeLinear on the grids of a strategy.

QuantizeLinear sends halves to the even neighbour whatever the strategy says; weights and biases are stored as the
integers that the strategy's rounding gives.
"""

from __future__ import annotations

import numpy as np

from amct_onnx.errors import NotAvailableError
from amct_onnx.kernels.grid import Grid, grid_levels
from amct_onnx.passes.correct_biases import corrected_bias
from amct_onnx.passes.graph import Node, Tensor, derived, set_input
from amct_onnx.passes.insert_grids import Insertion, insert_cast, store_parameters, tensors_on_grids
from amct_onnx.passes.invariants import PLANNED, STANDARD_ONLY, UNSHARED
from amct_onnx.passes.layers import bias_input
from amct_onnx.passes.state import Pass, QuantState


def _run(state: QuantState) -> None:
    insertion = Insertion(state.graph)
    store_parameters(state, casts_only=True)
    for node in list(state.graph.nodes):
        if node.name in state.bias_grids and state.bias_grids[node.name].datatype == "int":
            _store_bias(state, insertion, node)
        if node.name in state.weight_grids and state.weight_grids[node.name].datatype == "int":
            _store_weight(state, insertion, node)
    for tensor in tensors_on_grids(state):
        _insert(insertion, tensor, state.grids[tensor.name])


def why_not_qdq(grid: Grid) -> str | None:
    """Why the two operators cannot express a grid; they hold integers of 8 bits."""
    if grid.num_bits > 8:
        return f"{grid.num_bits} bits; QuantizeLinear takes 8 in the opsets that are written"
    low, high, _ = _integers(grid)
    if not ((grid.zero_point >= low) & (grid.zero_point <= high)).all():
        return f"zero points as far as {int(np.abs(grid.zero_point).max())}, which no integer of 8 bits holds"
    return None


def _integers(grid: Grid) -> tuple[int, int, type]:
    return (-128, 127, np.int8) if grid.low < 0 else (0, 255, np.uint8)


def _require(grid: Grid, what: str) -> None:
    if reason := why_not_qdq(grid):
        raise NotAvailableError(f"no QDQ model: {what} has {reason}; make the fake-quant model alone")


def _insert(insertion: Insertion, tensor: Tensor, grid: Grid) -> None:
    if grid.datatype != "int":
        insert_cast(insertion, tensor, grid)
        return
    _require(grid, f"tensor {tensor.name!r}")
    low, high, dtype = _integers(grid)
    insertion.start(tensor)
    value = tensor
    if (grid.low, grid.high) != (low, high):
        zero, step = int(grid.zero_point), float(grid.step)
        ends = [
            insertion.constant(f"clip.{word}", (end - zero) * step)
            for word, end in (("low", grid.low), ("high", grid.high))
        ]
        value = insertion.put("Clip", "clip", [value, *ends])
    scale, zero_point = _constants(insertion, grid, dtype)
    value = insertion.put("QuantizeLinear", "quantize", [value, scale, zero_point])
    insertion.put("DequantizeLinear", "dequantize", [value, scale, zero_point])
    insertion.finish()


def _constants(insertion: Insertion, grid: Grid, dtype: type) -> tuple[Tensor, Tensor]:
    return insertion.constant("scale", grid.step), insertion.constant("zero_point", grid.zero_point, dtype)


def _store_weight(state: QuantState, insertion: Insertion, node: Node) -> None:
    grid, old = state.weight_grids[node.name], node.inputs[1]
    _require(grid, f"the weight of layer {node.name!r}")
    _, _, dtype = _integers(grid)
    integers = derived(old, dtype, old.shape, lambda weight: grid_levels(weight, grid).astype(dtype))
    stored = state.graph.new_constant(old.name, integers)
    insertion.start(stored)
    insertion.before(node)
    scale, zero_point = _constants(insertion, grid, dtype)
    attributes = {} if grid.axis is None else {"axis": grid.axis}
    set_input(node, 1, insertion.put("DequantizeLinear", "dequantize", [stored, scale, zero_point], **attributes))


def _store_bias(state: QuantState, insertion: Insertion, node: Node) -> None:
    place, values = bias_input(state.graph, node), corrected_bias(state, node)
    if place is None or values is None:
        return
    grid = state.bias_grids[node.name]
    holder, index = place
    levels = grid_levels(values, grid) - grid.zero_point  # integers of 32 bits have no zero point
    insertion.start(holder.inputs[index])
    insertion.before(holder)
    stored = insertion.constant("integers", np.clip(levels, -(2**31), 2**31 - 1), np.int32)
    scale = insertion.constant("scale", grid.step)
    set_input(holder, index, insertion.put("DequantizeLinear", "dequantize", [stored, scale]))


INSERT_GRID_QDQ = Pass(
    name="insert QuantizeLinear and DequantizeLinear on grids",
    run=_run,
    requires=(PLANNED, STANDARD_ONLY, UNSHARED),
    ensures=(STANDARD_ONLY,),
)
