"""Models whose large weights stand beside their protobuf message, in memory or in a file.

The message then stays small: it is copied, rewritten and handed to onnxruntime without touching the weights, which
are read one at a time where their values are needed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union

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
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def load(self) -> Array:
        """Its values, read into memory."""
        count = int(np.prod(self.shape, dtype=np.int64))
        return np.fromfile(self.path, self.dtype, count, offset=self.offset).reshape(self.shape)

    def mapped(self) -> Array:
        """Its values as a part of the file, which the system reads when they are looked at and may forget again."""
        return np.memmap(self.path, self.dtype, "r", self.offset, self.shape)


Weight = Union[Array, StoredArray]


def loaded(weight: Weight) -> Array:
    """The values of a weight, wherever it is."""
    return weight.load() if isinstance(weight, StoredArray) else weight


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


def stub_for(name: str, values: Array) -> TensorProto | None:
    """A stub for an array, or None where it belongs into the message itself."""
    if values.nbytes < _SMALL or values.dtype.kind not in "fiu":
        return None
    data_type = onnx.helper.np_dtype_to_tensor_dtype(values.dtype)
    return stub(name, data_type, values.shape) if data_type in _TYPES else None
