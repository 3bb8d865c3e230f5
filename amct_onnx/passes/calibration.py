"""Runs the calibration data through a model, whatever the passes want to see of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from itertools import islice

from amct_onnx.passes.observation import Budget, Feed, Watch, observe_batches, sweeps
from amct_onnx.passes.resources import available_cores, available_memory
from amct_onnx.passes.shapes import infer_types
from amct_onnx.passes.shards import observe_sharded
from amct_onnx.passes.state import QuantState
from amct_onnx.passes.weights import LightModel


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationRun:
    """How the data are to be run.

    feeds: the batches; gone through once for every sweep.
    first: the first of them.
    memory_limit: bytes for the watched tensors of all batches that are on their way; None for half of what is free.
    executor: computes shards of the data elsewhere; None computes here.
    silent: the same batches, for passes that go through them many times and show other progress; None for `feeds`.
    track: hands parts of the work on and shows how many are through: iterator, name, number of parts, and their name.
    """

    feeds: Iterable[Feed]
    first: Feed
    memory_limit: int | None = None
    executor: Executor | None = None
    silent: Iterable[Feed] | None = None
    track: Callable[[Iterable[None], str, int, str], Iterable[None]] = lambda parts, name, total, unit: parts

    @property
    def memory(self) -> int:
        """The limit, or half of what is free."""
        return available_memory() // 2 if self.memory_limit is None else self.memory_limit

    def limited(self, batches: int | None) -> CalibrationRun:
        """The same over the first `batches` batches only; None for all."""
        if batches is None:
            return self
        return replace(self, feeds=[self.first] if batches == 1 else _First(self.feeds, batches))

    def show(self, model: LightModel, watches: Sequence[Watch]) -> None:
        """Run every batch through the model, and show each watched tensor to its observer.

        Raises:
            ModelError: the model cannot be run on a batch.
            DataError: a batch cannot be read.
        """
        budget = Budget(cores=available_cores(), memory=self.memory)
        for group in sweeps(watches, budget):
            if self.executor is None:
                observe_batches(model, group, self.feeds, budget)
            else:
                observe_sharded(model, group, self.feeds, budget, self.executor)


class _First:
    """The first batches of others."""

    def __init__(self, feeds: Iterable[Feed], count: int) -> None:
        self._feeds, self._count = feeds, count

    def __iter__(self) -> Iterator[Feed]:
        return islice(self._feeds, self._count)


class Sizes:
    """Bytes of tensors in one batch; a tensor of unknown shape counts as much as the largest of the known ones."""

    def __init__(self, state: QuantState, first: Feed) -> None:
        types = infer_types(state.graph, {name: array.shape for name, array in first.items()})
        self._fed: Mapping[str, object] = first
        self._known = {
            name: 4 * math.prod(d for d in known.shape if d is not None)
            for name, known in types.items()
            if known.shape is not None and None not in known.shape
        }
        self._largest = max(self._known.values(), default=0)

    def of(self, tensor: str) -> int:
        """What holding `tensor` costs; nothing where it is an input of the model."""
        return 0 if tensor in self._fed else self._known.get(tensor, self._largest)


def why_unusable(watch: Watch) -> str | None:
    """Why nothing can be found from what was seen of a tensor, or None where there is something."""
    if not watch.observer.finite:
        return f"its input {watch.tensor!r} holds NaN or inf on the calibration data"
    if watch.observer.count == 0:
        return f"its input {watch.tensor!r} is empty on the calibration data"
    return None
