"""Finds the grids of a strategy: every tensor is observed behind the quantized ones before it, batch by batch.

A batch is fake-quantized with what the batches up to it ask for, as Vitis AI does, so the graph is computed in levels:
the nodes of a level need no tensor that is quantized in the same level. Between levels the values are ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from amct_onnx.errors import DataError
from amct_onnx.kernels.grid import Grid, fake_quantized
from amct_onnx.kernels.strategy import Fit, TensorStrategy, fit, grid_of, joined
from amct_onnx.passes.calibration import CalibrationRun
from amct_onnx.passes.correct_biases import corrected_bias
from amct_onnx.passes.correct_by_batch import CorrectedLayer, add_twins, bias_shifts
from amct_onnx.passes.graph import constant_input, set_input, unique_name
from amct_onnx.passes.invariants import PLANNED, STANDARD_ONLY, UNSHARED
from amct_onnx.passes.layers import bias_input, weight_of
from amct_onnx.passes.observation import Feed, read_by
from amct_onnx.passes.protos import copy_fields
from amct_onnx.passes.quantize_weights import fake_quantized as fake_weight
from amct_onnx.passes.quantize_weights import require_finite
from amct_onnx.passes.session import Session, open_session
from amct_onnx.passes.shapes import infer_types
from amct_onnx.passes.state import Pass, QuantState
from amct_onnx.passes.weights import LightModel

Array = NDArray[Any]


def _find_parameters(state: QuantState) -> None:
    """The grids of weights and biases, from their values alone."""
    nodes = {node.name: node for node in state.graph.nodes}
    for layer in state.layers():
        node = nodes[layer.name]
        require_finite(state, node)
        if isinstance(layer.weight, TensorStrategy):
            axis = (0 if node.op == "Conv" else 1) if layer.weight.per_channel else None
            state.weight_grids[layer.name] = _fitted(
                weight_of(node), layer.weight, axis, f"the weight of {node.name!r}"
            )
        place = bias_input(state.graph, node)
        if layer.bias is not None and place is not None:
            bias = constant_input(*place)
            assert bias is not None
            state.bias_grids[layer.name] = _fitted(bias, layer.bias, None, f"the bias of {node.name!r}")


def _fit_corrected(state: QuantState) -> None:
    """Grids for biases whose range may have grown; those corrected in steps keep theirs, as the real tool does it."""
    nodes = {node.name: node for node in state.graph.nodes}
    for layer in state.layers():
        if layer.name in state.bias_shifts and layer.bias is not None:
            bias = corrected_bias(state, nodes[layer.name])
            assert bias is not None
            state.bias_grids[layer.name] = _fitted(bias, layer.bias, None, f"the bias of {layer.name!r}")


def _fitted(values: Array, strategy: TensorStrategy, axis: int | None, what: str) -> Grid:
    try:
        return grid_of(fit(values, strategy, axis), strategy, axis)
    except DataError as error:
        raise DataError(f"{what}: {error}") from error


FIND_PARAMETER_GRIDS = Pass(name="find grids of weights", run=_find_parameters, requires=(PLANNED, UNSHARED))


def calibrate_tensors(run: CalibrationRun) -> Pass:
    """The pass that finds the grids of what is computed, and corrects biases meanwhile."""

    def find(state: QuantState) -> None:
        statistics = {name: _Statistic(strategy) for name, strategy in state.plan.tensor_strategies.items()}
        levels, corrected = _levels(state)
        for number, batch in enumerate(run.feeds):
            biases = {layer.bias: layer.correction.bias for layer in corrected}
            _go_through(levels, {**batch, **biases}, f"calibration batch {number}", statistics)
        for name, statistic in statistics.items():
            if statistic.refused is not None:
                state.remarks_on_tensors[name] = statistic.refused
            elif statistic.fits:
                state.grids[name] = statistic.grid()
        state.bias_shifts.update(bias_shifts(corrected, state))
        if state.plan.whole_bias_errors:
            _fit_corrected(state)

    return Pass(name="calibrate tensors", run=find, requires=(PLANNED, UNSHARED, STANDARD_ONLY))


@dataclass(slots=True)
class _Statistic:
    """What the batches so far ask of one tensor; a scale and a zero point are kept of each."""

    strategy: TensorStrategy
    fits: list[Fit] = field(default_factory=list)
    refused: str | None = None

    def quantized(self, values: Array) -> Array:
        """Take in one batch, and quantize it with what all so far ask for."""
        if values.dtype != np.float32:
            self.refused = f"it is {values.dtype}; a strategy quantizes float32"
        if self.refused is None and values.size and not np.isfinite(values).all():
            self.refused = "it holds NaN or inf on the calibration data"
        if self.refused is not None or values.size == 0:
            return values
        try:
            self.fits.append(fit(values, self.strategy))
        except DataError as error:
            self.refused = str(error)
            return values
        return fake_quantized(values, self.grid())

    def grid(self) -> Grid:
        return grid_of(joined(self.fits, self.strategy), self.strategy)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Level:
    """Nodes that are computed at once.

    session: None where there is nothing to compute.
    reads: what the session is fed.
    points: tensors that are quantized behind it, in order.
    corrected: layers whose biases are corrected then.
    done: tensors that nothing reads after it.
    """

    session: Session | None
    reads: tuple[str, ...]
    points: tuple[str, ...]
    corrected: tuple[CorrectedLayer, ...]
    done: tuple[str, ...]


def _go_through(levels: Iterable[_Level], batch: Feed, what: str, statistics: Mapping[str, _Statistic]) -> None:
    values: dict[str, Array] = dict(batch)
    for level in levels:
        if level.session is not None:
            values.update(level.session.run({name: values[name] for name in level.reads}, what))
        for name in level.points:
            values[name] = statistics[name].quantized(values[name])
        for layer in level.corrected:
            layer.update(values)
        for name in level.done:
            values.pop(name, None)


def _levels(state: QuantState) -> tuple[list[_Level], list[CorrectedLayer]]:
    """The model with fake-quantized weights and biases, in levels, and the layers whose biases are corrected."""
    model, corrected = _with_parameters(state)
    watched = {name for layer in corrected for name in (layer.found, layer.wanted)}
    graph, points = model.proto.graph, state.plan.tensor_strategies
    fed = [value.name for value in graph.input]
    constants = {tensor.name for tensor in graph.initializer}
    level_of = dict.fromkeys(fed, 0)
    nodes: list[list[onnx.NodeProto]] = [[]]
    for node in graph.node:
        needed = [level_of[name] + (name in points) for name in read_by(node) if name in level_of]
        own = max(needed, default=0)
        while len(nodes) <= own:
            nodes.append([])
        nodes[own].append(node)
        level_of.update(dict.fromkeys(node.output, own))
    last_use: dict[str, int] = {}
    for number, level in enumerate(nodes):
        for node in level:
            last_use.update(dict.fromkeys(read_by(node) - constants, number))
    types = {name: known.elem_type for name, known in infer_types(state.graph).items()}
    types.update({value.name: value.type.tensor_type.elem_type for value in graph.input})
    made = []
    for number, level in enumerate(nodes):
        produced = [name for node in level for name in node.output if name]
        reads = sorted({n for node in level for n in read_by(node) if n in level_of} - set(produced))
        wanted = [n for n in produced if n in points or n in watched or last_use.get(n, -1) > number]
        own_points = tuple(n for n in (*(fed if number == 0 else ()), *produced) if n in points)
        session = _session(model, level, reads, wanted, types) if wanted else None
        done = {name for name, last in last_use.items() if last == number} | (set(produced) - last_use.keys())
        made.append(
            _Level(
                session=session,
                reads=tuple(reads) if wanted else (),
                points=own_points,
                corrected=tuple(layer for layer in corrected if layer.found in produced),
                done=tuple(done),
            )
        )
    return made, corrected


def _with_parameters(state: QuantState) -> tuple[LightModel, list[CorrectedLayer]]:
    graph = state.graph.copy()
    corrected = add_twins(graph, state)  # first: they keep the float parameters
    fed = {layer.layer for layer in corrected}
    names = graph.tensor_names()
    for node in list(graph.nodes):
        if node.name in state.weight_grids:
            name = unique_name(f"{node.name}.calibration.weight", names)
            set_input(node, 1, graph.new_constant(name, fake_weight(state, node)))
        place = bias_input(graph, node) if node.name in state.bias_grids.keys() - fed else None
        if place is not None:
            holder, index = place
            values = constant_input(holder, index)
            assert values is not None
            fresh = fake_quantized(values, state.bias_grids[node.name]).astype(values.dtype)
            name = unique_name(f"{node.name}.calibration.bias", names)
            set_input(holder, index, graph.new_constant(name, fresh))
    return graph.to_light(), corrected


def _session(
    model: LightModel, nodes: list[onnx.NodeProto], reads: list[str], wanted: list[str], types: Mapping[str, int]
) -> Session:
    proto = onnx.ModelProto()
    copy_fields(model.proto, proto, "graph")
    used = {name for node in nodes for name in read_by(node)}
    proto.graph.name = model.proto.graph.name
    proto.graph.node.extend(nodes)
    proto.graph.initializer.extend(tensor for tensor in model.proto.graph.initializer if tensor.name in used)
    for name in reads:
        proto.graph.input.append(helper.make_tensor_value_info(name, types.get(name, 0) or TensorProto.FLOAT, None))
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(wanted))
    weights = {name: weight for name, weight in model.weights.items() if name in used}
    return open_session(LightModel(proto=proto, weights=weights), "a part of the calibration model")
