"""Finds the activation parameters: runs the calibration data, and lets an observer look at the input of every layer.

The model is the float one with fake-quantized weights, as AMCT calibrates it (ConvTranspose keeps float weights
there).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass, field, replace
from threading import Thread
from typing import Any

import numpy as np

from amct_onnx.kernels import hfmg, ifmr
from amct_onnx.kernels.channel_means import MeansObserver
from amct_onnx.kernels.distribution import RangeCandidate
from amct_onnx.kernels.hfmg import Hfmg, HfmgObserver
from amct_onnx.kernels.ifmr import Ifmr, IfmrObserver
from amct_onnx.kernels.quant_params import FLT_EPS, QuantParams, round_to_fp16
from amct_onnx.kernels.strategy import TensorStrategy
from amct_onnx.passes.calibration import CalibrationRun, Sizes, why_unusable
from amct_onnx.passes.correct_biases import why_not_corrected
from amct_onnx.passes.invariants import ACTIVATIONS_KNOWN, PLANNED, STANDARD_ONLY, WEIGHTS_KNOWN
from amct_onnx.passes.layers import channel_axis, has_weight, is_product, is_recurrent
from amct_onnx.passes.observation import Feed, Watch
from amct_onnx.passes.quantize_weights import with_fake_weights
from amct_onnx.passes.recurrent_layers import INITIAL_H
from amct_onnx.passes.resources import available_cores
from amct_onnx.passes.state import Pass, QuantPlan, QuantState


def observe(run: CalibrationRun) -> Pass:
    """The pass that fills in the activation parameters."""

    def find(state: QuantState) -> None:
        served = _places_by_watch(state, run.first)
        means = _means_by_input(state)
        model = with_fake_weights(state).to_light()
        run.show(model, [watch for watch, *_ in (*served, *means)])
        del model
        state.softened.clear()  # as large as the weights, and of no more use
        found = scales_of(served, joint_keys(state.plan), fp16=state.plan.fp16_scales)
        state.activations.update(found.activations)
        _take_seconds(state, served, found)
        state.left_float.update(found.left_float)
        for watch, seen, layers in means:
            if why_unusable(watch) is None:
                state.means.update(dict.fromkeys(layers, seen.means()))
        _note_what_was_seen(state, served)

    return Pass(
        name="observe",
        run=find,
        requires=(PLANNED, WEIGHTS_KNOWN, STANDARD_ONLY),
        ensures=(ACTIVATIONS_KNOWN,),
    )


def _note_what_was_seen(state: QuantState, served: Iterable[Served]) -> None:
    """Keep of every observer what a report shows."""
    for _, observer, places in served:
        seen, considered = observer.distribution(), observer.considered()
        whole = RangeCandidate(name="min-max", low=seen.low, high=seen.high)
        for name, is_second in places:
            key = f"{name}:1" if is_second else name
            state.distributions[key], state.considered[key] = seen, (whole, *considered)


def warm_up_beside(plan: QuantPlan) -> None:
    """Compile the kernels that the plan needs in a thread of their own; who needs them earlier waits for it."""
    used = {type(layer.activation) for layer in plan.layers.values()} | {type(t.activation) for t in plan.tensors}
    kernels = [warm_up for algorithm, warm_up in ((Ifmr, ifmr.warm_up), (Hfmg, hfmg.warm_up)) if algorithm in used]
    Thread(target=lambda: [warm_up() for warm_up in kernels], name="amct_onnx-compile").start()


RangeObserver = IfmrObserver | HfmgObserver

Place = tuple[str, bool]
"""A layer or a tensor that is planned by itself; whether it is the second activation of the layer."""

Served = tuple[Watch, RangeObserver, list[Place]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scales:
    """What was found.

    activations: layer, or key of a tensor -> parameters.
    seconds: layer -> parameters of its second activation: input 1 of a product, the hidden state of an LSTM or GRU.
    left_float: layer, or key of a tensor -> why it stays float.
    """

    activations: dict[str, QuantParams] = field(default_factory=dict)
    seconds: dict[str, QuantParams] = field(default_factory=dict)
    left_float: dict[str, str] = field(default_factory=dict)


def _places_by_watch(state: QuantState, first: Feed) -> list[Served]:
    """One observer for each tensor and way of observing it, and the layers and planned tensors that it serves."""
    sizes = Sizes(state, first)
    found: list[Served] = []
    for (tensor, activation), places in places_by_tensor(state).items():
        observer = observer_for(activation)
        in_order = isinstance(activation, Hfmg)
        watch = Watch(tensor=tensor, observer=observer, in_order=in_order, size=sizes.of(tensor))
        found.append((watch, observer, places))
    return found


def places_by_tensor(state: QuantState) -> dict[tuple[str, Ifmr | Hfmg], list[Place]]:
    """Each tensor to observe, and how -> the layers and planned tensors that it is for."""
    nodes = {node.name: node for node in state.graph.nodes}
    wanted: list[tuple[Place, str, Ifmr | Hfmg | QuantParams | TensorStrategy]] = []
    for layer in state.layers():
        node = nodes[layer.name]
        wanted.append(((layer.name, False), node.inputs[0].name, layer.activation))
        if is_product(node):
            wanted.append(((layer.name, True), node.inputs[1].name, layer.activation))
        if is_recurrent(node):
            wanted.append(((layer.name, True), node.inputs[INITIAL_H].name, layer.activation))
    for own in state.tensors():
        wanted.append(((own.key, False), nodes[own.node].inputs[own.index].name, own.activation))
    found: dict[tuple[str, Ifmr | Hfmg], list[Place]] = {}
    for place, tensor, activation in wanted:
        assert isinstance(activation, (Ifmr, Hfmg)), "there is nothing to observe, or another way to"
        found.setdefault((tensor, activation), []).append(place)
    return found


def joint_keys(plan: QuantPlan) -> list[tuple[str, ...]]:
    """The keys of the planned tensors that share a scale, node by node."""
    pairs: dict[str, list[str]] = {}
    for tensor in plan.tensors:
        if tensor.joint:
            pairs.setdefault(tensor.node, []).append(tensor.key)
    return [tuple(keys) for keys in pairs.values()]


def _means_by_input(state: QuantState) -> list[tuple[Watch, MeansObserver, list[str]]]:
    """One observer for each tensor whose means a layer's bias is corrected with, and those layers."""
    nodes = {node.name: node for node in state.graph.nodes}
    found: dict[tuple[str, int], list[str]] = {}
    for layer in state.layers():
        node = nodes[layer.name]
        if layer.correct_bias and has_weight(node) and why_not_corrected(state.graph, node) is None:
            found.setdefault((node.inputs[0].name, channel_axis(node)), []).append(layer.name)
    observers = [MeansObserver(axis=axis) for _, axis in found]
    watches = [Watch(tensor=tensor, observer=seen) for (tensor, _), seen in zip(found, observers, strict=True)]
    return list(zip(watches, observers, found.values(), strict=True))


def observer_for(activation: Ifmr | Hfmg) -> RangeObserver:
    """An observer that has seen nothing; `asymmetric` is decided."""
    assert activation.asymmetric is not None, "the plan decides it"
    if isinstance(activation, Ifmr):
        return IfmrObserver(activation, asymmetric=activation.asymmetric)
    return HfmgObserver(activation, asymmetric=activation.asymmetric)


def scales_of(served: Sequence[Served], joint: Iterable[tuple[str, ...]], *, fp16: bool) -> Scales:
    """What follows from what was seen.

    Args:
        served: observers that have seen all batches, and what they are for.
        joint: keys that are to share a scale.
        fp16: round scales to what fp16 holds.
    """
    scales = Scales()
    with ThreadPoolExecutor(available_cores()) as threads:
        for (_, _, places), found in zip(served, threads.map(_search, served), strict=True):
            _conclude(scales, places, found, fp16)
    _join(scales, served, joint, fp16)
    return scales


def _search(served: Served) -> QuantParams | str:
    """What was found, or why nothing can be."""
    watch, observer, _ = served
    return why_unusable(watch) or _usable(observer)


_SMALLEST = np.float32(2.0**-22)
"""The scale of activations that are all but zero: above what the chip takes, and a square of what fp16 holds."""


def _usable(observer: RangeObserver) -> QuantParams | str:
    """What an observer found, but for ranges so small that AMCT gives them the scale 1, which rounds all to zero.

    Or why there is no scale: the chip takes none above 2^23.
    """
    found = observer.params()
    low, high = observer.extent
    if found.scale > 1 / FLT_EPS:
        largest = max(-low, high)
        return f"its input reaches {largest:.3g} on the calibration data, and the largest scale of the chip is 2^23"
    if found.scale != 1.0 or not 0 < max(-low, high) < 0.5:
        return found
    offset = np.clip(np.rint(found.q_min - low / _SMALLEST), found.q_min, found.q_max) if observer.asymmetric else 0
    return replace(found, scale=np.asarray(_SMALLEST), offset=np.asarray(offset, np.int32))


def _take_seconds(state: QuantState, served: Sequence[Served], found: Scales) -> None:
    """Write down the second activations; layers whose hidden state was never seen to differ from zero stay float."""
    nodes = {node.name: node for node in state.graph.nodes}
    zeros = {
        name for _, observer, places in served if observer.extent == (0.0, 0.0) for name, second in places if second
    }
    for name, params in found.seconds.items():
        if not is_recurrent(nodes[name]):
            state.weights[name] = params
        elif name in zeros:
            state.left_float[name] = "its initial_h is zero on all calibration data, which says nothing of later states"
        else:
            state.hidden[name] = params


def _join(scales: Scales, served: Iterable[Served], joint: Iterable[tuple[str, ...]], fp16: bool) -> None:
    """Give the two inputs of a node that are to share a scale the one that fits what was seen of both."""
    observers = {name: observer for _, observer, places in served for name, _ in places}
    for keys in joint:
        if failed := [key for key in keys if key in scales.left_float]:
            for key in keys:
                scales.left_float.setdefault(key, f"it was to share its scale with {failed[0]!r}, which stays float")
            continue
        first, second = (observers[key] for key in keys)
        merged: Any = deepcopy(first)  # a layer may have it too
        if second is not first:
            merged.merge(second)
        _conclude(scales, [(key, False) for key in keys], _usable(merged), fp16)


def _conclude(scales: Scales, places: Iterable[Place], found: QuantParams | str, fp16: bool) -> None:
    """Write down the parameters, or why there are none."""
    for name, is_second in places:
        if isinstance(found, str):
            scales.left_float[name] = found
            continue
        kept = replace(found, scale=np.asarray(round_to_fp16(found.scale), np.float32)) if fp16 else found
        (scales.seconds if is_second else scales.activations)[name] = kept
