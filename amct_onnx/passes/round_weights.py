"""Rounds the weights of AdaRound's layers: each for the inputs that it gets once everything before it is quantized."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from amct_onnx.kernels.adaround import learn_rounding, nearest
from amct_onnx.passes.calibration import CalibrationRun
from amct_onnx.passes.correct_biases import CORRECT_BIASES
from amct_onnx.passes.graph import Array, Node
from amct_onnx.passes.insert_dequant import INSERT_DEQUANT
from amct_onnx.passes.insert_quant import INSERT_QUANT
from amct_onnx.passes.invariants import ACTIVATIONS_KNOWN, PLANNED, STANDARD_ONLY, WEIGHTS_KNOWN
from amct_onnx.passes.layers import channels_first, layout_of, weight_of
from amct_onnx.passes.learn_layers import Samples, Task, as_matrices, learn_layers
from amct_onnx.passes.lower_ascend import LOWER_ASCEND
from amct_onnx.passes.manager import run_passes
from amct_onnx.passes.merge_quants import MERGE_QUANTS
from amct_onnx.passes.quantize_weights import STORE_INTEGER_WEIGHTS
from amct_onnx.passes.recurrent import FAKE_RECURRENT
from amct_onnx.passes.resources import available_cores
from amct_onnx.passes.soften_weights import learned_layers
from amct_onnx.passes.state import Pass, QuantState

_log = logging.getLogger("amct_onnx")

_QUANTIZE = (
    CORRECT_BIASES,
    INSERT_QUANT,
    INSERT_DEQUANT,
    STORE_INTEGER_WEIGHTS,
    MERGE_QUANTS,
    FAKE_RECURRENT,
    LOWER_ASCEND,
)


def round_weights(run: CalibrationRun) -> Pass:
    """The pass that rounds the weights of AdaRound's layers."""

    def round_all(state: QuantState) -> None:
        layers = learned_layers(state)
        if layers:
            for _ in run.track(_rounded(state, run), "round weights", len(layers), "layers"):
                pass

    return Pass(
        name="round weights",
        run=round_all,
        requires=(PLANNED, WEIGHTS_KNOWN, ACTIVATIONS_KNOWN, STANDARD_ONLY),
        ensures=(PLANNED, WEIGHTS_KNOWN),
    )


def _rounded(state: QuantState, run: CalibrationRun) -> Iterator[None]:
    """Round every layer, and tell of each that is done."""
    quantized = replace(state, graph=state.graph.copy())
    run_passes(_QUANTIZE, quantized)

    def learn(task: Task, samples: Samples) -> Array | None:
        return _round(state, task, samples)

    return learn_layers(
        state, quantized.graph, learned_layers(state), run.feeds if run.silent is None else run.silent, run, learn
    )


def _round(state: QuantState, task: Task, samples: Samples) -> Array | None:
    """Learn the rounding, and keep it where it is better on samples that were held back."""
    node = task.node
    layer = as_matrices(state, node, samples, float(state.activations[node.name].scale))
    count = samples.learnable
    if not np.isfinite(layer.base).all() or not np.isfinite(layer.target).all():
        _remark(state, node, "its weights are rounded to nearest: its float outputs hold NaN or inf")
        return None
    if count in (0, layer.rows.shape[1]):
        _remark(state, node, "its weights are rounded to nearest: the data are too few to learn from and to judge by")
        return None
    plain = nearest(layer)
    learned = learn_rounding(layer.cut(slice(count)), task.parameters, threads=available_cores())
    judged = layer.cut(slice(count, None))
    before, after = judged.error(plain), judged.error(learned)
    _log.debug("layer %r: error %.4g rounded to nearest, %.4g learned", node.name, before, after)
    if not after < before:
        if not np.array_equal(plain, learned):
            _remark(
                state, node, "its weights are rounded to nearest: learned on other data, the rounding was no better"
            )
        return None
    return _store(state, node, learned)


def _store(state: QuantState, node: Node, learned: Array) -> Array:
    """Put the integers into the table; the weight of the quantized graph, which holds them as floats."""
    weight = weight_of(node)
    state.rounded[node.name] = learned.reshape(channels_first(node, weight).shape).astype(np.int8)
    return np.ascontiguousarray(layout_of(node).restored(state.rounded[node.name]), np.float32)


def _remark(state: QuantState, node: Node, text: str) -> None:
    state.remarks[node.name] = "; ".join(filter(None, (state.remarks.get(node.name), text)))
