"""Runs calibration batches through a model whose layers get their final weights on the way.

The layers stand in stages: a stage holds those that have the same number of others before them, on the longest way.
The model is cut into segments, one for each stage, which computes what that stage and all later ones read of what comes
before it. Of as many batches as memory allows, that is kept for the next segment, so no node is computed twice; the
others go through all segments again. So the numbers do not depend on memory.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import repeat
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from amct_onnx.passes.graph import Graph, reads
from amct_onnx.passes.observation import Feed, read_by
from amct_onnx.passes.protos import copy_fields
from amct_onnx.passes.session import Session, open_session
from amct_onnx.passes.weights import LightModel, Weight, stub_for

Array = NDArray[Any]


class Walk:
    """The way through one model.

    Attributes:
        stages: layer -> the number of its stage, from 0.
        sources: layer -> the tensor that it reads.
    """

    def __init__(self, graph: Graph, layers: Collection[str], feeds: Iterable[Feed], memory: int) -> None:
        """`layers`: those that get weights on the way; `memory`: bytes for what is kept of the batches."""
        self._model, self._feeds, self._memory = graph.to_light(), feeds, memory
        nodes = [node for node in graph.nodes if node.name in layers]
        self.sources = {node.name: node.inputs[0].name for node in nodes}
        self._weights = {node.name: node.inputs[1].name for node in nodes}
        self._settled: dict[str, Array] = {}
        inner = self._model.proto.graph
        fed = {value.name for value in inner.input} - {tensor.name for tensor in inner.initializer}
        self.stages, self._ends = _stages(graph, layers, fed)
        self._sessions: dict[int, Session | None] = {}
        self._kept: dict[int, tuple[int, Feed]] = {}
        self._filled = 0
        self._count: int | None = None

    def settle(self, layer: str, weight: Array) -> None:
        """Give a layer its weight, before anything behind it is computed."""
        self._settled[self._weights[layer]] = weight

    def batches(self, stage: int) -> Iterator[Feed]:
        """What the layers of a stage read, batch by batch; the stages before are settled."""
        number = 0
        for number, feed in enumerate(self._unread()):
            reached, values = self._kept.pop(number, (-1, feed))
            self._filled -= _size(values) if reached >= 0 else 0
            for segment in range(reached + 1, stage + 1):
                values = self._advanced(segment, values, number)
            size = _size(values)
            if self._filled + size <= self._memory:
                own = {name: array.copy() if array is feed.get(name) else array for name, array in values.items()}
                self._kept[number] = stage, own  # a source may reuse its arrays
                self._filled += size
            yield values
        self._count = number + 1
        if len(self._kept) == self._count:
            self._sessions.clear()

    def _unread(self) -> Iterable[Feed]:
        """The batches; where all are on their way, nothing in their place."""
        return repeat({}, self._count) if self._count and len(self._kept) == self._count else self._feeds

    def _advanced(self, segment: int, known: Feed, batch: int) -> dict[str, Array]:
        """What stands at the end of a segment."""
        ends = self._ends[segment]
        if segment not in self._sessions:
            self._sessions[segment] = self._open(known, ends)
        session = self._sessions[segment]
        values = dict(known)
        if session is not None:
            values |= session.run({name: known[name] for name in session.inputs}, f"calibration batch {batch}")
        return {name: values[name] for name in ends}

    def _open(self, known: Feed, ends: list[str]) -> Session | None:
        wanted = [name for name in ends if name not in known]
        return (
            open_session(_segment(self._model, known, wanted, self._settled), "a part of the model") if wanted else None
        )


def _size(values: Feed) -> int:
    return sum(array.nbytes for array in values.values())


def _stages(graph: Graph, layers: Collection[str], fed: Collection[str]) -> tuple[dict[str, int], list[list[str]]]:
    """The stage of each layer; for each stage the tensors computed before it and read by it or later ones."""
    levels: dict[int, int] = {}
    stages: dict[str, int] = {}
    lives: dict[str, tuple[int, int]] = {}
    for node in graph.nodes:
        read = {
            tensor.name: levels.get(id(tensor), 0)
            for tensor in reads(node)
            if id(tensor) in levels or tensor.name in fed
        }
        level = max(read.values(), default=0)
        if node.name in layers:
            stages[node.name] = level
            level += 1
        levels.update({id(tensor): level for tensor in node.outputs})
        for name, begin in read.items():
            lives[name] = begin, max(level, lives.get(name, (0, 0))[1])
    ends = [
        [name for name, (begin, end) in lives.items() if begin <= stage < end]
        for stage in range(max(stages.values()) + 1)
    ]
    return stages, ends


def _segment(
    model: LightModel, known: Mapping[str, Array], wanted: Iterable[str], settled: Mapping[str, Array]
) -> LightModel:
    """The model that computes some tensors from others, with some weights replaced; arrays tell the types."""
    graph = model.proto.graph
    outputs = list(wanted)
    nodes, used = _between(graph, known, outputs)
    proto = onnx.ModelProto()
    copy_fields(model.proto, proto, "graph")
    weights: dict[str, Weight] = {name: weight for name, weight in model.weights.items() if name in used}
    for tensor in graph.initializer:
        if tensor.name in used and tensor.name not in settled:
            proto.graph.initializer.append(tensor)
    for name in sorted(used & set(settled)):
        stub = stub_for(name, settled[name])
        proto.graph.initializer.append(stub or numpy_helper.from_array(settled[name], name))
        weights.pop(name, None)
        if stub is not None:
            weights[name] = settled[name]
    proto.graph.node.extend(nodes)
    for name in sorted(used & set(known)):
        kind = onnx.helper.np_dtype_to_tensor_dtype(known[name].dtype)
        proto.graph.input.append(onnx.helper.make_tensor_value_info(name, kind, None))
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    return LightModel(proto=proto, weights=weights)


def _between(
    graph: onnx.GraphProto, known: Collection[str], wanted: list[str]
) -> tuple[list[onnx.NodeProto], set[str]]:
    """The nodes that compute some tensors from others, and everything that they read."""
    producers = {name: index for index, node in enumerate(graph.node) for name in node.output}
    used, nodes, waiting = set[str](), set[int](), list(wanted)
    while waiting:
        name = waiting.pop()
        index = None if name in known else producers.get(name)
        if index is not None and index not in nodes:
            nodes.add(index)
            read = read_by(graph.node[index])
            used |= read
            waiting += read
    return [graph.node[index] for index in sorted(nodes)], used
