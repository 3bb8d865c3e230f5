"""Finds the scales of the weights, and stores the weights as integers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amct_onnx.errors import ModelError
from amct_onnx.kernels.adaround import AdaRound
from amct_onnx.kernels.arq import Arq, arq
from amct_onnx.kernels.grid import Grid
from amct_onnx.kernels.grid import fake_quantized as grid_fake_quantized
from amct_onnx.kernels.kl_scale import kl_scale
from amct_onnx.kernels.nuq import Nuq, nearest_centre, nuq
from amct_onnx.kernels.quant_params import FLT_EPS, QuantParams, dequantize, quantize
from amct_onnx.passes.graph import Array, Graph, Node, Tensor, constant_input, derived, set_input
from amct_onnx.passes.invariants import PLANNED, UNSHARED, WEIGHTS_KNOWN
from amct_onnx.passes.layer_types import PER_CHANNEL
from amct_onnx.passes.layers import (
    bias_input,
    channels_first,
    has_weight,
    is_recurrent,
    layout_of,
    weight_indices,
    weight_of,
)
from amct_onnx.passes.state import LayerPlan, Pass, QuantState
from amct_onnx.passes.weights import ComputedArray

_IDLE_SCALE = np.float32(2.0**-10)
"""Scale of channels without weights where no other channel of the layer has any."""


def _find_scales(state: QuantState) -> None:
    nodes = {node.name: node for node in state.graph.nodes}
    for layer in state.layers():
        node = nodes[layer.name]
        if not has_weight(node):
            continue
        require_finite(state, node)
        if is_recurrent(node):
            state.recurrent[layer.name] = _scales_of(layer, channels_first(node, weight_of(node, 2)))
        weight = channels_first(node, weight_of(node))
        if isinstance(layer.weight, Nuq):
            params, centres = nuq(weight, layer.weight, axis=0 if node.op in PER_CHANNEL else None)
            state.clusters[layer.name] = centres
            state.weights[layer.name] = with_usable_scales(params, weight)
        else:
            state.weights[layer.name] = _scales_of(layer, weight)


def _scales_of(layer: LayerPlan, weight: Array) -> QuantParams:
    """The scales of a weight [Cout, ...] on uniform steps."""
    assert isinstance(layer.weight, (Arq, AdaRound)), "the plan lets no other algorithm through"
    find = kl_scale if isinstance(layer.weight, AdaRound) and layer.weight.amct_scales else arq
    params = find(weight, axis=0 if layer.weight.channel_wise else None, num_bits=layer.weight.num_bits)
    return with_usable_scales(params, weight)


def require_finite(state: QuantState, node: Node) -> None:
    """Make sure that weights and bias of a layer are numbers.

    Raises:
        ModelError: one of them holds NaN or inf.
    """
    places = [("weight", (node, index)) for index in weight_indices(node)]
    if (bias := bias_input(state.graph, node)) is not None:
        places.append(("bias", bias))
    for what, (holder, index) in places:
        values = constant_input(holder, index)
        if values is not None and not np.isfinite(values).all():
            kind = "NaN" if np.isnan(values).any() else "inf"
            raise ModelError(f"the {what} {holder.inputs[index].name!r} of layer {node.name!r} holds {kind}")


def with_usable_scales(params: QuantParams, weight: Array) -> QuantParams:
    """Give channels whose weights are all but zero the scale of the others.

    AMCT sets their scale to 1; the bias, on scale_d * scale_w, would then be rounded as coarsely as the activations.
    """
    magnitude = np.abs(weight.astype(np.float32)).reshape(*params.scale.shape, -1).max(axis=-1)
    idle = (params.scale == 1.0) & (magnitude < params.q_max * FLT_EPS)
    if not idle.any():
        return params
    others = params.scale[~idle]
    scale = np.where(idle, others.max() if others.size else _IDLE_SCALE, params.scale)
    return replace(params, scale=scale.astype(np.float32))


def integers_of(state: QuantState, node: Node, index: int = 1) -> ComputedArray:
    """A weight of the layer as integers, in its own layout."""
    layout, dtype = layout_of(node), np.int8 if params_of(state, node.name, index).num_bits <= 8 else np.int16
    old = node.inputs[index]
    return derived(
        old, dtype, old.shape, lambda w: layout.restored(levels_of(state, node.name, layout.channels_first(w), index))
    )


def fake_quantized(state: QuantState, node: Node, index: int = 1) -> ComputedArray:
    """A weight of the layer with the error of its quantization, in its own layout and type."""
    if index == 1 and node.name in state.weight_grids:
        return _on_grid(node.inputs[1], state.weight_grids[node.name])
    params, layout, old = params_of(state, node.name, index), layout_of(node), node.inputs[index]
    dtype = np.dtype(old.dtype)

    def fake(weight: Array) -> Array:
        levels = levels_of(state, node.name, layout.channels_first(weight), index)
        return layout.restored(dequantize(levels, params)).astype(dtype)

    return derived(old, dtype, old.shape, fake)


def _on_grid(old: Tensor, grid: Grid) -> ComputedArray:
    dtype = np.dtype(old.dtype)
    return derived(old, dtype, old.shape, lambda weight: grid_fake_quantized(weight, grid).astype(dtype))


def params_of(state: QuantState, layer: str, index: int) -> QuantParams:
    """The parameters of the weight at an input: 2 is what the hidden state of an LSTM or GRU is multiplied by."""
    return state.recurrent[layer] if index == 2 else state.weights[layer]


def levels_of(state: QuantState, layer: str, weight: Array, index: int = 1) -> NDArray[np.signedinteger[Any]]:
    """The integers of a weight whose output channels come first."""
    if layer in state.rounded:
        return state.rounded[layer]
    levels = quantize(weight, params_of(state, layer, index))
    return nearest_centre(levels, state.clusters[layer]) if layer in state.clusters else levels


def with_fake_weights(state: QuantState) -> Graph:
    """A copy of the graph whose layers have weights with the error of their quantization, as AMCT observes it.

    ConvTranspose keeps float weights there, except where they are softened.
    """
    graph = state.graph.copy()
    planned = state.plan.layers
    for node in graph.nodes:
        if node.name in state.softened:
            set_input(node, 1, graph.new_constant(node.inputs[1].name, state.softened[node.name]))
        elif node.name in planned and node.op != "ConvTranspose":
            for index in weight_indices(node):
                set_input(node, index, graph.new_constant(node.inputs[index].name, fake_quantized(state, node, index)))
    return graph


def _store_integers(state: QuantState) -> None:
    nodes = {node.name: node for node in state.graph.nodes}
    for layer in state.layers():
        node = nodes[layer.name]
        for index in weight_indices(node):
            set_input(node, index, state.graph.new_constant(node.inputs[index].name, integers_of(state, node, index)))


FIND_WEIGHT_SCALES = Pass(
    name="find weight scales", run=_find_scales, requires=(PLANNED, UNSHARED), ensures=(WEIGHTS_KNOWN,)
)
STORE_INTEGER_WEIGHTS = Pass(
    name="store integer weights", run=_store_integers, requires=(PLANNED, UNSHARED, WEIGHTS_KNOWN)
)
