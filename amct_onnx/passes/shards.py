"""Observes calibration batches on other processes or machines.

The batches are cut into shards of a fixed number, whatever the workers are; each shard is observed by observers of its
own, and these are merged in the order of the shards. So the result does not depend on who computed what, or how often
it had to be computed again.
"""

from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
import tempfile
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, wait
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from itertools import chain
from pathlib import Path
from threading import Lock

from amct_onnx.errors import AmctError, ConfigError, DataError
from amct_onnx.passes.observation import Budget, Feed, Watch, error_last, exposing, show_batches
from amct_onnx.passes.session import Session, makes_noise, open_session
from amct_onnx.passes.weights import LightModel, loaded

_log = logging.getLogger("amct_onnx")

SHARD = 16
"""Batches that are observed together."""

CARRIERS = 8
"""Shards that carry the model at a time, to workers which do not find it."""

_FILE = "calibration_model.pickle"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """One shard, as it travels to a worker.

    key: of the model; a worker keeps the session of the last one.
    path: where workers on this machine find the model, its weights in a file beside it, and the watches, whose
        observers have seen nothing; all pickled.
    model: the same with the weights in it, for a worker that does not find it there.
    first: number of the first batch.
    attempt: how often it was sent before; for executors that do not compute the same twice.
    """

    key: str
    path: str
    model: bytes | None
    first: int
    feeds: tuple[Feed, ...]
    attempt: int = 0

    @property
    def batches(self) -> str:
        """Its batches, for messages."""
        return f"calibration batches {self.first} to {self.first + len(self.feeds) - 1}"

    @property
    def nbytes(self) -> int:
        """The size of its feeds."""
        return sum(array.nbytes for feed in self.feeds for array in feed.values())


def observe_sharded(
    model: LightModel,
    watches: Sequence[Watch],
    feeds: Iterable[Feed],
    budget: Budget,
    executor: Executor,
) -> None:
    """Show each watched tensor of every batch to its observer, the work being done by `executor`.

    Args:
        model: what the batches run through.
        watches: their observers have seen nothing yet; they take in what those of the workers have seen.
        feeds: the batches.
        budget: bounds the batches, and what was seen of batches, that are on their way.
        executor: anything with `submit`, also of other machines.

    Raises:
        ModelError: the model cannot be run on a batch; names the first such batch.
        DataError: a batch makes every process die that computes it; names it.
        ConfigError: the executor is none of concurrent.futures.
    """
    unread: Exception | None = None
    with tempfile.TemporaryDirectory(prefix="amct_onnx-") as folder:
        stored = exposing(model, watches).beside(Path(folder))
        content = pickle.dumps((stored, tuple(watches)), protocol=5)
        path = Path(folder) / _FILE
        path.write_bytes(content)
        task = _Task(key=sha256(content).hexdigest(), path=str(path), model=None, first=0, feeds=())
        line = _Line(executor, stored, watches, budget)
        try:
            for shard in _shards(task, feeds):
                if isinstance(shard, Exception):
                    unread = shard
                    break
                line.add(shard)
            line.finish()
        finally:
            line.cancel()
            _opened.pop(task.key, None)  # where the workers are threads of this process
    if unread is not None:
        raise unread


def _shards(task: _Task, feeds: Iterable[Feed]) -> Iterator[_Task | Exception]:
    """The task with batches, time and again; at last, where a batch cannot be read, the error."""
    taken: list[Feed] = []
    for feed in chain(error_last(feeds), [None]):
        if isinstance(feed, Mapping):
            taken.append({name: array.copy() for name, array in feed.items()})  # a source may reuse its arrays
        if taken and (len(taken) == SHARD or not isinstance(feed, Mapping)):
            yield replace(task, feeds=tuple(taken))
            task = replace(task, first=task.first + len(taken))
            taken = []
        if isinstance(feed, Exception):
            yield feed


@dataclass(slots=True, kw_only=True)
class _Pending:
    """A shard that is on its way; `future` is None where the executor did not take it."""

    task: _Task
    future: Future[bytes | None] | None

    @property
    def is_running(self) -> bool:
        """Whether there is no answer yet."""
        return self.future is not None and not self.future.done()

    @property
    def is_lacking(self) -> bool:
        """Whether the worker did not find the model."""
        return self.task.model is None and self.future is not None and not self.is_running and self.answer() is None

    def answer(self) -> bytes | BaseException | None:
        """What was seen; what befell the worker; None where it did not get at the shard."""
        if self.future is None:
            return None
        try:
            error = self.future.exception()
            return self.future.result() if error is None else error
        except CancelledError as error:
            return error


class _Line:
    """The shards that are on their way, in their order; what was seen of the first is merged once it is there."""

    def __init__(self, executor: Executor, model: LightModel, watches: Sequence[Watch], budget: Budget) -> None:
        self._executor, self._model, self._watches, self._budget = executor, model, watches, budget
        self._pending: deque[_Pending] = deque()
        self._carriers: list[_Pending] = []
        self._empty = pickle.dumps(tuple(watches), protocol=5)
        self._held = 0
        self._warned = False

    def add(self, task: _Task) -> None:
        """Send a shard out, and merge what has come back; wait for it where memory is short."""
        self._pending.append(_Pending(task=task, future=self._submit(task)))
        self._held += task.nbytes + len(self._empty)
        self._send_model()
        while self._pending and (self._is_settled() or (self._held > self._budget.memory and len(self._pending) > 1)):
            self._merge_first()

    def finish(self) -> None:
        """Wait for all that is on its way."""
        while self._pending:
            self._merge_first()

    def cancel(self) -> None:
        """Ask the executor to forget what it has not begun."""
        for pending in self._pending:
            if pending.future is not None:
                pending.future.cancel()

    def _submit(self, task: _Task) -> Future[bytes | None] | None:
        """None where the executor takes no more work, as after one of its processes died."""
        try:
            future = self._executor.submit(observe_shard, task)
        except Exception as error:
            if not self._warned:
                _log.warning("the executor takes no more work (%s); the rest is computed here", error)
            self._warned = True
            return None
        if not isinstance(future, Future):
            raise ConfigError(
                f"executor: its submit() returns a {type(future).__module__}.{type(future).__name__}, no "
                "concurrent.futures.Future; of a Dask client give client.get_executor()"
            )
        return future

    @cached_property
    def _content(self) -> bytes:
        """The model for workers elsewhere, made when the first of them lacks it."""
        weights = {name: loaded(weight) for name, weight in self._model.weights.items()}
        return pickle.dumps((replace(self._model, weights=weights), pickle.loads(self._empty)), protocol=5)

    def _is_settled(self) -> bool:
        return not self._pending[0].is_running and not self._pending[0].is_lacking

    def _send_model(self) -> None:
        """Send shards again whose workers lack the model: a few with it, and when these are through, the others."""
        lacking = [pending for pending in self._pending if pending.is_lacking]
        if not lacking:
            return
        running = [pending for pending in self._carriers if pending.is_running]
        if len(running) == len(self._carriers):
            most = min(max(self._budget.memory // len(self._content), 1), CARRIERS)
            lacking = lacking[: max(most - len(running), 0)]
            model, running = self._content, running + lacking
        else:
            model = None
        for pending in lacking:
            pending.task = replace(pending.task, model=model, attempt=pending.task.attempt + 1)
            pending.future = self._submit(pending.task)
        self._carriers = running

    def _merge_first(self) -> None:
        while not self._is_settled():
            wait([p.future for p in self._pending if p.future and p.is_running], return_when=FIRST_COMPLETED)
            self._send_model()
        first = self._pending.popleft()
        self._held -= first.task.nbytes + len(self._empty)
        packed = _seen(first)
        for watch, seen in zip(self._watches, pickle.loads(zlib.decompress(packed)), strict=True):
            watch.observer.merge(seen)


def _seen(pending: _Pending) -> bytes:
    """What a worker has seen of a shard; computed again, in a process of our own, where the worker died."""
    answer = pending.answer()
    if isinstance(answer, bytes):
        return answer
    if isinstance(answer, AmctError):
        raise answer
    if answer is not None:
        name = type(answer).__name__
        _log.warning("%s are computed again: their worker failed (%s: %s)", pending.task.batches, name, answer)
    return _observe_apart(replace(pending.task, model=None))


def _observe_apart(task: _Task) -> bytes:
    """The shard in a process of its own. Where that dies too, the batch that kills it is looked for."""
    found = _in_own_process(task)
    if isinstance(found, bytes):
        return found
    for number, feed in enumerate(task.feeds, task.first):
        alone = _in_own_process(replace(task, first=number, feeds=(feed,)))
        if not isinstance(alone, bytes):
            raise DataError(f"calibration batch {number}: the process that computes it dies: {alone}")
    raise DataError(f"{task.batches}: the process that computes them dies, though each of them passes alone: {found}")


def _in_own_process(task: _Task) -> bytes | str:
    """What was seen, or how the process ended."""
    answer = Path(task.path).with_name("answer")  # no pipe: whatever is imported may print
    paths = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-c", "from amct_onnx.passes.shards import serve_one; serve_one()", str(answer)]
    run = subprocess.run(
        command, input=pickle.dumps(task), capture_output=True, check=False, env={**os.environ, "PYTHONPATH": paths}
    )
    if run.returncode == 0:
        found = pickle.loads(answer.read_bytes())
        if isinstance(found, AmctError):
            raise found
        if isinstance(found, bytes):
            return found
    last = run.stderr.decode(errors="replace").strip().splitlines()[-1:]
    return " ".join([f"exit status {run.returncode}", *last])


def serve_one() -> None:
    """Read a task from standard input, and write what was seen, or the error of ours, to the file of the argument."""
    task = pickle.load(sys.stdin.buffer)
    answer: object
    try:
        answer = observe_shard(task)
    except AmctError as error:
        answer = error
    Path(sys.argv[1]).write_bytes(pickle.dumps(answer))


_opened: dict[str, tuple[Session, tuple[Watch, ...]]] = {}
"""In a worker: the last model and what to look at, which the next shard most likely needs too."""

_opening = Lock()


def observe_shard(task: _Task) -> bytes | None:
    """In a worker: what the observers have seen of a shard; None where the worker cannot find the model."""
    opened = _open(task)
    if opened is None:
        return None
    session, empty = opened
    watches = deepcopy(empty)
    show_batches(session, watches, task.feeds, lanes=1, first=task.first)
    return zlib.compress(pickle.dumps([watch.observer for watch in watches], protocol=5), level=1)


def _open(task: _Task) -> tuple[Session, tuple[Watch, ...]] | None:
    with _opening:
        if task.key not in _opened:
            content = task.model
            if content is None:
                content = _content_of(Path(task.path))
                if content is None or sha256(content).hexdigest() != task.key:
                    return None
            model, watches = pickle.loads(content)
            opened = open_session(model, "the calibration model", threads=1), watches
            if makes_noise(model.proto):
                return opened  # each shard begins with the same noise, whatever its worker did before
            _opened.clear()
            _opened[task.key] = opened
        return _opened[task.key]


def _content_of(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:  # on another machine, or of another user
        return None
