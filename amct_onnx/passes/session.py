"""Opens models in onnxruntime, large ones too, and puts its complaints into a sentence of ours."""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from amct_onnx.errors import ModelError
from amct_onnx.passes.graph import LARGEST_MESSAGE, RANDOM, all_graphs, weight_bytes


def open_session(model: onnx.ModelProto, what: str, *, optimize: bool = True) -> onnxruntime.InferenceSession:
    """A session over a model. Noise that the model makes is the same in every session.

    Raises:
        ModelError: onnxruntime does not accept the model; `what` says which.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    # Idle threads would take the processor from the observers, which work while the session rests.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        model = _seeded(model)
        if weight_bytes(model) < LARGEST_MESSAGE:
            return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return _open_large(model, options)
    except Exception as error:
        raise ModelError(f"onnxruntime does not accept {what}: {_in_one_line(error)}") from error


def run_session(
    session: onnxruntime.InferenceSession, feed: Mapping[str, NDArray[Any]], what: str
) -> list[NDArray[Any]]:
    """Every output for one feed.

    Raises:
        ModelError: the run fails; `what` says where.
    """
    try:
        return [np.asarray(value) for value in session.run(None, dict(feed))]
    except Exception as error:
        raise ModelError(f"onnxruntime fails to run the model on {what}: {_in_one_line(error)}") from error


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _seeded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model itself, or a copy whose random operators have a seed that follows from what they are called."""
    if not any(True for _ in _unseeded(model)):
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in list(_unseeded(copy)):
        seed = float(zlib.crc32(node.output[0].encode()) % 1000)
        node.attribute.append(onnx.helper.make_attribute("seed", seed))
    return copy


def _unseeded(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    for graph in all_graphs(model.graph):
        for node in graph.node:
            if node.op_type in RANDOM and not any(attribute.name == "seed" for attribute in node.attribute):
                yield node


def _open_large(model: onnx.ModelProto, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        onnx.save_model(copy, str(path), save_as_external_data=True, location="weights")
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
