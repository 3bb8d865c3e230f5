"""Rewrites the float graph with QuantizeLinear and DequantizeLinear: the same integers in standard operators.

In front of every layer stands a pair, one for all layers that read a tensor with the same scale and offset; in front
of a tensor that is quantized by itself, too. Weights are int8 behind DequantizeLinear, per channel where their scale
is, also those of fewer bits; biases are int32 on scale_d * scale_w behind DequantizeLinear. That is the form that
onnxruntime turns into integer kernels.

Pairs of 16 bits are onnxruntime's own operators of these names: the standard has them from an opset on that ATC does
not read, and models are not brought there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from amct_onnx.kernels.quant_params import QuantParams
from amct_onnx.passes.graph import (
    Array,
    Graph,
    Node,
    Tensor,
    constant_input,
    derived,
    set_input,
    take_over_output,
    unique_name,
)
from amct_onnx.passes.insert_dequant import integer_bias, terms_of
from amct_onnx.passes.invariants import ACTIVATIONS_KNOWN, PLANNED, STANDARD_ONLY, UNSHARED, WEIGHTS_KNOWN
from amct_onnx.passes.layers import (
    bias_input,
    group_of,
    has_weight,
    is_product,
    is_recurrent,
    last_node,
    layout_of,
    weight_indices,
)
from amct_onnx.passes.quantize_weights import integers_of, levels_of, params_of
from amct_onnx.passes.recurrent_layers import INITIAL_H
from amct_onnx.passes.state import Pass, QuantState
from amct_onnx.passes.weights import ComputedArray

_OWN_DOMAIN = "com.microsoft"


def _run(state: QuantState) -> None:
    insertion = _Insertion(graph=state.graph, tensors=state.graph.tensor_names(), nodes=state.graph.node_names())
    layers = {layer.name for layer in state.layers()}
    for node in list(state.graph.nodes):  # in their order: a pair that several nodes read stands before the first
        if node.name in layers:
            _quantize_layer(insertion, state, node)
        for tensor in state.tensors():
            if tensor.node == node.name:
                _quantize_input(insertion, node, tensor.index, state.activations[tensor.key], is_half=False)


def _quantize_layer(insertion: _Insertion, state: QuantState, node: Node) -> None:
    last = last_node(state.graph, node)
    is_half = has_weight(node) and np.dtype(node.inputs[1].dtype) == np.float16
    _quantize_input(insertion, node, 0, state.activations[node.name], is_half=is_half)
    if is_product(node):
        _quantize_input(insertion, node, 1, state.weights[node.name], is_half=False)
    if is_recurrent(node):
        _quantize_input(insertion, node, INITIAL_H, state.hidden[node.name], is_half=False)
    if has_weight(node):
        _quantize_bias(insertion, state, node)
    for index in weight_indices(node):
        _quantize_weight(insertion, state, node, index)
    if is_half:
        _give_half(insertion, node, last)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Insertion:
    """A graph that grows, and the names that are taken in it.

    ends: (tensor, scale, offset, bits) -> what comes out of the pair behind it.
    """

    graph: Graph
    tensors: set[str]
    nodes: set[str]
    ends: dict[tuple[int, float, int, int], Tensor] = field(default_factory=dict)

    def constant(self, name: str, values: Array | ComputedArray) -> Tensor:
        return self.graph.new_constant(unique_name(name, self.tensors), values)

    def put(
        self, op: str, name: str, inputs: list[Tensor], before: Node, *, domain: str | None = None, **attributes: Any
    ) -> Tensor:
        """A new node in front of another one; its output."""
        output = self.graph.new_tensor(unique_name(f"{name}.output0", self.tensors))
        name = unique_name(name, self.nodes)
        self.graph.insert(op, name, inputs, output, attributes, domain=domain, before=before)
        return output


def _quantize_input(insertion: _Insertion, node: Node, index: int, params: QuantParams, *, is_half: bool) -> None:
    value = node.inputs[index]
    key = (id(value), float(params.scale), int(params.offset), params.num_bits)
    if key not in insertion.ends:
        prefix = f"{node.name}.input{index or ''}"
        # Before opset 19 the pair takes float32 only; the layer then works in float32, as the fake-quant model does.
        single = (
            insertion.put("Cast", f"{node.name}.cast", [value], node, to=int(TensorProto.FLOAT)) if is_half else value
        )
        domain, integer = (_OWN_DOMAIN, np.int16) if params.num_bits == 16 else (None, np.int8)
        if domain is not None:
            insertion.graph.import_domain(domain, 1)
        scale = insertion.constant(f"{prefix}.scale", np.asarray(params.scale, np.float32).reshape(()))
        zero = insertion.constant(f"{prefix}.zero_point", np.asarray(params.offset).reshape(()).astype(integer))
        names = f"{prefix}.quantize", f"{prefix}.dequantize"
        integers = insertion.put("QuantizeLinear", names[0], [single, scale, zero], node, domain=domain)
        insertion.ends[key] = insertion.put("DequantizeLinear", names[1], [integers, scale, zero], node, domain=domain)
    set_input(node, index, insertion.ends[key])


def _quantize_weight(insertion: _Insertion, state: QuantState, node: Node, index: int) -> None:
    weight, params, layout = node.inputs[index], params_of(state, node.name, index), layout_of(node)
    by_group = params.axis is not None and layout.group > 1
    if by_group:  # no axis of the operator's own layout counts the channels
        shape = (weight.shape[1] * layout.group, weight.shape[0] // layout.group, *weight.shape[2:])
        integers = derived(weight, np.int8, shape, lambda w: levels_of(state, node.name, layout.channels_first(w)))
    else:
        integers = integers_of(state, node, index)
    axis = None if params.axis is None else 0 if by_group else layout.axis
    stored = insertion.graph.new_constant(weight.name, integers)
    what = "weight" if index == 1 else "recurrent"
    result = _dequantized(insertion, stored, params.scale, axis, node, what)
    set_input(node, index, _restored(insertion, node, result, weight.shape) if by_group else result)


def _dequantized(
    insertion: _Insertion, stored: Tensor, scale: NDArray[np.float32], axis: int | None, node: Node, what: str
) -> Tensor:
    """What DequantizeLinear makes of an initializer; `scale` runs along `axis`, or is one for all."""
    name = f"{node.name}.{what}"
    shape = () if axis is None else (-1,)
    inputs = [stored, insertion.constant(f"{name}.scale", np.asarray(scale, np.float32).reshape(shape))]
    if what != "bias":  # int32 has no zero point
        inputs.append(insertion.constant(f"{name}.zero_point", np.zeros(inputs[1].shape, np.int8)))
    attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
    return insertion.put("DequantizeLinear", f"{name}.dequantize", inputs, node, **attributes)


def _restored(insertion: _Insertion, node: Node, weight: Tensor, shape: tuple[int, ...]) -> Tensor:
    """[Cout, Cin/g, k...] as ConvTranspose wants it, [Cin, Cout/g, k...]."""
    group, kernel = group_of(node), list(shape[2:])
    grouped = [group, shape[1], shape[0] // group, *kernel]
    order = [0, 2, 1, *range(3, len(grouped))]
    for step, wanted in (("split", grouped), ("join", list(shape))):
        dims = insertion.constant(f"{node.name}.weight.{step}.shape", np.array(wanted, np.int64))
        weight = insertion.put("Reshape", f"{node.name}.weight.{step}", [weight, dims], node)
        if step == "split":
            weight = insertion.put("Transpose", f"{node.name}.weight.transpose", [weight], node, perm=order)
    return weight


def _quantize_bias(insertion: _Insertion, state: QuantState, node: Node) -> None:
    place = bias_input(state.graph, node)
    if place is None:
        return
    holder, index = place
    values, terms = constant_input(holder, index), terms_of(state, node)
    assert values is not None
    stored = insertion.graph.new_constant(holder.inputs[index].name, integer_bias(state, node, values))
    scale = terms[0].scale
    axis = None if state.weights[node.name].axis is None else 0
    if len(terms) > 1:  # each part of [1, values] has scales of its own
        rows = values.shape[-1] // len(terms)
        scale, axis = np.concatenate([np.broadcast_to(term.scale, rows) for term in terms]), 1
    set_input(holder, index, _dequantized(insertion, stored, scale, axis, node, "bias"))


def _give_half(insertion: _Insertion, node: Node, last: Node) -> None:
    """Let the layer's result, which is float32 now, be float16 for whoever reads it."""
    graph = insertion.graph
    node.outputs[0].dtype = node.outputs[0].shape = None
    output = graph.new_tensor(unique_name(f"{node.name}.half.output0", insertion.tensors))
    name = unique_name(f"{node.name}.half", insertion.nodes)
    cast = graph.insert("Cast", name, [last.outputs[0]], output, {"to": int(TensorProto.FLOAT16)}, after=last)
    take_over_output(graph, last, cast, own_name=unique_name(f"{node.name}_output0", insertion.tensors))


INSERT_QDQ = Pass(
    name="insert QuantizeLinear and DequantizeLinear",
    run=_run,
    requires=(PLANNED, ACTIVATIONS_KNOWN, WEIGHTS_KNOWN, STANDARD_ONLY, UNSHARED),
)
