"""Layers over quantized values, written out in operators that compute their sums exactly.

A layer multiplies q - offset by its integer weights in float32 where no sum can leave 2^24, which the weights
themselves show, and is exact then in whatever order it is added up. Else it is computed by onnxruntime's integer
operators, or, where there is none, in two halves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
from onnx import TensorProto

from amct_onnx.deploy.edits import Edits
from amct_onnx.deploy.operands import Integers, Sums, label_of, settle_operand
from amct_onnx.errors import ModelError, NotAvailableError
from amct_onnx.passes.graph import Array, Node, derived, has_input, is_constant, producer, set_input
from amct_onnx.passes.layers import group_of, layout_of, output_channels

EXACT = 1 << 24
"""Sums of integers up to here are exact in float32, whatever the order."""

LARGEST = (1 << 31) - 1
"""What an accumulator holds; it saturates there."""


def conv(edits: Edits, node: Node, known: Integers) -> Sums:
    """Conv in float32, or ConvInteger where that would not be exact."""
    weight, bias = _weight_of(edits, node, (3, 4, 5)), _bias_of(edits, node)
    sums, exact = _sums(node, weight, bias, known, channel_axis=1)
    if exact:
        _in_float(edits, node, bias)
    else:
        shape = (-1, *[1] * (weight.ndim - 2))
        _in_integers(edits, node, "ConvInteger", known)
        _add_bias(edits, node, None if bias is None else bias.reshape(shape), sums)
    return sums


def conv_transpose(edits: Edits, node: Node, known: Integers) -> Sums:
    """ConvTranspose in float32; in two halves, 16 * high + low, where the whole would not be exact."""
    weight, bias = _weight_of(edits, node, (3, 4, 5)), _bias_of(edits, node)
    sums, exact = _sums(node, weight, bias, known, channel_axis=1)
    if exact:
        _in_float(edits, node, bias)
    else:
        last = _in_halves(edits, node, weight, known)
        _add_bias(edits, last, None if bias is None else bias.reshape(-1, *[1] * (weight.ndim - 2)), sums)
    return sums


def gemm(edits: Edits, node: Node, known: Integers) -> Sums:
    """Gemm of [K, N] weights in float32, or MatMulInteger."""
    plain = {"transA": 0, "transB": 0, "alpha": 1.0, "beta": 1.0}
    for name, value in plain.items():
        if node.attrs.get(name, value) != value:
            raise ModelError(f"{label_of(node)} over quantized values must have {name}={value}")
    weight, bias = _weight_of(edits, node, (2,)), _bias_of(edits, node)
    sums, exact = _sums(node, weight, bias, known, channel_axis=-1)
    if exact:
        _in_float(edits, node, bias)
    else:
        node.attrs.clear()
        _in_integers(edits, node, "MatMulInteger", known)
        _add_bias(edits, node, bias, sums)
    return sums


def matmul(edits: Edits, node: Node, known: Integers) -> Sums:
    """MatMul by constant weights; its bias is an Add of int32 behind it."""
    weight = _weight_of(edits, node, (2,))
    sums, exact = _sums(node, weight, None, known, channel_axis=-1)
    if exact:
        _in_float(edits, node, None)
    else:
        _in_integers(edits, node, "MatMulInteger", known)
    return sums


def product(edits: Edits, node: Node, known: Integers, second: Integers) -> Sums:
    """MatMul of two activations, by MatMulInteger. Sums of less than 2^17 products do not leave int32.

    Raises:
        NotAvailableError: one of them has an offset; how the compiler would take it off is not known.
    """
    if known.offset or second.offset:
        raise NotAvailableError(f"{label_of(node)} of two activations is simulated where both have the offset 0")
    operands = [
        edits.before(node, tensor).add("Add", np.float32(128)).cast(TensorProto.UINT8).value for tensor in node.inputs
    ]
    operands += [edits.constant(f"{node.name}.zero", np.asarray(128, np.uint8)) for _ in range(2)]
    for index, tensor in enumerate(operands):
        set_input(node, index, tensor)
    node.op = "MatMulInteger"
    node.outputs[0].dtype = node.outputs[0].shape = None
    return Sums(channel_axis=None, largest=LARGEST, is_half=known.is_half)


def average_pool(edits: Edits, node: Node, known: Integers) -> Sums:
    """The mean of the window, of integers that are added up exactly and divided once; stays float32."""
    kernel = node.attrs.get("kernel_shape")
    if not isinstance(kernel, (list, tuple)) or not kernel:
        raise ModelError(f"{label_of(node)} over quantized values must have a kernel_shape")
    if math.prod(kernel) * known.largest > EXACT:
        raise NotAvailableError(f"{label_of(node)} has a window of {math.prod(kernel)} values, too many to simulate")
    node.outputs[0].dtype = node.outputs[0].shape = None
    return Sums(channel_axis=1, rank=len(kernel) + 2, largest=known.largest, is_half=known.is_half)


LAYERS: Mapping[str, Callable[[Edits, Node, Integers], Sums]] = {
    "Conv": conv,
    "ConvTranspose": conv_transpose,
    "Gemm": gemm,
    "MatMul": matmul,
    "AveragePool": average_pool,
}


def add_constant(edits: Edits, node: Node, bias: Array, sums: Sums) -> Sums:
    """What an Add of an int32 constant to the accumulator at its input 0 or 1 gives; it saturates."""
    largest = sums.largest + largest_of(bias)
    if largest > LARGEST:
        _saturate(edits, node, bias)
    rank = sums.rank if sums.rank is not None and bias.ndim <= sums.rank else None
    return Sums(
        channel_axis=None if rank is None and sums.channel_axis == 1 else sums.channel_axis,
        channels=sums.channels if bias.size in (1, sums.channels) else None,
        rank=rank,
        largest=min(largest, LARGEST),
        is_half=sums.is_half,
    )


def _saturate(edits: Edits, add: Node, bias: Array) -> None:
    """Put what cannot overflow in the place of an Add of int32."""
    accumulator = add.inputs[1] if is_constant(add.inputs[0]) else add.inputs[0]
    chain = edits.before(add, accumulator).cast(TensorProto.DOUBLE)
    chain.add("Add", bias.astype(np.float64)).add("Max", np.float64(-LARGEST - 1)).add("Min", np.float64(LARGEST))
    edits.stand_in(add, chain.cast(TensorProto.INT32))


def largest_of(bias: Array) -> int:
    """The largest magnitude of integers."""
    return int(np.abs(bias.astype(np.int64)).max(initial=0))


def _weight_of(edits: Edits, node: Node, ranks: tuple[int, ...]) -> Array:
    weight = settle_operand(edits.graph, node, 1, edits.names)
    if weight is None or weight.dtype != np.int8:
        found = "none" if weight is None else str(weight.dtype)
        raise ModelError(f"{label_of(node)} reads quantized values, but its weight is no int8 constant: {found}")
    if weight.ndim not in ranks:
        raise ModelError(f"the weight of {label_of(node)} has the shape {list(weight.shape)}, which no layer has")
    group = group_of(node)
    if group < 1 or weight.shape[0] % group:
        raise ModelError(f"{label_of(node)} has {group} groups for a weight of shape {list(weight.shape)}")
    return weight


def _bias_of(edits: Edits, node: Node) -> Array | None:
    if not has_input(node, 2):
        return None
    bias = settle_operand(edits.graph, node, 2, edits.names)
    if bias is None or bias.dtype != np.int32:
        found = "none" if bias is None else str(bias.dtype)
        raise ModelError(f"{label_of(node)} reads quantized values, but its bias is no int32 constant: {found}")
    channels = output_channels(node)
    if bias.shape != (channels,) and (
        node.op != "Gemm" or bias.ndim > 2 or bias.shape[-1:] not in ((), (1,), (channels,))
    ):
        raise ModelError(f"the bias of {label_of(node)} has shape {list(bias.shape)} for {channels} outputs")
    return bias


def _sums(node: Node, weight: Array, bias: Array | None, known: Integers, *, channel_axis: int) -> tuple[Sums, bool]:
    """What the accumulator holds, bias included, and whether float32 is exact for the layer.

    Raises:
        NotAvailableError: the products alone can leave int32.
    """
    products = _largest_sum(node, weight) * known.largest
    if products > LARGEST:
        raise NotAvailableError(f"{label_of(node)} has so many weights for one output that its sums can leave int32")
    largest = products + (0 if bias is None else largest_of(bias))
    rank = None if node.op == "MatMul" else weight.ndim
    sums = Sums(
        channel_axis=channel_axis,
        channels=output_channels(node),
        rank=rank,
        largest=largest,
        is_half=known.is_half,
    )
    return sums, _is_exact(largest)


def _largest_sum(node: Node, weight: Array) -> int:
    """The largest sum of magnitudes that one output reads."""
    channels = layout_of(node).channels_first(weight)
    magnitudes = np.abs(channels.reshape(channels.shape[0], -1).astype(np.int16))
    return int(magnitudes.sum(axis=1, dtype=np.int64).max(initial=0))


def _in_float(edits: Edits, node: Node, bias: Array | None) -> None:
    old = node.inputs[1]
    as_float = derived(old, np.float32, old.shape, lambda weight: weight.astype(np.float32))
    set_input(node, 1, edits.graph.new_constant(edits.name(f"{old.name}.float"), as_float))
    if bias is not None:
        set_input(node, 2, edits.constant(f"{node.name}.bias", bias.astype(np.float32)))
    edits.insert_behind(node, "Cast", to=int(TensorProto.INT32))


def _in_integers(edits: Edits, node: Node, op: str, known: Integers) -> None:
    """By an integer operator over uint8 on both sides: with int8 weights some processors saturate in between."""
    zero = known.offset - known.low  # q - offset + zero = q - low, from 0 on; paddings are zero
    chain = edits.before(node).add("Add", np.float32(zero)).cast(TensorProto.UINT8)
    old = node.inputs[1]
    shifted = derived(old, np.uint8, old.shape, lambda weight: weight.view(np.uint8) ^ np.uint8(128))
    operands = [
        chain.value,
        edits.graph.new_constant(edits.name(f"{old.name}.unsigned"), shifted),
        edits.constant(f"{node.name}.zero", np.asarray(zero, np.uint8)),
        edits.constant(f"{node.name}.weight_zero", np.asarray(128, np.uint8)),
    ]
    while len(node.inputs) > len(operands):
        node.inputs.pop()
    for index, tensor in enumerate(operands):
        set_input(node, index, tensor)
    node.op = op
    node.outputs[0].dtype = node.outputs[0].shape = None


def _in_halves(edits: Edits, node: Node, weight: Array, known: Integers) -> Node:
    """Two layers, the sum of which takes the place of the node; returns the node that adds them."""
    high = (weight.astype(np.int16) + 8) >> 4
    low = weight - 16 * high
    if max(_largest_sum(node, part) for part in (high, low)) * known.largest > EXACT:
        raise NotAvailableError(f"{label_of(node)} has too many weights for one output to be simulated")
    attributes = dict(node.attrs)
    halves = [
        edits.before(node).add("ConvTranspose", part.astype(np.float32), **attributes).cast(TensorProto.INT32)
        for part in (low, high)
    ]
    halves[1].add("Mul", np.asarray(16, np.int32)).add("Add", halves[0].value)
    last = producer(edits.stand_in(node, halves[1]))
    assert last is not None
    return last


def _is_exact(largest: int) -> bool:
    """Whether float32 counts up to here."""
    return largest <= EXACT


def _add_bias(edits: Edits, node: Node, bias: Array | None, sums: Sums) -> None:
    if bias is not None:
        add = edits.insert_behind(node, "Add", bias)
        if sums.largest > LARGEST:
            _saturate(edits, add, bias)
