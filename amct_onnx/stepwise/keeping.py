"""A model that keeps what it is fed: nodes beside its inputs write every batch into a folder.

Whoever has the user's loop run such a model has the data of that loop from then on. The nodes stand in the domain of
those that observe, and run in the same two ways: under AMCT_SO, and in a `calibration_session`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import count
from pathlib import Path
from threading import Lock, get_ident
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from amct_onnx.data import Feed, InputSpec
from amct_onnx.errors import DataError, OutputError
from amct_onnx.passes.graph import unique_name
from amct_onnx.passes.protos import copy_fields
from amct_onnx.passes.weights import LightModel
from amct_onnx.stepwise.observing_nodes import ATTRIBUTE, DOMAIN

KEEPERS: Mapping[str, int] = {
    "KeepFloat": TensorProto.FLOAT,
    "KeepDouble": TensorProto.DOUBLE,
    "KeepInteger": TensorProto.INT64,
}
"""Operator -> the element type that it takes; other types are cast to one that holds all of their values."""

_FAILURE = "failure.txt"

_sessions = count()


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeper:
    """What one node says: input number `index` of `total` goes into `folder`, of the first `batch_num` batches."""

    folder: str
    index: int
    total: int
    batch_num: int


@lru_cache(maxsize=1024)
def keeper_of(settings: str) -> Keeper:
    """What the attribute of a node says."""
    return Keeper(**json.loads(settings))


def with_keepers(model: LightModel, specs: Sequence[InputSpec], folder: Path, batch_num: int) -> LightModel:
    """The model with a node for each of its inputs.

    Raises:
        DataError: an input is neither of numbers nor of booleans.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    taken = {node.name for node in proto.graph.node}
    taken |= {name for node in proto.graph.node for name in (*node.input, *node.output)}
    for index, spec in enumerate(specs):
        if spec.dtype.kind not in "fiub":
            raise DataError(f"input {spec.name!r} of the model is {spec.dtype.name}; its values cannot be kept")
        op_type, source = _operator(spec.dtype), spec.name
        if KEEPERS[op_type] != helper.np_dtype_to_tensor_dtype(spec.dtype):
            source = unique_name(f"{spec.name}.cast", taken)
            proto.graph.node.append(helper.make_node("Cast", [spec.name], [source], name=source, to=KEEPERS[op_type]))
        name = unique_name(f"{spec.name}.{op_type}", taken)
        node = helper.make_node(op_type, [source], [name], name=name, domain=DOMAIN)
        keeper = Keeper(folder=os.path.abspath(folder), index=index, total=len(specs), batch_num=batch_num)
        node.attribute.append(helper.make_attribute(ATTRIBUTE, json.dumps(asdict(keeper))))
        proto.graph.node.append(node)
    proto.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return LightModel(proto=proto, weights=model.weights)


def _operator(dtype: np.dtype[Any]) -> str:
    if dtype.kind != "f":
        return "KeepInteger"
    return "KeepDouble" if dtype.itemsize > 4 else "KeepFloat"


def without_keepers(model: LightModel) -> tuple[LightModel, dict[str, Keeper]]:
    """The model without these nodes, and input -> what its node said; none where it has no such node."""
    nodes = list(model.proto.graph.node)
    makers = {name: node for node in nodes for name in node.output}
    keepers, dropped = {}, set[int]()
    for place, node in enumerate(nodes):
        if node.domain == DOMAIN and node.op_type in KEEPERS:
            source = makers.get(node.input[0])
            settings = {attribute.name: attribute.s.decode() for attribute in node.attribute}
            keepers[node.input[0] if source is None else source.input[0]] = keeper_of(settings[ATTRIBUTE])
            dropped.add(place)
    proto = onnx.ModelProto()
    copy_fields(model.proto, proto, "graph")
    copy_fields(model.proto.graph, proto.graph, "node")
    proto.graph.node.extend(node for place, node in enumerate(nodes) if place not in dropped)
    return LightModel(proto=proto, weights=model.weights), keepers


class Keeping:
    """Writes the batches of one session. May be used from several threads at once."""

    def __init__(self) -> None:
        self._name = f"{time.time_ns():020}-{os.getpid()}-{next(_sessions)}"
        self._halves: dict[int, dict[int, NDArray[Any]]] = {}
        self._batches, self._lock = 0, Lock()

    def see(self, keeper: Keeper, array: NDArray[Any]) -> None:
        """One input of the batch that runs in this thread.

        Raises:
            OutputError: the batch cannot be written.
        """
        with self._lock:
            batch = self._halves.setdefault(get_ident(), {})
            batch[keeper.index] = np.array(array)
            if len(batch) < keeper.total:
                return
            del self._halves[get_ident()]
            number, self._batches = self._batches, self._batches + 1
        if number < keeper.batch_num:
            self._write(Path(keeper.folder), number, batch)

    def _write(self, folder: Path, number: int, batch: Mapping[int, NDArray[Any]]) -> None:
        unfinished, done = folder / f"{self._name}.{number}", folder / self._name / f"{number:08}"
        try:
            unfinished.mkdir(parents=True)
            for index, array in batch.items():
                np.save(unfinished / f"{index}.npy", array)
            done.parent.mkdir(exist_ok=True)
            unfinished.rename(done)
        except OSError as error:
            raise OutputError(f"{done}: a batch cannot be kept: {error.strerror or error}") from error


def note_loss(keeper: Keeper, reason: str) -> None:
    """Leave what went wrong where `kept_batches` finds it."""
    Path(keeper.folder).joinpath(_FAILURE).write_text(reason, encoding="utf-8")


def kept_batches(folder: Path, specs: Sequence[InputSpec], batch_num: int, who: str) -> Callable[[], Iterator[Feed]]:
    """The first `batch_num` batches of the last session that ran as many, as a source of calibration data.

    who: ran them, for messages.

    Raises:
        DataError: no session did, or the batches could not be kept.
    """
    if (folder / _FAILURE).exists():
        raise DataError(f"{who}: {(folder / _FAILURE).read_text(encoding='utf-8')}")
    sessions = sorted(path for path in folder.iterdir() if path.is_dir() and "." not in path.name)
    counts = {session: len(list(session.iterdir())) for session in sessions}
    complete = [session for session, found in counts.items() if found >= batch_num]
    if not sessions:
        raise DataError(
            f"{who} has not run the model; open it with onnxruntime.InferenceSession(model_file, amct_onnx.AMCT_SO) or "
            f"amct_onnx.calibration_session(model_file), and run {batch_num} batches"
        )
    if not complete:
        raise DataError(
            f"{who} has run {max(counts.values())} of {batch_num} batches in one session; run at least as many as the "
            "configuration's batch_num says"
        )

    def feeds() -> Iterator[Feed]:
        for number in range(batch_num):
            batch = complete[-1] / f"{number:08}"
            yield {spec.name: np.load(batch / f"{i}.npy").astype(spec.dtype) for i, spec in enumerate(specs)}

    return feeds
