"""AscendDequant, Relu and AscendQuant in a row, as the compiler merges them for some chips."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from amct_onnx.deploy.operands import scale_words
from amct_onnx.deploy.profiles import Profile
from amct_onnx.passes.graph import Graph, Node, is_standard, nodes_of, set_input, unique_name

MERGED = "amct_onnx.merged"
"""Attribute of an AscendDequant and an AscendQuant that are one step: nothing is rounded between them.

No file has it: the name is not one that an emitter would choose.
"""

_TOLERANCE = 1e-5
"""Scales of several AscendQuant behind one AscendDequant count as equal up to here, relatively."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Merge:
    """An AscendDequant whose result holds what AscendQuant makes of it: multiplied by `scale`.

    relu: the Relu that goes into it, if there is one.
    """

    dequant: Node
    quants: tuple[Node, ...]
    relu: Node | None
    scale: np.float32


def find_merges(graph: Graph, profile: Profile) -> list[Merge]:
    """What the compiler would merge for this chip."""
    found = []
    for dequant in nodes_of(graph, "AscendDequant") if profile.requant != "no" else ():
        relu, quants = _chain(graph, dequant)
        if not quants or dequant.attrs.get("sqrt_mode", 0):
            continue
        clips = relu is not None or bool(dequant.attrs.get("relu_flag", 0))
        if clips and profile.requant == "one step" and quants[0].attrs["offset"] != -128:
            continue
        scale = np.float32(quants[0].attrs["scale"])
        found.append(Merge(dequant=dequant, quants=tuple(quants), relu=relu, scale=scale))
    return found


def merge_requants(graph: Graph, profile: Profile) -> None:
    """Merge the scale of AscendQuant into that of the AscendDequant before it, where every reader of it agrees."""
    names = graph.tensor_names()
    for merge in find_merges(graph, profile):
        dequant, relu = merge.dequant, merge.relu
        merged = scale_words(graph, dequant, names) * merge.scale
        name = unique_name(f"{dequant.name}.requant", names)
        set_input(dequant, 1, graph.new_constant(name, merged.view(np.uint32).astype(np.uint64)))
        for quant in merge.quants:
            quant.attrs["scale"] = 1.0
        if relu is not None:
            dequant.attrs["relu_flag"] = 1
            graph.replace_uses(relu.outputs[0], dequant.outputs[0])
            graph.remove([relu])
        if profile.requant == "one step":
            for node in (dequant, *merge.quants):
                node.attrs[MERGED] = 1


def _chain(graph: Graph, dequant: Node) -> tuple[Node | None, list[Node]]:
    """The Relu behind an AscendDequant, if there is one, and the AscendQuants that are all that reads the result."""
    result, relu = dequant.outputs[0], None
    if len(result.outputs) == 1 and result.outputs[0].op == "Relu" and is_standard(result.outputs[0]):
        if graph.is_output(result):
            return None, []
        relu = result.outputs[0]
        result = relu.outputs[0]
    readers = list(result.outputs)
    if graph.is_output(result) or not all(r.op == "AscendQuant" and is_standard(r) for r in readers):
        return relu, []
    scales = [float(r.attrs["scale"]) for r in readers]
    alike = bool(scales) and max(scales) - min(scales) <= _TOLERANCE * max(scales)
    same = len({(r.attrs["offset"], r.attrs.get("dst_type", "INT8")) for r in readers}) <= 1
    return relu, readers if alike and same else []
