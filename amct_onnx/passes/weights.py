"""Models whose large weights stand beside their protobuf message, in memory or in a file.

The message then stays small: it is copied, rewritten and handed to onnxruntime without touching the weights, which
are read one at a time where their values are needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Union

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from amct_onnx.passes.protos import copy_fields, names_in_bodies

Array = NDArray[Any]

LARGEST_MESSAGE = 2_000_000_000
"""Bytes above which a model is not written as one message: protobuf stops at 2 GB."""

_SMALL = 4096
"""Initializers below this many bytes stay in the message: shapes may depend on their values."""

_TYPES = {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.INT8, TensorProto.UINT8}
"""Element types of weights, floats and integers."""

_PAGE = 4096

_NO_FILE = ":beside:"
"""What stands for the name of a file in a message whose weights stand beside it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredArray:
    """An array in a file.

    offset: of its first byte.
    """

    path: Path
    offset: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def load(self) -> Array:
        """Its values, read into memory."""
        count = math.prod(self.shape)
        return np.fromfile(self.path, self.dtype, count, offset=self.offset).reshape(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputedArray:
    """An array that is computed, from a weight most often, each time its values are needed.

    compute: gives an array of this type and shape, always the same.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    compute: Callable[[], Array]

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def load(self) -> Array:
        """Its values, contiguous."""
        return np.ascontiguousarray(self.compute())


Weight = Union[Array, StoredArray, ComputedArray]


def loaded(weight: Weight) -> Array:
    """The values of a weight, wherever it is."""
    return weight if isinstance(weight, np.ndarray) else weight.load()


@dataclass(frozen=True, slots=True, kw_only=True)
class LightModel:
    """A model without its large weights.

    proto: the message; the initializers named in `weights` are stubs of the right type and shape.
    weights: initializer -> its values, contiguous.
    """

    proto: onnx.ModelProto
    weights: Mapping[str, Weight]

    @property
    def nbytes(self) -> int:
        """About the size of the model in one message."""
        return self.proto.ByteSize() + sum(weight.nbytes for weight in self.weights.values())

    def beside(self, folder: Path) -> LightModel:
        """The model with all of its large weights in one file of a folder, written there one by one."""
        weights: dict[str, Weight] = {}
        path = folder / "weights"
        with path.open("wb") as stream:
            for name, weight in self.weights.items():
                weights[name] = append(stream, path, weight)
        return LightModel(proto=self.proto, weights=weights)

    def referring(self) -> onnx.ModelProto:
        """The message with the files' names of the stored weights in the place of stubs."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        for tensor in proto.graph.initializer:
            weight = self.weights.get(tensor.name)
            if isinstance(weight, StoredArray) and is_stub(tensor):
                del tensor.external_data[:]
                entries = ("location", weight.path.name), ("offset", weight.offset), ("length", weight.nbytes)
                for key, value in entries:
                    tensor.external_data.add(key=key, value=str(value))
        return proto

    def whole(self) -> onnx.ModelProto:
        """The model as one message, of its own."""
        model = onnx.ModelProto()
        model.CopyFrom(self.proto)
        for tensor in model.graph.initializer:
            if tensor.name in self.weights and is_stub(tensor):
                tensor.ClearField("data_location")
                del tensor.external_data[:]
                tensor.raw_data = loaded(self.weights[tensor.name]).tobytes()
        return model


def append(stream: BinaryIO, path: Path, weight: Weight) -> StoredArray:
    """Write a weight at the end of a file, from the beginning of a page on: systems map files page by page."""
    values = np.ascontiguousarray(loaded(weight))
    stream.write(bytes(-stream.tell() % _PAGE))
    offset = stream.tell()
    stream.write(values.data)
    return StoredArray(path=path, offset=offset, dtype=values.dtype, shape=values.shape)


def detached(model: onnx.ModelProto | LightModel) -> LightModel:
    """The model with its large weights beside it; what it is made of stays untouched."""
    if isinstance(model, LightModel):
        return model
    light = onnx.ModelProto()
    copy_fields(model, light, "graph")
    copy_fields(model.graph, light.graph, "initializer")
    weights: dict[str, Weight] = {}
    kept = names_in_bodies(model.graph)  # onnxruntime looks for those in the message itself
    for tensor in model.graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL and is_large(tensor) and tensor.name not in kept:
            kept.add(tensor.name)
            weights[tensor.name] = _values(tensor)
            light.graph.initializer.append(stub(tensor.name, tensor.data_type, tensor.dims))
        else:
            light.graph.initializer.append(tensor)
    return LightModel(proto=light, weights=weights)


def is_large(tensor: TensorProto) -> bool:
    """Whether an initializer is one of those that stand beside the message."""
    if tensor.data_type not in _TYPES or any(d < 0 for d in tensor.dims):
        return False
    size = math.prod(tensor.dims) * dtype_of(tensor).itemsize
    is_whole = tensor.data_location == TensorProto.EXTERNAL or len(tensor.raw_data) == size or _has_values(tensor)
    return size >= _SMALL and is_whole


def _has_values(tensor: TensorProto) -> bool:
    """Whether its values stand in the field of its type, as many as there should be."""
    counts: dict[int, int] = {TensorProto.FLOAT: len(tensor.float_data), TensorProto.DOUBLE: len(tensor.double_data)}
    return counts.get(tensor.data_type, len(tensor.int32_data)) == math.prod(tensor.dims)


def dtype_of(tensor: TensorProto) -> np.dtype[Any]:
    """Its element type in numpy."""
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))


def _values(tensor: TensorProto) -> Array:
    if len(tensor.raw_data) == math.prod(tensor.dims) * dtype_of(tensor).itemsize:
        return np.frombuffer(tensor.raw_data, dtype_of(tensor)).reshape(tuple(tensor.dims))
    return np.ascontiguousarray(numpy_helper.to_array(tensor))


def stub(name: str, data_type: int, dims: Any) -> TensorProto:
    """An initializer without values: as onnxruntime wants one whose values it is given beside the message."""
    tensor = TensorProto(name=name, data_type=data_type, dims=dims, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=_NO_FILE)
    return tensor


def is_stub(tensor: TensorProto) -> bool:
    """Whether an initializer stands for values beside the message."""
    return any(entry.key == "location" and entry.value == _NO_FILE for entry in tensor.external_data)


def stub_for(name: str, weight: Weight) -> TensorProto | None:
    """A stub for an array, or None where it belongs into the message itself."""
    if weight.nbytes < _SMALL or weight.dtype.kind not in "fiu":
        return None
    data_type = onnx.helper.np_dtype_to_tensor_dtype(weight.dtype)
    return stub(name, data_type, weight.shape) if data_type in _TYPES else None
