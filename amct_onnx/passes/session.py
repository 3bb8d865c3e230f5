"""Opens models in onnxruntime and runs them, and puts its complaints into a sentence of ours.

Large weights are handed over as they lie in memory or in their file: nothing is written out or read back. The same
model and the same data give the same bits in every session, whatever the number of threads.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from amct_onnx.errors import ModelError
from amct_onnx.passes.graph import RANDOM
from amct_onnx.passes.protos import all_graphs
from amct_onnx.passes.weights import LightModel, StoredArray, Weight, detached, loaded

_LARGE = 1 << 29
"""Bytes of weights above which onnxruntime reads them from a file, which it maps, and lays out no copy for speed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A model that is ready to run.

    inner: onnxruntime's session.
    outputs: the names of what it gives.
    kept: what must live as long: weights that onnxruntime reads where they are, or the folder of their file.
    """

    inner: onnxruntime.InferenceSession
    outputs: list[str]
    kept: list[object]

    @property
    def inputs(self) -> list[str]:
        """The names of what it takes."""
        return [value.name for value in self.inner.get_inputs()]

    def run(self, feed: Mapping[str, NDArray[Any]], what: str) -> dict[str, NDArray[Any]]:
        """Every output for one feed. May be called from several threads at once.

        Raises:
            ModelError: the run fails; `what` says where.
        """
        try:
            values = self.inner.run(None, dict(feed))
        except Exception as error:
            raise ModelError(f"onnxruntime fails to run the model on {what}: {_in_one_line(error)}") from error
        return {name: np.asarray(value) for name, value in zip(self.outputs, values, strict=True)}


def open_session(model: onnx.ModelProto | LightModel, what: str, *, optimize: bool = True, threads: int = 0) -> Session:
    """A session over a model. Noise that the model makes is the same in every session.

    Args:
        model: stays as it is.
        what: what to call it in errors.
        optimize: let onnxruntime rewrite the graph.
        threads: that work on one run; 0 for one per core.

    Raises:
        ModelError: onnxruntime does not accept the model.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.use_deterministic_compute = True
    # Idle threads would take the processor from the observers, which work while the session rests.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        light = _without_unread(detached(model))
        light = replace(light, proto=_seeded(light.proto))
        if sum(weight.nbytes for weight in light.weights.values()) > _LARGE:
            return _open_large(light, options)
        return _open(light.proto, light.weights, options)
    except Exception as error:
        raise ModelError(f"onnxruntime does not accept {what}: {_in_one_line(error)}") from error


def _without_unread(light: LightModel) -> LightModel:
    """The model without the large weights that nothing reads: onnxruntime drops them, and then misses them."""
    graph = light.proto.graph
    read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    unread = set(light.weights) - read
    if not unread:
        return light
    proto = onnx.ModelProto()
    proto.CopyFrom(light.proto)
    for field in ("initializer", "input"):
        values: Any = getattr(proto.graph, field)
        kept = [value for value in values if value.name not in unread]
        del values[:]
        values.extend(kept)
    return LightModel(proto=proto, weights={n: weight for n, weight in light.weights.items() if n not in unread})


def _open(
    model: onnx.ModelProto | Path, weights: Mapping[str, Weight], options: onnxruntime.SessionOptions, *kept: object
) -> Session:
    values = {
        name: onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(loaded(weight)))
        for name, weight in weights.items()
    }
    options.add_external_initializers(list(values), list(values.values()))
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    inner = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    outputs = [output.name for output in inner.get_outputs()]
    return Session(inner=inner, outputs=outputs, kept=[*values.values(), *kept])


def _open_large(light: LightModel, options: onnxruntime.SessionOptions) -> Session:
    """Let onnxruntime map the weights from their file; where they are in none, or in several, from a temporary one."""
    options.add_session_config_entry("session.disable_prepacking", "1")
    rest = {name: weight for name, weight in light.weights.items() if not isinstance(weight, StoredArray)}
    folders = {weight.path.parent for weight in light.weights.values() if isinstance(weight, StoredArray)}
    if len(folders) == 1 and sum(weight.nbytes for weight in rest.values()) <= _LARGE and _takes_folders():
        (folder,) = folders
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
        return _open(light.referring(), rest, options)
    temporary = _TemporaryFolder()
    path = temporary.path / "model.onnx"
    path.write_bytes(light.beside(temporary.path).referring().SerializeToString())
    return _open(path, {}, options, temporary)


def _takes_folders() -> bool:
    """Whether onnxruntime can be told where the weights of a model in memory are: since 1.21."""
    major, minor = onnxruntime.__version__.split(".")[:2]
    return (int(major), int(minor)) >= (1, 21)


class _TemporaryFolder:
    """A folder that goes when this does."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="amct_onnx-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


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


def makes_noise(model: onnx.ModelProto) -> bool:
    """Whether what a session gives depends on the runs before: a random operator goes on where it was."""
    nodes = (node for graph in all_graphs(model.graph) for node in graph.node)
    return any(node.op_type in RANDOM or node.op_type == "Dropout" for node in nodes)


def _unseeded(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    for graph in all_graphs(model.graph):
        for node in graph.node:
            if node.op_type in RANDOM and not any(attribute.name == "seed" for attribute in node.attribute):
                yield node
