"""Chooses the range of every activation among several, by the error that reaches the outputs of the layers it feeds.

No rule for ranges is the best on all networks: what clipping costs and what it gains depends on what the weights make
of the values. The candidates come from the histograms of the observers (`kernels/range_candidates.py`), and each is
tried on batches of the calibration data: the input is quantized and every layer that reads it is computed alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from amct_onnx.kernels.distribution import RangeCandidate, range_of
from amct_onnx.kernels.ifmr import Ifmr
from amct_onnx.kernels.quant_params import QuantParams, dequantize, params_from_range, quantize, round_to_fp16
from amct_onnx.passes.calibration import CalibrationRun, Sizes
from amct_onnx.passes.excerpt import between
from amct_onnx.passes.graph import Array, Node
from amct_onnx.passes.invariants import ACTIVATIONS_KNOWN, PLANNED, WEIGHTS_KNOWN
from amct_onnx.passes.layers import is_product, is_recurrent
from amct_onnx.passes.observation import Watch
from amct_onnx.passes.quantize_weights import with_fake_weights
from amct_onnx.passes.session import Session, open_session
from amct_onnx.passes.state import Pass, QuantState
from amct_onnx.passes.weights import LightModel

_SAMPLES = 100
"""Samples that the candidates are tried on, in whole batches: what they cost is much alike from one to the next."""

Layer = Callable[[Array], Array]


class OutputErrors:
    """Watches a tensor, and what each of several ways to quantize it does to the layers that read it.

    Attributes:
        count, finite: as of every observer.
        noise: for each way the sum over the layers of the error's power, as a share of the output's, [K].
    """

    def __init__(self, layers: Sequence[Layer], ways: Sequence[QuantParams]) -> None:
        """layers: each computes its outputs from the tensor."""
        self._layers, self._ways = layers, ways
        self._signals = np.zeros(len(layers))
        self._errors = np.zeros((len(layers), len(ways)))
        self.count, self.finite = 0, True

    def update(self, array: Array) -> None:
        """Take in one batch."""
        self.count += array.size
        outputs = [layer(array) for layer in self._layers]
        self._signals += [_power(output) for output in outputs]
        for way, params in enumerate(self._ways):
            given = dequantize(quantize(array, params), params).astype(array.dtype)
            for place, (layer, output) in enumerate(zip(self._layers, outputs, strict=True)):
                self._errors[place, way] += _power(layer(given) - output)
        self.finite = self.finite and bool(np.isfinite(self._errors).all())

    def merge(self, other: OutputErrors) -> None:
        """Take in what another one of the same has seen."""
        self._signals += other._signals
        self._errors += other._errors
        self.count, self.finite = self.count + other.count, self.finite and other.finite

    @property
    def noise(self) -> NDArray[np.float64]:  # noqa: D102 - see above
        some = self._signals > 0
        return np.asarray((self._errors[some] / self._signals[some, None]).sum(axis=0))


def choose_ranges(run: CalibrationRun) -> Pass:
    """The pass that replaces the parameters that observation found by better ones, where the plan asks for it."""

    def choose(state: QuantState) -> None:
        if not any(layer.choose_range for layer in state.layers()):
            return
        weighted, sizes = with_fake_weights(state).to_light(), Sizes(state, run.first)
        nodes = {node.name: node for node in state.graph.nodes}
        trials: list[_Trial] = []
        for tensor, names in _by_input(state, nodes).items():
            ways = _ways(state, names[0])
            layers = [_computed_alone(weighted, nodes[name]) for name in names]
            errors = OutputErrors(layers, [params for _, params in ways])
            watch = Watch(tensor=tensor, observer=errors, in_order=True, size=sizes.of(tensor))
            trials.append(_Trial(watch=watch, errors=errors, layers=names, ways=ways))
        feeds = run.feeds if run.silent is None else run.silent
        batches = math.ceil(_SAMPLES / _samples(run.first))
        replace(run, feeds=feeds, executor=None).limited(batches).show(weighted, [trial.watch for trial in trials])
        for trial in trials:
            if trial.errors.finite:
                _take_best(state, trial)

    return Pass(
        name="choose ranges",
        run=choose,
        requires=(PLANNED, WEIGHTS_KNOWN, ACTIVATIONS_KNOWN),
        ensures=(ACTIVATIONS_KNOWN,),
    )


Way = tuple[RangeCandidate, QuantParams]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trial:
    """A tensor, the layers that read it, and the ways to quantize it; IFMR's is the first."""

    watch: Watch
    errors: OutputErrors
    layers: Sequence[str]
    ways: Sequence[Way]


def _by_input(state: QuantState, nodes: Mapping[str, Node]) -> dict[str, list[str]]:
    """Tensor -> the layers whose range is chosen, which all read it and are to have the same."""
    found: dict[str, list[str]] = {}
    for layer in state.layers():
        node = nodes[layer.name]
        if layer.choose_range and not is_product(node) and not is_recurrent(node):
            found.setdefault(node.inputs[0].name, []).append(layer.name)
    same = {
        tensor: {id(state.activations[name]) for name in names}  # observation gave them one
        for tensor, names in found.items()
    }
    return {tensor: names for tensor, names in found.items() if len(same[tensor]) == 1}


def _ways(state: QuantState, name: str) -> list[Way]:
    """The parameters that were found, and those of the other candidates that differ from them."""
    found, activation = state.activations[name], state.plan.layers[name].activation
    assert isinstance(activation, Ifmr), "the plan sees to it"
    asymmetric = bool(activation.asymmetric)
    low, high = range_of(found)
    ways = [(RangeCandidate(name="IFMR", low=low, high=high), found)]
    known = {(float(found.scale), int(found.offset))}
    for candidate in state.considered[name]:
        params = params_from_range(candidate.low, candidate.high, asymmetric=asymmetric, num_bits=found.num_bits)
        if state.plan.fp16_scales:
            params = replace(params, scale=np.asarray(round_to_fp16(params.scale), np.float32))
        key = (float(params.scale), int(params.offset))
        if key not in known:
            known.add(key)
            ways.append((candidate, params))
    return ways


def _computed_alone(model: LightModel, node: Node) -> Layer:
    """The layer as a function of its input."""
    source, result, what = node.inputs[0].name, node.outputs[0].name, f"layer {node.name!r} by itself"
    opened: list[Session] = []

    def compute(values: Array) -> Array:
        if not opened:  # the first values say the type and the rank of the input
            opened.append(open_session(between(model, {source: values}, result), what, threads=1))
        return opened[0].run({source: values}, what)[result]

    return compute


def _samples(feed: Mapping[str, Array]) -> int:
    return max(1, *(array.shape[0] if array.ndim else 1 for array in feed.values()))


def _power(values: Array) -> float:
    flat = values.reshape(-1).astype(np.float64)
    return float(flat @ flat)


def _take_best(state: QuantState, trial: _Trial) -> None:
    """Give the layers the parameters with the least noise, and note what the others would have cost."""
    noise = trial.errors.noise
    best = int(np.argmin(noise))
    considered = tuple(
        replace(candidate, loss=float(noise[way])) for way, (candidate, _) in enumerate(trial.ways) if way != best
    )
    for name in trial.layers:
        state.activations[name], state.considered[name] = trial.ways[best][1], considered
