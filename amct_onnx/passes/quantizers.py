"""What one QuantizeLinear or DequantizeLinear says, in whichever of its versions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from amct_onnx.errors import ModelError
from amct_onnx.kernels.quant_params import QuantParams
from amct_onnx.passes.graph import Array, Node, constant_input, has_input, is_standard, type_name

_DOMAINS = ("com.microsoft",)
"""Other sets of operators that have the two under the same names."""

_BITS = {"int4": 4, "uint4": 4, "int8": 8, "uint8": 8, "int16": 16, "uint16": 16, "int32": 32}


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantizer:
    """One of the two operators: q = clip(round(x / scale) + zero), or (q - zero) * scale.

    scale: [] per tensor, else [C] along `axis`, or as many axes as the tensor has for blocks.
    zero: the same shape, in the type of the integers, or int64 where numpy has no such type.
    kind: the type of the integers, as ONNX names it.
    """

    node: Node
    scale: Array
    zero: Array
    kind: str
    axis: int

    def is_alike(self, other: Quantizer) -> bool:
        """Whether the other one undoes what this one does."""
        return (
            self.kind == other.kind
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero, other.zero)
            and (self.scale.ndim == 0 or self.axis == other.axis)
        )

    def activation(self) -> QuantParams | str:
        """Scale and offset for activations of 8 or 16 bits, or why there are none."""
        if self.kind not in ("int8", "uint8", "int16", "uint16"):
            return f"its input is quantized to {self.kind}; integers of 8 and 16 bits are taken"
        if self.scale.ndim > 0:
            return "its input has a scale for each channel; Ascend takes one"
        scale = self.scale.astype(np.float32)
        if not (np.isfinite(scale) and scale > 0):
            return f"the scale of its input is {float(scale)}"
        offset = np.asarray(int(self.zero) + self.shift, np.int32)
        return QuantParams(scale=scale, offset=offset, num_bits=_BITS[self.kind])

    @property
    def shift(self) -> int:
        """What brings these integers into the range of signed ones."""
        return -(1 << (_BITS[self.kind] - 1)) if self.kind in _BITS and self.kind.startswith("u") else 0

    @property
    def range(self) -> tuple[int, int] | None:
        """The smallest and the largest of its integers; None for types that are none."""
        if self.kind not in _BITS:
            return None
        bits = _BITS[self.kind]
        return (0, (1 << bits) - 1) if self.kind.startswith("u") else (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)

    def reals(self, integers: tuple[int, int]) -> tuple[Array, Array]:
        """The real values of two integers, where there is one scale."""
        low, high = (np.asarray((q - int(self.zero)) * self.scale, self.scale.dtype) for q in integers)
        return low, high


def is_quantizer(node: Node) -> bool:
    """Whether the node is a QuantizeLinear."""
    return node.op == "QuantizeLinear" and (is_standard(node) or node.domain in _DOMAINS)


def is_dequantizer(node: Node) -> bool:
    """Whether the node is a DequantizeLinear."""
    return node.op == "DequantizeLinear" and (is_standard(node) or node.domain in _DOMAINS)


def quantizer_of(node: Node) -> Quantizer:
    """What the node says.

    Raises:
        ModelError: its scale or zero point is computed at run time.
    """
    scale = constant_input(node, 1)
    zero = constant_input(node, 2)
    if scale is None or (zero is None and has_input(node, 2)):
        what = "scale" if scale is None else "zero point"
        raise ModelError(
            f"the {what} of {node.op} {node.name!r} is computed at run time; only constants can be converted"
        )
    kind = _kind_of(node)
    if zero is None:
        zero = np.zeros(scale.shape, np.int64)
    if scale.size == 1 and not node.attrs.get("block_size", 0):
        scale, zero = scale.reshape(()), zero.reshape(())
    if zero.shape != scale.shape:
        raise ModelError(f"{node.op} {node.name!r} has {scale.size} scales and {zero.size} zero points")
    return Quantizer(node=node, scale=scale, zero=zero, kind=kind, axis=int(node.attrs.get("axis", 1)))


def _kind_of(node: Node) -> str:
    if has_input(node, 2):
        return type_name(node.inputs[2])
    if node.op == "DequantizeLinear":
        return _kind_read(node)
    return str(TensorProto.DataType.Name(node.attrs.get("output_dtype", 0) or TensorProto.UINT8)).lower()


def _kind_read(node: Node) -> str:
    """The type of the integers that a DequantizeLinear without a zero point reads."""
    tensor = node.inputs[0]
    while tensor.inputs:
        front = tensor.inputs[0]
        if is_quantizer(front):
            return _kind_of(front)
        tensor = front.inputs[0]
    return type_name(tensor) if tensor.dtype is not None else "uint8"
