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

from amct_onnx.kernels.quant_params import QuantParams
from amct_onnx.passes.session import Session, open_session
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

    def params(self) -> QuantParams:
        """Scale and offset after all that was seen."""
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
    """The watches in groups, in order, each small enough to be watched at once; usually one group."""
    groups: list[list[Watch]] = []
    filled = 0
    for watch in watches:
        if not groups or filled + watch.size > budget.memory:
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
    pool = ThreadPoolExecutor(lanes, thread_name_prefix="amct_onnx-lane")
    try:
        for batch, feed in enumerate(feeds, first):
            if len(pending) > lanes:
                pending.popleft().result()
            own = {name: array.copy() for name, array in feed.items()}  # a source may reuse its arrays
            pending.append(pool.submit(_look, session, watches, locks, turns, batch, own))
        while pending:
            pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def exposing(model: LightModel, watches: Iterable[Watch]) -> LightModel:
    """The model with the watched tensors as its only outputs: what leads to none of them is not computed."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    fed = {value.name for value in proto.graph.input}
    known = {value.name: value for value in proto.graph.output}
    del proto.graph.output[:]
    for name in dict.fromkeys(watch.tensor for watch in watches):
        if name not in fed:
            proto.graph.output.append(known.get(name, onnx.ValueInfoProto(name=name)))
    if not proto.graph.output:
        proto.graph.output.extend(known.values())  # nothing but inputs is watched; the model must have an output
    return LightModel(proto=proto, weights=model.weights)


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
