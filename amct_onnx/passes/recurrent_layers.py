"""Which LSTM and GRU nodes the chip takes as integers, and where their operands are."""

from __future__ import annotations

import math

from amct_onnx.passes.graph import Node, has_input, is_constant, type_name

BIAS, SEQUENCE_LENS, INITIAL_H, INITIAL_C, PEEPHOLES = 3, 4, 5, 6, 7
"""Inputs behind the two weights."""

GATES = {"GRU": 3, "LSTM": 4}
"""Operator -> blocks of rows in each of its weights."""

OUTPUTS = {"GRU": 2, "LSTM": 3}
"""Operator -> outputs, omitted ones included."""

_DEFAULTS = {"GRU": ("sigmoid", "tanh"), "LSTM": ("sigmoid", "tanh", "tanh")}


def why_not_recurrent(node: Node) -> str | None:
    """Why an LSTM or GRU cannot be quantized, as a sentence, or None where it can: AMCT's restrictions."""
    return _why_not_attributes(node) or _why_not_inputs(node) or _why_not_constants(node)


def _why_not_attributes(node: Node) -> str | None:
    op, attributes = node.op, node.attrs
    if (direction := attributes.get("direction", "forward")) != "forward":
        return f"a {direction} {op}; Ascend quantizes forward ones"
    if attributes.get("layout", 0) != 0:
        return f"{op} with layout 1; Ascend takes the sequence along the first axis"
    activations = attributes.get("activations", ())
    if isinstance(activations, list) and activations and tuple(a.lower() for a in activations) != _DEFAULTS[op]:
        return f"{op} with activations {', '.join(activations)}; Ascend takes the default ones"
    for name in ("activation_alpha", "activation_beta"):
        if isinstance(found := attributes.get(name), list) and found:
            return f"{op} with {name}; Ascend takes the default activations"
    if "clip" in attributes:
        return f"{op} with clip, which Ascend does not quantize"
    if attributes.get("input_forget", 0) != 0:
        return f"{op} with input_forget, which Ascend does not quantize"
    if op == "GRU" and attributes.get("linear_before_reset", 0) == 0:
        return "GRU with linear_before_reset 0; Ascend quantizes those that multiply before they reset"
    return None


def _why_not_inputs(node: Node) -> str | None:
    if has_input(node, SEQUENCE_LENS):
        return "it has sequence_lens, which Ascend does not take with integers"
    if has_input(node, PEEPHOLES):
        return "it has peepholes (P), which Ascend does not take"
    wanted = {"initial_h": INITIAL_H} | ({"initial_c": INITIAL_C} if node.op == "LSTM" else {})
    for name, index in wanted.items():
        if not has_input(node, index):
            return f"it has no {name}; Ascend takes recurrent layers whose state is fed"
        if is_constant(node.inputs[index]):
            return f"its {name} is a constant; Ascend takes recurrent layers whose state is fed"
    return "its input is a constant" if is_constant(node.inputs[0]) else None


def _why_not_constants(node: Node) -> str | None:
    for name, index in {"W": 1, "R": 2}.items():
        weight = node.inputs[index]
        if not is_constant(weight):
            return f"its weight {name} is computed at run time; only constant weights are quantized"
        if (kind := type_name(weight)) != "float32":
            return f"its weight {name} is {kind}; only float32 recurrent layers are quantized"
        if math.prod(weight.shape) == 0:
            return f"its weight {name} is empty"
        if len(weight.shape) != 3 or weight.shape[0] != 1 or weight.shape[1] % GATES[node.op]:
            return (
                f"its weight {name} has shape {list(weight.shape)}; expected [1, {GATES[node.op]} * hidden size, ...]"
            )
    if not has_input(node, BIAS):
        return None
    if not is_constant(node.inputs[BIAS]):
        return "its bias is computed at run time; only a constant bias is quantized"
    rows = 2 * node.inputs[1].shape[1]
    shape = tuple(node.inputs[BIAS].shape)
    return None if shape == (1, rows) else f"its bias has shape {list(shape)}; expected [1, {rows}]"
