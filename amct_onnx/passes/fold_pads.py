"""Folds a constant zero Pad into the pads of the Conv or AveragePool behind it.

ATC wants nothing between AscendQuant and the operator, and onnxruntime mistreats a Pad next to quantization with an
offset. AveragePool takes the pads in only where it then counts them, as it counted the zeros before.
"""

from __future__ import annotations

import numpy as np

from amct_onnx.passes.graph import Node, constant_input, has_input, is_standard, nodes_of, set_input, sole_consumer
from amct_onnx.passes.invariants import LIFTED, NAMED
from amct_onnx.passes.layers import spatial_axes
from amct_onnx.passes.state import Pass, QuantState


def _run(state: QuantState) -> None:
    for pad in reversed(nodes_of(state.graph, "Pad")):  # of two in a row the second goes first
        target = sole_consumer(state.graph, pad.outputs[0])
        amounts = _zero_pads(pad)
        if target is None or amounts is None or not _takes(target, pad, amounts):
            continue
        axes = len(amounts) // 2 - 2
        valid = target.attrs.get("auto_pad", "NOTSET") == "VALID"  # then pads, if any are given, do not count
        own = [0] * (2 * axes) if valid else target.attrs.get("pads", [0] * (2 * axes))
        begin, end = amounts[2 : 2 + axes], amounts[4 + axes :]
        target.attrs["pads"] = [a + b for a, b in zip(own, [*begin, *end], strict=True)]
        target.attrs.pop("auto_pad", None)
        if target.op == "AveragePool":
            target.attrs["count_include_pad"] = 1
        set_input(target, 0, pad.inputs[0])
        state.graph.remove([pad])
        state.gone[pad.name] = f"folded into the pads of {target.name!r}"


def _zero_pads(pad: Node) -> list[int] | None:
    """Begin and end amounts of every axis, or None unless the Pad adds constant zeros of known amounts."""
    if pad.attrs.get("mode", "constant") != "constant":
        return None
    if "pads" in pad.attrs:  # opset 2 to 10
        return None if pad.attrs.get("value", 0.0) != 0.0 else [int(a) for a in pad.attrs["pads"]]
    amounts = constant_input(pad, 1)
    value = constant_input(pad, 2) if has_input(pad, 2) else np.zeros(1)
    if amounts is None or value is None or value.size != 1 or value.ravel()[0] != 0 or has_input(pad, 3):
        return None
    return [int(a) for a in amounts]


def _takes(target: Node, pad: Node, amounts: list[int]) -> bool:
    """Whether `target` can pad by itself: only its spatial axes, nothing cut off, and explicit pads."""
    if target.op not in ("Conv", "AveragePool") or not is_standard(target) or target.inputs[0] is not pad.outputs[0]:
        return False
    axes = spatial_axes(target)
    rank = len(amounts) // 2
    if axes is None or rank != axes + 2 or min(amounts) < 0 or any(amounts[i] for i in (0, 1, rank, rank + 1)):
        return False
    if target.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return False
    return target.op == "Conv" or _pool_takes(target, amounts)


def _pool_takes(pool: Node, amounts: list[int]) -> bool:
    """Pads of a pooling must stay below its kernel, and be counted as the zeros were."""
    axes = len(amounts) // 2 - 2
    kernel = pool.attrs["kernel_shape"]
    own = pool.attrs.get("pads", [0] * (2 * axes))
    if pool.attrs.get("ceil_mode", 0) or (any(own) and not pool.attrs.get("count_include_pad", 0)):
        return False
    added = [*amounts[2 : 2 + axes], *amounts[4 + axes :]]
    return all(a + b < k for a, b, k in zip(own, added, [*kernel, *kernel], strict=True))


FOLD_PADS = Pass(name="fold pads", run=_run, requires=(NAMED, LIFTED), ensures=(NAMED,))
