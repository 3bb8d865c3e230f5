"""Rules about AscendDequant and the words of its scale."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import TensorProto

from amct_onnx.deploy.flow import WINDOW_CACHE
from amct_onnx.deploy.rule import Gap, Problem, Rule, Subject
from amct_onnx.deploy.tensors import Array, dims_of, type_name
from amct_onnx.deploy.view import Node, Value, View, shown

_PER_TENSOR = frozenset({"AveragePool", "Gemm", "GlobalAveragePool", "MatMul"})
_ATTRIBUTES = frozenset({"dtype", "relu_flag", "sqrt_mode"})
_SMALLEST_NORMAL = 2.0**-126
_FLOATS: dict[int, int] = {TensorProto.FLOAT: 0, TensorProto.FLOAT16: 1}


def scales_of(subject: Subject) -> Iterator[tuple[Node, Value]]:
    """Every node that dequantizes, with the constant that holds its scale."""
    for node in subject.view.of_type("AscendDequant", *WINDOW_CACHE):
        value = node.input(WINDOW_CACHE[node.op][1] if node.op in WINDOW_CACHE else 1)
        if value is not None and value.tensor is not None:
            yield node, value


def words_of(subject: Subject, value: Value) -> Array | None:
    """The words of a dequantization scale, where it is UINT64 and can be read."""
    return subject.values(value) if value.elem_type == TensorProto.UINT64 else None


def floats_in(words: Array) -> Array:
    """The float32 numbers in the low halves of the words."""
    return words.ravel().astype(np.uint32).view(np.float32)


def _form(subject: Subject) -> Iterator[Problem]:
    for node in subject.view.of_type("AscendDequant"):
        if len(node.inputs) != 2 or None in node.inputs or len(node.outputs) != 1 or node.output() is None:
            found = f"{len(node.inputs)} inputs and {len(node.outputs)} outputs"
            yield Problem(node.label, found, "two inputs and one output")
        scale = node.input(1)
        if scale is not None and scale.tensor is None:
            yield Problem(node.label, f"scale {shown(scale.name)!r} is computed", "an initializer")


def _scale(subject: Subject) -> Iterator[Problem]:
    for node, value in scales_of(subject):
        assert value.tensor is not None
        dims = dims_of(value.tensor)
        if value.elem_type != TensorProto.UINT64:
            yield Problem(node.label, f"scale of {type_name(value.elem_type)}", "UINT64")
        if len(dims) != 1:
            yield Problem(node.label, f"scale of {len(dims)} axes", "one axis")
            continue
        if node.op in WINDOW_CACHE:
            yield from _scales_of_two_weights(node, dims[0])
            continue
        state = subject.flow.accumulated(node.input(0))
        channels = None if state is None else state.channels
        if dims[0] < 1 or (channels is not None and dims[0] not in (1, channels)):
            known = "1 or the number of channels" if channels is None else f"1 or {channels}"
            yield Problem(node.label, f"{dims[0]} scales", known)


def _scales_of_two_weights(node: Node, found: int) -> Iterator[Problem]:
    """Recurrent layers: for each weight [1, rows, columns] one scale or as many as rows, one behind the other."""
    rows = [dims_of(value.tensor)[1:2] for value in (node.input(1), node.input(2)) if value and value.tensor]
    if len(rows) != 2 or () in rows:
        return
    (first,), (second,) = rows
    if found not in (2, 1 + second, first + 1, first + second):
        yield Problem(node.label, f"{found} scales", f"2, or {first + second}: one per row of both weights")


def _high_words(subject: Subject) -> Iterator[Problem | Gap]:
    for node, value in scales_of(subject):
        words = words_of(subject, value)
        if words is None:
            yield Gap(node.label, "the scale cannot be read")
        elif (high := words.ravel() >> np.uint64(32)).any():
            found = f"{np.count_nonzero(high)} scales with high words, such as {int(high[high != 0][0]):#x}"
            yield Problem(node.label, found, "0 there: no shift, no weight offset")


def _low_words(subject: Subject) -> Iterator[Problem | Gap]:
    for node, value in scales_of(subject):
        words = words_of(subject, value)
        if words is None:
            yield Gap(node.label, "the scale cannot be read")
            continue
        scales = floats_in(words)
        bad = ~(np.isfinite(scales) & (scales >= _SMALLEST_NORMAL))
        if bad.any():
            found = f"{np.count_nonzero(bad)} scales such as {scales[bad][0]:.9g}"
            yield Problem(node.label, found, "normal float32 numbers above 0")


def _per_tensor(subject: Subject) -> Iterator[Problem]:
    for node, value in scales_of(subject):
        state = subject.flow.accumulated(node.input(0))
        if state is None or any(layer.node.op not in _PER_TENSOR for layer in state.layers):
            continue
        assert value.tensor is not None
        dims = dims_of(value.tensor)
        if len(dims) == 1 and dims[0] > 1:
            yield Problem(node.label, f"{dims[0]} scales behind {state.layers[0].node.op}", "1")


def _attributes(subject: Subject) -> Iterator[Problem]:
    typed = _single_float_type(subject.view)
    for node in subject.view.of_type("AscendDequant"):
        for name in node.attributes:
            if name not in _ATTRIBUTES:
                known = ", ".join(sorted(_ATTRIBUTES))
                yield Problem(node.label, f"attribute {shown(name)!r}", f"{known}; ATC ignores others", "warning")
            elif node.integer(name, 0) is None:
                yield Problem(node.label, f"{name} of another type", "an INT; of any other type ATC takes 0")
        dtype = node.integer("dtype", 0)
        if dtype not in (None, 0, 1):
            yield Problem(node.label, f"dtype {dtype}", "0 for FLOAT, 1 for FLOAT16")
        elif dtype is not None and (wanted := _float_type(node, typed)) not in (None, dtype):
            yield Problem(node.label, f"dtype {dtype} in a model of the other float type", f"{wanted}", "warning")
        if node.integer("sqrt_mode", 0) not in (None, 0):
            yield Problem(node.label, "sqrt_mode", "0: words of 64 bits hold the scale itself")


def _float_type(node: Node, typed: int | None) -> int | None:
    """The dtype that a dequant's result is declared with; else that of the whole model."""
    output = node.output()
    return typed if output is None else _FLOATS.get(output.elem_type, typed)


def _single_float_type(view: View) -> int | None:
    """The dtype of the model's inputs, where all that are float have the same and none is cast to another."""
    if any(node.integer("to", 0) in _FLOATS for node in view.of_type("Cast")):
        return None
    found = {_FLOATS[value.elem_type] for value in view.inputs if value.elem_type in _FLOATS}
    return found.pop() if len(found) == 1 else None


def _modes(subject: Subject) -> Iterator[Problem]:
    for node in subject.view.of_type("AscendDequant"):
        if node.integer("relu_flag", 0) not in (None, 0):
            yield Problem(node.label, "relu_flag", "a Relu behind it: no known tool writes the flag")


DEQUANT_RULES = (
    Rule(
        number=11,
        severities=("error",),
        sentence="AscendDequant has two inputs, the second a constant, and one output.",
        source="GE fusion engine",
        check=_form,
    ),
    Rule(
        number=12,
        severities=("error",),
        sentence="Its scale is UINT64 with one axis, of length 1 or one for each output channel.",
        source="GE fusion engine, AMCT, FIX",
        check=_scale,
    ),
    Rule(
        number=13,
        severities=("error",),
        sentence="The high 32 bits of every scale are 0.",
        source="GE fusion engine, AMCT, MSLIM",
        check=_high_words,
    ),
    Rule(
        number=14,
        severities=("error",),
        sentence="The low 32 bits of every scale are a positive, finite, normal float32.",
        source="ASC, AMCT",
        check=_low_words,
    ),
    Rule(
        number=15,
        severities=("warning",),
        sentence="Gemm, MatMul and AveragePool have one scale for the whole tensor.",
        source="AMCT",
        check=_per_tensor,
    ),
    Rule(
        number=16,
        severities=("error", "warning"),
        sentence="AscendDequant has no attributes but dtype (0 or 1, as the model's float type), sqrt_mode (0) and "
        "relu_flag, all INT.",
        source="OPSNN and CANNDEV plugins, TBE22",
        check=_attributes,
    ),
    Rule(
        number=17,
        severities=("warning",),
        sentence="relu_flag is 0.",
        source="AMCT, MSLIM, MDC",
        check=_modes,
    ),
)
