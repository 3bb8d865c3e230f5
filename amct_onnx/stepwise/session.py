"""calibration_session: the user's own loop, without an extra."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from threading import Lock
from types import TracebackType
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray

from amct_onnx.errors import DataError, RecordError, nearest
from amct_onnx.formats.model_file import read_model
from amct_onnx.passes.protos import copy_fields
from amct_onnx.passes.session import open_session
from amct_onnx.passes.weights import LightModel
from amct_onnx.stepwise.arguments import path_of
from amct_onnx.stepwise.keeping import Keeping, without_keepers
from amct_onnx.stepwise.observing import Observing
from amct_onnx.stepwise.observing_nodes import Observation, without_observers

_log = logging.getLogger("amct_onnx")


def calibration_session(modified_onnx_file: str | os.PathLike[str]) -> CalibrationSession:
    """A session over the model that `quantize_model` or `quantize_preprocess` wrote, to be used in a `with` block.

    Each `run` is a batch. After `batch_num` of them the factors stand in the record file; before, it says how many
    have passed. What comes after is run, but changes nothing. A new session begins anew.

    Raises:
        ArgumentError, ModelError: there is no such file, or it is no such model.
        RecordError: its record file is not there.
    """
    path = path_of("modified_onnx_file", modified_onnx_file)
    return CalibrationSession(read_model(path), str(path))


class CalibrationSession:
    """Runs a model and shows its tensors to the observers; made by `calibration_session`."""

    def __init__(self, model: LightModel, where: str) -> None:
        plain, self._keepers = without_keepers(model)
        self._observations: list[Observation] = []
        if not self._keepers:
            plain, self._observations = without_observers(plain, where)
            record = self._observations[0].record_file
            if not record.exists():
                raise RecordError(
                    f"{where}: writes its factors to {record}, which is not there; call the function that made the "
                    "model again"
                )
        self._outputs = [value.name for value in plain.proto.graph.output]
        self._session = open_session(_exposing(plain, [o.tensor for o in self._observations]), "the modified model")
        self._observing, self._keeping = Observing(), Keeping()
        self._runs, self._lock = 0, Lock()

    def __enter__(self) -> CalibrationSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        wanted = self._observations[0].batch_num if self._observations else 0
        if kind is None and self._observing.passed < wanted:
            _log.warning("%d of %d batches have passed: no factors were written", self._observing.passed, wanted)

    def run(
        self, output_names: Sequence[str] | None, input_feed: Mapping[str, ArrayLike], run_options: None = None
    ) -> list[NDArray[Any]]:
        """Run one batch, as onnxruntime's session does. May be called from several threads at once.

        Args:
            output_names: the outputs to return, in this order; None for all.
            input_feed: input -> its values.
            run_options: for the same form as onnxruntime's; must be None.

        Raises:
            DataError: there is no such output, a batch does not fit those before it, or an earlier one did not.
            ModelError: onnxruntime does not take the batch.
            RecordError, OutputError: the record file cannot be read or written.
        """
        if (error := self._observing.error) is not None:
            what = f"{type(error).__name__} {error}".strip()
            raise DataError(f"an earlier batch failed ({what}); open a new session to begin anew") from error
        names = self._outputs if not output_names else list(output_names)
        for name in names:
            if name not in self._outputs:
                raise DataError(f"the model has no output {name!r}{nearest(name, self._outputs)}")
        with self._lock:
            batch, self._runs = self._runs, self._runs + 1
        feed = {name: np.asarray(values) for name, values in input_feed.items()}
        values = {**feed, **self._session.run(feed, f"calibration batch {batch}")}
        for observation in self._observations:
            self._observing.see(observation, values[observation.tensor])
        for name, keeper in self._keepers.items():
            self._keeping.see(keeper, feed[name])
        return [values[name] for name in names]


def _exposing(model: LightModel, tensors: Sequence[str]) -> LightModel:
    """The model with more outputs."""
    graph = model.proto.graph
    there = {value.name for value in (*graph.input, *graph.output)}
    proto = onnx.ModelProto()
    copy_fields(model.proto, proto, "graph")
    proto.graph.CopyFrom(graph)
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(tensors) if name not in there)
    return LightModel(proto=proto, weights=model.weights)
