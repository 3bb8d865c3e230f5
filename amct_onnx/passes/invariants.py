"""What holds between passes, as data: each invariant lists its violations."""

from __future__ import annotations

from collections import Counter

from amct_onnx.passes.graph import dense_value, is_constant, is_standard, nodes_of, type_name
from amct_onnx.passes.layers import bias_input, is_product, is_recurrent, weight_indices, why_not
from amct_onnx.passes.state import Invariant, QuantState


def _unnamed(state: QuantState) -> list[str]:
    counts = Counter(node.name for node in state.graph.nodes)
    return [f"{count} nodes are named {name!r}" for name, count in counts.items() if count > 1 or not name]


def _lifted(state: QuantState) -> list[str]:
    return [
        f"{node.name!r} is a Constant node"
        for node in nodes_of(state.graph, "Constant")
        if dense_value(node) is not None and not state.graph.is_output(node.outputs[0])
    ]


def _plain_gemm(state: QuantState) -> list[str]:
    return [
        f"Gemm {node.name!r} has transB=1 over a constant weight"
        for node in nodes_of(state.graph, "Gemm")
        if node.attrs.get("transB", 0)
        and is_constant(node.inputs[1])
        and type_name(node.inputs[1]) in ("float32", "float16")
        and node.attrs.get("alpha", 1.0) == 1.0
    ]


def _unshared(state: QuantState) -> list[str]:
    return [
        f"{node.name!r} shares its weight {node.inputs[index].name!r}"
        for node in state.graph.nodes
        if why_not(node) is None
        for index in weight_indices(node)
        if len(node.inputs[index].outputs) > 1 or state.graph.is_output(node.inputs[index])
    ]


def _planned_exist(state: QuantState) -> list[str]:
    names = {node.name for node in state.graph.nodes}
    planned = [layer.name for layer in state.layers()] + [tensor.node for tensor in state.tensors()]
    return [f"planned layer {name!r} is not in the graph" for name in planned if name not in names]


def _weights_known(state: QuantState) -> list[str]:
    nodes = {node.name: node for node in state.graph.nodes}
    return [
        f"no parameters for weight {index} of {layer.name!r}"
        for layer in state.layers()
        for index in weight_indices(nodes[layer.name])
        if layer.name not in (state.recurrent if index == 2 else state.weights)
    ]


def _activations_known(state: QuantState) -> list[str]:
    nodes = {node.name: node for node in state.graph.nodes}
    planned = [layer.name for layer in state.layers()] + [tensor.key for tensor in state.tensors()]
    products = [layer.name for layer in state.layers() if is_product(nodes[layer.name])]
    found = [f"no activation parameters for {name!r}" for name in planned if name not in state.activations]
    found += [f"no parameters for input 1 of {name!r}" for name in products if name not in state.weights]
    recurrent = [layer.name for layer in state.layers() if is_recurrent(nodes[layer.name])]
    return found + [f"no parameters for the state of {name!r}" for name in recurrent if name not in state.hidden]


def _standard_only(state: QuantState) -> list[str]:
    return [f"{n.name!r} is {n.op}" for n in state.graph.nodes if is_standard(n) and n.op.startswith("Ascend")]


def _ascend_pairs(state: QuantState) -> list[str]:
    nodes = {node.name: node for node in state.graph.nodes}
    violations = []
    for layer in state.layers():
        node = nodes[layer.name]
        if is_recurrent(node):
            continue
        source = node.inputs[0].inputs
        if not source or source[0].op != "AscendQuant":
            violations.append(f"input of {layer.name!r} does not come from AscendQuant")
        if f"{layer.name}.dequant" not in nodes:
            violations.append(f"{layer.name!r} has no AscendDequant")
    return violations


def _integer_biases(state: QuantState) -> list[str]:
    nodes = {node.name: node for node in state.graph.nodes}
    violations = []
    for layer in state.layers():
        place = bias_input(state.graph, nodes[layer.name])
        if place is not None and place[0].inputs[place[1]].dtype != "int32":
            violations.append(f"bias of {layer.name!r} is not int32")
    return violations


NAMED = Invariant(name="every node has a name of its own", check=_unnamed)
LIFTED = Invariant(name="no Constant nodes", check=_lifted)
PLAIN_GEMM = Invariant(name="Gemm weights are [K, N]", check=_plain_gemm)
UNSHARED = Invariant(name="no layer shares its weight", check=_unshared)
PLANNED = Invariant(name="every planned layer is in the graph", check=_planned_exist)
WEIGHTS_KNOWN = Invariant(name="weight parameters are known", check=_weights_known)
ACTIVATIONS_KNOWN = Invariant(name="activation parameters are known", check=_activations_known)
STANDARD_ONLY = Invariant(name="standard operators only", check=_standard_only)
ASCEND_PAIRS = Invariant(name="layers stand between AscendQuant and AscendDequant", check=_ascend_pairs)
INTEGER_BIASES = Invariant(name="biases are int32", check=_integer_biases)
