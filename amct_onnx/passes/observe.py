"""Finds the activation parameters: runs the calibration data, and lets an observer look at the input of every layer.

The model is the float one with fake-quantized weights, as AMCT calibrates it (ConvTranspose keeps float weights
there).
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Thread

import numpy as np

from amct_onnx.kernels import hfmg, ifmr
from amct_onnx.kernels.channel_means import MeansObserver
from amct_onnx.kernels.hfmg import Hfmg, HfmgObserver
from amct_onnx.kernels.ifmr import Ifmr, IfmrObserver
from amct_onnx.kernels.quant_params import QuantParams, round_to_fp16
from amct_onnx.kernels.strategy import TensorStrategy
from amct_onnx.passes.calibration import CalibrationRun, Sizes, why_unusable
from amct_onnx.passes.correct_biases import channel_axis
from amct_onnx.passes.graph import set_input
from amct_onnx.passes.invariants import ACTIVATIONS_KNOWN, PLANNED, STANDARD_ONLY, WEIGHTS_KNOWN
from amct_onnx.passes.layers import has_weight
from amct_onnx.passes.observation import Feed, Watch
from amct_onnx.passes.quantize_weights import fake_quantized
from amct_onnx.passes.resources import available_cores
from amct_onnx.passes.state import LayerPlan, Pass, QuantPlan, QuantState
from amct_onnx.passes.weights import LightModel


def observe(run: CalibrationRun) -> Pass:
    """The pass that fills in the activation parameters."""

    def find(state: QuantState) -> None:
        served = _layers_by_watch(state, run.first)
        means = _means_by_input(state)
        watches = [watch for watch, _, _ in served] + [watch for watch, _, _ in means]
        model = _calibration_model(state)
        run.show(model, watches)
        del model
        with ThreadPoolExecutor(available_cores()) as threads:
            for (_, _, layers), found in zip(served, threads.map(_search, served), strict=True):
                _conclude(state, layers, found)
        for watch, seen, layers in means:
            if why_unusable(watch) is None:
                state.means.update(dict.fromkeys(layers, seen.means()))

    return Pass(
        name="observe",
        run=find,
        requires=(PLANNED, WEIGHTS_KNOWN, STANDARD_ONLY),
        ensures=(ACTIVATIONS_KNOWN,),
    )


def warm_up_beside(plan: QuantPlan) -> None:
    """Compile the kernels that the plan needs in a thread of their own; who needs them earlier waits for it."""
    used = {type(layer.activation) for layer in plan.layers.values()}
    kernels = [warm_up for algorithm, warm_up in ((Ifmr, ifmr.warm_up), (Hfmg, hfmg.warm_up)) if algorithm in used]
    Thread(target=lambda: [warm_up() for warm_up in kernels], name="amct_onnx-compile").start()


_Range = IfmrObserver | HfmgObserver
_Served = tuple[Watch, _Range, list[str]]


def _layers_by_watch(state: QuantState, first: Feed) -> list[_Served]:
    """One observer for each tensor and way of observing it, and the layers that it serves."""
    nodes = {node.name: node for node in state.graph.nodes}
    sizes = Sizes(state, first)
    found: dict[tuple[str, Ifmr | Hfmg | QuantParams | TensorStrategy], _Served] = {}
    for layer in state.layers():
        tensor = nodes[layer.name].inputs[0].name
        key = (tensor, layer.activation)
        if key not in found:
            observer = _observer_for(layer)
            in_order = isinstance(layer.activation, Hfmg)
            watch = Watch(tensor=tensor, observer=observer, in_order=in_order, size=sizes.of(tensor))
            found[key] = (watch, observer, [])
        found[key][2].append(layer.name)
    return list(found.values())


def _means_by_input(state: QuantState) -> list[tuple[Watch, MeansObserver, list[str]]]:
    """One observer for each tensor whose means a layer's bias is corrected with, and those layers."""
    nodes = {node.name: node for node in state.graph.nodes}
    found: dict[tuple[str, int], list[str]] = {}
    for layer in state.layers():
        node = nodes[layer.name]
        if layer.correct_bias and has_weight(node):
            found.setdefault((node.inputs[0].name, channel_axis(node)), []).append(layer.name)
    observers = [MeansObserver(axis=axis) for _, axis in found]
    watches = [Watch(tensor=tensor, observer=seen) for (tensor, _), seen in zip(found, observers, strict=True)]
    return list(zip(watches, observers, found.values(), strict=True))


def _observer_for(layer: LayerPlan) -> _Range:
    assert isinstance(layer.activation, (Ifmr, Hfmg)), "there is nothing to observe, or another way to"
    asymmetric = layer.activation.asymmetric
    assert asymmetric is not None, "the plan decides it"
    if isinstance(layer.activation, Ifmr):
        return IfmrObserver(layer.activation, asymmetric=asymmetric)
    return HfmgObserver(layer.activation, asymmetric=asymmetric)


def _calibration_model(state: QuantState) -> LightModel:
    """The float model with fake-quantized weights."""
    graph = state.graph.copy()
    planned = state.plan.layers
    for node in graph.nodes:
        if node.name in planned and has_weight(node) and node.op != "ConvTranspose":
            set_input(node, 1, graph.new_constant(node.inputs[1].name, fake_quantized(state, node)))
    return graph.to_light()


def _search(served: _Served) -> QuantParams | str:
    """What was found, or why nothing can be."""
    watch, observer, _ = served
    return why_unusable(watch) or observer.params()


def _conclude(state: QuantState, layers: Iterable[str], found: QuantParams | str) -> None:
    """Write the parameters into the table, or leave the layers float where there are none."""
    for layer in layers:
        if isinstance(found, str):
            state.left_float[layer] = found
        elif state.plan.fp16_scales:
            state.activations[layer] = replace(found, scale=np.asarray(round_to_fp16(found.scale), np.float32))
        else:
            state.activations[layer] = found
