"""Replaces the Ascend operators by standard ones that compute the same, so that any onnxruntime runs the model.

The layers keep working on integers, held as floats: AscendQuant becomes
clip(round(x * scale) + offset) - offset, AscendDequant a multiplication. Exact as long as sums stay below 2^24;
those of 16-bit activations do not, and have the precision of float32.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from amct_onnx.passes.graph import (
    Graph,
    Node,
    Tensor,
    constant_input,
    derived,
    nodes_of,
    set_input,
    unique_name,
)
from amct_onnx.passes.invariants import ASCEND_PAIRS, STANDARD_ONLY
from amct_onnx.passes.layers import bias_input, has_weight, is_recurrent, spatial_axes
from amct_onnx.passes.state import Pass, QuantState


def _run(state: QuantState) -> None:
    graph, names = state.graph, state.graph.tensor_names()
    nodes = {node.name: node for node in graph.nodes}
    halves = {
        node.name.removesuffix(".dequant") for node in nodes_of(graph, "AscendDequant") if node.attrs["dtype"] == 1
    }
    for quant in nodes_of(graph, "AscendQuant"):
        _lower_quant(graph, quant, quant.name.removesuffix(".quant") in halves, names)
    for anti_quant in nodes_of(graph, "AscendAntiQuant"):
        _lower_anti_quant(graph, anti_quant, names)
    for layer in state.layers():
        node = nodes[layer.name]
        if is_recurrent(node):
            continue
        bias = bias_input(graph, node)
        if has_weight(node):
            _to_float(graph, node, 1)
        if bias is not None:
            _to_float(graph, *bias)
        _lower_dequant(graph, nodes[f"{layer.name}.dequant"], _rank_of(node), names)


def _lower_quant(graph: Graph, quant: Node, is_half: bool, names: set[str]) -> None:
    prefix = f"{quant.name}.fakequant"
    bits = int(quant.attrs["dst_type"].removeprefix("INT"))
    scale, offset, low, high = (
        graph.new_constant(unique_name(f"{prefix}.{name}", names), np.array(value, np.float32))
        for name, value in (
            ("scale", quant.attrs["scale"]),
            ("offset", quant.attrs["offset"]),
            ("min_val", -(1 << (bits - 1))),
            ("max_val", (1 << (bits - 1)) - 1),
        )
    )
    value = quant.inputs[0]
    steps: list[tuple[str, str, list[Tensor], dict[str, int]]] = [
        ("Mul", "mul", [scale], {}),
        ("Round", "round", [], {}),
        ("Add", "add", [offset], {}),
        ("Clip", "clip", [low, high], {}),
        ("Sub", "sub", [offset], {}),
    ]
    if is_half:
        steps.insert(0, ("Cast", "cast", [], {"to": int(TensorProto.FLOAT)}))
    for op, name, operands, attributes in steps:
        output = graph.new_tensor(unique_name(f"{prefix}.{name}.output0", names))
        graph.insert(op, f"{prefix}.{name}", [value, *operands], output, dict(attributes), before=quant)
        value = output
    graph.replace_uses(quant.outputs[0], value)
    graph.remove([quant])


def _lower_anti_quant(graph: Graph, anti_quant: Node, names: set[str]) -> None:
    """A multiplication: the lowered AscendQuant in front has taken the offset off."""
    prefix = f"{anti_quant.name}.fakequant"
    scale = graph.new_constant(unique_name(f"{prefix}.scale", names), np.array(anti_quant.attrs["scale"], np.float32))
    _stand_in(graph, anti_quant, "Mul", f"{prefix}.mul", [anti_quant.inputs[0], scale], anti_quant.outputs[0])


def _lower_dequant(graph: Graph, dequant: Node, rank: int, names: set[str]) -> None:
    layer = dequant.name.removesuffix(".dequant")
    words = constant_input(dequant, 1)
    assert words is not None
    scale = words.astype(np.uint32).view(np.float32)
    if rank > 2:
        scale = scale.reshape(1, -1, *([1] * (rank - 2)))
    operand = graph.new_constant(unique_name(f"{layer}.fakedequant.dqscale", names), scale)
    value, result = dequant.inputs[0], dequant.outputs[0]
    if dequant.attrs["dtype"] == 1:
        output = graph.new_tensor(unique_name(f"{layer}.fakedequant.mul.output0", names))
        graph.insert("Mul", f"{layer}.fakedequant.mul", [value, operand], output, before=dequant)
        _stand_in(graph, dequant, "Cast", f"{layer}.fakedequant.cast", [output], result)
    else:
        _stand_in(graph, dequant, "Mul", f"{layer}.fakedequant.mul", [value, operand], result)


def _stand_in(graph: Graph, dequant: Node, op: str, name: str, inputs: list[Tensor], result: Tensor) -> None:
    """Let a new node produce the dequant's own tensor, so that its name and the model's outputs stay."""
    attributes = {"to": int(TensorProto.FLOAT16)} if op == "Cast" else {}
    placeholder = graph.new_tensor("")
    node = graph.insert(op, name, inputs, placeholder, attributes, before=dequant)
    graph.remove([dequant])
    node.outputs[0] = result


def _rank_of(node: Node) -> int:
    axes = spatial_axes(node)
    return 1 if axes is None else axes + 2


def _to_float(graph: Graph, node: Node, index: int) -> None:
    old = node.inputs[index]
    values = derived(old, np.float32, old.shape, lambda integers: integers.astype(np.float32))
    set_input(node, index, graph.new_constant(old.name, values))


LOWER_ASCEND = Pass(name="lower Ascend operators", run=_run, requires=(ASCEND_PAIRS,), ensures=(STANDARD_ONLY,))
