"""Rules about the ways between AscendQuant, layer and AscendDequant."""

from __future__ import annotations

from collections.abc import Iterator

from amct_onnx.deploy.rule import Gap, Problem, Rule, Subject
from amct_onnx.deploy.view import Node, shown


def _paths(subject: Subject) -> Iterator[Problem]:
    flow = subject.flow
    for layer in flow.layers:
        node, source = layer.node, layer.source
        if source is None and not (node.op == "MatMul" and layer.second is not None):
            yield Problem(node.label, "its input does not come from AscendQuant", "AscendQuant in front of it")
        elif source is not None and source.mixed:
            yield Problem(node.label, "its input joins integers with other tensors", "integers alone")
        elif source is not None and len({(q.real("scale"), q.real("offset")) for q in source.quants}) > 1:
            yield Problem(node.label, "its input joins integers of different scales", "one scale and offset")
    for node in subject.view.of_type("AscendDequant"):
        if flow.accumulated(node.input(0)) is None:
            yield Problem(node.label, "its input does not come from a quantized layer", "a quantized layer before it")
    for node in subject.view.nodes:
        yield from _wrong_users(subject, node)


def _wrong_users(subject: Subject, node: Node) -> Iterator[Problem]:
    """The nodes that read what a node gives in int32, other than AscendDequant and what leads there."""
    for value in node.outputs:
        if value is None or subject.flow.accumulated(value) is None:
            continue
        if value.is_output:
            yield Problem(node.label, "its int32 result is an output of the model", "AscendDequant behind it")
        elif not value.consumers:
            yield Problem(node.label, "nothing reads its int32 result", "AscendDequant behind it")
        for user, index in value.consumers:
            if user.op == "AscendDequant" and index == 0:
                continue
            if user.op not in ("Add", "Concat") or subject.flow.accumulated(user.output()) is None:
                found = f"{shown(user.op)} {user.label!r} reads its int32 result"
                yield Problem(node.label, found, "AscendDequant, or an Add of the bias or a Concat before it")


def _pads(subject: Subject) -> Iterator[Problem | Gap]:
    for node in subject.view.of_type("Pad"):
        source = subject.flow.quantized(node.input(0))
        if source is None or node.string("mode", "constant") != "constant":
            continue
        offset = source.quants[0].real("offset")
        value = node.input(2)
        constant = node.real("value", 0.0) if value is None else None
        if value is not None:
            values = subject.values(value)
            constant = float(values.ravel()[0]) if values is not None and values.size == 1 else None
        if constant is None:
            yield Gap(node.label, "what it pads with cannot be read")
        elif offset is not None and constant != offset:
            expected = f"{offset:g}, which stands for zero behind AscendQuant, or the Pad before it"
            yield Problem(node.label, f"pads integers with {constant:g}", expected)


WIRING_RULES = (
    Rule(
        number=18,
        severities=("error",),
        sentence="Integers run from AscendQuant through a layer, the Add of its bias or a Concat, to AscendDequant, "
        "and nowhere else.",
        source="FE21",
        check=_paths,
    ),
    Rule(
        number=30,
        severities=("warning",),
        sentence="A Pad behind AscendQuant pads with the offset.",
        source="AMCT",
        check=_pads,
    ),
)
