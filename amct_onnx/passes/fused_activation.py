"""Finds the activation function behind a layer, the one that AdaRound looks through."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amct_onnx.kernels.activations import Activation, Clipped, Gelu, Leaky, Sigmoid, Tanh
from amct_onnx.passes.graph import (
    Graph,
    Node,
    Tensor,
    constant,
    constant_input,
    is_constant,
    is_standard,
    sole_consumer,
)
from amct_onnx.passes.layers import group_of, last_node, output_channels


def fused_activation(graph: Graph, node: Node) -> Activation | None:
    """The activation function that alone reads what a layer computes; None where there is none that is known."""
    output = last_node(graph, node).outputs[0]
    if graph.is_output(output):
        return None
    if (reader := sole_consumer(graph, output)) is not None:
        return _of_one_node(node, reader) if is_standard(reader) else None
    slope = _random_slope(output)
    if slope is not None:
        return _leaky(node, np.asarray(slope))
    return Gelu() if _is_gelu(output) else None


def _of_one_node(node: Node, reader: Node) -> Activation | None:
    if reader.op == "Relu":
        return Clipped()
    if reader.op == "Clip":
        low, high = _bound(reader, 1, "min", -math.inf), _bound(reader, 2, "max", math.inf)
        return None if low is None or high is None else Clipped(low=low, high=high)
    if reader.op == "LeakyRelu":
        return _leaky(node, np.asarray(reader.attrs.get("alpha", 0.01)))
    if reader.op == "PRelu":
        slopes = constant_input(reader, 1)
        return None if slopes is None else _leaky(node, _per_channel(node, slopes))
    plain: dict[str, Activation] = {"Sigmoid": Sigmoid(), "Tanh": Tanh(), "Gelu": Gelu()}
    return plain.get(reader.op)


def _bound(clip: Node, index: int, attribute: str, default: float) -> float | None:
    """A bound of a Clip, an attribute before opset 11; None where it is computed."""
    if attribute in clip.attrs:
        return float(clip.attrs[attribute])
    if len(clip.inputs) <= index or clip.inputs[index].name == "":
        return default
    value = constant_input(clip, index)
    return None if value is None else float(value.reshape(()))


def _per_channel(node: Node, slopes: NDArray[Any]) -> NDArray[Any] | None:
    """Slopes [Cout] or [1]; None where they differ within a channel."""
    channels = output_channels(node)
    if slopes.size == 1:
        return slopes.reshape(1)
    is_spatial = node.op in ("Conv", "ConvTranspose")
    rank = len(node.inputs[1].shape)
    expected = (channels, *([1] * (rank - 2))) if is_spatial else (channels,)
    trimmed = slopes[0] if is_spatial and slopes.ndim == rank and slopes.shape[0] == 1 else slopes
    return trimmed.reshape(-1) if trimmed.shape == expected else None


def _leaky(node: Node, slopes: NDArray[Any] | None) -> Leaky | None:
    if slopes is None:
        return None
    groups = group_of(node)
    full = np.broadcast_to(np.asarray(slopes, np.float32).ravel(), output_channels(node))
    return Leaky(slopes=full.reshape(groups, 1, -1))


def _random_slope(output: Tensor) -> float | None:
    """The mean slope where a PRelu draws it at random, as RReLU is exported."""
    ops = sorted(reader.op for reader in output.outputs)
    if ops != ["PRelu", "RandomUniformLike"]:
        return None
    prelu, random = sorted(output.outputs, key=lambda reader: reader.op)
    if prelu.inputs[0] is not output or prelu.inputs[1] is not random.outputs[0]:
        return None
    return (float(random.attrs.get("low", 0.0)) + float(random.attrs.get("high", 1.0))) / 2


def _is_gelu(output: Tensor) -> bool:
    """Whether what reads the output are the first operators of a GELU, by Erf or by Tanh, in whatever order written.

    It is known by what it computes: the operators are carried out at some points.
    """
    points = np.linspace(-5, 5, 41)
    wanted = Gelu().value(points.astype(np.float32))
    known: dict[int, NDArray[Any]] = {id(output): points}
    members: list[Node] = []
    waiting = list(output.outputs)
    while waiting and len(members) < _LONGEST_GELU:
        node = waiting.pop(0)
        values = [_value_of(tensor, known) for tensor in node.inputs]
        if node.op not in _STEPS or not is_standard(node) or any(value is None for value in values):
            continue  # comes again behind what it waits for
        if any(node is member for member in members):
            continue
        members.append(node)
        known[id(node.outputs[0])] = found = _STEPS[node.op](*values)
        if np.allclose(found, wanted, rtol=0, atol=1e-3):
            return all(any(reader is member for member in members) for reader in output.outputs)
        waiting += node.outputs[0].outputs
    return False


def _value_of(tensor: Tensor, known: dict[int, NDArray[Any]]) -> NDArray[Any] | None:
    """Its values at the points; a constant must be a single number."""
    if id(tensor) in known:
        return known[id(tensor)]
    value = constant(tensor) if is_constant(tensor) and math.prod(tensor.shape) == 1 else None
    return None if value is None else value.reshape(()).astype(np.float64)


_LONGEST_GELU = 12

_STEPS: dict[str, Any] = {
    "Add": np.add,
    "Mul": np.multiply,
    "Div": np.divide,
    "Pow": np.power,
    "Erf": np.vectorize(math.erf, otypes=[np.float64]),
    "Tanh": np.tanh,
}
