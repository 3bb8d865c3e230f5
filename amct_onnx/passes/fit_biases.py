"""Makes every bias fit into int32 on its scale, scale_d * scale_w, or leaves the layer float.

A channel of tiny weights and a large bias gets a coarser weight scale: its weights matter little beside its bias.
AMCT stops with an error there.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from amct_onnx.kernels.dequant import bias_fits
from amct_onnx.passes.correct_biases import corrected_bias
from amct_onnx.passes.graph import Array, Node
from amct_onnx.passes.insert_dequant import Term, terms_of
from amct_onnx.passes.invariants import ACTIVATIONS_KNOWN, PLANNED, WEIGHTS_KNOWN
from amct_onnx.passes.state import Pass, QuantState

_SMALLEST = float(np.finfo(np.float32).tiny)
"""Smallest normal float32: the chip takes no denormal scales."""

_LARGEST_BIAS = float(2**31 - 2**8)
"""Largest level that is safe whatever the last digits of the scale round to in float32."""


def _run(state: QuantState) -> None:
    nodes = {node.name: node for node in state.graph.nodes}
    for layer in state.layers():
        node = nodes[layer.name]
        for term, bias in _parts(state, node):
            if bias is not None and not bias_fits(bias, term.scale):
                _coarsen(state, term, bias.astype(np.float64))
            if reason := _why_not_scale(term, bias):
                state.left_float[layer.name] = reason


def _check(state: QuantState) -> None:
    """Leave the layers float whose bias does not fit; their scales are what they are."""
    nodes = {node.name: node for node in state.graph.nodes}
    for layer in state.layers():
        for term, bias in _parts(state, nodes[layer.name]):
            if reason := _why_not_scale(term, bias):
                state.left_float[layer.name] = reason


def _parts(state: QuantState, node: Node) -> list[tuple[Term, Array | None]]:
    """What a layer sums up, and the part of its bias that is on the scale of each."""
    terms = terms_of(state, node)
    bias = corrected_bias(state, node)
    parts = [None] * len(terms) if bias is None else np.split(bias.reshape(-1), len(terms))
    return list(zip(terms, parts, strict=True))


def _coarsen(state: QuantState, term: Term, bias: NDArray[np.float64]) -> None:
    """Raise the weight scale of the channels whose bias does not fit, where each channel has its own."""
    params = term.column[term.layer]
    if params.axis is None:
        return
    needed = np.abs(bias) / (_LARGEST_BIAS * float(term.activation.scale))
    with np.errstate(over="ignore"):  # an infinite scale is found out below
        raised = np.maximum(params.scale, needed.astype(np.float32))
    channels = np.flatnonzero(raised > params.scale)
    term.column[term.layer] = replace(params, scale=raised)
    listed = ", ".join(map(str, channels[:5])) + (", ..." if len(channels) > 5 else "")
    state.remarks[term.layer] = f"coarser weights in channel {listed}: the bias would leave int32 on their own scale"


def _why_not_scale(term: Term, bias: Array | None) -> str | None:
    scale = term.scale
    if not (np.isfinite(scale) & (scale >= _SMALLEST)).all():
        return "the product of its activation and weight scale is no normal float32"
    if bias is None or bias_fits(bias, scale):
        return None
    worst = int(np.argmax(np.abs(bias.astype(np.float64)) / scale))
    on = float(np.broadcast_to(scale, bias.shape)[worst])
    return f"its bias leaves int32 (channel {worst}: {float(bias[worst]):.4g} on a scale of {on:.4g})"


FIT_BIASES = Pass(name="fit biases", run=_run, requires=(PLANNED, ACTIVATIONS_KNOWN, WEIGHTS_KNOWN), ensures=(PLANNED,))
CHECK_BIASES = Pass(
    name="check biases", run=_check, requires=(PLANNED, ACTIVATIONS_KNOWN, WEIGHTS_KNOWN), ensures=(PLANNED,)
)
