"""Runs calibration batches through a model while observers look at its tensors.

Nothing is kept of a batch but what the observers note. Several batches are on their way at once, each on threads of
its own, as far as cores and memory go; where the watched tensors of one batch alone are more than memory holds, the
data are gone through several times, each time for a part of the tensors. The results do not depend on any of this.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Condition, Lock
from typing import Any, Protocol

import onnx
from numpy.typing import NDArray

from amct_onnx.passes.protos import all_graphs, copy_fields
from amct_onnx.passes.session import Session, makes_noise, open_session
from amct_onnx.passes.weights import LightModel

Feed = Mapping[str, NDArray[Any]]


class Observer(Protocol):
    """Looks at a tensor batch by batch; its state has a constant size and can be merged."""

    @property
    def count(self) -> int:
        """Values seen."""
        ...

    @property
    def finite(self) -> bool:
        """Whether none of them was NaN or inf."""
        ...

    def update(self, array: NDArray[Any]) -> None:
        """Take in one batch."""
        ...

    def merge(self, other: Any) -> None:
        """Take in what another observer, made with the same parameters, has seen."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """An observer and the tensor it looks at.

    in_order: the observer's result depends on the order of the batches.
    size: bytes of the tensor for one batch, as far as they are known; for dividing the work.
    """

    tensor: str
    observer: Observer
    in_order: bool = False
    size: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a run may use.

    cores: threads that compute.
    memory: bytes for the watched tensors of the batches that are on their way.
    """

    cores: int
    memory: int


def sweeps(watches: Sequence[Watch], budget: Budget) -> list[list[Watch]]:
    """The watches in groups, in order, each small enough to be watched at once; usually one group.

    What takes no memory needs no group of its own, nor does it keep a tensor that is too large alone from its group.
    """
    groups: list[list[Watch]] = []
    filled = 0
    for watch in watches:
        if not groups or (watch.size and filled and filled + watch.size > budget.memory):
            groups.append([])
            filled = 0
        groups[-1].append(watch)
        filled += watch.size
    return groups


def observe_batches(model: LightModel, watches: Sequence[Watch], feeds: Iterable[Feed], budget: Budget) -> None:
    """Run every batch through the model, and show each watched tensor to its observer.

    Raises:
        ModelError: the model cannot be run on a batch; names the first such batch.
    """
    size = sum(watch.size for watch in watches)
    lanes = max(1, min(budget.cores, budget.memory // size if size else budget.cores))
    if makes_noise(model.proto):
        lanes = 1  # the noise that a batch meets depends on the batches before it
    session = open_session(exposing(model, watches), "the calibration model", threads=max(1, budget.cores // lanes))
    show_batches(session, watches, feeds, lanes=lanes)


def show_batches(
    session: Session, watches: Sequence[Watch], feeds: Iterable[Feed], *, lanes: int, first: int = 0
) -> None:
    """Run every batch, `lanes` of them at a time, and show each watched tensor to its observer.

    Raises:
        ModelError: the model cannot be run on a batch; names the first such batch, counted from `first`.
    """
    turns, locks = _Turns(first), {id(watch): Lock() for watch in watches}
    pending: deque[Future[None]] = deque()
    unread: Exception | None = None
    pool = ThreadPoolExecutor(lanes, thread_name_prefix="amct_onnx-lane")
    try:
        for batch, feed in enumerate(error_last(feeds), first):
            if isinstance(feed, Exception):
                unread = feed
                break
            if len(pending) > lanes:
                pending.popleft().result()
            own = {name: array.copy() for name, array in feed.items()}  # a source may reuse its arrays
            pending.append(pool.submit(_look, session, watches, locks, turns, batch, own))
        while pending:
            pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
    if unread is not None:
        raise unread


def error_last(feeds: Iterable[Feed]) -> Iterator[Feed | Exception]:
    """The batches; where one cannot be read, the error in its place, to be raised when those before it have passed."""
    try:
        yield from feeds
    except Exception as error:
        yield error


def exposing(model: LightModel, watches: Iterable[Watch]) -> LightModel:
    """The model with the watched tensors as its only outputs, and without the nodes that need not be computed for them.

    A node stays where it reads what stays, unless that is an output: onnxruntime fuses a node with its only reader, but
    no output with anything. So the numbers do not depend on which of the tensors are exposed at a time.
    """
    graph = model.proto.graph
    fed = {value.name for value in graph.input}
    known = {value.name: value for value in graph.output}
    names = [name for name in dict.fromkeys(watch.tensor for watch in watches) if name not in fed]
    names = names or list(known)  # nothing but inputs is watched; the model must have an output
    nodes = _needed(graph, names)
    used = {*names}.union(*(read_by(node) for node in nodes))
    proto = onnx.ModelProto()
    copy_fields(model.proto, proto, "graph")
    copy_fields(graph, proto.graph, "initializer")
    del proto.graph.output[:], proto.graph.node[:]
    proto.graph.node.extend(nodes)
    proto.graph.initializer.extend(tensor for tensor in graph.initializer if tensor.name in used)
    proto.graph.output.extend(known.get(name, onnx.ValueInfoProto(name=name)) for name in names)
    return LightModel(proto=proto, weights={name: weight for name, weight in model.weights.items() if name in used})


def _needed(graph: onnx.GraphProto, outputs: Iterable[str]) -> list[onnx.NodeProto]:
    """The nodes that stay, see `exposing`."""
    exposed = set(outputs)
    nodes = list(graph.node)
    read = [read_by(node) for node in nodes]
    producers = {name: index for index, node in enumerate(nodes) for name in node.output}
    readers: dict[str, list[int]] = {}
    for index, names in enumerate(read):
        for name in names:
            readers.setdefault(name, []).append(index)
    kept: set[int] = set()
    waiting = [producers[name] for name in exposed if name in producers]
    while waiting:
        index = waiting.pop()
        if index not in kept:
            kept.add(index)
            waiting += [producers[name] for name in read[index] if name in producers]
            hidden = [name for name in nodes[index].output if name not in exposed]
            waiting += [reader for name in hidden for reader in readers.get(name, ())]
    return [nodes[index] for index in sorted(kept)]


def read_by(node: onnx.NodeProto) -> set[str]:
    """The tensors that a node reads, also inside its bodies."""
    bodies = [body for a in node.attribute if a.type == onnx.AttributeProto.GRAPH for body in all_graphs(a.g)]
    inner = {name for body in bodies for node in body.node for name in node.input}
    return inner.union(node.input, *([value.name for value in body.output] for body in bodies)) - {""}


def _look(
    session: Session, watches: Iterable[Watch], locks: Mapping[int, Lock], turns: _Turns, batch: int, feed: Feed
) -> None:
    with turns.failing(batch):
        values = {**session.run(feed, f"calibration batch {batch}"), **feed}
        for watch in watches:
            if not watch.in_order:
                with locks[id(watch)]:
                    watch.observer.update(values[watch.tensor])
        with turns.of(batch):
            for watch in watches:
                if watch.in_order:
                    watch.observer.update(values[watch.tensor])


class _Stopped(Exception):
    """An earlier batch failed; its error is the one to be raised."""


class _Turns:
    """Lets batches into a section one after the other, in their order."""

    def __init__(self, first: int) -> None:
        self._next = first
        self._failed: int | None = None
        self._changed = Condition()

    @contextmanager
    def failing(self, batch: int) -> Iterator[None]:
        """What goes wrong inside keeps later batches from waiting for this one."""
        try:
            yield
        except BaseException:
            with self._changed:
                self._failed = batch if self._failed is None else min(batch, self._failed)
                self._changed.notify_all()
            raise

    @contextmanager
    def of(self, batch: int) -> Iterator[None]:
        """The section; entered when all earlier batches have left it."""
        with self._changed:
            self._changed.wait_for(lambda: self._next == batch or self._is_stopped(batch))
            if self._is_stopped(batch):
                raise _Stopped
        yield
        with self._changed:
            self._next = batch + 1
            self._changed.notify_all()

    def _is_stopped(self, batch: int) -> bool:
        return self._failed is not None and self._failed < batch
