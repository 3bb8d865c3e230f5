"""Turns every Clip between 0 and 6 into a Relu, where the plan says so: its range then follows from the data."""

from __future__ import annotations

from amct_onnx.passes.graph import constant_input, has_input, nodes_of
from amct_onnx.passes.invariants import NAMED, PLANNED
from amct_onnx.passes.state import Pass, QuantState


def _run(state: QuantState) -> None:
    if not state.plan.replace_relu6:
        return
    for node in nodes_of(state.graph, "Clip"):
        bounds = [constant_input(node, index) if has_input(node, index) else None for index in (1, 2)]
        if all(
            b is not None and b.size == 1 and float(b.reshape(())) == wanted
            for b, wanted in zip(bounds, (0, 6), strict=True)
        ):
            while len(node.inputs) > 1:
                node.inputs.pop()
            node.op = "Relu"
            state.remarks[node.name] = "Clip between 0 and 6 became Relu"


REPLACE_RELU6 = Pass(name="replace Relu6", run=_run, requires=(NAMED,), ensures=(NAMED, PLANNED))
