"""Lets layers that read one tensor with the same scale and offset share one AscendQuant."""

from __future__ import annotations

from amct_onnx.passes.graph import Node, nodes_of
from amct_onnx.passes.invariants import ASCEND_PAIRS
from amct_onnx.passes.state import Pass, QuantState


def _run(state: QuantState) -> None:
    first: dict[tuple[object, ...], Node] = {}
    for quant in nodes_of(state.graph, "AscendQuant"):
        key = (id(quant.inputs[0]), *sorted(quant.attrs.items()))
        if key in first:
            state.graph.replace_uses(quant.outputs[0], first[key].outputs[0])
            state.graph.remove([quant])
        else:
            first[key] = quant


MERGE_QUANTS = Pass(name="merge AscendQuant", run=_run, requires=(ASCEND_PAIRS,), ensures=(ASCEND_PAIRS,))
