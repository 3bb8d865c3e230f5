"""Moves outliers from the input of a layer to its weight: DMQ, as AMCT does it, with a Mul in front of the layer.

    W x = (W f) (x / f)        with one factor f for each input channel

Where the plan asks for it, the division is folded into what produces the input, and no Mul is left. The layers that
read that tensor then have one factor in common.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from amct_onnx.kernels.dmq import Dmq, MaximaObserver, balance_factors
from amct_onnx.passes.calibration import CalibrationRun, Sizes, why_unusable
from amct_onnx.passes.fold_balance import divide
from amct_onnx.passes.graph import Array, Node, derived, set_input, unique_name
from amct_onnx.passes.invariants import LIFTED, NAMED, PLANNED, STANDARD_ONLY, UNSHARED
from amct_onnx.passes.layers import channel_axis, group_of, spatial_axes, weight_of
from amct_onnx.passes.observation import Watch
from amct_onnx.passes.quantize_weights import require_finite
from amct_onnx.passes.shapes import infer_types
from amct_onnx.passes.state import LayerPlan, Pass, QuantState

Floats = NDArray[np.float32]


def balance(run: CalibrationRun) -> Pass:
    """The pass that balances what the plan says, over the first batches of the data or all of them."""

    def apply(state: QuantState) -> None:
        layers = [layer for layer in state.layers() if layer.balancer is not None]
        nodes = {node.name: node for node in state.graph.nodes}
        for layer in layers:
            require_finite(state, nodes[layer.name])
        groups = _by_input(state, layers, nodes)
        seen = _maxima(state, groups, nodes, run)
        names = _Names(state)
        # From the back: a layer that takes in the division of those behind it is balanced with its final weight.
        for tensor, group in reversed(groups.items()):
            if isinstance(found := seen[tensor], str):
                state.left_float.update({layer.name: found for layer in group})
                continue
            members = [(layer, nodes[layer.name]) for layer in group]
            if not (state.plan.fold_balancers and _fold(state, members, found, names)):
                for layer, node in members:
                    assert isinstance(layer.balancer, Dmq)
                    weight = weight_maxima(node, weight_of(node))
                    factors = balance_factors(found.maxima(), weight, strength=layer.balancer.migration_strength)
                    _insert(state, node, factors, found.rank, names)

    return _pass(apply)


def balance_by(factors: Mapping[str, Floats]) -> Pass:
    """The pass that balances what the plan says by known factors, layer -> [Cin]; without any a layer stays float."""

    def apply(state: QuantState) -> None:
        nodes = {node.name: node for node in state.graph.nodes}
        names = _Names(state)
        types = infer_types(state.graph)
        for layer in [layer for layer in state.layers() if layer.balancer is not None]:
            node = nodes[layer.name]
            require_finite(state, node)
            if layer.name not in factors:
                state.left_float[layer.name] = "no factor was found to balance it with"
                continue
            known = types.get(node.inputs[0].name)
            rank = None if known is None or known.shape is None else len(known.shape)
            _insert(state, node, factors[layer.name], rank, names)

    return _pass(apply)


def _pass(apply: Callable[[QuantState], None]) -> Pass:
    return Pass(
        name="balance",
        run=apply,
        requires=(NAMED, LIFTED, UNSHARED, PLANNED, STANDARD_ONLY),
        ensures=(NAMED, UNSHARED, PLANNED, STANDARD_ONLY),
    )


class _Names:
    """The names that are taken, of nodes and of tensors."""

    def __init__(self, state: QuantState) -> None:
        self.nodes, self.tensors = state.graph.node_names(), state.graph.tensor_names()


_Group = dict[tuple[str, int], list[LayerPlan]]


def _by_input(state: QuantState, layers: list[LayerPlan], nodes: dict[str, Node]) -> _Group:
    """(Tensor, axis of its channels) -> the layers that read it, in the order of the graph."""
    groups: _Group = {}
    for layer in layers:
        node = nodes[layer.name]
        axis = channel_axis(node)
        groups.setdefault((node.inputs[0].name, axis), []).append(layer)
    return groups


def _maxima(
    state: QuantState, groups: _Group, nodes: dict[str, Node], run: CalibrationRun
) -> dict[tuple[str, int], MaximaObserver | str]:
    """What was seen of each tensor, or why its layers cannot be quantized."""
    if not groups:
        return {}
    sizes = Sizes(state, run.first)
    observers = {key: MaximaObserver(axis=key[1]) for key in groups}
    watches = [Watch(tensor=key[0], observer=observers[key], size=sizes.of(key[0])) for key in groups]
    run.limited(state.plan.balance_batches).show(state.graph.to_light(), watches)
    return {key: why_unusable(watch) or observers[key] for key, watch in zip(groups, watches, strict=True)}


def _fold(state: QuantState, members: list[tuple[LayerPlan, Node]], seen: MaximaObserver, names: _Names) -> bool:
    """Divide where the tensor is produced, by one factor for all layers that read it; False where that cannot be."""
    strengths = {layer.balancer.migration_strength for layer, _ in members if isinstance(layer.balancer, Dmq)}
    if len(strengths) > 1:
        return False
    nodes = [node for _, node in members]
    axis = 1 if spatial_axes(nodes[0]) is not None else seen.rank - 1
    weight = np.max([weight_maxima(node, weight_of(node)) for node in nodes], axis=0)
    factors = balance_factors(seen.maxima(), weight, strength=strengths.pop())
    if any(_why_not(node, factors) for node in nodes):
        return False
    if not divide(state.graph, nodes, factors, axis=axis, rank=seen.rank, names=names.tensors):
        return False
    for node in nodes:
        _multiply(state, node, factors)
    return True


def _insert(state: QuantState, node: Node, factors: Floats, rank: int | None, names: _Names) -> None:
    """Multiply the weight, and put a Mul in front of the layer, named as AMCT does.

    rank: of the layer's input; None where it is not known.
    """
    if reason := _why_not(node, factors):
        state.remarks[node.name] = f"not balanced: {reason}"
    else:
        _balance(state, node, factors, rank, names)


def _balance(state: QuantState, node: Node, factors: Floats, rank: int | None, names: _Names) -> None:
    """`rank`: how many axes the input of the layer has; None where it is not known."""
    dtype, axes = np.dtype(node.inputs[1].dtype), spatial_axes(node)
    shape = (1, -1, *([1] * axes)) if axes is not None else (-1,) if rank == 1 else (1, -1)
    inverse = (np.float32(1) / factors).astype(dtype).reshape(shape)
    operand = state.graph.new_constant(unique_name(f"{node.name}.tensor_balance_factor", names.tensors), inverse)
    output = state.graph.new_tensor(unique_name(f"{node.name}.mul.output0", names.tensors))
    name = unique_name(f"{node.name}.mul", names.nodes)
    state.graph.insert("Mul", name, [node.inputs[0], operand], output, before=node)
    set_input(node, 0, output)
    _multiply(state, node, factors)


def _multiply(state: QuantState, node: Node, factors: Floats) -> None:
    old = node.inputs[1]
    fresh = derived(old, old.dtype, old.shape, lambda weight: balanced(node, weight, factors))
    set_input(node, 1, state.graph.new_constant(old.name, fresh))
    state.balances[node.name] = factors


def _why_not(node: Node, factors: Floats) -> str | None:
    """Why the factors cannot be applied; only float16 has that little room."""
    with np.errstate(over="ignore", under="ignore"):
        inverse = (np.float32(1) / factors).astype(node.inputs[1].dtype)
        if (
            not (np.isfinite(inverse) & (inverse > 0)).all()
            or not np.isfinite(balanced(node, weight_of(node), factors)).all()
        ):
            return f"a factor or a weight would leave {np.dtype(node.inputs[1].dtype).name}"
    return None


def weight_maxima(node: Node, weight: Array) -> Floats:
    """The largest magnitude of a weight for each input channel of its layer, [Cin]."""
    groups = group_of(node) if node.op == "Conv" else weight.shape[0]
    parts = np.abs(weight.reshape(groups, weight.shape[0] // groups, -1, *weight.shape[2:]))
    if node.op == "Conv":
        return np.asarray(parts.max(axis=(1, *range(3, parts.ndim))).reshape(-1), np.float32)
    return np.asarray(parts.reshape(groups, -1).max(axis=1), np.float32)


def balanced(node: Node, weight: Array, factors: Floats) -> Array:
    """The weight times `factors` [Cin], in its own layout and type."""
    if node.op == "Conv":
        groups = group_of(node)
        parts = weight.astype(np.float32).reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
        product = parts * factors.reshape(groups, 1, -1, 1)
    else:
        product = weight.astype(np.float32) * factors.reshape(-1, *([1] * (weight.ndim - 1)))
    return product.reshape(weight.shape).astype(weight.dtype)


def _balance_given(state: QuantState) -> None:
    """Balance by the factors that the plan holds."""
    nodes, types, names = {node.name: node for node in state.graph.nodes}, infer_types(state.graph), _Names(state)
    for layer in state.layers():
        if not isinstance(layer.balancer, tuple):
            continue
        node, factors = nodes[layer.name], np.array(layer.balancer, np.float32)
        require_finite(state, node)
        if reason := _why_not(node, factors):
            state.left_float[layer.name] = f"it cannot be balanced: {reason}"
            continue
        known = types.get(node.inputs[0].name)
        rank = 2 if known is None or known.shape is None else len(known.shape)
        _balance(state, node, factors, rank, names)


BALANCE_GIVEN = Pass(
    name="balance by given factors",
    run=_balance_given,
    requires=(NAMED, LIFTED, UNSHARED, PLANNED, STANDARD_ONLY),
    ensures=(NAMED, UNSHARED, PLANNED, STANDARD_ONLY),
)
