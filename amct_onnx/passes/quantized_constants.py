"""Turns what DequantizeLinear makes of constants into initializers, which keep the scales that they lie on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from amct_onnx.errors import ModelError
from amct_onnx.kernels.dequant import restore_bias
from amct_onnx.passes.graph import Array, Graph, Node, derived, is_constant, is_standard, producer
from amct_onnx.passes.quantizers import Quantizer, is_dequantizer, is_quantizer, quantizer_of
from amct_onnx.passes.session import open_session
from amct_onnx.passes.weights import ComputedArray

_PLAIN = {
    "int8": (-128, 127),
    "uint8": (0, 255),
    "int32": (-(1 << 31), (1 << 31) - 1),
    "int4": (-8, 7),
    "uint4": (0, 15),
}
"""Integers that are computed here, and their ranges; onnxruntime computes the others."""

_KEPT_AS = {"int4": "int8", "uint4": "uint8"}
"""What holds integers that numpy has no type for."""

_BETWEEN = ("Clip", "Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze")
"""What may stand between the two where their input is a constant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The scale of every value of a constant.

    scales: of the constant's shape.
    is_per_channel: whether they were given along an axis.
    objection: why the chip has no such weights; None where it has.
    """

    scales: Array
    is_per_channel: bool
    objection: str | None

    def moved(self, scales: Array) -> Grid:
        """The same for values that were moved."""
        return replace(self, scales=scales)


def fold_constants(graph: Graph, fates: dict[str, str]) -> dict[int, Grid]:
    """Replace every DequantizeLinear over constants; id of the initializer -> its grid.

    fates: node -> what became of it, filled in.

    Raises:
        ModelError: the scales do not fit the constant, or onnxruntime cannot compute it.
    """
    grids: dict[int, Grid] = {}
    for node in [node for node in graph.nodes if is_dequantizer(node)]:
        chain = _chain_to_constant(node)
        if chain is None or graph.is_output(node.outputs[0]):
            continue
        quantizer, source = quantizer_of(node), chain[-1].inputs[0]
        values = _values(graph, chain)
        scales = _spread(quantizer, values.shape)
        is_own = len(source.outputs) == 1 and not graph.is_output(source)
        fresh = graph.new_constant(source.name if is_own else node.outputs[0].name, values)
        grids[id(fresh)] = Grid(
            scales=scales,
            is_per_channel=quantizer.scale.ndim == 1,
            objection=_objection(quantizer),
        )
        graph.replace_uses(node.outputs[0], fresh)
        fates.update((part.name, f"computed once and for all, for {fresh.name!r}") for part in chain)
        graph.remove([node])
    graph.drop_unreached()
    return grids


def _chain_to_constant(node: Node) -> list[Node] | None:
    """The node and those in front of it, up to one that reads an initializer; None where it depends on inputs."""
    chain = [node]
    while not is_constant(chain[-1].inputs[0]):
        front = producer(chain[-1].inputs[0])
        if front is None or not (is_quantizer(front) or (is_standard(front) and front.op in _BETWEEN)):
            return None
        chain.append(front)
    return chain


def _values(graph: Graph, chain: list[Node]) -> Array | ComputedArray:
    """What comes out at the end of a chain; the common forms only when it is needed."""
    ends = [quantizer_of(node) for node in chain if is_quantizer(node) or is_dequantizer(node)]
    if len(ends) < len(chain) or any(end.kind not in _PLAIN or end.scale.ndim > 1 for end in ends):
        result = chain[0].outputs[0]
        model = graph.cut_out(chain[::-1], [result])
        return open_session(model, f"the constant {result.name!r}", optimize=False).run({}, "no input")[result.name]
    source = chain[-1].inputs[0]
    shape = tuple(source.shape)
    dtype = np.dtype(ends[0].scale.dtype)

    def compute(values: Array) -> Array:
        for end in ends[::-1]:
            values = (_quantized if is_quantizer(end.node) else _dequantized)(values, end)
        return values

    return derived(source, dtype, shape, compute)


def _quantized(values: Array, quantizer: Quantizer) -> Array:
    low, high = _PLAIN[quantizer.kind]
    scale, zero = (_along(part, quantizer.axis, values.shape) for part in (quantizer.scale, quantizer.zero))
    levels = np.rint(values.astype(np.float32) / scale.astype(np.float32)) + zero.astype(np.float32)
    return np.asarray(np.clip(levels, low, high), _KEPT_AS.get(quantizer.kind, quantizer.kind))


def _dequantized(integers: Array, quantizer: Quantizer) -> Array:
    scale, zero = (_along(part, quantizer.axis, integers.shape) for part in (quantizer.scale, quantizer.zero))
    if quantizer.kind == "int32":
        return restore_bias(integers, scale).astype(scale.dtype)
    levels = integers.astype(np.int32) - zero.astype(np.int32)
    return (levels.astype(np.float32) * scale.astype(np.float32)).astype(scale.dtype)


def _spread(quantizer: Quantizer, shape: tuple[int, ...]) -> Array:
    if quantizer.scale.ndim > 1:
        return np.broadcast_to(quantizer.scale.ravel()[0], shape)
    scale = _along(quantizer.scale, quantizer.axis, shape)
    try:
        return np.broadcast_to(scale, shape)
    except ValueError as error:
        raise ModelError(
            f"{quantizer.node.op} {quantizer.node.name!r} has {quantizer.scale.size} scales along axis "
            f"{quantizer.axis} of a constant of shape {list(shape)}"
        ) from error


def _along(values: Array, axis: int, shape: tuple[int, ...]) -> Array:
    """`values` [C] shaped so that they run along an axis; [] stays as it is. The only axis is 0, whatever is said."""
    if values.ndim == 0:
        return values
    dims = [1] * len(shape)
    dims[axis if -len(shape) <= axis < len(shape) else 0] = values.size
    return values.reshape(dims)


def _objection(quantizer: Quantizer) -> str | None:
    if quantizer.kind not in ("int8", "uint8", "int4", "uint4"):
        return f"its weight is {quantizer.kind}; integers of 8 and 4 bits are taken"
    if quantizer.scale.ndim > 1:
        return "its weight has a scale for each block; Ascend takes one for each channel"
    if (quantizer.zero.astype(np.int64) + quantizer.shift != 0).any():
        return "its weight has a zero point; Ascend takes symmetric weights only"
    scale = quantizer.scale.astype(np.float32)
    if not (np.isfinite(scale) & (scale > 0)).all():
        return "a scale of its weight is not above 0"
    return None
