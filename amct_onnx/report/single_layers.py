"""Every layer of a deploy model by itself, fed with what the fake-quant model feeds it, on one kind of chip."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx

from amct_onnx.deploy.merging import MERGED, Merge
from amct_onnx.deploy.profiles import HALF_MAX, PROFILES, Profile
from amct_onnx.deploy.simulate import simulated
from amct_onnx.errors import ModelError
from amct_onnx.passes.session import open_session
from amct_onnx.passes.weights import LightModel
from amct_onnx.report.compare import RunningError
from amct_onnx.report.layer_places import (
    Array,
    LayerPlaces,
    ModelTriple,
    Values,
    float_attribute,
    opened,
    quantized_both_ways,
    values_of,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SingleLayer:
    """One layer alone on one chip: its SQNR, cause -> SQNR, share of saturated results."""

    alone: float
    costs: Mapping[str, float]
    saturated: float


class SingleLayers:
    """Every layer by itself, fed with what the fake-quant model feeds it on one batch."""

    def __init__(self, models: ModelTriple, feed: Values) -> None:
        self.models = models
        layers = models.layers.values()
        wanted = [*(layer.fake_tensor for layer in layers), *models.quantized.values()]
        session = opened(models.fake, wanted, "the fake-quant model")
        self.values = values_of(session, feed, "batch 0")
        ideal = _run_apart(_cut_apart(models, self.values), PROFILES["ideal"])
        self._ideal = {
            name: _sqnr(self.values[layer.fake_tensor], ideal[layer.dequant.output[0]])
            for name, layer in models.layers.items()
        }

    def measure(self, profile: Profile, merges: Mapping[str, Merge]) -> dict[str, SingleLayer]:
        """Every layer on one chip, and with each of its choices undone; merged scales stay merged."""
        cut = _cut_apart(self.models, self.values, merges, one_step=profile.requant == "one step")
        undone = {
            "float16 quantization": replace(profile, half_quant=False) if profile.half_quant else None,
            f"{profile.scale} scale": replace(profile, scale="whole") if profile.scale != "whole" else None,
            "float16 results": replace(profile, half_result=False) if profile.half_result else None,
        }
        own = _run_apart(cut, profile)
        layers = self.models.layers
        results = {name: layer.dequant.output[0] for name, layer in layers.items()}
        costs = {name: {self._order(layer): self._ideal[name]} for name, layer in layers.items()}
        for cause, variant in undone.items():
            if variant is not None:
                other = _run_apart(cut, variant)
                for name, result in results.items():
                    costs[name][cause] = _sqnr(other[result], own[result])
        return {
            name: SingleLayer(
                alone=_sqnr(self.values[layer.fake_tensor], own[results[name]]),
                costs={cause: cost for cause, cost in costs[name].items() if cost != math.inf},
                saturated=_saturated(own[results[name]]) if profile.half_result else 0.0,
            )
            for name, layer in layers.items()
        }

    def _order(self, layer: LayerPlaces) -> str:
        """What the exact integers of the definition change."""
        before, behind = quantized_both_ways(self.values[layer.fake_input], layer)
        return "ties" if (before != behind).any() else "float32 rounding"


def _saturated(values: Array) -> float:
    return float((np.abs(values) >= HALF_MAX).mean()) if values.size else 0.0


def _run_apart(cut: tuple[LightModel, Values], profile: Profile) -> dict[str, Array]:
    model, feed = cut
    return open_session(simulated(model, profile), f"single layers on {profile.name}").run(feed, "batch 0")


def _sqnr(expected: Array, found: Array) -> float:
    running = RunningError()
    running.add(expected, found)
    return running.error().sqnr


def _cut_apart(
    models: ModelTriple, values: Values, merges: Mapping[str, Merge] | None = None, *, one_step: bool = False
) -> tuple[LightModel, Values]:
    """The deploy model with every AscendQuant fed from outside, and what to feed.

    An AscendQuant whose scale was merged into the layer before is fed what is scaled already. Where both are one step,
    nothing is rounded between them: not behind the one layer, nor in front of the other.
    """
    source, layers = models.deploy.proto, models.layers.values()
    merged = {quant.name for merge in (merges or {}).values() for quant in merge.quants} | (merges or {}).keys()
    cut = onnx.ModelProto(ir_version=source.ir_version, opset_import=source.opset_import)
    cut.graph.name = "layers"
    feed: dict[str, Array] = {}
    for node in _needed(source.graph, [layer.dequant for layer in layers]):
        copy = cut.graph.node.add()
        copy.CopyFrom(node)
        if node.op_type == "AscendQuant":
            if node.name not in models.quantized:
                raise ModelError(f"the fake-quant model has nothing in the place of AscendQuant {node.name!r}")
            name = f"{node.output[0]}.given"
            feed[name] = values[models.quantized[node.name]]
            if node.name in merged:
                feed[name] = feed[name].astype(np.float32) * np.float32(float_attribute(node, "scale"))
                next(a for a in copy.attribute if a.name == "scale").f = 1.0
            copy.input[0] = name
            kind = onnx.helper.np_dtype_to_tensor_dtype(feed[name].dtype)
            cut.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, feed[name].shape))
        if one_step and node.name in merged:
            copy.attribute.append(onnx.helper.make_attribute(MERGED, 1))
    read = {name for node in cut.graph.node for name in node.input}
    cut.graph.initializer.extend(t for t in source.graph.initializer if t.name in read)
    for layer in layers:
        cut.graph.output.add().name = layer.dequant.output[0]
    weights = {name: weight for name, weight in models.deploy.weights.items() if name in read}
    return LightModel(proto=cut, weights=weights), feed


def _needed(graph: onnx.GraphProto, ends: Iterable[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The nodes that lead from an AscendQuant to these, in order."""
    producers = {name: node for node in graph.node for name in node.output}
    wanted: set[str] = set()
    stack = list(ends)
    while stack:
        node = stack.pop()
        if node.output[0] not in wanted:
            wanted.add(node.output[0])
            if node.op_type != "AscendQuant":
                stack.extend(producers[name] for name in node.input if name in producers)
    return [node for node in graph.node if node.output and node.output[0] in wanted]
