"""What the nodes of a deploy model say, checked: scales and offsets, integer weights and biases."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from amct_onnx.deploy.view import shown
from amct_onnx.errors import AmctError, ModelError, NotAvailableError
from amct_onnx.passes.graph import (
    Array,
    Graph,
    Node,
    constant,
    dense_value,
    has_input,
    is_standard,
    nodes_of,
    producer,
    set_input,
    unique_name,
)
from amct_onnx.passes.protos import HIDDEN

_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Integers:
    """What a tensor of quantized values holds: q in [low, high], meaning (q - offset) * scale.

    is_half: the tensor that was quantized is known to be float16.
    """

    offset: int
    low: int = -128
    high: int = 127
    is_half: bool = False

    @property
    def largest(self) -> int:
        """Of |q - offset|."""
        return max(self.high - self.offset, self.offset - self.low)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """What an accumulator holds.

    channel_axis: 1 of a convolution, -1 of a matrix product; None where channels were moved out of sight.
    channels: how many, None where that is not known.
    rank: number of axes; None where that is not known, as of MatMul.
    largest: no value is further from 0.
    is_half: the layer stands in a float16 network.
    """

    channel_axis: int | None
    channels: int | None = None
    rank: int | None = None
    largest: int
    is_half: bool = False


def label_of(node: Node) -> str:
    """How errors name a node."""
    named = shown(node.name) if node.name else f"that gives {shown(node.outputs[0].name if node.outputs else '')}"
    return f"{shown(node.op)} {named!r}"


def guarded(node: Node, work: Callable[[], _Result]) -> _Result:
    """What `work` on a node gives; whatever else goes wrong in it is an error of ours that names the node."""
    try:
        return work()
    except AmctError:
        raise
    except Exception as error:
        raise ModelError(f"{label_of(node)} cannot be made sense of: {error}") from error


def lift_constants(graph: Graph) -> None:
    """Turn the Constant nodes that numpy has a type for into initializers."""
    names, lifted = graph.tensor_names(), []
    for node in nodes_of(graph, "Constant"):
        values = guarded(node, lambda node=node: dense_value(node) if node.attrs else None)  # type: ignore[misc]
        if values is None or graph.is_output(node.outputs[0]):
            continue
        old = node.outputs[0]
        fresh = graph.new_constant(old.name, values)
        old.name = unique_name(f"{old.name}.computed", names)
        graph.replace_uses(old, fresh)
        lifted.append(node)
    graph.remove(lifted)


def settle_operand(graph: Graph, node: Node, index: int, names: set[str]) -> Array | None:
    """The constant behind an input, through Identity and Transpose, which the node reads directly afterwards.

    None where the input is missing, or computed from anything else.
    """
    if not has_input(node, index):
        return None
    tensor = node.inputs[index]
    orders: list[Any] = []
    while (values := constant(tensor)) is None:
        source = producer(tensor)
        if source is None or source.op not in ("Identity", "Transpose") or not is_standard(source):
            return None
        if source.op == "Transpose":
            orders.append(source.attrs.get("perm"))
        tensor = source.inputs[0]
    if tensor is not node.inputs[index]:
        for order in reversed(orders):
            values = np.transpose(values, order)
        set_input(node, index, graph.new_constant(unique_name(f"{tensor.name}.settled", names), values))
    return values


def check_ends(graph: Graph) -> None:
    """Every AscendQuant, AscendDequant and AscendAntiQuant has the inputs, outputs and numbers that it needs.

    Raises:
        ModelError: one has not.
        NotAvailableError: it asks for something that is not simulated.
    """
    for node in graph.nodes:
        if not is_standard(node):
            continue
        if node.op in ("AscendQuant", "AscendAntiQuant"):
            guarded(node, lambda node=node: integers_of(node))  # type: ignore[misc]
        elif node.op == "AscendDequant":
            guarded(node, lambda node=node: _check_dequant(node))  # type: ignore[misc]
        elif node.op.startswith("Basic") or node.op in ("AscendRequant", "AscendRequantS16", "AscendDequantS16"):
            raise NotAvailableError(f"{label_of(node)}: the operator is not simulated yet")
    for holder, node in graph.body_nodes():
        if node.op.startswith("Ascend"):
            raise NotAvailableError(f"{label_of(node)} inside {label_of(holder)}: bodies are not simulated yet")


def integers_of(node: Node) -> Integers:
    """What an AscendQuant gives, or an AscendAntiQuant takes."""
    _check_arity(node, 1)
    kind = node.attrs.get("dst_type", f"INT{node.attrs.get('quant_bit', 8)}")
    if kind in ("INT16", "INT4"):
        raise NotAvailableError(
            f"{label_of(node)} gives {kind}: how the chip adds up products of such activations is not published, so it "
            "is not simulated"
        )
    if kind != "INT8":
        raise ModelError(f"{label_of(node)} must have a dst_type of INT8, INT4 or INT16, found {_found(kind)}")
    if node.attrs.get("sqrt_mode", 0) or node.attrs.get("round_mode", "Round") != "Round":
        raise NotAvailableError(f"{label_of(node)} has sqrt_mode or another round_mode, which are not simulated")
    scale = _number(node, "scale")
    if not (math.isfinite(scale) and np.float32(scale) > 0):
        raise ModelError(f"{label_of(node)} must have a positive, finite scale, found {scale}")
    offset = _number(node, "offset")
    if not -128 <= offset <= 127 or offset != int(offset):
        raise ModelError(f"{label_of(node)} must have a whole offset from -128 to 127, found {offset}")
    dtype = node.inputs[0].dtype
    is_half = dtype is not None and not isinstance(dtype, int) and np.dtype(dtype) == np.float16
    return Integers(offset=int(offset), is_half=is_half)


def _number(node: Node, name: str) -> float:
    value = node.attrs.get(name)
    if not isinstance(value, float):
        found = f"the integer {value}, for which ATC takes 0" if isinstance(value, int) else _found(value)
        raise ModelError(f"{label_of(node)} must have a number as {name}, a FLOAT, found {found}")
    return value


def _found(value: object) -> str:
    if isinstance(value, str) and value.startswith(HIDDEN):
        return "a value of another type"
    return "none" if value is None else shown(str(value))


def _check_arity(node: Node, inputs: int) -> None:
    present = [tensor for tensor in node.inputs if tensor.name]
    if len(node.inputs) != inputs or len(present) != inputs or len(node.outputs) != 1:
        raise ModelError(
            f"{label_of(node)} must have {inputs} inputs and 1 output, found {len(present)} and {len(node.outputs)}"
        )


def _check_dequant(node: Node) -> None:
    _check_arity(node, 2)
    for name in ("dtype", "sqrt_mode", "relu_flag"):
        if node.attrs.get(name, 0) not in (0, 1):
            raise ModelError(f"{label_of(node)} must have 0 or 1 as {name}, found {_found(node.attrs[name])}")


def scale_words(graph: Graph, node: Node, names: set[str]) -> Array:
    """The scale of an AscendDequant, float32 [1] or [C].

    Raises:
        ModelError: it is no constant of positive, finite numbers in uint64.
        NotAvailableError: it shifts.
    """
    words = settle_operand(graph, node, 1, names)
    if words is None or words.dtype != np.uint64 or words.ndim != 1 or not words.size:
        raise ModelError(f"{label_of(node)} must have a constant scale of type uint64 with one axis")
    if (words >> np.uint64(32)).any():
        raise NotAvailableError(f"{label_of(node)} shifts its accumulator, which is not simulated")
    scale = words.astype(np.uint32).view(np.float32)
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        raise ModelError(f"{label_of(node)} must have positive, finite scales")
    return scale
