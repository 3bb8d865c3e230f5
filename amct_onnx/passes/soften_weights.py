"""Learns the soft rounding behind which AMCT observes the activations of a network with AdaRound.

AMCT learns before it observes, from the first batch and float activations, and leaves the weights between two integers
where few steps did not carry them to one. The scales of activations follow from that; the integers do not: they are
learned by `round_weights`, when the scales are known.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from amct_onnx.kernels.adaround import AdaRound, soft_weights
from amct_onnx.passes.calibration import CalibrationRun
from amct_onnx.passes.graph import Array
from amct_onnx.passes.invariants import PLANNED, STANDARD_ONLY, WEIGHTS_KNOWN
from amct_onnx.passes.layers import channels_first, layout_of, weight_of
from amct_onnx.passes.learn_layers import Samples, Task, as_matrices, learn_layers
from amct_onnx.passes.quantize_weights import with_fake_weights
from amct_onnx.passes.resources import available_cores
from amct_onnx.passes.state import Pass, QuantState


def soften_weights(run: CalibrationRun) -> Pass:
    """The pass that fills in the soft weights, where the plan asks for AMCT's scales."""

    def soften(state: QuantState) -> None:
        layers = {name: found for name, found in learned_layers(state).items() if found.amct_scales}
        if layers:
            for _ in run.track(_softened(state, layers, run), "soften weights", len(layers), "layers"):
                pass

    return Pass(name="soften weights", run=soften, requires=(PLANNED, WEIGHTS_KNOWN, STANDARD_ONLY))


def learned_layers(state: QuantState) -> dict[str, AdaRound]:
    """The layers whose rounding is learned, and how."""
    return {layer.name: layer.weight for layer in state.layers() if isinstance(layer.weight, AdaRound)}


def _softened(state: QuantState, layers: dict[str, AdaRound], run: CalibrationRun) -> Iterator[None]:
    def learn(task: Task, samples: Samples) -> Array | None:
        node = task.node
        layer = as_matrices(state, node, samples, 1.0)
        if not np.isfinite(layer.base).all() or not np.isfinite(layer.target).all():
            return None
        weight = weight_of(node)
        soft = soft_weights(layer, task.parameters, threads=available_cores())
        restored = layout_of(node).restored(soft.reshape(channels_first(node, weight).shape))
        state.softened[node.name] = np.ascontiguousarray(restored, weight.dtype)
        return state.softened[node.name]

    return learn_layers(state, with_fake_weights(state), layers, [run.first], run, learn)
