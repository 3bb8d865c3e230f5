"""<prefix>_quant.json: what became of each node, for tools that compare a quantized model with the float one.

It has the form of a graph that ATC dumps: every node of the deploy model with the nodes of the float model that it
stands for, and every output that holds the same values as one of the float model with the name of that one's node.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import onnx

from amct_onnx.passes.state import QuantPlan

DEQUANT = ".dequant"


def format_quant_json(deploy: onnx.ModelProto, plan: QuantPlan) -> str:
    """The text of the file for a deploy model that was made as `plan` says."""
    present = {node.name for node in deploy.graph.node}
    quantized = {name for name in plan.layers if name + DEQUANT in present}  # Ascend may have no way for a strategy's
    folded = {name: _folded_into(plan, name) for name in plan.folded.values()}
    producers = {name: f"{node.name}:{i}" for node in deploy.graph.node for i, name in enumerate(node.output)}
    ops = [_op(node, quantized, folded, producers) for node in deploy.graph.node]
    name = deploy.graph.name or "main"
    return json.dumps({"name": name, "graph": [{"name": name, "op": ops}]}, indent=2, ensure_ascii=False) + "\n"


def _folded_into(plan: QuantPlan, name: str) -> tuple[str, ...]:
    """The nodes that were folded into one, in their order: what was folded into a norm comes behind it."""
    direct = [gone for gone, target in plan.folded.items() if target == name]
    return tuple(inner for gone in direct for inner in (gone, *_folded_into(plan, gone)))


def _op(
    node: onnx.NodeProto, quantized: set[str], folded: Mapping[str, Sequence[str]], producers: Mapping[str, str]
) -> dict[str, Any]:
    stem = node.name.removesuffix(DEQUANT)
    is_dequant = node.op_type == "AscendDequant" and stem in quantized
    is_new = node.op_type == "AscendQuant" or (node.op_type == "AscendDequant" and not is_dequant)
    layer = stem if is_dequant else node.name
    originals = [] if is_new else [layer, *folded.get(layer, ())]
    holds_float = not is_new and node.name not in quantized  # a layer's own output is integers
    described: list[dict[str, Any]] = [
        {"attr": [_text("_datadump_origin_name", originals[-1]), _number("_datadump_origin_output_index", index)]}
        if holds_float
        else {"attr": []}
        for index in range(len(node.output))
    ]
    return {
        "name": node.name,
        "type": node.op_type,
        "attr": [{"key": "_datadump_original_op_names", "value": {"list": {"val_type": 1, "s": originals}}}],
        "input": [producers.get(name, name) for name in node.input],
        "output_desc": described,
    }


def _text(key: str, value: str) -> dict[str, Any]:
    return {"key": key, "value": {"s": value}}


def _number(key: str, value: int) -> dict[str, Any]:
    return {"key": key, "value": {"i": value}}
