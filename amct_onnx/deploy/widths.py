"""How many bits the integers have: a file itself does not say that its weights have 4 where activations have 8."""

from __future__ import annotations

import math

from amct_onnx.deploy.flow import Layer
from amct_onnx.deploy.rule import Subject
from amct_onnx.deploy.tensors import is_int4
from amct_onnx.deploy.view import Node, Value

WIDTHS = {"INT8": 8, "INT4": 4, "INT16": 16}
"""Types that AscendQuant gives."""


def width(quant: Node) -> int:
    """Bits of the integers that ATC makes of an AscendQuant: 8 where it does not understand `dst_type`."""
    return WIDTHS.get(quant.string("dst_type", "INT8") or "INT8", 8)


def is_4_bit(subject: Subject, layer: Layer) -> bool:
    """Whether the weight, or what the layer reads, has 4 bits."""
    declared = layer.weight is not None and layer.weight.tensor is not None and is_int4(layer.weight.tensor)
    return declared or any(width(quant) == 4 for quant in layer.quants) or _is_halved(subject, layer)


def is_packed(subject: Subject, layer: Layer) -> bool:
    """Whether a byte of the weight holds two values."""
    tensor = None if layer.weight is None else layer.weight.tensor
    return is_4_bit(subject, layer) and tensor is not None and not is_int4(tensor)


def input_channels(subject: Subject, layer: Layer) -> int | None:
    """Input channels that the layer has weights for, None where the weight does not tell."""
    channels = layer.input_channels
    return channels if channels is None or not is_packed(subject, layer) else 2 * channels


def given_channels(layer: Layer) -> int | None:
    """Input channels of what the layer reads, None where the file does not declare them, or something is in between."""
    source = layer.quants[0].input(0) if len(layer.quants) == 1 else None
    if source is None or layer.node.input(0) is not layer.quants[0].output():
        return None
    shape = source.shape
    if not shape:
        return _balanced_channels(source)
    if layer.node.op in ("Conv", "ConvTranspose"):
        return shape[1] if len(shape) > 1 else None
    return shape[-1]


def _balanced_channels(source: Value) -> int | None:
    """How many factors [1, C, 1, ...] a Mul multiplies by, one for each channel."""
    mul = source.producer
    if mul is None or mul.op != "Mul":
        return None
    shapes = [value.shape or () for value in mul.inputs if value is not None and value.tensor is not None]
    dims = next((dims for dims in shapes if len(dims) > 1 and math.prod(d or 0 for d in dims) == dims[1]), ())
    return dims[1] if dims else None


def _is_halved(subject: Subject, layer: Layer) -> bool:
    """Whether the record says so; without one, whether the weight has half of the channels that are given."""
    record = None if subject.record is None else subject.record.get(layer.node.name)
    if record is not None:
        return "INT4" in (record.wts_type, record.dst_type)
    given, channels = given_channels(layer), layer.input_channels
    return layer.group == 1 and given is not None and channels is not None and given == 2 * channels
