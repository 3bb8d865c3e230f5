"""LSTM and GRU over integers: Ascend's own operators for the chip, and standard ones that show the loss.

Ascend's operator quantizes its input and, step by step, its hidden state, and dequantizes its sums itself: scales and
offsets are attributes, the dequantization scales its last input. In the fake-quant model the standard operator stays,
over real numbers that went through integers: input, initial hidden state, weights and bias. The hidden states between
the first and the last step of a sequence do not, there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import AttributeProto

from amct_onnx.kernels.quant_params import dequantize
from amct_onnx.passes.graph import (
    Node,
    Tensor,
    constant_input,
    derived,
    set_input,
    unique_name,
)
from amct_onnx.passes.insert_dequant import terms_of, words_of
from amct_onnx.passes.insert_quant import through_integers
from amct_onnx.passes.invariants import ACTIVATIONS_KNOWN, ASCEND_PAIRS, INTEGER_BIASES, PLANNED, WEIGHTS_KNOWN
from amct_onnx.passes.layers import bias_input, is_recurrent, layout_of, weight_indices
from amct_onnx.passes.protos import empty_list
from amct_onnx.passes.quantize_weights import params_of
from amct_onnx.passes.recurrent_layers import BIAS, GATES, INITIAL_C, INITIAL_H, OUTPUTS, SEQUENCE_LENS
from amct_onnx.passes.state import Pass, QuantState

_OPERATOR = {"GRU": "BasicGRUInplaceFillWindowCache", "LSTM": "BasicLSTMInplaceFillWindowCache"}

_ORDER = {
    "GRU": (0, 1, 2, INITIAL_H, BIAS, SEQUENCE_LENS),
    "LSTM": (0, 1, 2, INITIAL_H, INITIAL_C, BIAS, SEQUENCE_LENS),
}
"""The standard operator's inputs in the order of Ascend's, which has the window's reset and its scales behind them."""

_DTYPES = {8: 2, 16: 6}
"""Width of the activations -> the number that Ascend has for their type."""


def _replace(state: QuantState) -> None:
    names = state.graph.tensor_names()
    for node in _recurrent(state):
        _set_inputs(state, node, names)
        for index, tensor in enumerate(node.outputs):
            if not tensor.name:
                node.outputs[index] = state.graph.new_tensor(unique_name(f"{node.name}.output{index}", names))
        while len(node.outputs) < OUTPUTS[node.op]:
            name = unique_name(f"{node.name}.output{len(node.outputs)}", names)
            node.outputs.append(state.graph.new_tensor(name))
        node.attrs = _attributes(state, node)
        node.op = _OPERATOR[node.op]


def _set_inputs(state: QuantState, node: Node, names: set[str]) -> None:
    graph, old = state.graph, list(node.inputs)
    wanted = [old[i] if i < len(old) else graph.new_tensor("") for i in _ORDER[node.op]]
    param = graph.new_constant(unique_name(f"{node.name}.dequant.param", names), words_of(state, node))
    wanted += [graph.new_tensor(""), param]
    while node.inputs:
        node.inputs.pop()
    for tensor in wanted:
        node.inputs.append(tensor)


def _attributes(state: QuantState, node: Node) -> dict[str, Any]:
    own = {"input_forget": 0} if node.op == "LSTM" else {"linear_before_reset": int(node.attrs["linear_before_reset"])}
    attributes: dict[str, Any] = {
        "hidden_size": int(node.inputs[2].shape[1]) // GATES[node.op],
        "activation_alpha": empty_list("activation_alpha", AttributeProto.FLOATS),
        "activation_beta": empty_list("activation_beta", AttributeProto.FLOATS),
        "activations": empty_list("activations", AttributeProto.STRINGS),
        "clip": -1.0,
        "direction": "forward",
        **own,
    }
    for letter, params in (("x", state.activations[node.name]), ("h", state.hidden[node.name])):
        attributes[f"quant_sqrt_mode_{letter}"] = 0
        attributes[f"quant_scale_{letter}"] = float(np.float32(1.0) / np.float32(params.scale))
        attributes[f"quant_offset_{letter}"] = float(params.offset)
    return {**attributes, "quant_dtype": _DTYPES[state.activations[node.name].num_bits]}


def _fake(state: QuantState) -> None:
    names = state.graph.tensor_names()
    for node in _recurrent(state):
        for index, prefix, params in (
            (0, node.name, state.activations[node.name]),
            (INITIAL_H, f"{node.name}.initial_h", state.hidden[node.name]),
        ):
            set_input(node, index, through_integers(state.graph, node, index, prefix, params, names))
        for index in weight_indices(node):
            set_input(node, index, _real_weight(state, node, index))
        if (place := bias_input(state.graph, node)) is not None:
            set_input(*place, _real_bias(state, node, *place))


def _recurrent(state: QuantState) -> list[Node]:
    nodes = {node.name: node for node in state.graph.nodes}
    return [nodes[layer.name] for layer in state.layers() if is_recurrent(nodes[layer.name])]


def _real_weight(state: QuantState, node: Node, index: int) -> Tensor:
    """What the integers of a weight stand for."""
    layout, params, old = layout_of(node), params_of(state, node.name, index), node.inputs[index]
    reals = derived(
        old,
        np.float32,
        old.shape,
        lambda levels: layout.restored(dequantize(layout.channels_first(levels), params)),
    )
    return state.graph.new_constant(old.name, reals)


def _real_bias(state: QuantState, node: Node, holder: Node, index: int) -> Tensor:
    """What the integers of a bias [1, rows of both weights] stand for."""
    levels, terms = constant_input(holder, index), terms_of(state, node)
    assert levels is not None
    halves = np.split(levels.reshape(-1), len(terms))
    reals = [half.astype(np.float32) * term.scale for half, term in zip(halves, terms, strict=True)]
    return state.graph.new_constant(holder.inputs[index].name, np.concatenate(reals).reshape(levels.shape))


REPLACE_RECURRENT = Pass(
    name="replace LSTM and GRU",
    run=_replace,
    requires=(PLANNED, ACTIVATIONS_KNOWN, WEIGHTS_KNOWN, ASCEND_PAIRS, INTEGER_BIASES),
)
FAKE_RECURRENT = Pass(
    name="lower LSTM and GRU",
    run=_fake,
    requires=(PLANNED, ACTIVATIONS_KNOWN, WEIGHTS_KNOWN, ASCEND_PAIRS, INTEGER_BIASES),
    ensures=(ASCEND_PAIRS,),
)
