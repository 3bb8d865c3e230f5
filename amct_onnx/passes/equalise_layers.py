"""Scales the channels between two convolutions so that the weights of both use their range.

    W1 relu(W0 x + b0) = (W1 f) relu((W0 x + b0) / f)        with one positive factor f for each channel between them

What stands between must let a positive factor through. A Clip from 0 up does where its upper bound is divided by the
factors too: it becomes Relu and Min. Pairs are taken from front to back, each with the weights that the pair before it
left.
"""

from __future__ import annotations

import numpy as np

from amct_onnx.kernels.equalisation import Floats, equalisation_factors
from amct_onnx.passes.balance import balanced, weight_maxima
from amct_onnx.passes.graph import (
    Array,
    Graph,
    Node,
    Tensor,
    constant_input,
    derived,
    has_input,
    is_standard,
    set_input,
    sole_consumer,
    unique_name,
)
from amct_onnx.passes.invariants import LIFTED, NAMED, PLANNED, STANDARD_ONLY, UNSHARED
from amct_onnx.passes.layers import along_channels, bias_input, channels_first, spatial_axes, weight_of
from amct_onnx.passes.quantize_weights import require_finite
from amct_onnx.passes.state import Pass, QuantState
from amct_onnx.passes.tensor_points import CAP

_TRANSPARENT = ("Relu", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool")
_CONVOLUTIONS = ("Conv", "ConvTranspose")


def _run(state: QuantState) -> None:
    planned = {layer.name for layer in state.layers() if layer.equalise}
    names = state.graph.tensor_names()
    for node in list(state.graph.nodes):
        if node.name in planned and _can_be_scaled(node):
            path, second = _way_to_next(state.graph, node)
            if second is not None and second.name in planned and _can_be_scaled(second):
                _equalise(state, node, second, path, names)


def _can_be_scaled(node: Node) -> bool:
    return node.op in _CONVOLUTIONS and spatial_axes(node) in (2, 3)


def _way_to_next(graph: Graph, node: Node) -> tuple[list[Tensor], Node | None]:
    """The tensors behind a node up to the next one that does not just let factors through, and that one."""
    path = [node.outputs[0]]
    user = sole_consumer(graph, path[-1])
    while user is not None and _lets_through(user):
        path.append(user.outputs[0])
        user = sole_consumer(graph, path[-1])
    return path, user if user is not None and user.inputs[0] is path[-1] else None


def _lets_through(node: Node) -> bool:
    lets = node.op in _TRANSPARENT or _cap(node) is not None
    return lets and is_standard(node) and len(node.outputs) == 1


def _cap(node: Node) -> Array | None:
    """The upper bound of a Clip that cuts at 0 and at something positive."""
    if node.op != "Clip" or not (has_input(node, 1) and has_input(node, 2)):
        return None
    low, high = constant_input(node, 1), constant_input(node, 2)
    if low is None or high is None or low.size != 1 or high.size != 1:
        return None
    return high.reshape(()) if low.item() == 0 and 0 < high.item() < np.inf else None


def _equalise(state: QuantState, first: Node, second: Node, path: list[Tensor], names: set[str]) -> None:
    for node in (first, second):
        require_finite(state, node)
    place = bias_input(state.graph, first)
    bias = None if place is None else constant_input(*place)
    factors = _factors(first, second, bias)
    if (factors == 1).all():
        return
    fresh = [_quotient(weight_of(first), along_channels(first, factors)), balanced(second, weight_of(second), factors)]
    fresh += [] if bias is None else [_quotient(bias, factors)]
    clips = [node for tensor in path if (node := tensor.inputs[0]).op == "Clip"]
    caps = [_quotient(cap, factors) for clip in clips if (cap := _cap(clip)) is not None]
    if not all(np.isfinite(values).all() for values in (*fresh, *caps)):
        return  # only float16 has that little room
    for tensor in path:
        tensor.name = unique_name(f"{tensor.name}.equalised", names)
    for clip, values in zip(clips, caps, strict=True):
        axes = spatial_axes(first) or 0
        _cap_by_channel(state.graph, clip, values.reshape(-1, *([1] * axes)), names)
    _divide(state.graph, first, 1, along_channels(first, factors))
    old = second.inputs[1]
    result = derived(old, old.dtype, old.shape, lambda weight: balanced(second, weight, factors))
    set_input(second, 1, state.graph.new_constant(old.name, result))
    if place is not None and len(place[0].inputs[place[1]].outputs) > 1:  # another layer has the same bias
        set_input(*place, state.graph.new_constant(unique_name(f"{first.name}.bias", names), fresh[2]))
    elif place is not None:
        _divide(state.graph, *place, factors)


def _factors(first: Node, second: Node, bias: Array | None) -> Floats:
    rows = channels_first(first, weight_of(first)).astype(np.float32)
    return equalisation_factors(
        rows.reshape(len(rows), -1),
        None if bias is None else bias.astype(np.float32),
        weight_maxima(second, weight_of(second)).astype(np.float32),
    )


def _cap_by_channel(graph: Graph, clip: Node, caps: Array, names: set[str]) -> None:
    """Make a Clip a Relu, and a Min with one bound for each channel; [C, 1, ...]."""
    while len(clip.inputs) > 1:
        clip.inputs.pop()
    clip.op = "Relu"
    name = unique_name(f"{clip.name}{CAP}", graph.node_names())
    result = clip.outputs[0]
    below = graph.new_tensor(unique_name(f"{result.name}.uncapped", names))
    clip.outputs[0] = below
    operand = graph.new_constant(unique_name(f"{name}.bounds", names), caps)
    graph.insert("Min", name, [below, operand], result, after=clip)


def _divide(graph: Graph, node: Node, index: int, by: Array) -> None:
    old = node.inputs[index]
    set_input(node, index, graph.new_constant(old.name, derived(old, old.dtype, old.shape, lambda v: _quotient(v, by))))


def _quotient(values: Array, by: Floats) -> Array:
    with np.errstate(over="ignore"):
        return np.asarray((values.astype(np.float32) / by).astype(values.dtype))


EQUALISE_LAYERS = Pass(
    name="equalise layers",
    run=_run,
    requires=(NAMED, LIFTED, UNSHARED, PLANNED, STANDARD_ONLY),
    ensures=(NAMED, UNSHARED, PLANNED, STANDARD_ONLY),
)
