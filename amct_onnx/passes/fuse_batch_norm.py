"""Folds BatchNormalization into the layer in front of it.

    y = gamma * (W x + b - mean) / sqrt(var + eps) + beta
      = (k W) x + (b - mean) * k + beta        with k = gamma / sqrt(var + eps)

A Mul or Add of one constant per channel behind the BatchNormalization is taken into gamma and beta first.
Behind Conv always, as AMCT does; behind ConvTranspose, Gemm and MatMul where the plan asks for wide fusion.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from amct_onnx.errors import ModelError
from amct_onnx.passes.graph import (
    Array,
    Graph,
    Node,
    constant_input,
    is_constant,
    is_standard,
    nodes_of,
    producer,
    set_constant,
    set_input,
    sole_consumer,
    unique_name,
)
from amct_onnx.passes.invariants import LIFTED, NAMED, PLANNED, UNSHARED
from amct_onnx.passes.layers import (
    along_channels,
    bias_input,
    is_product,
    last_node,
    output_channels,
    spatial_axes,
    weight_of,
    why_not,
)
from amct_onnx.passes.shapes import infer_types
from amct_onnx.passes.state import Pass, QuantState

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Affine:
    """y = k x + shift, per channel: float32 [C]."""

    k: Floats
    shift: Floats


def _run(state: QuantState) -> None:
    if not state.plan.do_fusion:
        return
    names = state.graph.tensor_names()
    for norm in nodes_of(state.graph, "BatchNormalization"):
        if reason := _why_not_norm(norm):
            state.remarks[norm.name] = f"not folded: {reason}"
            continue
        _absorb_followers(state, norm, names)
        layer = _layer_in_front(state.graph, norm)
        if reason := _why_not_layer(state, layer, norm):
            state.remarks[norm.name] = f"not folded: {reason}"
            continue
        assert layer is not None
        affine = _affine_of(norm)
        if _coarsens(layer, affine):
            state.remarks[norm.name] = f"not folded: the one weight scale of {layer.name!r} would become too coarse"
            continue
        fused = _fused(state.graph, layer, affine)
        if not all(np.isfinite(values).all() for values in fused):
            state.remarks[norm.name] = f"not folded: the weights of {layer.name!r} would not be finite"
            continue
        _fold(state, layer, norm, fused, names)


def folding_factors(graph: Graph) -> dict[str, tuple[str, ...]]:
    """What folding would multiply the output channels of each layer by, but for positive numbers.

    Returns:
        Layer -> initializers, one number or one per channel each, whose product has the sign of the factor.
    """
    trial = QuantState(graph=graph.copy())
    _run(trial)
    found: dict[str, tuple[str, ...]] = {}
    nodes = {node.name: node for node in graph.nodes}
    for name, target in trial.folded.items():
        if nodes[name].op != "BatchNormalization":
            continue
        scaling = [nodes[other] for other, norm in trial.folded.items() if norm == name and nodes[other].op == "Mul"]
        constants = [tensor.name for node in scaling for tensor in node.inputs if is_constant(tensor)]
        found[target] = (nodes[name].inputs[1].name, *constants)
    return found


def _why_not_norm(norm: Node) -> str | None:
    if len(norm.inputs) != 5:
        return "its statistics are not constants"
    for index in range(1, 5):
        values = constant_input(norm, index)
        if values is None:
            return "its statistics are not constants"
        if not np.isfinite(values).all():
            kind = "NaN" if np.isnan(values).any() else "inf"
            raise ModelError(f"the statistics {norm.inputs[index].name!r} of {norm.name!r} hold {kind}")
    if norm.attrs.get("training_mode", 0):
        return "it is in training mode"
    if norm.attrs.get("spatial", 1) != 1:
        return "it normalises each position by itself"
    if any(tensor.name and tensor.outputs for tensor in norm.outputs[1:]):
        return "its statistics are outputs too"
    return None


def _absorb_followers(state: QuantState, norm: Node, names: set[str]) -> None:
    """Take a following Mul or Add of one constant per channel into gamma and beta."""
    while (follower := sole_consumer(state.graph, norm.outputs[0])) is not None:
        values = _per_channel_operand(follower, norm)
        if values is None or any(tensor.node == follower.name for tensor in state.plan.tensors):
            return
        gamma, beta = constant_input(norm, 1), constant_input(norm, 2)
        assert gamma is not None
        assert beta is not None
        if follower.op == "Mul":
            gamma, beta = gamma * values, beta * values
        else:
            beta = beta + values
        for index, fresh in ((1, gamma), (2, beta)):
            name = unique_name(f"{norm.name}.{'scale' if index == 1 else 'bias'}", names)
            set_input(norm, index, state.graph.new_constant(name, fresh))
        result = follower.outputs[0]
        state.graph.remove([follower])
        norm.outputs[0] = result  # a tensor that keeps its name keeps its values
        state.gone[follower.name] = f"folded into {norm.name!r}"
        state.folded[follower.name] = norm.name


def _per_channel_operand(follower: Node, norm: Node) -> Array | None:
    """The constant [C] that a Mul or Add applies to the norm's output, else None."""
    if follower.op not in ("Mul", "Add") or not is_standard(follower):
        return None
    other = 1 if follower.inputs[0] is norm.outputs[0] else 0
    values = constant_input(follower, other)
    scale = constant_input(norm, 1)
    if values is None or scale is None or values.dtype != scale.dtype:
        return None
    if values.size == 1 and values.ndim <= 1:
        return np.broadcast_to(values.reshape(-1), scale.shape)
    front = producer(norm.inputs[0])
    axes = None if front is None else spatial_axes(front)
    if axes is None:
        return None
    channel_row = (scale.size, *([1] * axes))
    return values.reshape(-1) if values.shape in (channel_row, (1, *channel_row)) else None


def _layer_in_front(graph: Graph, norm: Node) -> Node | None:
    """The layer whose output the norm reads; for a MatMul with a bias, the MatMul behind the Add."""
    front = producer(norm.inputs[0])
    if front is not None and front.op == "Add" and is_standard(front):
        matmul = producer(front.inputs[0])
        if matmul is not None and last_node(graph, matmul) is front:
            return matmul
    return front


def _why_not_layer(state: QuantState, layer: Node | None, norm: Node) -> str | None:
    if layer is None or layer.op not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return "no layer with a constant weight is in front of it"
    reason = "both of its inputs are computed at run time" if is_product(layer) else why_not(layer)
    if reason:
        return f"{layer.name!r} in front of it cannot take it in: {reason}"
    if layer.op != "Conv" and not state.plan.wide_fusion:
        return f"fusion behind {layer.op} is not asked for (wide_fusion)"
    if layer.name in state.plan.skip_fusion:
        return f"{layer.name!r} is listed in skip_fusion_layers"
    last = last_node(state.graph, layer)
    if sole_consumer(state.graph, last.outputs[0]) is not norm:
        return f"the output of {layer.name!r} has other uses"
    if layer.op == "MatMul" and (bias_input(state.graph, layer) is None or _rank(state.graph, layer) != 2):
        return "only a MatMul of two dimensions with a bias takes it in"
    if len(norm.inputs[1].shape) != 1 or norm.inputs[1].shape[0] != output_channels(layer):
        return f"it does not normalise the {output_channels(layer)} channels of {layer.name!r}"
    return None


def _rank(graph: Graph, layer: Node) -> int | None:
    known = infer_types(graph).get(layer.outputs[0].name)
    return None if known is None or known.shape is None else len(known.shape)


def _affine_of(norm: Node) -> _Affine:
    gamma, beta, mean, variance = (np.asarray(constant_input(norm, i), np.float32) for i in range(1, 5))
    with np.errstate(all="ignore"):
        k = gamma / np.sqrt(variance + np.float32(norm.attrs.get("epsilon", 1e-5)))
        return _Affine(k=k, shift=beta - mean * k)


def _coarsens(layer: Node, affine: _Affine) -> bool:
    """Whether folding into a layer with one scale for all weights costs more than 1 dB.

    Rounding noise is scale^2 / 12 per weight. Behind an unfolded norm, channel c sees it times k_c^2.
    """
    if layer.op not in ("Gemm", "MatMul"):
        return False
    weight = weight_of(layer).astype(np.float64)
    k = affine.k.astype(np.float64)
    folded = float(np.abs(weight * k).max()) ** 2 * k.size
    unfolded = float(np.abs(weight).max()) ** 2 * float(k @ k)
    return folded > 10**0.1 * unfolded


def _fused(graph: Graph, layer: Node, affine: _Affine) -> tuple[Array, Array]:
    """Weight and bias of the layer with the affine behind it."""
    weight = weight_of(layer)
    place = bias_input(graph, layer)
    bias = np.zeros_like(affine.k) if place is None else constant_input(*place)
    assert bias is not None
    with np.errstate(all="ignore"):
        fused_weight = weight.astype(np.float32) * along_channels(layer, affine.k)
        fused_bias = bias.astype(np.float32) * affine.k + affine.shift
        return fused_weight.astype(weight.dtype), fused_bias.astype(weight.dtype)


def _fold(state: QuantState, layer: Node, norm: Node, fused: tuple[Array, Array], names: set[str]) -> None:
    graph = state.graph
    place = bias_input(graph, layer)
    last = last_node(graph, layer)
    set_constant(layer.inputs[1], fused[0])
    if place is None:
        set_input(layer, 2, graph.new_constant(unique_name(f"{layer.name}.bias", names), fused[1]))
    else:
        set_constant(place[0].inputs[place[1]], fused[1])
    # The layer takes over the norm's tensor, so that its name means the same values before and after.
    result = norm.outputs[0]
    graph.remove([norm])
    last.outputs[0] = result
    state.gone[norm.name] = f"folded into {layer.name!r}"
    state.folded[norm.name] = layer.name


FUSE_BATCH_NORM = Pass(
    name="fuse BatchNormalization",
    run=_run,
    requires=(NAMED, LIFTED, UNSHARED, PLANNED),
    ensures=(NAMED, PLANNED, UNSHARED),
)
