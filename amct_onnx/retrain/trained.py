"""Which tensors of a model are trained."""

from __future__ import annotations

import enum
import logging
from collections.abc import Mapping

import onnx
from onnx import TensorProto

from amct_onnx.passes.graph import is_constant
from amct_onnx.passes.layer_types import RECURRENT
from amct_onnx.passes.layers import bias_input, weight_indices
from amct_onnx.passes.protos import all_graphs
from amct_onnx.passes.state import QuantState
from amct_onnx.retrain.program import constant_of

_log = logging.getLogger("amct_onnx")

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)

_TRAINED: Mapping[str, tuple[int, ...]] = {
    "BatchNormalization": (1, 2),
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "GRU": (1, 2, 3),
    "Gather": (0,),
    "Gemm": (0, 1, 2),
    "GroupNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LSTM": (1, 2, 3, 7),
    "LayerNormalization": (1, 2),
    "MatMul": (0, 1),
    "PRelu": (1,),
    "RNN": (1, 2, 3),
}
"""Operator -> the inputs that are its weights."""

_ELEMENTWISE = ("Add", "Mul")
"""Operators whose constants are biases and scales where they are one number per channel.

Those of more axes are grids and anchors, those of Sub and Div normalise inputs: these stay.
"""

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul", *RECURRENT)

_MOVING = ("Cast", "Concat", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")
"""Operators behind which a weight is still one."""


def shared_layers(state: QuantState) -> dict[str, str]:
    """Layers of a prepared graph whose weight is that of others too -> a sentence that names one of these."""
    readers: dict[str, list[str]] = {}
    for node in state.graph.nodes:
        for tensor in node.inputs:
            if is_constant(tensor):
                readers.setdefault(state.copies.get(tensor.name, tensor.name), []).append(node.name)
    found = {}
    for node in state.graph.nodes:
        if node.op not in _LAYERS or not is_constant(node.inputs[1]):
            continue
        weight = node.inputs[1].name
        others = [name for name in readers[state.copies.get(weight, weight)] if name != node.name]
        if others:
            found[node.name] = f"{others[0]!r} has the same weight"
    return found


def ties_of(state: QuantState) -> dict[str, str]:
    """What is one parameter, though each layer of a prepared graph has a weight and a bias of its own.

    Biases are so only beside weights: alone, they are equal numbers that an exporter stored once.

    Returns:
        Initializer that is a copy -> the one that it is a copy of.
    """
    shared = shared_layers(state)
    held = set()
    for node in state.graph.nodes:
        if node.name in shared:
            bias = bias_input(state.graph, node)
            places = [(node, index) for index in weight_indices(node)] + ([] if bias is None else [bias])
            held |= {holder.inputs[index].name for holder, index in places}
    return {copy: original for copy, original in state.copies.items() if copy in held}


def warn_of_copies(graph: onnx.GraphProto) -> None:
    """Warn where a graph, not prepared yet, has a weight that preparing it makes two of: one as it is, one transposed.

    What lies behind Identity is taken for a tensor of its own: exporters store equal numbers once.
    """
    roles = roles_of(graph)
    for turn in graph.node:
        if turn.op_type != "Transpose" or roles.get(turn.input[0]) is not Role.TRAINED:
            continue
        for node in graph.node:
            if node is not turn and turn.input[0] in node.input:
                _log.warning(
                    "%r is read by %r as it is, and transposed by %r: these become two weights, trained apart",
                    turn.input[0],
                    node.name or node.op_type,
                    turn.name or turn.op_type,
                )
                break


class Role(enum.Enum):
    """What a stored tensor is."""

    TRAINED = enum.auto()
    STATISTIC = enum.auto()
    CONSTANT = enum.auto()


def roles_of(graph: onnx.GraphProto) -> dict[str, Role]:
    """The tensors, of the graph and of bodies in it, that are no constants: what is trained, and running statistics."""
    floats = {}
    roles: dict[str, Role] = {}
    parts = list(all_graphs(graph))
    for part in parts:
        held = [(tensor.name, tensor) for tensor in part.initializer]
        held += [(node.output[0], t) for node in part.node if (t := constant_of(node)) is not None]
        floats.update({name: tensor for name, tensor in held if tensor.data_type in _FLOATS})
    for part in reversed(parts):
        for node in reversed(part.node):
            moved = node.op_type in _MOVING and roles.get(node.output[0]) is Role.TRAINED
            for index, name in enumerate(node.input):
                if moved and (index == 0 or node.op_type == "Concat"):
                    roles[name] = Role.TRAINED
                elif (role := _role(node.op_type, index, floats.get(name))) is not Role.CONSTANT:
                    roles[name] = role
    return {name: role for name, role in roles.items() if name in floats}


def _role(op: str, index: int, tensor: TensorProto | None) -> Role:
    """What this use says of a tensor; None for one that is computed."""
    is_vector = tensor is not None and sum(size > 1 for size in tensor.dims) == 1
    if index in _TRAINED.get(op, ()) or (op in _ELEMENTWISE and is_vector):
        return Role.TRAINED
    return Role.STATISTIC if op == "BatchNormalization" and index in (3, 4) else Role.CONSTANT
