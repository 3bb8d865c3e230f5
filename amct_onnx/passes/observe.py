"""Runs the calibration data through the model and lets an observer look at the input of every layer.

The model is the float one with fake-quantized weights, as AMCT calibrates it (ConvTranspose keeps float weights
there). Batches are streamed: nothing is kept of them but the state of the observers.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from amct_onnx.kernels.hfmg import Hfmg, HfmgObserver
from amct_onnx.kernels.ifmr import Ifmr, IfmrObserver
from amct_onnx.kernels.quant_params import QuantParams, dequantize, round_to_fp16
from amct_onnx.passes.graph import Graph, Node, set_constant
from amct_onnx.passes.invariants import ACTIVATIONS_KNOWN, PLANNED, STANDARD_ONLY, WEIGHTS_KNOWN
from amct_onnx.passes.layers import channels_first, channels_restored, has_weight, weight_of
from amct_onnx.passes.quantize_weights import integers_of
from amct_onnx.passes.session import open_session, run_session
from amct_onnx.passes.state import LayerPlan, Pass, QuantState

Feeds = Iterable[Mapping[str, NDArray[Any]]]


class Observer(Protocol):
    """Looks at a tensor batch by batch; its state has a constant size and can be merged."""

    @property
    def count(self) -> int:
        """Values seen."""
        ...

    @property
    def finite(self) -> bool:
        """Whether none of them was NaN or inf."""
        ...

    def update(self, array: NDArray[Any]) -> None:
        """Take in one batch."""
        ...

    def params(self) -> QuantParams:
        """Scale and offset after all that was seen."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Watch:
    """An observer, the tensor it looks at, and the layers that it serves."""

    tensor: str
    observer: Observer
    layers: list[str]


def observe(feeds: Feeds) -> Pass:
    """The pass that fills in the activation parameters from `feeds`."""

    def run(state: QuantState) -> None:
        watches = _watches(state)
        model = _calibration_graph(state, watches).to_model()
        session = open_session(model, "the calibration model")
        names = [output.name for output in session.get_outputs()]
        # One observer is one task, so the number of threads changes nothing but the time.
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            for batch, feed in enumerate(feeds):
                values = dict(zip(names, run_session(session, feed, f"calibration batch {batch}"), strict=True))
                values.update(feed)
                list(threads.map(_look, watches, repeat(values)))
            for watch, params in zip(watches, threads.map(_search, watches), strict=True):
                _conclude(state, watch, params)

    return Pass(
        name="observe",
        run=run,
        requires=(PLANNED, WEIGHTS_KNOWN, STANDARD_ONLY),
        ensures=(ACTIVATIONS_KNOWN,),
    )


def _watches(state: QuantState) -> list[_Watch]:
    """One observer for each tensor and way of observing it."""
    nodes = {node.name: node for node in state.graph.nodes}
    found: dict[tuple[str, Ifmr | Hfmg], _Watch] = {}
    for layer in state.layers():
        tensor = nodes[layer.name].inputs[0].name
        key = (tensor, layer.activation)
        if key not in found:
            found[key] = _Watch(tensor=tensor, observer=_observer_for(layer), layers=[])
        found[key].layers.append(layer.name)
    return list(found.values())


def _observer_for(layer: LayerPlan) -> Observer:
    asymmetric = layer.activation.asymmetric
    assert asymmetric is not None, "the plan decides it"
    if isinstance(layer.activation, Ifmr):
        return IfmrObserver(layer.activation, asymmetric=asymmetric)
    return HfmgObserver(layer.activation, asymmetric=asymmetric)


def _calibration_graph(state: QuantState, watches: Iterable[_Watch]) -> Graph:
    """A copy of the graph with fake-quantized weights and the watched tensors as outputs."""
    graph = state.graph.copy()
    planned = state.plan.layers
    for node in graph.nodes:
        if node.name in planned and has_weight(node) and node.op != "ConvTranspose":
            set_constant(node.inputs[1], _fake_quantized(state, node))
    fed = {tensor.name for tensor in graph.inputs}
    seen = {tensor.name for tensor in graph.outputs} | fed
    tensors = {tensor.name: tensor for node in graph.nodes for tensor in node.outputs}
    for watch in watches:
        if watch.tensor not in seen:
            seen.add(watch.tensor)
            graph.outputs.append(tensors[watch.tensor])
    return graph


def _fake_quantized(state: QuantState, node: Node) -> NDArray[Any]:
    params = state.weights[node.name]
    weight = weight_of(node)
    fake = dequantize(channels_first(node, integers_of(state, node)), params)
    return channels_restored(node, fake).astype(weight.dtype)


def _look(watch: _Watch, values: Mapping[str, NDArray[Any]]) -> None:
    watch.observer.update(values[watch.tensor])


def _search(watch: _Watch) -> QuantParams | str:
    """What was found, or why nothing can be."""
    if not watch.observer.finite:
        return f"its input {watch.tensor!r} holds NaN or inf on the calibration data"
    if watch.observer.count == 0:
        return f"its input {watch.tensor!r} is empty on the calibration data"
    return watch.observer.params()


def _conclude(state: QuantState, watch: _Watch, found: QuantParams | str) -> None:
    """Write the parameters into the table, or leave the layers float where there are none."""
    for layer in watch.layers:
        if isinstance(found, str):
            state.left_float[layer] = found
        elif state.plan.fp16_scales:
            state.activations[layer] = replace(found, scale=np.asarray(round_to_fp16(found.scale), np.float32))
        else:
            state.activations[layer] = found
