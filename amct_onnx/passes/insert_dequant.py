"""Puts AscendDequant behind every layer, and turns its bias into int32. LSTM and GRU dequantize by themselves.

The dequantization scale of a channel, scale_d * scale_w, is stored as the bits of a float32 in the low word of a
uint64; the high word (shift and weight offset) is 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from amct_onnx.kernels.dequant import dequant_scale, quantize_bias
from amct_onnx.kernels.quant_params import QuantParams, truncate_to_s19
from amct_onnx.passes.graph import Array, Node, constant_input, set_input, take_over_output, unique_name
from amct_onnx.passes.invariants import ACTIVATIONS_KNOWN, ASCEND_PAIRS, INTEGER_BIASES, PLANNED, WEIGHTS_KNOWN
from amct_onnx.passes.layers import bias_input, has_weight, is_recurrent, last_node
from amct_onnx.passes.state import Pass, QuantState


def _run(state: QuantState) -> None:
    graph, names = state.graph, state.graph.tensor_names()
    nodes = {node.name: node for node in graph.nodes}
    for layer in state.layers():
        node = nodes[layer.name]
        bias = bias_input(graph, node)
        if bias is not None:
            holder, index = bias
            values = constant_input(holder, index)
            assert values is not None
            fresh = graph.new_constant(holder.inputs[index].name, integer_bias(state, node, values))
            set_input(holder, index, fresh)
        if is_recurrent(node):
            continue
        last = last_node(graph, node)
        param = graph.new_constant(unique_name(f"{layer.name}.dequant.param", names), words_of(state, node))
        output = graph.new_tensor(unique_name(f"{layer.name}.dequant.output0", names))
        is_half = has_weight(node) and np.dtype(node.inputs[1].dtype) == np.float16
        dequant = graph.insert(
            "AscendDequant",
            f"{layer.name}.dequant",
            [last.outputs[0], param],
            output,
            {"dtype": int(is_half)},
            after=last,
        )
        take_over_output(graph, last, dequant, own_name=unique_name(f"{layer.name}_output0", names))
        node.outputs[0].dtype = node.outputs[0].shape = None  # also in front of a bias Add it gives integers now


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """A product that a layer sums up: of an activation and a weight. An LSTM or GRU has two, every other layer one.

    column: where the parameters of its weight are kept; a pooling has none there.
    """

    layer: str
    activation: QuantParams
    column: dict[str, QuantParams]

    @property
    def scale(self) -> NDArray[np.float32]:
        """The dequantization scale, float32 [1] or [Cout]; the weight scale of a pooling is 1."""
        weight = self.column[self.layer].scale if self.layer in self.column else np.float32(1.0)
        return dequant_scale(self.activation.scale, weight)


def terms_of(state: QuantState, node: Node) -> tuple[Term, ...]:
    """What a layer sums up; its bias has as many parts, along its last axis."""
    first = Term(layer=node.name, activation=state.activations[node.name], column=state.weights)
    if not is_recurrent(node):
        return (first,)
    return first, Term(layer=node.name, activation=state.hidden[node.name], column=state.recurrent)


def integer_bias(state: QuantState, node: Node, values: Array) -> NDArray[np.int32]:
    """A bias on the scales of its layer, as int32 of the same shape."""
    terms = terms_of(state, node)
    parts = np.split(values.reshape(-1), len(terms))
    return np.concatenate([quantize_bias(part, term.scale) for part, term in zip(parts, terms, strict=True)]).reshape(
        values.shape
    )


def words_of(state: QuantState, node: Node) -> NDArray[np.uint64]:
    """The dequantization scales of a layer, one term behind the other, as the chip keeps them."""
    scale = np.concatenate([term.scale for term in terms_of(state, node)])
    stored = truncate_to_s19(scale) if node.name in state.plan.cut_scales else scale
    return stored.view(np.uint32).astype(np.uint64)


INSERT_DEQUANT = Pass(
    name="insert AscendDequant",
    run=_run,
    requires=(PLANNED, ACTIVATIONS_KNOWN, WEIGHTS_KNOWN),
    ensures=(ASCEND_PAIRS, INTEGER_BIASES),
)
