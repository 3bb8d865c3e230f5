"""Takes layers one after the other, each with samples of what it should give and of what it gets by then.

The float model is run once for what all layers should give, or a few times where memory is short; what each layer gets
comes from a walk through the model that is learned. Nothing else is kept of the activations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from amct_onnx.kernels.adaround import AdaRound, Layer
from amct_onnx.passes.calibration import CalibrationRun, Sizes
from amct_onnx.passes.correct_biases import corrected_bias
from amct_onnx.passes.fused_activation import fused_activation
from amct_onnx.passes.graph import Array, Graph, Node
from amct_onnx.passes.layers import channels_first, last_node, output_channels, weight_of
from amct_onnx.passes.observation import Feed, exposing_tensors
from amct_onnx.passes.sample_rows import InputSampler, OutputSampler, matrix_shape
from amct_onnx.passes.session import open_session
from amct_onnx.passes.state import QuantState
from amct_onnx.passes.walk import Walk
from amct_onnx.passes.weights import LightModel

_MOST_ROWS, _FEWEST_ROWS = 4096, 256
"""Places that are sampled for a layer, as `_BYTES_OF_LAYER` allows."""

_BYTES_OF_LAYER = 64 << 20
"""What the sampled inputs of a layer may take. It decides what is learned, so it does not follow the memory limit."""

_BYTES_OF_ROWS = 256 << 20
"""What the sampled inputs of several layers may take at a time."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Task:
    """A layer to learn.

    node: in the float graph.
    output: the tensor that it computes, with its bias.
    stage: of the walk.
    limit: number of places to sample.
    row_bytes: what the inputs of all of them take.
    """

    node: Node
    parameters: AdaRound
    output: str
    stage: int
    limit: int
    row_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Samples:
    """What was seen of a layer: outputs of the float model [R, C] and the inputs that it gets, [G, R, K].

    learnable: number of rows to learn from; the others, at the end, are there to judge by.
    """

    outputs: NDArray[np.float32]
    rows: NDArray[np.float32]
    learnable: int


Learn = Callable[[Task, Samples], Array | None]
"""What finds the weight of a layer, in the layout that the walked graph has; None where it stays."""


def learn_layers(
    state: QuantState,
    graph: Graph,
    layers: Mapping[str, AdaRound],
    feeds: Iterable[Feed],
    run: CalibrationRun,
    learn: Learn,
) -> Iterator[None]:
    """Learn every layer, in an order in which each gets what those before it make of the data; yield after each.

    Args:
        state: with the float graph.
        graph: the same layers under the same names, as they are to be walked through.
        layers: layer -> what it is learned with.
        feeds: the batches; gone through once for each stage at most, and once or more in the float model.
        run: its memory limit holds.
        learn: called once for each layer.
    """
    memory = run.memory
    walk = Walk(graph, layers, feeds, memory // 2)
    tasks = sorted(
        (_task(state, node, layers[node.name], walk) for node in state.graph.nodes if node.name in layers),
        key=lambda task: task.stage,
    )
    sizes, float_model = Sizes(state, run.first), state.graph.to_light()

    def output_bytes(task: Task) -> int:
        return sizes.of(task.output) + 4 * task.limit * output_channels(task.node)

    for share in _shares(tasks, output_bytes, memory // 4):
        outputs = _sample_outputs(float_model, share, feeds)
        for _, members in groupby(share, key=lambda task: task.stage):
            for group in _shares(list(members), lambda task: task.row_bytes, min(memory // 4, _BYTES_OF_ROWS)):
                inputs = _sample_inputs(walk, group, outputs)
                for task in group:
                    name = task.node.name
                    places, wanted = outputs[name].places(), outputs.pop(name).values()
                    samples = Samples(outputs=wanted, rows=inputs.pop(name).finished(), learnable=places.learnable)
                    with threadpool_limits(1, user_api="blas"):  # the same sums, however many cores there are
                        weight = learn(task, samples)
                    if weight is not None:
                        walk.settle(name, weight)
                    yield


def _sample_outputs(float_model: LightModel, tasks: list[Task], feeds: Iterable[Feed]) -> dict[str, OutputSampler]:
    outputs = {task.node.name: OutputSampler(task.node, task.limit) for task in tasks}
    session = open_session(exposing_tensors(float_model, [task.output for task in tasks]), "the float model")
    for batch, feed in enumerate(feeds):
        values = session.run(feed, f"calibration batch {batch}")
        for task in tasks:
            outputs[task.node.name].update(values[task.output])
    return outputs


def _sample_inputs(walk: Walk, tasks: list[Task], outputs: Mapping[str, OutputSampler]) -> dict[str, InputSampler]:
    """For layers of one stage, the inputs at the places where their outputs were sampled."""
    inputs = {task.node.name: InputSampler(task.node, outputs[task.node.name].places()) for task in tasks}
    for values in walk.batches(tasks[0].stage):
        for name, sampler in inputs.items():
            sampler.update(values[walk.sources[name]])
    return inputs


def _task(state: QuantState, node: Node, parameters: AdaRound, walk: Walk) -> Task:
    row = 4 * math.prod(matrix_shape(node))
    limit = min(max(_BYTES_OF_LAYER // row, _FEWEST_ROWS), _MOST_ROWS)
    output = last_node(state.graph, node).outputs[0].name
    stage = walk.stages[node.name]
    return Task(node=node, parameters=parameters, output=output, stage=stage, limit=limit, row_bytes=limit * row)


def _shares(tasks: list[Task], cost: Callable[[Task], int], budget: int) -> list[list[Task]]:
    """The tasks in lists, in order, each within the budget, or of one task."""
    shares: list[list[Task]] = []
    filled = 0
    for task in tasks:
        size = cost(task)
        if not shares or filled + size > budget:
            shares.append([])
            filled = 0
        shares[-1].append(task)
        filled += size
    return shares


def as_matrices(state: QuantState, node: Node, samples: Samples, scale: float) -> Layer:
    """A layer and its samples as the kernels take them; `scale` is that of the inputs."""
    params = state.weights[node.name]
    groups, size = matrix_shape(node)
    weight = channels_first(node, weight_of(node)).astype(np.float32).reshape(groups, -1, size)
    channels = weight.shape[1]
    rows = samples.rows
    if scale != 1:
        rows *= np.float32(scale)
    wanted = np.ascontiguousarray(samples.outputs.reshape(-1, groups, channels).transpose(1, 0, 2))
    base = np.matmul(rows, weight.transpose(0, 2, 1))
    base -= wanted
    bias = corrected_bias(state, node)
    if bias is not None:
        base += bias.astype(np.float32).reshape(groups, 1, channels)
    return Layer(
        weight=weight,
        scale=np.broadcast_to(params.scale.reshape(-1), groups * channels).reshape(groups, channels, 1).copy(),
        rows=rows,
        base=base,
        target=wanted,
        activation=fused_activation(state.graph, node),
        limits=(params.q_min, params.q_max),
    )
