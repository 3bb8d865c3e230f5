"""Rules about AscendQuant and AscendAntiQuant."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from amct_onnx.deploy.flow import LAYER_OPS, MOVES, WINDOW_CACHE
from amct_onnx.deploy.rule import Gap, Problem, Rule, Subject
from amct_onnx.deploy.tensors import type_name
from amct_onnx.deploy.view import Node, shown
from amct_onnx.deploy.widths import WIDTHS, input_channels, width
from amct_onnx.kernels.quant_params import FLT_EPS

_FP16_MAX, _FP16_MIN_NORMAL = 65504.0, 2.0**-14
_FACTOR_TYPES = ("FLOAT", "FLOAT16")


def scale_of(quant: Node) -> float | None:
    """The reciprocal scale of an AscendQuant, where it is a usable number."""
    scale = quant.real("scale")
    return scale if scale is not None and math.isfinite(scale) and FLT_EPS <= scale <= 1 / FLT_EPS else None


def _form(subject: Subject) -> Iterator[Problem]:
    for node in subject.view.of_type("AscendQuant"):
        if len(node.inputs) != 1 or node.input(0) is None or len(node.outputs) != 1 or node.output() is None:
            found = f"{len(node.inputs)} inputs and {len(node.outputs)} outputs"
            yield Problem(node.label, found, "one input and one output")
        for name in ("scale", "offset"):
            if name not in node.attributes:
                yield Problem(node.label, f"no {name}", f"{name} as a FLOAT; without it ATC takes 0")
            elif node.real(name) is None:
                yield Problem(node.label, f"{name} of another type", "a FLOAT; of any other type ATC takes 0")


def _scale(subject: Subject) -> Iterator[Problem]:
    for node in subject.view.of_type("AscendQuant"):
        scale = node.real("scale")
        if scale is not None and scale_of(node) is None:
            allowed = f"a number in [{FLT_EPS:.9g}, {1 / FLT_EPS:.9g}], one divided by the activation's scale"
            yield Problem(node.label, f"scale {scale:.9g}", allowed)


def _offset(subject: Subject) -> Iterator[Problem]:
    for node in subject.view.of_type("AscendQuant"):
        offset = node.real("offset")
        if offset is None:
            continue
        half = 1 << (width(node) - 1)
        if not math.isfinite(offset) or offset != int(offset) or not -half <= offset < half:
            yield Problem(node.label, f"offset {offset:.9g}", f"a whole number in [{-half}, {half - 1}]")
        elif offset != 0:
            for layer in subject.flow.fed_by(node):
                if layer.node.op == "Conv" and len(layer.weight_dims) == 5:
                    found = f"offset {offset:g} in front of the 3-D Conv {layer.node.label!r}"
                    yield Problem(node.label, found, "offset 0: 3-D convolutions are symmetric")


def _dst_type(subject: Subject) -> Iterator[Problem]:
    for node in subject.view.of_type("AscendQuant"):
        written = node.string("dst_type", "INT8")
        if written is None:
            expected = "a STRING; of any other type ATC takes INT8"
            yield Problem(node.label, "dst_type of another type", expected)
        elif written not in WIDTHS:
            yield Problem(node.label, f"dst_type {shown(written)!r}", f"one of {', '.join(WIDTHS)}; ATC takes INT8")
        elif (bits := node.integer("quant_bit", width(node))) != width(node):
            found = f"quant_bit {'of another type' if bits is None else bits}"
            yield Problem(node.label, found, f"dst_type instead: ATC ignores quant_bit and takes {written}")


def _rounding(subject: Subject) -> Iterator[Problem]:
    for node in subject.view.of_type("AscendQuant"):
        mode = node.string("round_mode", "Round")
        if mode != "Round":
            known = "Round, which halves to even; no known tool writes another"
            yield Problem(node.label, f"round_mode {'of another type' if mode is None else repr(shown(mode))}", known)
        if node.integer("sqrt_mode", 0) != 0:
            yield Problem(node.label, "sqrt_mode", "none: ATC sets it itself where the scale needs it")


def _half_scale(subject: Subject) -> Iterator[Problem]:
    for node in subject.view.of_type("AscendQuant"):
        scale = scale_of(node)
        if scale is not None and not _FP16_MIN_NORMAL <= scale <= _FP16_MAX:
            allowed = f"a number in [{_FP16_MIN_NORMAL:.9g}, {_FP16_MAX:g}]; beyond it ATC applies the root twice"
            yield Problem(node.label, f"scale {scale:.9g}", allowed)


def _users(subject: Subject) -> Iterator[Problem]:
    for node in subject.view.nodes:
        for index, value in enumerate(node.inputs):
            if subject.flow.quantized(value) is not None and not _takes_integers(node, index):
                expected = "quantized layers, AscendAntiQuant, or operators that only move values"
                yield Problem(node.label, f"{shown(node.op)} reads an AscendQuant at input {index}", expected)


def _takes_integers(node: Node, index: int) -> bool:
    if node.op in ("Concat", "MatMul"):
        return True
    others = ("AscendAntiQuant", "LSTM", "GRU")  # rule 34 speaks of the last two
    return index == 0 and (node.op in LAYER_OPS or node.op in MOVES or node.op in WINDOW_CACHE or node.op in others)


def _balance(subject: Subject) -> Iterator[Problem | Gap]:
    for quant in subject.view.of_type("AscendQuant"):
        source = quant.input(0)
        mul = None if source is None else source.producer
        if mul is None or mul.op != "Mul" or not _is_balance(mul, quant):
            continue
        factor = next((value for value in mul.inputs if value is not None and value.tensor is not None), None)
        if factor is None:
            yield Problem(mul.label, "a factor that is no constant", "a constant of one factor per channel")
            continue
        dims = factor.shape or ()
        if type_name(factor.elem_type) not in _FACTOR_TYPES:
            yield Problem(mul.label, f"factors of {type_name(factor.elem_type)}", "FLOAT or FLOAT16")
        for layer in subject.flow.fed_by(quant):
            rank, channels = len(layer.weight_dims), input_channels(subject, layer)
            wanted = (1, channels, *([1] * (rank - 2)))
            if channels is not None and dims != wanted:
                found = f"factors of shape {list(dims[:8])} for layer {layer.node.label!r}"
                yield Problem(mul.label, found, f"shape {list(wanted)}")
        values = subject.values(factor)
        if values is None:
            yield Gap(mul.label, "the factors cannot be read")
        elif not ((values.astype(np.float64) >= FLT_EPS) & (values.astype(np.float64) <= 1 / FLT_EPS)).all():
            yield Problem(mul.label, "a factor out of range", f"factors in [{FLT_EPS:.9g}, {1 / FLT_EPS:.9g}]")


def _is_balance(mul: Node, quant: Node) -> bool:
    """Whether a Mul in front of an AscendQuant is what smoothing put there: its name or its factor's says so."""
    factors = (value.name for value in mul.inputs if value is not None)
    own = mul.name == f"{quant.name.removesuffix('.quant')}.mul"
    return own or any(".tensor_balance_factor" in name for name in factors)


def _duplicates(subject: Subject) -> Iterator[Problem]:
    seen: dict[tuple[object, ...], Node] = {}
    for node in subject.view.of_type("AscendQuant"):
        key = (node.body, id(node.input(0)), node.real("scale"), node.real("offset"), width(node))
        if node.input(0) is not None and key in seen:
            found = f"the same as {seen[key].label!r}"
            yield Problem(node.label, found, "one AscendQuant for all that read the tensor")
        seen.setdefault(key, node)


def _anti_quant(subject: Subject) -> Iterator[Problem]:
    for node in subject.view.of_type("AscendAntiQuant"):
        for name in ("scale", "offset"):
            if node.real(name) is None:
                yield Problem(node.label, f"{name} missing or of another type", f"{name} as a FLOAT")
        source = subject.flow.quantized(node.input(0))
        quant = source.quants[0] if source is not None else None
        scale, offset = node.real("scale"), node.real("offset")
        inverse = None if quant is None else scale_of(quant)
        if quant is None or inverse is None or scale is None or offset is None:
            continue
        if not np.isclose(scale * inverse, 1.0, rtol=1e-5):
            yield Problem(node.label, f"scale {scale:.9g}", f"{1 / inverse:.9g}, the inverse of {quant.label!r}")
        wanted = quant.real("offset")
        if wanted is not None and offset != wanted:
            yield Problem(node.label, f"offset {offset:g}", f"{wanted:g}, which ATC subtracts")


QUANT_RULES = (
    Rule(
        number=4,
        severities=("error",),
        sentence="AscendQuant has one input, one output, and scale and offset as FLOAT attributes.",
        source="OPSNN and CANNDEV plugins",
        check=_form,
    ),
    Rule(
        number=5,
        severities=("error",),
        sentence="The scale of AscendQuant is finite and in [2^-23, 2^23].",
        source="AMCT",
        check=_scale,
    ),
    Rule(
        number=6,
        severities=("error",),
        sentence="The offset of AscendQuant is a whole number in the range of its type, and 0 in front of 3-D Conv.",
        source="AMCT",
        check=_offset,
    ),
    Rule(
        number=7,
        severities=("error",),
        sentence="dst_type is the string INT8, INT4 or INT16, or absent for INT8.",
        source="OPSNN plugin",
        check=_dst_type,
    ),
    Rule(
        number=8,
        severities=("warning",),
        sentence="AscendQuant rounds by round_mode Round, without sqrt_mode.",
        source="OPSNN operator prototypes",
        check=_rounding,
    ),
    Rule(
        number=9,
        severities=("warning",),
        sentence="The scale of AscendQuant is a normal fp16 number.",
        source="GE quantization passes",
        check=_half_scale,
    ),
    Rule(
        number=10,
        severities=("warning",),
        sentence="What AscendQuant gives is read by quantized layers, AscendAntiQuant, and operators that move values.",
        source="FE21",
        check=_users,
    ),
    Rule(
        number=35,
        severities=("error",),
        sentence="Balance factors in front of AscendQuant are [1, C, 1, ...] and in [2^-23, 2^23].",
        source="AMCT",
        check=_balance,
    ),
    Rule(
        number=36,
        severities=("warning",),
        sentence="No two AscendQuant do the same with the same tensor.",
        source="AMCT",
        check=_duplicates,
    ),
    Rule(
        number=37,
        severities=("warning",),
        sentence="AscendAntiQuant has the activation's scale itself, not one divided by it, and the same offset.",
        source="OPSNN and CANNDEV plugins",
        check=_anti_quant,
    ),
)
