"""How far the float model, the fake-quant model and the deploy model on each kind of chip are apart, where, and why.

Every layer is looked at twice: in the whole network, where it inherits what those before it did, and by itself, fed
with what the fake-quant model feeds it. Alone it is run again with each of the chip's choices undone: what changes is
what that choice costs.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any, Union

import numpy as np
import onnx
from numpy.typing import NDArray

from amct_onnx.deploy.merging import find_merges
from amct_onnx.deploy.profiles import PROFILES, Profile, profile_of
from amct_onnx.deploy.simulate import in_order, simulated
from amct_onnx.errors import DataError
from amct_onnx.formats.model_file import ModelSource, read_model
from amct_onnx.passes.graph import Graph
from amct_onnx.passes.weights import LightModel
from amct_onnx.report.compare import RunningError, TensorError
from amct_onnx.report.json_text import json_text
from amct_onnx.report.layer_places import LayerPlaces, ModelTriple, opened, quantized_both_ways, values_of
from amct_onnx.report.single_layers import SingleLayer, SingleLayers

Array = NDArray[Any]
Feed = Mapping[str, Array]
Values = Mapping[str, Array]
Model = Union[str, "os.PathLike[str]", onnx.ModelProto, LightModel]

_AS_GOOD_AS_EQUAL = 100.0
"""SQNR in dB above which models go apart by the rounding of float32 alone, which depends on how they are run."""

FAKE_QUANT = "fake-quant"
"""The name of the fake-quant model among those of the profiles."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OnChip:
    """One layer on one kind of chip.

    against_float, against_fake_quant: what it gives in the whole network, over all batches; behind Relu where the
        compiler merges that into the layer.
    inputs_apart: share of its quantized inputs that differ from those of the fake-quant model.
    largest_step: by how many steps at most.
    alone: SQNR in dB against the fake-quant model, with the fake-quant model's inputs, on the first batch.
    costs: cause -> SQNR in dB between the layer alone with and without this choice of the chip; what changes nothing
        is left out.
    saturated: share of results that reach float16's largest number, with the fake-quant model's inputs.
    main_cause: "inherited" where most of the noise comes from layers before, else the most costly one; empty where the
        layer gives the same but for the rounding of float32.
    """

    against_float: TensorError
    against_fake_quant: TensorError
    inputs_apart: float
    largest_step: int
    alone: float
    costs: Mapping[str, float]
    saturated: float
    main_cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerAgreement:
    """One layer.

    tensor: what its output is called in the float model.
    fake_quant: the fake-quant model against the float one.
    clipped: share of inputs beyond the range of AscendQuant, on the first batch.
    ties: share of inputs so close to halfway between two integers that the order of rounding and adding tells.
    chips: profile -> the layer there.
    """

    layer: str
    op_type: str
    tensor: str
    fake_quant: TensorError
    clipped: float
    ties: float
    chips: Mapping[str, OnChip]


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """What `agreement` found.

    batches: how many were run; single layers were run on the first one.
    outputs: output -> "fake-quant" or profile -> difference from the float model.
    layers: in the order of the deploy model.
    skipped: layers that the float or the fake-quant model does not have.
    """

    batches: int
    profiles: tuple[str, ...]
    outputs: Mapping[str, Mapping[str, TensorError]]
    layers: tuple[LayerAgreement, ...]
    skipped: tuple[str, ...]

    def parting(self, profile: str) -> LayerAgreement | None:
        """The first layer that gives something else on this chip than in the fake-quant model, beyond float32."""
        near = (layer for layer in self.layers if layer.chips[profile].against_fake_quant.sqnr < _AS_GOOD_AS_EQUAL)
        return next(near, None)

    def to_json(self) -> str:
        """Everything as JSON text; infinity and NaN as strings, which JSON has no numbers for."""
        content = asdict(self)
        content["parting"] = {p: found.layer if (found := self.parting(p)) else None for p in self.profiles}
        return json_text(content)


def agreement(
    float_model: ModelSource | LightModel,
    fake_quant: Model,
    deploy: Model,
    feeds: Iterable[Feed],
    *,
    profiles: Sequence[str] = tuple(PROFILES),
) -> Agreement:
    """Run all of them over data and take their differences apart, layer by layer.

    Args:
        float_model: a file or a model in memory, as the other two, which belong to it.
        fake_quant: the model of standard operators that was quantized from it.
        deploy: the model with Ascend's operators.
        feeds: batches; each is read once.
        profiles: kinds of chips.

    Raises:
        ModelError: a model cannot be read or run, or they do not belong together.
        DataError: there is no batch.
        ConfigError: there is no such profile.
        NotAvailableError: a form that is not simulated.
    """
    batches = iter(feeds)
    first = next(batches, None)
    if first is None:
        raise DataError("there is no batch to run the models on")
    chips = {name: profile_of(name) for name in profiles}
    lowered = {name: simulated(deploy, profile) for name, profile in chips.items()}
    models = ModelTriple(read_model(float_model), read_model(fake_quant), in_order(read_model(deploy)))
    whole = _Whole(models, chips, lowered)
    count = 0
    for feed in chain([first], batches):
        whole.add(feed, f"batch {count}")
        count += 1
    whole.close()
    alone = SingleLayers(models, first)
    found = {name: alone.measure(profile, whole.merges[name]) for name, profile in chips.items()}
    layers = [
        _layer(name, models, whole, alone, {profile: found[profile][name] for profile in chips})
        for name in models.layers
    ]
    return Agreement(
        batches=count,
        profiles=tuple(chips),
        outputs={
            output: {who: whole.errors["output", output, who].error() for who in (FAKE_QUANT, *chips)}
            for output in models.outputs
        },
        layers=tuple(layers),
        skipped=models.skipped,
    )


class _Whole:
    """All models over all batches, each network as a whole."""

    def __init__(self, models: ModelTriple, chips: Mapping[str, Profile], lowered: Mapping[str, LightModel]) -> None:
        self.models = models
        self.errors: dict[tuple[str, str, str], RunningError] = {}
        self.apart: dict[tuple[str, str], tuple[int, int, float]] = {}  # values apart, all, largest step
        layers = models.layers.values()
        self._reference = opened(models.reference, (layer.float_tensor for layer in layers), "the float model")
        wanted = (name for layer in layers for name in (layer.fake_tensor, layer.fake_input))
        self._fake = opened(models.fake, wanted, "the fake-quant model")
        wanted_names = [name for layer in layers for name in (layer.dequant.output[0], layer.quant.output[0])]
        self._chips = {
            name: opened(light, wanted_names, f"the deploy model on {name}") for name, light in lowered.items()
        }
        graph = Graph.of_model(models.deploy)
        self.merges = {
            name: {merge.dequant.name: merge for merge in find_merges(graph, profile)}
            for name, profile in chips.items()
        }

    def add(self, feed: Feed, what: str) -> None:
        """One more batch."""
        models = self.models
        x, y = values_of(self._reference, feed, what), values_of(self._fake, feed, what)
        for output in models.outputs:
            self._add(("output", output, FAKE_QUANT), x[output], y[output])
        for name, layer in models.layers.items():
            self._add(("float", name, FAKE_QUANT), x[layer.float_tensor], y[layer.fake_tensor])
        for chip, session in self._chips.items():
            z = session.run(feed, what)
            for output in models.outputs:
                self._add(("output", output, chip), x[output], z[output])
            for name, layer in models.layers.items():
                self._add_layer(chip, name, layer, x, y, z)

    def close(self) -> None:
        """Give the memory of the sessions back."""
        del self._reference, self._fake, self._chips

    def _add_layer(self, chip: str, name: str, layer: LayerPlaces, x: Values, y: Values, z: Values) -> None:
        given, fake, found = x[layer.float_tensor], y[layer.fake_tensor], z[layer.dequant.output[0]]
        if (merge := self.merges[chip].get(layer.dequant.name)) is not None:
            found = found.astype(np.float32) / merge.scale
            if merge.relu is not None:
                given, fake = np.maximum(given, 0), np.maximum(fake, 0)
        self._add(("float", name, chip), given, found)
        self._add(("fake", name, chip), fake, found)
        expected, _ = quantized_both_ways(y[layer.fake_input], layer)
        integers, old = z[layer.quant.output[0]].astype(np.float32), self.apart.get((name, chip), (0, 0, 0.0))
        if integers.shape != expected.shape:  # their number depends on the values, as behind NonZero
            self.apart[name, chip] = (old[0] + expected.size, old[1] + expected.size, old[2])
            return
        steps = np.abs(integers - expected)
        largest = max(old[2], float(steps.max(initial=0)))
        self.apart[name, chip] = (old[0] + int(np.count_nonzero(steps)), old[1] + steps.size, largest)

    def _add(self, key: tuple[str, str, str], expected: Array, found: Array) -> None:
        self.errors.setdefault(key, RunningError()).add(expected, found)


def _layer(
    name: str, models: ModelTriple, whole: _Whole, alone: SingleLayers, found: Mapping[str, SingleLayer]
) -> LayerAgreement:
    layer = models.layers[name]
    x = alone.values[layer.fake_input]
    before, behind = quantized_both_ways(x, layer)
    with np.errstate(over="ignore", invalid="ignore"):
        levels = x.astype(np.float32) * layer.scale + layer.offset
    return LayerAgreement(
        layer=name,
        op_type=layer.op_type,
        tensor=layer.float_tensor,
        fake_quant=whole.errors["float", name, FAKE_QUANT].error(),
        clipped=_share((levels < -128.5) | (levels > 127.5)),
        ties=_share(before != behind),
        chips={chip: _on_chip(name, chip, whole, entry) for chip, entry in found.items()},
    )


def _share(mask: Array) -> float:
    return float(mask.mean()) if mask.size else 0.0


def _on_chip(name: str, chip: str, whole: _Whole, found: SingleLayer) -> OnChip:
    apart, size, largest = whole.apart[name, chip]
    against_fake = whole.errors["fake", name, chip].error()
    return OnChip(
        against_float=whole.errors["float", name, chip].error(),
        against_fake_quant=against_fake,
        inputs_apart=apart / size if size else 0.0,
        largest_step=int(largest),
        alone=found.alone,
        costs=found.costs,
        saturated=found.saturated,
        main_cause=_main_cause(against_fake.sqnr, found),
    )


def _main_cause(sqnr: float, found: SingleLayer) -> str:
    """Inherited where more than half of the noise is not the layer's own, else what costs most."""
    if sqnr >= _AS_GOOD_AS_EQUAL:
        return ""
    if not math.isnan(sqnr) and _noise(sqnr) > 2 * _noise(found.alone):
        return "inherited"
    known = {cause: cost for cause, cost in found.costs.items() if not math.isnan(cost)}
    return min(known, key=lambda cause: known[cause]) if known else "inherited"


def _noise(sqnr: float) -> float:
    return math.inf if math.isnan(sqnr) else float(10 ** (-min(max(sqnr, -300.0), 300.0) / 10))
