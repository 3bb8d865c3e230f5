"""How far a quantized model is from the float one: at its outputs, and at the output of every layer."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from amct_onnx.errors import ModelError
from amct_onnx.formats.model_file import ModelSource, read_model
from amct_onnx.passes.session import open_session
from amct_onnx.passes.weights import LightModel

_CHUNK = 1 << 16
"""Values that are compared at a time: as many as stay close to the processor."""

_QUANTIZED_ENDS = (".fakedequant.cast", ".fakedequant.mul", ".dequant")


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorError:
    """Difference of a tensor from its float twin, over all data.

    sqnr: 10 * log10(sum(x^2) / sum((x - y)^2)) in dB; inf where they are equal, NaN where they cannot be compared.
    cosine: of the angle between both, in [-1, 1]; 1 where both are zero.
    largest: the largest absolute difference.
    """

    sqnr: float
    cosine: float
    largest: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Errors of the outputs, and of the layers that both models have; in the order of the float model."""

    outputs: Mapping[str, TensorError]
    layers: Mapping[str, TensorError]


def compare_models(
    reference: ModelSource | LightModel,
    other: ModelSource | LightModel,
    feeds: Iterable[Mapping[str, NDArray[Any]]],
    *,
    layers: bool = True,
) -> Comparison:
    """Run both models, files or in memory, over `feeds` and compare their outputs and, where `layers`, their layers.

    Raises:
        ModelError: the models have no output in common, or one of them does not run.
    """
    first, second = read_model(reference), read_model(other)
    found = {value.name for value in second.proto.graph.output}
    outputs = [value.name for value in first.proto.graph.output if value.name in found]
    if not outputs:
        raise ModelError("the two models have no output of the same name")
    twins = layer_twins(first.proto, second.proto) if layers else {}
    ours = open_session(exposing(first, [pair[0] for pair in twins.values()]), "the float model")
    theirs = open_session(exposing(second, [pair[1] for pair in twins.values()]), "the quantized model")
    sums: dict[tuple[str, str], RunningError] = {}
    for batch, feed in enumerate(feeds):
        x, y = ours.run(feed, f"batch {batch}"), theirs.run(feed, f"batch {batch}")
        for name in outputs:
            sums.setdefault(("output", name), RunningError()).add(x[name], y[name])
        for layer, (here, there) in twins.items():
            sums.setdefault(("layer", layer), RunningError()).add(x[here], y[there])
    return Comparison(
        outputs={name: s.error() for (kind, name), s in sums.items() if kind == "output"},
        layers={name: s.error() for (kind, name), s in sums.items() if kind == "layer"},
    )


def compare_outputs(
    expected: Mapping[str, NDArray[Any]],
    model: LightModel,
    feed: Mapping[str, NDArray[Any]],
    what: str,
    *,
    optimize: bool = True,
) -> dict[str, TensorError]:
    """Run a model over one feed and compare its outputs with those expected.

    what: names the model in errors.
    optimize: let onnxruntime rewrite the graph.

    Raises:
        ModelError: it does not run, or gives NaN or inf where finite values are expected.
    """
    found = open_session(model, what, optimize=optimize).run(feed, "batch 0")
    errors = {}
    for name in expected:
        if _is_finite(expected[name]) and not _is_finite(found[name]):
            raise ModelError(f"output {name!r} of {what} is not finite, but that of the float model is")
        sums = RunningError()
        sums.add(expected[name], found[name])
        errors[name] = sums.error()
    return errors


def _is_finite(values: NDArray[Any]) -> bool:
    return values.dtype.kind != "f" or bool(np.isfinite(values).all())


@dataclass(slots=True)
class RunningError:
    """The difference of a tensor from its twin, batch after batch: sums in float64."""

    xx: float = 0.0
    yy: float = 0.0
    xy: float = 0.0
    noise: float = 0.0
    largest: float = field(default=0.0)

    def add(self, x: NDArray[Any], y: NDArray[Any]) -> None:
        """One more batch of the reference and its twin."""
        if x.shape != y.shape:
            self.noise = math.nan  # their number depends on the values, as behind NonZero
            return
        if x.size == 0 or x.dtype.kind not in "fiub":
            return
        x, y = x.ravel(), y.ravel()
        with np.errstate(invalid="ignore", over="ignore"):  # inf and NaN show in the result
            for start in range(0, x.size, _CHUNK):
                part = slice(start, start + _CHUNK)
                self._add(x[part].astype(np.float64), y[part].astype(np.float64))

    def _add(self, a: NDArray[np.float64], b: NDArray[np.float64]) -> None:
        difference = a - b
        if np.isnan(difference).any():  # what is infinite in both is equal
            counts = ~((a == b) & np.isinf(a))
            a, b, difference = a[counts], b[counts], difference[counts]
        self.xx += _dot(a, a)
        self.yy += _dot(b, b)
        self.xy += _dot(a, b)
        self.noise += _dot(difference, difference)
        self.largest = max(self.largest, float(np.abs(difference).max(initial=0.0)))

    def error(self) -> TensorError:
        """What was found so far."""
        if not math.isfinite(self.noise):
            return TensorError(sqnr=math.nan, cosine=math.nan, largest=math.nan)
        norm = math.sqrt(self.xx) * math.sqrt(self.yy)
        cosine = self.xy / norm if norm > 0 else float(self.xx == self.yy)
        return TensorError(sqnr=_decibels(self.xx, self.noise), cosine=min(1.0, cosine), largest=self.largest)


def _dot(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """The sum of products, on this thread: for so few numbers, waiting for others takes longer."""
    return float(np.einsum("i,i->", a, b))


def _decibels(signal: float, noise: float) -> float:
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


_GRID_ENDS = (".fakequant.scale", ".fakequant.float")
"""What follows the name of a tensor in that of the last node that puts it on a strategy's grid."""


def layer_twins(reference: onnx.ModelProto, other: onnx.ModelProto) -> dict[str, tuple[str, str]]:
    """Layer -> the tensor it gives in the float model, and in the other.

    A quantized layer's tensor on its integer scale keeps the float name, unless it was an output of the model.
    A tensor on the grid of a strategy counts for the node that gives it.
    """
    known = {name: node.name for node in reference.graph.node for name in node.output}
    twins = {}
    for node in other.graph.node:
        tensor = node.name.removesuffix(_GRID_ENDS[0]).removesuffix(_GRID_ENDS[1])
        if tensor != node.name and known.get(tensor):
            twins[known[tensor]] = (tensor, node.output[0])
        layer = layer_behind(node.name)
        if layer is None or layer in twins:
            continue
        result, scaled = node.output[0], node.input[0]
        if node.name.endswith(".cast"):
            scaled = next(n.input[0] for n in other.graph.node if node.input[0] in n.output)
        float_name = result if result in known else scaled
        if float_name in known:
            twins[layer] = (float_name, result)
    return twins


def layer_behind(name: str) -> str | None:
    """The layer that a node of this name ends, if it does."""
    return next((name.removesuffix(end) for end in _QUANTIZED_ENDS if name.endswith(end)), None)


def exposing(model: LightModel, tensors: Iterable[str]) -> LightModel:
    """The model with more outputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model.proto)
    present = {value.name for value in copy.graph.output}
    for name in tensors:
        if name not in present:
            present.add(name)
            copy.graph.output.add().name = name
    return replace(model, proto=copy)
