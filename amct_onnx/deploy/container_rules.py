"""Rules about the file as a whole: operator sets, names, operators, stored data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import onnx
from onnx import TensorProto

from amct_onnx.deploy.flow import WINDOW_CACHE
from amct_onnx.deploy.rule import Gap, Problem, Rule, Subject
from amct_onnx.deploy.tensors import IN_MEMORY, type_name
from amct_onnx.deploy.view import Node, Value, View, shown

LARGEST_FILE = 2**31 - 1
"""Bytes that protobuf can hold in one message."""

_ASCEND = frozenset({"AscendAntiQuant", "AscendDequant", "AscendQuant", *WINDOW_CACHE})
_FORBIDDEN = frozenset({"AscendWeightQuant", "DequantizeLinear", "QuantizeLinear"})
_OLDEST, _NEWEST_OF_ALL, _NEWEST = 11, 13, 18


def _opsets(subject: Subject) -> Iterator[Problem]:
    found = ", ".join(f"{shown(domain) or 'ai.onnx'} {version}" for domain, version in subject.view.opsets[:8])
    if len(subject.view.opsets) != 1 or subject.view.opsets[0][0] not in ("", "ai.onnx"):
        yield Problem("", f"operator sets: {found or 'none'}", "one operator set, of the default domain")
        return
    version = subject.view.opsets[0][1]
    if not _OLDEST <= version <= _NEWEST:
        yield Problem("", f"operator set {version}", f"{_OLDEST} to {_NEWEST}")
    elif version > _NEWEST_OF_ALL:
        expected = f"{_OLDEST} to {_NEWEST_OF_ALL}, which older releases of ATC read too"
        yield Problem("", f"operator set {version}", expected, "warning")


def _names(subject: Subject) -> Iterator[Problem]:
    counts = Counter((node.body, node.name) for node in subject.view.nodes)
    for node in subject.view.nodes:
        if node.op not in _ASCEND:
            continue
        if not node.is_standard:
            yield Problem(node.label, f"{node.op} of domain {shown(node.domain)!r}", "the default domain")
        if not node.name:
            yield Problem(node.label, f"{node.op} without a name", "a name")
        elif (count := counts[node.body, node.name]) > 1:
            yield Problem(node.label, f"{count} nodes of this name", "a name of its own")


def _operators(subject: Subject) -> Iterator[Problem]:
    version = next((v for domain, v in subject.view.opsets if domain in ("", "ai.onnx")), _NEWEST)
    version = min(max(version, 1), onnx.defs.onnx_opset_version())
    known: dict[str, bool] = {}
    for node in subject.view.nodes:
        if node.op in _FORBIDDEN:
            yield Problem(node.label, node.op, "quantization by AscendQuant and AscendDequant alone")
        elif node.op not in _ASCEND:
            if node.op not in known:
                known[node.op] = bool(node.op) and onnx.defs.has(node.op, version, "")
            if not node.is_standard or not known[node.op]:
                domain = "" if node.is_standard else f"{shown(node.domain)}."
                expected = f"an operator of ONNX's set {version}, or one of Ascend's"
                yield Problem(node.label, f"{domain}{shown(node.op) or 'no operator'}", expected)


def _stored(subject: Subject) -> Iterator[Problem]:
    for where, tensor in subject.view.tensors:
        if fault := subject.data.fault(tensor):
            yield Problem(where, fault, "a common element type, and as many values as the shape has")
    for value in subject.view.constants:
        if value.elem_type == TensorProto.UINT64 and not all(_is_scale(node, index) for node, index in value.consumers):
            yield Problem(shown(value.name), type_name(TensorProto.UINT64), "UINT64 for dequantization scales alone")


def _is_scale(node: Node, index: int) -> bool:
    """Whether input `index` of a node is a dequantization scale."""
    if node.op in WINDOW_CACHE:
        return index == WINDOW_CACHE[node.op][1]
    return node.op == "AscendDequant" and index == 1


def _external(subject: Subject) -> Iterator[Problem | Gap]:
    for where, tensor in subject.view.tensors:
        if not subject.data.is_external(tensor):
            continue
        if fault := subject.data.external_fault(tensor):
            yield Problem(where, fault, "a file beside the model that holds the values")
        elif not subject.data.can_look():
            yield Gap(where, IN_MEMORY)


def _size(subject: Subject) -> Iterator[Problem]:
    if subject.size > LARGEST_FILE:
        yield Problem("", f"{subject.size} bytes", f"at most {LARGEST_FILE}; larger weights in files of their own")


def _free_axes(subject: Subject) -> Iterator[Problem]:
    reaching = _reaching_quants(subject.view)
    for value in subject.view.inputs:
        if id(value) not in reaching:
            continue
        shape = value.shape
        free = [] if shape is None else [str(axis) for axis, dim in enumerate(shape) if dim is None]
        if shape is None or free:
            found = "no shape" if shape is None else f"axis {', '.join(free)} is free"
            yield Problem(shown(value.name), found, "fixed axes: give ATC --input_shape, no dynamic batch or image")


def _reaching_quants(view: View) -> set[int]:
    """The values, by identity, that an AscendQuant depends on."""
    found: set[int] = set()
    waiting: list[Value | None] = [value for node in view.of_type("AscendQuant") for value in node.inputs]
    while waiting:
        value = waiting.pop()
        if value is None or id(value) in found:
            continue
        found.add(id(value))
        if value.producer is not None:
            waiting.extend((*value.producer.inputs, *value.producer.captures))
    return found


def _endings(subject: Subject) -> Iterator[Problem]:
    for node in subject.view.of_type("AscendQuant", "AscendDequant"):
        if node.op == "AscendQuant":
            layers = [layer.node.name for layer in subject.flow.fed_by(node) if layer.quants == (node,)]
        else:
            state = subject.flow.accumulated(node.input(0))
            layers = [] if state is None else [layer.node.name for layer in state.layers]
        ending = ".quant" if node.op == "AscendQuant" else ".dequant"
        if node.name and layers and node.name not in {name + ending for name in layers}:
            yield Problem(node.label, f"{node.op} of layer {shown(layers[0])!r}", shown(layers[0] + ending))


CONTAINER_RULES = (
    Rule(
        number=1,
        severities=("error", "warning"),
        sentence="One operator set is imported, ONNX's own, of version 11 to 18; every release reads only 11 to 13.",
        source="GE parser, OPSNN, ATC error E16005",
        check=_opsets,
    ),
    Rule(
        number=2,
        severities=("error",),
        sentence="Ascend's operators stand in the default domain under names of their own.",
        source="AMCT, FIX, GE parser",
        check=_names,
    ),
    Rule(
        number=3,
        severities=("error",),
        sentence="There are no operators but ONNX's and AscendQuant, AscendDequant, AscendAntiQuant and the two "
        "window-cache networks; neither AscendWeightQuant nor QuantizeLinear is left.",
        source="AMCT, OPSNN plugins, ATC error E16002",
        check=_operators,
    ),
    Rule(
        number=38,
        severities=("error",),
        sentence="Stored tensors have an element type that ATC reads and as much data as their shape; UINT64 is for "
        "dequantization scales alone.",
        source="GE constant parser",
        check=_stored,
    ),
    Rule(
        number=39,
        severities=("error",),
        sentence="Data outside the model lie in existing, long enough files inside its folder.",
        source="ONNX, AMCT",
        check=_external,
    ),
    Rule(
        number=40,
        severities=("error",),
        sentence="A model above 2 GB keeps its weights in files of their own.",
        source="protobuf",
        check=_size,
    ),
    Rule(
        number=41,
        severities=("warning",),
        sentence="The inputs of quantized layers have fixed shapes.",
        source="ATC guide",
        check=_free_axes,
    ),
    Rule(
        number=42,
        severities=("warning",),
        sentence="AscendQuant and AscendDequant are named <layer>.quant and <layer>.dequant.",
        source="AMCT",
        check=_endings,
    ),
)
