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
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from copy import deepcopy
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any

from amct_onnx.errors import AmctError, DataError
from amct_onnx.passes.observation import Budget, Feed, Watch, exposing, show_batches
from amct_onnx.passes.session import Session, open_session
from amct_onnx.passes.weights import LightModel, StoredArray, loaded

_log = logging.getLogger("amct_onnx")

SHARD = 16
"""Batches that are observed together."""

_FILE = "calibration_model.pickle"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """One shard, as it travels to a worker.

    key: of the model; a worker keeps the session of the last one.
    path: where workers on this machine find the model, pickled.
    model: the same, pickled, for a worker that does not.
    watches: what to look at, by observers that have seen nothing.
    first: number of the first batch.
    """

    key: str
    path: str
    model: bytes | None
    watches: tuple[Watch, ...]
    first: int
    feeds: tuple[Feed, ...]


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
        budget: bounds the batches that are on their way.
        executor: anything with `submit`, also of other machines.

    Raises:
        ModelError: the model cannot be run on a batch; names it.
        DataError: a batch makes every process die that computes it; names it.
    """
    content = pickle.dumps(_in_memory(exposing(model, watches)), protocol=5)
    with tempfile.TemporaryDirectory(prefix="amct_onnx-") as folder:
        path = Path(folder) / _FILE
        path.write_bytes(content)
        empty = tuple(replace(watch, observer=deepcopy(watch.observer)) for watch in watches)
        task = _Task(
            key=sha256(content).hexdigest(), path=str(path), model=None, watches=empty, first=0, feeds=()
        )
        pending: deque[tuple[_Task, Future[bytes | None] | None]] = deque()
        waiting = 0
        for shard in _shards(task, feeds):
            waiting += _byte_count(shard)
            pending.append((shard, _submit(executor, shard)))
            while waiting > budget.memory and len(pending) > 1:
                waiting -= _byte_count(pending[0][0])
                _merge(watches, _result(executor, content, *pending.popleft()))
        while pending:
            _merge(watches, _result(executor, content, *pending.popleft()))


def _in_memory(model: LightModel) -> LightModel:
    """The model with no weight in a file, which other machines could not read."""
    weights = {n: loaded(w) if isinstance(w, StoredArray) else w for n, w in model.weights.items()}
    return replace(model, weights=weights)


def _shards(task: _Task, feeds: Iterable[Feed]) -> Iterator[_Task]:
    batches = iter(feeds)
    first = 0
    while taken := tuple({name: array.copy() for name, array in feed.items()} for feed in islice(batches, SHARD)):
        yield replace(task, first=first, feeds=taken)
        first += len(taken)


def _byte_count(task: _Task) -> int:
    return sum(array.nbytes for feed in task.feeds for array in feed.values())


def _merge(watches: Sequence[Watch], packed: bytes) -> None:
    for watch, seen in zip(watches, pickle.loads(zlib.decompress(packed)), strict=True):
        watch.observer.merge(seen)


def _submit(executor: Executor, task: _Task) -> Future[bytes | None] | None:
    """None where the executor takes no more work, as after one of its processes died."""
    try:
        return executor.submit(observe_shard, task)
    except RuntimeError as error:
        _log.warning("the executor takes no more work (%s); shard %d is computed here", error, task.first // SHARD)
        return None


def _result(executor: Executor, content: bytes, task: _Task, future: Future[bytes | None] | None) -> bytes:
    """What a worker has seen of a shard; computed again, in a process of our own, where the worker died."""
    try:
        found = None if future is None else future.result()
        if found is None and future is not None:
            again = _submit(executor, replace(task, model=content))
            found = None if again is None else again.result()
        if found is not None:
            return found
    except AmctError:
        raise
    except Exception as error:  # whatever an executor says when its worker dies
        _log.warning(
            "batches %d to %d are computed again: their worker failed (%s: %s)",
            task.first,
            task.first + len(task.feeds) - 1,
            type(error).__name__,
            error,
        )
    return _observe_apart(task)


def _observe_apart(task: _Task) -> bytes:
    """The shard in a process of its own. Where that dies too, the batch that kills it is looked for."""
    found = _in_own_process(task)
    if isinstance(found, bytes):
        return found
    for number, feed in enumerate(task.feeds):
        alone = _in_own_process(replace(task, first=task.first + number, feeds=(feed,)))
        if not isinstance(alone, bytes):
            raise DataError(f"calibration batch {task.first + number}: the process that computes it dies: {alone}")
    raise DataError(
        f"calibration batches {task.first} to {task.first + len(task.feeds) - 1}: the process that computes them dies, "
        f"though each of them passes alone: {found}"
    )


def _in_own_process(task: _Task) -> bytes | str:
    """What was seen, or how the process ended."""
    paths = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-c", "from amct_onnx.passes.shards import serve_one; serve_one()"]
    run = subprocess.run(
        command, input=pickle.dumps(task), capture_output=True, check=False, env={**os.environ, "PYTHONPATH": paths}
    )
    if run.returncode == 0:
        found = pickle.loads(run.stdout)
        if isinstance(found, AmctError):
            raise found
        if isinstance(found, bytes):
            return found
    last = run.stderr.decode(errors="replace").strip().splitlines()[-1:]
    return " ".join([f"exit status {run.returncode}", *last])


def serve_one() -> None:
    """Read a task from standard input, and write to standard output what was seen, or the error of ours."""
    task = pickle.load(sys.stdin.buffer)
    answer: object
    try:
        answer = observe_shard(task)
    except AmctError as error:
        answer = error
    sys.stdout.buffer.write(pickle.dumps(answer))


_opened: dict[str, Session] = {}
"""In a worker: the session of the last model, which the next shard most likely runs through too."""

_opening = Lock()


def observe_shard(task: _Task) -> bytes | None:
    """In a worker: what the observers have seen of a shard; None where the worker cannot find the model."""
    session = _session_of(task)
    if session is None:
        return None
    watches = deepcopy(task.watches)  # where the worker is a thread, other shards begin with the same ones
    show_batches(session, watches, task.feeds, lanes=1, first=task.first)
    return zlib.compress(pickle.dumps([watch.observer for watch in watches], protocol=5), level=1)


def _session_of(task: _Task) -> Session | None:
    with _opening:
        if task.key not in _opened:
            content = task.model
            if content is None and os.path.exists(task.path):
                content = Path(task.path).read_bytes()
            if content is None or sha256(content).hexdigest() != task.key:
                return None
            model: Any = pickle.loads(content)
            _opened.clear()
            _opened[task.key] = open_session(model, "the calibration model", threads=1)
        return _opened[task.key]
