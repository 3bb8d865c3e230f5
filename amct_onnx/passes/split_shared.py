"""Gives every layer a weight and a bias of its own: each layer has its own scales."""

from __future__ import annotations

from amct_onnx.passes.graph import Node, constant, set_input, unique_name
from amct_onnx.passes.invariants import LIFTED, NAMED, UNSHARED
from amct_onnx.passes.layers import bias_input, has_weight, weight_indices, why_not
from amct_onnx.passes.state import Pass, QuantState


def _run(state: QuantState) -> None:
    names = state.graph.tensor_names()
    for node in state.graph.nodes:
        if why_not(node) is not None or not has_weight(node):
            continue
        for index in weight_indices(node):
            _own(state, node, index, f"{node.name}.{'weight' if index == 1 else 'recurrent'}", names)
        if (place := bias_input(state.graph, node)) is not None:
            _own(state, *place, f"{node.name}.bias", names)


def _own(state: QuantState, node: Node, index: int, wanted: str, names: set[str]) -> None:
    shared = node.inputs[index]
    if len(shared.outputs) == 1 and not state.graph.is_output(shared):
        return
    values, name = constant(shared), unique_name(wanted, names)
    assert values is not None
    set_input(node, index, state.graph.new_constant(name, values))
    state.copies[name] = shared.name


SPLIT_SHARED = Pass(name="split shared weights", run=_run, requires=(NAMED, LIFTED), ensures=(UNSHARED,))
