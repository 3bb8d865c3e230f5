"""Takes out the nodes that lead to no output of the model: there is nothing to quantize for."""

from __future__ import annotations

from amct_onnx.passes.invariants import NAMED
from amct_onnx.passes.state import Pass, QuantState


def _run(state: QuantState) -> None:
    for node in state.graph.drop_unreached():
        state.gone[node.name] = "leads to no output of the model"


DROP_UNREACHED = Pass(name="drop what leads to no output", run=_run, requires=(NAMED,), ensures=(NAMED,))
