"""Gives every node a name of its own: layers are addressed by node name."""

from __future__ import annotations

from amct_onnx.passes.graph import unique_name
from amct_onnx.passes.invariants import NAMED
from amct_onnx.passes.state import Pass, QuantState

_STEPS = ("cast", "mul", "round", "add", "clip", "sub")
_ENDINGS = (
    *(".quant", ".dequant", ".fakedequant.mul", ".fakedequant.cast"),
    *(f".quant.fakequant.{step}" for step in _STEPS),
)


def _run(state: QuantState) -> None:
    """Unnamed nodes become `<operator>_<position>`; a name that came before gets a number behind it."""
    taken = {node.name for node in state.graph.nodes if node.name}
    seen: set[str] = set()
    for position, node in enumerate(state.graph.nodes):
        if not node.name:
            node.name = unique_name(f"{node.op}_{position}", taken)
        elif node.name in seen:
            node.name = unique_name(node.name, taken)
        seen.add(node.name)
    _free_names_of_ours(state, seen)


def _free_names_of_ours(state: QuantState, taken: set[str]) -> None:
    """`<layer>.quant` and the like belong to nodes that are inserted for the layer: others of that name give way."""
    for node in state.graph.nodes:
        stem = next((node.name.removesuffix(end) for end in _ENDINGS if node.name.endswith(end)), None)
        if stem in taken:
            node.name = unique_name(f"{node.name}_1", taken)


NAME_NODES = Pass(name="name nodes", run=_run, ensures=(NAMED,))
