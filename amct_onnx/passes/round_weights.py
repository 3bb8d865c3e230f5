"""Rounds the weights of AdaRound's layers: each for the inputs that it gets once everything before it is quantized.

The layers are taken stage by stage: a stage holds those that wait for the same number of others, so their inputs come
from one session over the quantized model, as far as it is rounded by then. A stage begins with what the one before
ended with, as long as the tensors between them fit into memory, so each node is computed once; batches beyond that are
run from the beginning for every stage, through half of the model on average. The float model is run once for all
outputs that are to be met, or a few times. Of the activations nothing else is kept but sampled rows.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from amct_onnx.kernels.adaround import AdaRound, Layer, learn_rounding, nearest
from amct_onnx.passes.calibration import CalibrationRun
from amct_onnx.passes.fused_activation import fused_activation
from amct_onnx.passes.graph import Graph, Node, constant_input, reads
from amct_onnx.passes.insert_dequant import INSERT_DEQUANT
from amct_onnx.passes.insert_quant import INSERT_QUANT
from amct_onnx.passes.invariants import ACTIVATIONS_KNOWN, PLANNED, STANDARD_ONLY, WEIGHTS_KNOWN
from amct_onnx.passes.layers import bias_input, channels_first, last_node, output_channels, weight_of
from amct_onnx.passes.lower_ascend import LOWER_ASCEND
from amct_onnx.passes.manager import run_passes
from amct_onnx.passes.merge_quants import MERGE_QUANTS
from amct_onnx.passes.observation import Feed, continuing, exposing_tensors
from amct_onnx.passes.quantize_weights import STORE_INTEGER_WEIGHTS
from amct_onnx.passes.resources import available_cores
from amct_onnx.passes.sample_rows import InputSampler, OutputSampler, Places, matrix_shape
from amct_onnx.passes.session import Session, open_session
from amct_onnx.passes.state import Pass, QuantState

_log = logging.getLogger("amct_onnx")

_QUANTIZE = (INSERT_QUANT, INSERT_DEQUANT, STORE_INTEGER_WEIGHTS, MERGE_QUANTS, LOWER_ASCEND)

_MOST_ROWS, _FEWEST_ROWS = 4096, 256
"""Places that are sampled for a layer, as memory allows."""

_BYTES_OF_ROWS, _FEW_LAYERS = 256 << 20, 4
"""What the sampled inputs of a stage may take, a layer a fourth of it at most; and sampled outputs at a time."""

_BYTES_KEPT = 1 << 30
"""What may be kept of the batches between stages. Not what is free: the sessions must not depend on it."""

_HELD_BACK = 8
"""One sample out of so many, or one place where there are few samples, is kept for judging the result."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Task:
    """A layer to round.

    node: in the float graph.
    output: the tensor that it computes, with its bias.
    limit: number of places to sample.
    """

    node: Node
    parameters: AdaRound
    output: str
    limit: int


def round_weights(run: CalibrationRun) -> Pass:
    """The pass that rounds the weights of AdaRound's layers."""

    def round_all(state: QuantState) -> None:
        stages = _stages(state)
        if stages:
            count = sum(map(len, stages))
            for _ in run.track(_rounded(state, stages, run), "round weights", count, "layers"):
                pass

    return Pass(
        name="round weights",
        run=round_all,
        requires=(PLANNED, WEIGHTS_KNOWN, ACTIVATIONS_KNOWN, STANDARD_ONLY),
        ensures=(PLANNED, WEIGHTS_KNOWN),
    )


def _stages(state: QuantState) -> list[list[_Task]]:
    """The layers, those together that wait for as many others at most."""
    wanted = {layer.name: layer.weight for layer in state.layers() if isinstance(layer.weight, AdaRound)}
    levels = _levels(state.graph, wanted)
    stages: dict[int, list[Node]] = {}
    for node in state.graph.nodes:
        if node.name in wanted:
            stages.setdefault(levels[id(node.outputs[0])], []).append(node)
    return [[_task(state, node, wanted[node.name], len(stages[key])) for node in stages[key]] for key in sorted(stages)]


def _task(state: QuantState, node: Node, parameters: AdaRound, width: int) -> _Task:
    """`width`: number of layers that are rounded together."""
    most = _BYTES_OF_ROWS // max(width, _FEW_LAYERS) // (4 * math.prod(matrix_shape(node)))
    limit = min(max(most, _FEWEST_ROWS), _MOST_ROWS)
    return _Task(node=node, parameters=parameters, output=last_node(state.graph, node).outputs[0].name, limit=limit)


def _levels(graph: Graph, layers: Collection[str]) -> dict[int, int]:
    """Of each computed tensor, by identity: how many of the layers are on the longest way to it, itself included."""
    levels: dict[int, int] = {}
    for node in graph.nodes:
        level = max((levels.get(id(tensor), 0) for tensor in reads(node)), default=0) + (node.name in layers)
        levels.update({id(tensor): level for tensor in node.outputs})
    return levels


def _rounded(state: QuantState, stages: list[list[_Task]], run: CalibrationRun) -> Iterator[None]:
    """Round every layer, and tell of each that is done."""
    float_model = state.graph.to_light()
    walk = _Walk(state, {task.node.name for stage in stages for task in stage}, run)
    for share in _shares(stages):
        tasks = [task for stage in share for task in stage]
        outputs = {task.node.name: OutputSampler(task.node, task.limit) for task in tasks}
        session = open_session(exposing_tensors(float_model, (task.output for task in tasks)), "the float model")
        for batch, feed in enumerate(run.again):
            values = {**session.run(feed, f"calibration batch {batch}"), **feed}
            for task in tasks:
                outputs[task.node.name].update(values[task.output])
        del session
        for stage in share:
            inputs = {task.node.name: InputSampler(task.node, outputs[task.node.name].places()) for task in stage}
            walk.advance(inputs)
            for task in stage:
                _round_layer(state, task, outputs.pop(task.node.name), inputs.pop(task.node.name))
                yield


def _shares(stages: list[list[_Task]]) -> Iterator[list[list[_Task]]]:
    """The stages in lists, in order, each within the bytes of outputs that are held at a time, or of one stage."""
    share: list[list[_Task]] = []
    filled = 0
    for stage in stages:
        size = sum(4 * task.limit * output_channels(task.node) for task in stage)
        if share and filled + size > _BYTES_OF_ROWS:
            yield share
            share, filled = [], 0
        share.append(stage)
        filled += size
    yield share


class _Walk:
    """Goes through the quantized model from stage to stage, each time over all batches.

    Of as many batches as memory allows, the tensors that the next stage begins with are kept, so that no node is
    computed twice; the others begin with the data each time.
    """

    def __init__(self, state: QuantState, layers: Collection[str], run: CalibrationRun) -> None:
        self._state, self._layers, self._run = state, layers, run
        self._limit = min(_BYTES_KEPT, run.memory_limit or _BYTES_KEPT)
        self._kept: dict[int, Feed] = {}
        self._stage = 0

    def advance(self, samplers: Mapping[str, InputSampler]) -> None:
        """Show the samplers the inputs of their layers, those of the next stage."""
        state = replace(self._state, graph=self._state.graph.copy())
        run_passes(_QUANTIZE, state)
        inputs = {node.name: node.inputs[0].name for node in state.graph.nodes if node.name in samplers}
        ends = self._ends(state.graph)
        model = state.graph.to_light()
        sessions: dict[bool, Session] = {}
        kept: dict[int, Feed] = {}
        filled = 0
        for batch, feed in enumerate(self._run.again):
            known = self._kept.pop(batch, {})
            if bool(known) not in sessions:
                part = continuing(model, known, ends) if known else exposing_tensors(model, ends)
                sessions[bool(known)] = open_session(part, "the quantized model")
            session = sessions[bool(known)]
            given = {**feed, **known}
            found = session.run({name: given[name] for name in session.inputs}, f"calibration batch {batch}")
            values = {**given, **found}
            for name, sampler in samplers.items():
                sampler.update(values[inputs[name]])
            needed = {name: values[name] for name in ends}
            filled += sum(array.nbytes for array in needed.values())
            if filled <= self._limit:
                kept[batch] = needed
        self._kept = kept
        self._stage += 1

    def _ends(self, graph: Graph) -> list[str]:
        """The tensors that this stage is up to: computed by now, and read by its layers or by what waits for them."""
        levels = _levels(graph, self._layers)
        ends = [
            tensor.name
            for node in graph.nodes
            if max((levels[id(tensor)] for tensor in node.outputs), default=0) > self._stage
            for tensor in reads(node)
            if levels.get(id(tensor), math.inf) <= self._stage
        ]
        return list(dict.fromkeys(ends))


def _round_layer(state: QuantState, task: _Task, wanted: OutputSampler, sampler: InputSampler) -> None:
    """Learn the rounding, and keep it where it is better on samples that were held back."""
    node = task.node
    layer = _matrices(state, node, wanted.values, sampler.rows * state.activations[node.name].scale)
    held = _held_back(wanted.places())
    if not np.isfinite(layer.base).all() or not np.isfinite(layer.target).all():
        _remark(state, node, "its weights are rounded to nearest: its float outputs hold NaN or inf")
        return
    if held.all() or not held.any():
        _remark(state, node, "its weights are rounded to nearest: the data are too few to learn from and to judge by")
        return
    plain = nearest(layer)
    learned = learn_rounding(layer.chosen(~held), task.parameters, threads=available_cores())
    judged = layer.chosen(held)
    before, after = judged.error(plain), judged.error(learned)
    _log.debug("layer %r: error %.4g rounded to nearest, %.4g learned", node.name, before, after)
    if after < before:
        shape = channels_first(node, weight_of(node)).shape
        state.rounded[node.name] = learned.reshape(shape).astype(np.int8)
    elif not np.array_equal(plain, learned):
        _remark(state, node, "its weights are rounded to nearest: learned on other data, the rounding was no better")


def _remark(state: QuantState, node: Node, text: str) -> None:
    state.remarks[node.name] = "; ".join(filter(None, (state.remarks.get(node.name), text)))


def _matrices(state: QuantState, node: Node, outputs: NDArray[np.float32], rows: NDArray[np.float32]) -> Layer:
    params = state.weights[node.name]
    groups, size = matrix_shape(node)
    weight = channels_first(node, weight_of(node)).astype(np.float32).reshape(groups, -1, size)
    channels = weight.shape[1]
    scale = np.broadcast_to(params.scale.reshape(-1), groups * channels).reshape(groups, channels, 1)
    wanted = outputs.reshape(-1, groups, channels).transpose(1, 0, 2)
    base = np.matmul(rows, weight.transpose(0, 2, 1)) - wanted
    place = bias_input(state.graph, node)
    bias = None if place is None else constant_input(*place)
    if bias is not None:
        base += bias.astype(np.float32).reshape(groups, 1, channels)
    return Layer(
        weight=weight,
        scale=np.ascontiguousarray(scale),
        rows=rows,
        base=base,
        target=np.ascontiguousarray(wanted),
        activation=fused_activation(state.graph, node),
        limits=(params.q_min, params.q_max),
    )


def _held_back(places: Places) -> NDArray[np.bool_]:
    """Which rows judge the result: those of every eighth sample, or every eighth row where the samples are fewer."""
    numbers = places.sample
    if len(np.unique(numbers)) < _HELD_BACK:
        numbers = np.arange(len(places.sample))
    return np.asarray(numbers % _HELD_BACK == _HELD_BACK - 1)
