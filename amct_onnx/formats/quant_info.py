"""What a strategy found, in the form of Vitis AI's quant_info.json."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from amct_onnx.kernels.grid import Grid
from amct_onnx.passes.layers import bias_input
from amct_onnx.passes.state import QuantState


def format_quant_info(state: QuantState, target_device: str) -> str:
    """For each tensor `[bits, position]` on the DPU, else `[bits, scale, zero_point, float_max]`, lists per channel.

    Tensors are called as in the ONNX model: weights and biases under `param`, what is computed under `output`; under
    `dtype` those that are cast to a float type.
    """
    on_dpu = target_device == "DPU"
    params: dict[str, Grid] = {}
    for node in state.graph.nodes:
        if node.name in state.weight_grids:
            params[node.inputs[1].name] = state.weight_grids[node.name]
        place = bias_input(state.graph, node) if node.name in state.bias_grids else None
        if place is not None:
            params[place[0].inputs[place[1]].name] = state.bias_grids[node.name]
    info: dict[str, Any] = {
        word: {name: [_entry(grid, on_dpu)] for name, grid in grids.items() if grid.datatype == "int"}
        for word, grids in (("param", params), ("output", state.grids))
    }
    info["input"] = {}
    casts = {name: grid.datatype for name, grid in (params | state.grids).items() if grid.datatype != "int"}
    return json.dumps(info | ({"dtype": casts} if casts else {}), indent=2)


def _entry(grid: Grid, on_dpu: bool) -> list[Any]:
    if on_dpu:
        return [grid.num_bits, round(-float(np.log2(grid.scale)))]
    return [grid.num_bits, grid.scale.tolist(), grid.zero_point.tolist(), grid.float_max.tolist()]
