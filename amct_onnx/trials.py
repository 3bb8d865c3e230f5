"""Trial models: calibrated once, written as often as wanted with any of the layers float, or 16-bit activations.

A trial costs a copy of the graph, the passes that rewrite it and a session, but no calibration: the scales of the
layers that stay quantized are those found when all layers were. Inputs are observed in the float model behind
fake-quantized weights, which other layers being float changes little; docs/auto-calibration.md has the measurement.
AMCT calibrates anew for every trial.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from amct_onnx.calibrated import Calibrated
from amct_onnx.data import Feed, copy_of
from amct_onnx.kernels.hfmg import Hfmg
from amct_onnx.kernels.ifmr import Ifmr
from amct_onnx.kernels.quant_params import QuantParams
from amct_onnx.passes.fit_biases import FIT_BIASES
from amct_onnx.passes.graph import Array
from amct_onnx.passes.layers import why_not_16_bits
from amct_onnx.passes.manager import run_passes
from amct_onnx.passes.observe import observe
from amct_onnx.passes.pipelines import FAKE_QUANT
from amct_onnx.passes.session import Session, open_session
from amct_onnx.passes.state import LayerPlan, QuantState
from amct_onnx.passes.weights import LightModel
from amct_onnx.report.compare import RunningError

_KEPT_FLOAT = "kept float: the accuracy that was asked for needs it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """What differs from the plan in which every layer is quantized.

    float_layers: layers that stay float.
    int16_layers: layers whose activations have 16 bits.
    """

    float_layers: frozenset[str] = frozenset()
    int16_layers: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if both := self.float_layers & self.int16_layers:
            raise ValueError(f"{sorted(both)} cannot be both float and quantized")


class Trials:
    """A calibrated model, of which trial models are made.

    Attributes:
        layers: every layer that can be left float, in the order of the graph.
    """

    def __init__(self, found: Calibrated, *, batches: int | None = None) -> None:
        """Keep the model.

        batches: of the calibration data that noise is measured on; None for all. They are kept in memory, and so is
            what the float model makes of them.
        """
        self._found, self._batches = found, batches
        self.layers = tuple(layer.name for layer in found.state.layers())
        self._reference: list[tuple[Feed, Mapping[str, Array]]] = []
        self._widened: QuantState | None = None

    def state(self, mix: Mix) -> QuantState:
        """The calibrated state with the decisions of `mix`, over the same graph: whoever rewrites it makes a copy.

        The layers left float are among `disabled` and `skipped` of its plan.
        """
        base = self._found.state
        wide = self._wide() if mix.int16_layers else base
        chosen = {name: wide if name in mix.int16_layers else base for name in self.layers}
        layers = {name: chosen[name].plan.layers[name] for name in self.layers if name not in mix.float_layers}
        order = {node.name: index for index, node in enumerate(base.graph.nodes)}
        off = {**base.plan.disabled, **{name: base.plan.layers[name] for name in mix.float_layers}}
        plan = replace(
            base.plan,
            layers=layers,
            disabled={name: off[name] for name in sorted(off, key=lambda name: order.get(name, -1))},
            skipped={**base.plan.skipped, **{name: _KEPT_FLOAT for name in self.layers if name in mix.float_layers}},
        )
        return replace(
            base,
            plan=plan,
            activations=_taken(base.activations, wide.activations, mix.int16_layers),
            weights=_taken(base.weights, wide.weights, mix.int16_layers),
            hidden=_taken(base.hidden, wide.hidden, mix.int16_layers),
            recurrent=_taken(base.recurrent, wide.recurrent, mix.int16_layers),
        )

    def int16_layers(self) -> frozenset[str]:
        """The layers whose activations can have 16 bits. The first call runs the calibration data once more."""
        return frozenset(layer.name for layer in self._wide().layers())

    def _wide(self) -> QuantState:
        """The state in which every layer that can has activations of 16 bits; the others count as left float."""
        if self._widened is None:
            base = self._found.state
            nodes = {node.name: node for node in base.graph.nodes}
            plans: dict[str, LayerPlan] = {}
            narrow = dict(base.left_float)
            for layer in base.layers():
                plans[layer.name] = layer
                reason = why_not_16_bits(nodes[layer.name])
                if layer.name in base.rounded:
                    reason = "its weights are rounded for the scale of 8 bits"
                if reason or base.weights[layer.name].num_bits != 8 or not isinstance(layer.activation, (Ifmr, Hfmg)):
                    narrow[layer.name] = reason or "only 8-bit weights stand beside 16-bit activations"
                else:
                    plans[layer.name] = replace(layer, activation=replace(layer.activation, num_bits=16))
            state = replace(
                base,
                plan=replace(base.plan, layers=plans, tensors=()),  # these keep the scales that they have
                activations={},
                weights=dict(base.weights),
                hidden=dict(base.hidden),
                recurrent=dict(base.recurrent),
                left_float=narrow,
                remarks={},
            )
            run_passes((observe(self._found.run), FIT_BIASES), state)
            self._widened = state
        return self._widened

    def model(self, mix: Mix) -> LightModel:
        """The fake-quant model of `mix`."""
        state = self.state(mix)
        state = replace(state, graph=state.graph.copy())
        run_passes(FAKE_QUANT, state)
        return state.graph.to_light()

    def noise(self, mix: Mix) -> float:
        """How far the outputs of the trial model are from the float ones: noise / signal, in power, summed over them.

        Infinite where an output is not finite.
        """
        session = open_session(self.model(mix), "a trial model")
        return _noise(self._reference or self._measure_reference(), session)

    def _measure_reference(self) -> list[tuple[Feed, Mapping[str, Array]]]:
        session = open_session(self._found.state.graph.to_light(), "the float model")
        feeds = enumerate(copy_of(feed) for feed in islice(self._found.feeds, self._batches))
        self._reference = [(feed, session.run(feed, f"batch {index}")) for index, feed in feeds]
        return self._reference


def _taken(
    column: Mapping[str, QuantParams], others: Mapping[str, QuantParams], layers: Collection[str]
) -> dict[str, QuantParams]:
    """A column of the table with the entries of some layers, those that have one, from another."""
    return {**column, **{name: params for name, params in others.items() if name in layers}}


def _noise(reference: Sequence[tuple[Feed, Mapping[str, Array]]], session: Session) -> float:
    sums = {name: RunningError() for name in measured_outputs(reference[0][1])}
    for index, (feed, expected) in enumerate(reference):
        found = session.run(feed, f"batch {index}")
        for name, error in sums.items():
            error.add(expected[name], found[name])
    ratios = [error.noise / error.xx if error.noise else 0.0 for error in sums.values() if error.xx or not error.noise]
    total = sum(ratios) if len(ratios) == len(sums) else math.inf
    return total if math.isfinite(total) else math.inf


def measured_outputs(outputs: Mapping[str, Array]) -> list[str]:
    """The outputs of floats; where there are none, all."""
    return [name for name, values in outputs.items() if values.dtype.kind == "f"] or list(outputs)
