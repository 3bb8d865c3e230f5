"""Finds the activation parameters: runs the calibration data, and lets an observer look at the input of every layer.

The model is the float one with fake-quantized weights, as AMCT calibrates it (ConvTranspose keeps float weights
there).
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace
from threading import Thread
from typing import Any

import numpy as np

from amct_onnx.kernels import hfmg, ifmr
from amct_onnx.kernels.hfmg import Hfmg, HfmgObserver
from amct_onnx.kernels.ifmr import Ifmr, IfmrObserver
from amct_onnx.kernels.quant_params import QuantParams, round_to_fp16
from amct_onnx.passes.calibration import CalibrationRun, Sizes, why_unusable
from amct_onnx.passes.invariants import ACTIVATIONS_KNOWN, PLANNED, STANDARD_ONLY, WEIGHTS_KNOWN
from amct_onnx.passes.layers import is_product, is_recurrent
from amct_onnx.passes.observation import Feed, Watch
from amct_onnx.passes.quantize_weights import with_fake_weights
from amct_onnx.passes.recurrent_layers import INITIAL_H
from amct_onnx.passes.resources import available_cores
from amct_onnx.passes.state import Pass, QuantPlan, QuantState


def observe(run: CalibrationRun) -> Pass:
    """The pass that fills in the activation parameters."""

    def find(state: QuantState) -> None:
        served = _layers_by_watch(state, run.first)
        watches = [watch for watch, _, _ in served]
        model = with_fake_weights(state).to_light()
        run.show(model, watches)
        del model
        state.softened.clear()  # as large as the weights, and of no more use
        with ThreadPoolExecutor(available_cores()) as threads:
            for (_, observer, places), found in zip(served, threads.map(_search, served), strict=True):
                _conclude(state, _with_seen_state(state, observer, places), found)
        _join(state, served)

    return Pass(
        name="observe",
        run=find,
        requires=(PLANNED, WEIGHTS_KNOWN, STANDARD_ONLY),
        ensures=(ACTIVATIONS_KNOWN,),
    )


def warm_up_beside(plan: QuantPlan) -> None:
    """Compile the kernels that the plan needs in a thread of their own; who needs them earlier waits for it."""
    used = {type(layer.activation) for layer in plan.layers.values()} | {type(t.activation) for t in plan.tensors}
    kernels = [warm_up for algorithm, warm_up in ((Ifmr, ifmr.warm_up), (Hfmg, hfmg.warm_up)) if algorithm in used]
    Thread(target=lambda: [warm_up() for warm_up in kernels], name="amct_onnx-compile").start()


_Range = IfmrObserver | HfmgObserver
_Place = tuple[str, dict[str, QuantParams]]
"""A layer or a tensor that is planned by itself; the column of the table that its parameters go into."""

_Served = tuple[Watch, _Range, list[_Place]]


def _layers_by_watch(state: QuantState, first: Feed) -> list[_Served]:
    """One observer for each tensor and way of observing it, and the layers and planned tensors that it serves."""
    nodes = {node.name: node for node in state.graph.nodes}
    sizes = Sizes(state, first)
    found: dict[tuple[str, Ifmr | Hfmg | QuantParams], _Served] = {}
    wanted: list[tuple[_Place, str, Ifmr | Hfmg | QuantParams]] = []
    for layer in state.layers():
        node = nodes[layer.name]
        wanted.append(((layer.name, state.activations), node.inputs[0].name, layer.activation))
        if is_product(node):
            wanted.append(((layer.name, state.weights), node.inputs[1].name, layer.activation))
        if is_recurrent(node):
            wanted.append(((layer.name, state.hidden), node.inputs[INITIAL_H].name, layer.activation))
    for own in state.tensors():
        wanted.append(((own.key, state.activations), nodes[own.node].inputs[own.index].name, own.activation))
    for place, tensor, activation in wanted:
        key = (tensor, activation)
        if key not in found:
            observer = _observer_for(activation)
            in_order = isinstance(activation, Hfmg)
            watch = Watch(tensor=tensor, observer=observer, in_order=in_order, size=sizes.of(tensor))
            found[key] = (watch, observer, [])
        found[key][2].append(place)
    return list(found.values())


def _observer_for(activation: Ifmr | Hfmg | QuantParams) -> _Range:
    assert not isinstance(activation, QuantParams), "it is given, there is nothing to observe"
    asymmetric = activation.asymmetric
    assert asymmetric is not None, "the plan decides it"
    if isinstance(activation, Ifmr):
        return IfmrObserver(activation, asymmetric=asymmetric)
    return HfmgObserver(activation, asymmetric=asymmetric)


_SMALLEST = np.float32(2.0**-22)
"""The scale of activations that are all but zero: above what the chip takes, and a square of what fp16 holds."""


def _search(served: _Served) -> QuantParams | str:
    """What was found, or why nothing can be."""
    watch, observer, _ = served
    return why_unusable(watch) or _usable(observer)


def _usable(observer: _Range) -> QuantParams:
    """What an observer found, but for ranges so small that AMCT gives them the scale 1, which rounds all to zero."""
    found = observer.params()
    low, high = observer.extent
    if found.scale != 1.0 or not 0 < max(-low, high) < 0.5:
        return found
    offset = np.clip(np.rint(found.q_min - low / _SMALLEST), found.q_min, found.q_max) if observer.asymmetric else 0
    return replace(found, scale=np.asarray(_SMALLEST), offset=np.asarray(offset, np.int32))


def _with_seen_state(state: QuantState, observer: _Range, places: Iterable[_Place]) -> list[_Place]:
    """`places` without the hidden states of which nothing but zeros was seen: these layers stay float."""
    if observer.extent != (0.0, 0.0):
        return list(places)
    for name, column in places:
        if column is state.hidden:
            state.left_float[name] = "its initial_h is zero on all calibration data, which says nothing of later states"
    return [(name, column) for name, column in places if column is not state.hidden]


def _join(state: QuantState, served: Iterable[_Served]) -> None:
    """Give the two inputs of a node that are to share a scale the one that fits what was seen of both."""
    observers = {name: observer for _, observer, places in served for name, _ in places}  # tensors have one each
    pairs: dict[str, list[str]] = {}
    for tensor in state.plan.tensors:
        if tensor.joint:
            pairs.setdefault(tensor.node, []).append(tensor.key)
    for keys in pairs.values():
        if failed := [key for key in keys if key in state.left_float]:
            for key in keys:
                state.left_float.setdefault(key, f"it was to share its scale with {failed[0]!r}, which stays float")
            continue
        first, second = (observers[key] for key in keys)
        merged: Any = deepcopy(first)  # a layer may have it too
        if second is not first:
            merged.merge(second)
        _conclude(state, [(key, state.activations) for key in keys], merged.params())


def _conclude(state: QuantState, places: Iterable[_Place], found: QuantParams | str) -> None:
    """Write the parameters into the table, or leave the layers float where there are none."""
    for name, column in places:
        if isinstance(found, str):
            state.left_float[name] = found
            continue
        kept = found
        if state.plan.fp16_scales:
            kept = replace(found, scale=np.asarray(round_to_fp16(found.scale), np.float32))
        column[name] = kept
