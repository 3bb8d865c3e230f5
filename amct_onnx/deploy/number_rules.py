"""Rules about numbers that hang together: scales, biases, weights, and what was recorded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from amct_onnx.deploy.dequant_rules import floats_in, words_of
from amct_onnx.deploy.flow import POOLS, Layer
from amct_onnx.deploy.quant_rules import scale_of
from amct_onnx.deploy.rule import FloatModel, Gap, Problem, Rule, Subject
from amct_onnx.deploy.tensors import Array
from amct_onnx.deploy.view import Node, Value
from amct_onnx.deploy.widths import is_packed
from amct_onnx.formats.record import LayerRecord
from amct_onnx.kernels.int4 import unpacked
from amct_onnx.kernels.quant_params import truncate_to_s19

_UNREADABLE = "the scale, weight or bias cannot be read"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bias:
    """A bias and what is needed to recompute it. stored: [Cout]. scale: float32, [1] or [Cout]."""

    layer: Layer
    stored: NDArray[np.int64]
    scale: NDArray[np.float32]
    offset: float


def _float_biases(subject: Subject) -> Iterator[Problem | Gap]:
    if subject.float_model is None:
        yield Gap("", "give the float model to check it")
        return
    for bias in _biases(subject):
        if isinstance(bias, Gap):
            yield bias
            continue
        expected = _expected(subject, subject.float_model, bias)
        if isinstance(expected, str):
            yield Gap(bias.layer.node.label, expected)
            continue
        difference = bias.stored - expected
        largest = int(np.abs(difference).max(initial=0))
        if largest and not _is_offset_term(subject, bias, difference):  # rule 22 speaks of those
            hint = ", as truncating instead of rounding gives" if largest == 1 else ""
            found = f"biases up to {largest} away from the float ones on their scale{hint}"
            yield Problem(bias.layer.node.label, found, "round(bias / (scale_d * scale_w))")


def _offset_terms(subject: Subject) -> Iterator[Problem | Gap]:
    if subject.float_model is None:
        yield Gap("", "without the float model it is found only in layers whose float bias is 0")
    for bias in _biases(subject):
        if isinstance(bias, Gap):
            yield bias
            continue
        difference = bias.stored
        if subject.float_model is not None:
            expected = _expected(subject, subject.float_model, bias)
            difference = difference if isinstance(expected, str) else difference - expected
        if _is_offset_term(subject, bias, difference):
            wanted = "the bias alone: ATC adds -offset * sum(weights) itself"
            yield Problem(bias.layer.node.label, "a bias that holds -offset * sum(weights)", wanted)


def _biases(subject: Subject) -> Iterator[_Bias | Gap]:
    for layer, scale in _dequantized(subject):
        value = layer.bias()
        if value is None or value.elem_type != TensorProto.INT32 or len(layer.quants) != 1:
            continue
        words, stored, offset = words_of(subject, scale), subject.values(value), layer.quants[0].real("offset")
        if words is None or stored is None:
            yield Gap(layer.node.label, _UNREADABLE)
        elif stored.size and words.size in (1, stored.size) and offset is not None and np.isfinite(offset):
            yield _Bias(layer=layer, stored=stored.ravel().astype(np.int64), scale=floats_in(words), offset=offset)


def _dequantized(subject: Subject) -> Iterator[tuple[Layer, Value]]:
    """Every layer that has an AscendDequant to itself, with its scale."""
    for node in subject.view.of_type("AscendDequant"):
        state, scale = subject.flow.accumulated(node.input(0)), node.input(1)
        if state is not None and len(state.layers) == 1 and scale is not None:
            yield state.layers[0], scale


def _expected(subject: Subject, model: FloatModel, bias: _Bias) -> NDArray[np.int64] | str:
    """The float bias on its integer scale, or why it is not known."""
    node = model.nodes.get(bias.layer.node.name)
    if node is None or node.op != bias.layer.node.op:
        return "the float model has no such layer under this name"
    values, result = _float_bias(model, node)
    if values is None:
        return "its float bias is not a constant that can be read"
    if result is not None and _is_norm_folded(subject, result):
        return "BatchNormalization was folded into it"
    if values.size not in (1, bias.stored.size):
        return "its float bias has another length"
    with np.errstate(all="ignore"):
        narrow = np.round(values.ravel().astype(np.float32) / bias.scale).astype(np.float64)
        wide = np.round(values.ravel().astype(np.float64) / bias.scale.astype(np.float64))
    if not (np.abs(narrow) < 2.0**62).all():
        return "its float bias is out of range"
    # Either precision of the quotient is in use; large ones differ.
    either = np.where(wide == bias.stored, wide, narrow)
    return np.broadcast_to(either, bias.stored.shape).astype(np.int64)


def _float_bias(model: FloatModel, node: Node) -> tuple[Array | None, Value | None]:
    """The bias of a float layer, 0 where it has none, and the value that the layer gives."""
    result = node.output()
    if node.op == "MatMul":
        add = result.consumers[0][0] if result is not None and len(result.consumers) == 1 else None
        operands = [] if add is None or add.op != "Add" else [v for v in add.inputs if v is not None and v.tensor]
        if add is not None and operands:
            return model.values(operands[0]), add.output()
        return np.zeros(1, np.float32), result
    bias = node.input(2)
    if bias is None:
        return np.zeros(1, np.float32), result
    values = model.values(bias)
    if node.op == "Gemm" and values is not None:
        values = values.astype(np.float32) * np.float32(node.real("beta", 1.0) or 0.0)
    return values, result


def _is_norm_folded(subject: Subject, result: Value) -> bool:
    """Whether a BatchNormalization behind a float layer is missing in the quantized model."""
    left = {node.name for node in subject.view.of_type("BatchNormalization")}
    norms = [user.name for user, _ in result.consumers if user.op == "BatchNormalization"]
    return any(not name or name not in left for name in norms)


def _is_offset_term(subject: Subject, bias: _Bias, difference: NDArray[np.int64]) -> bool:
    """Whether `difference` [Cout] is -offset * sum(weights), to a rounding."""
    if bias.offset == 0 or not difference.any():
        return False
    rows = _rows(subject, bias.layer, difference.size)
    if rows is None:
        return False
    for some in (rows[:2], rows):  # most layers are done with after two channels
        term = -bias.offset * np.add.reduce(some, axis=1, dtype=np.int64)
        if (np.abs(difference[: len(term)] - term) > 1).any():
            return False
    return bool(term.any())


def _rows(subject: Subject, layer: Layer, channels: int) -> Array | None:
    """The int8 weights of each output channel [Cout, n], or None where they cannot be had."""
    value = layer.weight
    if value is None or value.elem_type != TensorProto.INT8 or layer.node.input(1) is not value:
        return None
    weight = subject.values(value)
    if weight is not None and weight.ndim >= 2 and is_packed(subject, layer):
        weight = unpacked(weight, axis=1 if layer.node.op == "Conv" else 0)
    if weight is None or weight.ndim < 2 or weight.size == 0 or layer.output_channels != channels:
        return None
    if layer.node.op == "Conv":
        return weight.reshape(channels, -1)
    if layer.node.op != "ConvTranspose":
        return weight.T if weight.ndim == 2 else None
    if weight.shape[0] % layer.group:
        return None
    grouped = weight.reshape(layer.group, weight.shape[0] // layer.group, weight.shape[1], -1)
    return grouped.transpose(0, 2, 1, 3).reshape(channels, -1)


def _scales(subject: Subject) -> Iterator[Problem | Gap]:
    if subject.record is None:
        yield Gap("", "give the record file to check it; without one only pooling layers are")
    for layer, value in _dequantized(subject):
        node, words = layer.node, words_of(subject, value)
        record = None if subject.record is None else subject.record.get(node.name)
        if words is None:
            yield Gap(node.label, _UNREADABLE)
        elif record is not None and record.scale_d is not None:
            yield from _against_record(layer, floats_in(words), record)
        elif node.op in POOLS and len(layer.quants) == 1:
            yield from _against_quant(layer, floats_in(words))
        elif subject.record is not None:
            yield Gap(node.label, "the record has no factors for this layer")


def _against_quant(layer: Layer, scales: NDArray[np.float32]) -> Iterator[Problem]:
    inverse = scale_of(layer.quants[0])
    if inverse is None:
        return
    expected = np.float32(1) / np.float32(inverse)
    if not _agree(scales, np.atleast_1d(expected), ulps=2):  # two reciprocals, each rounded
        yield Problem(layer.node.label, f"scale {scales[0]:.9g} behind a pooling", f"{expected:.9g}, as in front of it")


def _against_record(layer: Layer, scales: NDArray[np.float32], record: LayerRecord) -> Iterator[Problem]:
    label, scale = layer.node.label, np.float32(record.scale_d or 0)
    for quant in layer.quants:
        inverse, wanted = scale_of(quant), np.float32(1) / scale
        if inverse is not None and not _agree(np.atleast_1d(np.float32(inverse)), np.atleast_1d(wanted), ulps=1):
            yield Problem(quant.label, f"scale {inverse:.9g}", f"{wanted:.9g}, one divided by the recorded scale_d")
        if quant.real("offset") != record.offset_d:
            yield Problem(quant.label, f"offset {quant.real('offset')}", f"{record.offset_d}, as recorded")
    weights = np.asarray(record.scale_w or (1.0,), np.float32)
    for quant in () if layer.second is None else layer.second.quants:
        inverse, wanted = scale_of(quant), np.float32(1) / weights[0]
        if inverse is not None and not _agree(np.atleast_1d(np.float32(inverse)), np.atleast_1d(wanted), ulps=1):
            yield Problem(quant.label, f"scale {inverse:.9g}", f"{wanted:.9g}, one divided by the recorded scale_w")
    if weights.size not in (1, scales.size):
        yield Problem(label, f"{scales.size} scales", f"{weights.size}, as recorded")
        return
    with np.errstate(over="ignore", under="ignore"):
        products = scale * weights
    if not _agree(scales, products, ulps=1):
        yield Problem(label, "dequantization scales of other numbers", "the recorded scale_d * scale_w")


def _agree(scales: NDArray[np.float32], expected: NDArray[np.float32], *, ulps: int) -> bool:
    """Whether the scales are those expected, whole or cut to 19 bits; what is no positive number is rule 14's."""
    wanted = np.broadcast_to(expected, scales.shape)
    usable = np.isfinite(scales) & (scales > 0)
    distance = np.abs(scales.view(np.int32).astype(np.int64) - wanted.view(np.int32).astype(np.int64))
    near = (wanted, np.nextafter(wanted, np.float32(0)), np.nextafter(wanted, np.float32(np.inf)))
    cut = np.any([scales == truncate_to_s19(value) for value in near], axis=0)
    return bool(((distance <= ulps) | cut | ~usable).all())


NUMBER_RULES = (
    Rule(
        number=21,
        severities=("warning",),
        sentence="Biases are the float ones divided by scale_d * scale_w, rounded.",
        source="AMCT, MSLIM",
        check=_float_biases,
    ),
    Rule(
        number=22,
        severities=("warning",),
        sentence="Biases do not hold the correction for the offset, which ATC adds.",
        source="FIX, AMCT, MSLIM",
        check=_offset_terms,
    ),
    Rule(
        number=23,
        severities=("error",),
        sentence="Scales are those of the record: AscendQuant has 1 / scale_d, AscendDequant scale_d * scale_w.",
        source="AMCT",
        check=_scales,
    ),
)
