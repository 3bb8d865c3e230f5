"""Finds the activation parameters: runs the calibration data, and lets an observer look at the input of every layer.

The model is the float one with fake-quantized weights, as AMCT calibrates it (ConvTranspose keeps float weights
there).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from threading import Thread
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amct_onnx.kernels import hfmg, ifmr
from amct_onnx.kernels.hfmg import Hfmg, HfmgObserver
from amct_onnx.kernels.ifmr import Ifmr, IfmrObserver
from amct_onnx.kernels.quant_params import QuantParams, dequantize, quantize, round_to_fp16
from amct_onnx.passes.graph import Node, derived, set_input
from amct_onnx.passes.invariants import ACTIVATIONS_KNOWN, PLANNED, STANDARD_ONLY, WEIGHTS_KNOWN
from amct_onnx.passes.layers import has_weight, layout_of
from amct_onnx.passes.observation import Budget, Feed, Observer, Watch, observe_batches, sweeps
from amct_onnx.passes.resources import available_cores, available_memory
from amct_onnx.passes.shapes import TensorType, infer_types
from amct_onnx.passes.shards import observe_sharded
from amct_onnx.passes.state import LayerPlan, Pass, QuantPlan, QuantState
from amct_onnx.passes.weights import ComputedArray, LightModel


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationRun:
    """How the data are to be run.

    feeds: the batches; gone through once for every sweep.
    first: one of them.
    memory_limit: bytes for the watched tensors of all batches that are on their way; None for half of what is free.
    executor: computes shards of the data elsewhere; None computes here.
    """

    feeds: Iterable[Feed]
    first: Feed
    memory_limit: int | None = None
    executor: Executor | None = None


def observe(run: CalibrationRun) -> Pass:
    """The pass that fills in the activation parameters."""

    def find(state: QuantState) -> None:
        served = _layers_by_watch(state, run.first)
        watches = [watch for watch, _ in served]
        memory = available_memory() // 2 if run.memory_limit is None else run.memory_limit
        budget = Budget(cores=available_cores(), memory=memory)
        model = _calibration_model(state)
        for group in sweeps(watches, budget):
            if run.executor is None:
                observe_batches(model, group, run.feeds, budget)
            else:
                observe_sharded(model, group, run.feeds, budget, run.executor)
        del model
        with ThreadPoolExecutor(budget.cores) as threads:
            for (_, layers), found in zip(served, threads.map(_search, watches), strict=True):
                _conclude(state, layers, found)

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


def _layers_by_watch(state: QuantState, first: Feed) -> list[tuple[Watch, list[str]]]:
    """One observer for each tensor and way of observing it, and the layers that it serves."""
    nodes = {node.name: node for node in state.graph.nodes}
    sizes = _Sizes(infer_types(state.graph, {name: array.shape for name, array in first.items()}))
    found: dict[tuple[str, Ifmr | Hfmg | QuantParams], tuple[Watch, list[str]]] = {}
    for layer in state.layers():
        tensor = nodes[layer.name].inputs[0].name
        key = (tensor, layer.activation)
        if key not in found:
            size = 0 if tensor in first else sizes.of(tensor)
            in_order = isinstance(layer.activation, Hfmg)
            found[key] = (Watch(tensor=tensor, observer=_observer_for(layer), in_order=in_order, size=size), [])
        found[key][1].append(layer.name)
    return list(found.values())


class _Sizes:
    """Bytes of tensors in one batch; a tensor of unknown shape counts as much as the largest of the known ones."""

    def __init__(self, types: Mapping[str, TensorType]) -> None:
        self._known = {
            name: 4 * math.prod(d for d in known.shape if d is not None)
            for name, known in types.items()
            if known.shape is not None and None not in known.shape
        }
        self._largest = max(self._known.values(), default=0)

    def of(self, tensor: str) -> int:
        return self._known.get(tensor, self._largest)


def _observer_for(layer: LayerPlan) -> Observer:
    assert not isinstance(layer.activation, QuantParams), "it is given, there is nothing to observe"
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
            set_input(node, 1, graph.new_constant(node.inputs[1].name, _fake_quantized(state, node)))
    return graph.to_light()


def _fake_quantized(state: QuantState, node: Node) -> ComputedArray:
    params, layout = state.weights[node.name], layout_of(node)
    dtype = np.dtype(node.inputs[1].dtype)

    def fake(weight: NDArray[Any]) -> NDArray[Any]:
        integers = quantize(layout.channels_first(weight), params)
        return layout.restored(dequantize(integers, params)).astype(dtype)

    return derived(node.inputs[1], dtype, node.inputs[1].shape, fake)


def _search(watch: Watch) -> QuantParams | str:
    """What was found, or why nothing can be."""
    if not watch.observer.finite:
        return f"its input {watch.tensor!r} holds NaN or inf on the calibration data"
    if watch.observer.count == 0:
        return f"its input {watch.tensor!r} is empty on the calibration data"
    return watch.observer.params()


def _conclude(state: QuantState, layers: Iterable[str], found: QuantParams | str) -> None:
    """Write the parameters into the table, or leave the layers float where there are none."""
    for layer in layers:
        if isinstance(found, str):
            state.left_float[layer] = found
        elif state.plan.fp16_scales:
            state.activations[layer] = replace(found, scale=np.asarray(round_to_fp16(found.scale), np.float32))
        else:
            state.activations[layer] = found
