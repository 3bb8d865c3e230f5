"""Takes out nodes that do nothing at inference, Identity and Dropout."""

from __future__ import annotations

from amct_onnx.passes.graph import Graph, Node, constant_input, has_input, nodes_of
from amct_onnx.passes.invariants import NAMED
from amct_onnx.passes.state import Pass, QuantState


def _run(state: QuantState) -> None:
    for node in nodes_of(state.graph, "Identity", "Dropout"):
        if _does_something(state.graph, node):
            continue
        state.graph.replace_uses(node.outputs[0], node.inputs[0])
        state.graph.remove([node])
        state.gone[node.name] = f"{node.op} does nothing at inference"


def _does_something(graph: Graph, node: Node) -> bool:
    """Whether the node gives an output of the model its name, drops values, or is asked for its mask."""
    if graph.is_output(node.outputs[0]) or any(graph.is_output(t) or t.outputs for t in node.outputs[1:]):
        return True
    if node.op == "Dropout" and has_input(node, 2):
        training = constant_input(node, 2)
        return training is None or bool(training)
    return False


REMOVE_IDENTITIES = Pass(name="remove identities", run=_run, requires=(NAMED,), ensures=(NAMED,))
