"""The data of tensors that nobody vouches for: sizes are checked first, and nothing outside the folder is read."""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from amct_onnx.passes.weights import Weight, loaded

Array = NDArray[Any]

LARGEST_READ = 1 << 28
"""Bytes above which a tensor in a file of its own is not read: a sparse file may claim any size."""

MOST_READ = 1 << 32
"""Bytes that are read in all: many nodes may name the same large tensor."""

IN_MEMORY = "its values are in a file, and the model was given in memory"
_LARGEST_COUNT = 1 << 40
_MOST_AXES = 32  # what the oldest numpy holds
_BITS: dict[int, int] = {
    TensorProto.FLOAT: 32,
    TensorProto.UINT8: 8,
    TensorProto.INT8: 8,
    TensorProto.UINT16: 16,
    TensorProto.INT16: 16,
    TensorProto.INT32: 32,
    TensorProto.INT64: 64,
    TensorProto.BOOL: 8,
    TensorProto.FLOAT16: 16,
    TensorProto.DOUBLE: 64,
    TensorProto.UINT32: 32,
    TensorProto.UINT64: 64,
    TensorProto.COMPLEX64: 64,
    TensorProto.COMPLEX128: 128,
}
_INT4 = 22  # by number: the oldest onnx has no name for it
_IN_INT64 = {TensorProto.INT64}
_IN_UINT64 = {TensorProto.UINT64, TensorProto.UINT32}
_IN_FLOAT = {TensorProto.FLOAT, TensorProto.COMPLEX64}
_IN_DOUBLE = {TensorProto.DOUBLE, TensorProto.COMPLEX128}
_NUMBER = re.compile(r"[0-9]{1,18}")


def text(value: str | bytes) -> str:
    """A string field, also where a file holds what is no UTF-8 and protobuf hands out bytes."""
    return value if isinstance(value, str) else value.decode("utf-8", "backslashreplace")


def type_name(data_type: int) -> str:
    """The element type as ONNX names it."""
    if data_type == _INT4:
        return "INT4"
    known = TensorProto.DataType.values()
    return str(TensorProto.DataType.Name(data_type)) if data_type in known else f"type {data_type}"


def is_int4(tensor: TensorProto) -> bool:
    """Whether the tensor is declared with 4-bit elements."""
    return tensor.data_type == _INT4


def dims_of(tensor: TensorProto) -> tuple[int, ...]:
    """The shape as it is written; of more axes than any array has, the first ones."""
    return tuple(tensor.dims[: _MOST_AXES + 1])


def element_count(dims: Sequence[int]) -> int | None:
    """How many elements a shape has, or None where an axis is negative or the shape absurd."""
    if len(dims) > _MOST_AXES or any(not 0 <= dim <= _LARGEST_COUNT for dim in dims):
        return None
    count = math.prod(dims)
    return count if count <= _LARGEST_COUNT else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where external data lie."""

    path: str
    offset: int
    size: int


class TensorData:
    """Reads the tensors of one model.

    folder: where the model lies, None for a model in memory.
    weights: name -> values, or where they are, for initializers of a model in memory whose data are not in it.
    """

    def __init__(self, folder: Path | None, weights: Mapping[str, Weight]) -> None:
        self._folder = folder
        self._weights = weights
        self._left = MOST_READ

    def is_beside(self, tensor: TensorProto) -> bool:
        """Whether the values were given beside the model."""
        return text(tensor.name) in self._weights

    def is_external(self, tensor: TensorProto) -> bool:
        """Whether the values lie in a file of their own."""
        return tensor.data_location == TensorProto.EXTERNAL and not self.is_beside(tensor)

    def fault(self, tensor: TensorProto) -> str | None:
        """What ATC cannot read about type, shape and stored data, as a phrase; external files are not looked at."""
        if tensor.data_type not in _BITS and tensor.data_type not in (_INT4, TensorProto.STRING):
            return f"elements of {type_name(tensor.data_type)}"
        dims = dims_of(tensor)
        count = element_count(dims)
        if count is None:
            return f"shape {_shape(dims)}"
        if self.is_beside(tensor):
            given = self._weights[text(tensor.name)]
            return None if given.shape == dims else f"values of shape {_shape(given.shape)} for {_shape(dims)}"
        return None if self.is_external(tensor) else _stored_fault(tensor, count)

    def external_fault(self, tensor: TensorProto) -> str | None:
        """What is wrong with the file that external data lie in, as a phrase; of a model in memory, with its name."""
        place = self._place(tensor)
        return place if isinstance(place, str) and place != IN_MEMORY else None

    def can_look(self) -> bool:
        """Whether it is known where external files lie."""
        return self._folder is not None

    def read(self, tensor: TensorProto) -> Array | None:
        """The values in their shape, or None where they cannot be had."""
        dtype, dims = _dtype(tensor), dims_of(tensor)
        count = element_count(dims)
        if dtype is None or count is None:
            return None
        if self.is_beside(tensor):
            given = self._weights[text(tensor.name)]
            return loaded(given) if given.dtype == dtype and given.shape == dims else None
        if count == 0 or self._left < 0:
            return np.empty(0, dtype) if count == 0 else None
        values = self._read_file(tensor, dtype) if self.is_external(tensor) else _read_stored(tensor, dtype)
        self._left -= 0 if values is None else values.nbytes
        return None if values is None or values.size != count else values.reshape(dims)

    def _read_file(self, tensor: TensorProto, dtype: np.dtype[Any]) -> Array | None:
        place = self._place(tensor)
        if isinstance(place, str) or place.size > LARGEST_READ:
            return None
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        try:
            with open(os.open(place.path, flags), "rb") as file:
                file.seek(place.offset)
                content = file.read(place.size)
        except OSError:
            return None
        return np.frombuffer(content, dtype) if len(content) == place.size else None

    def _place(self, tensor: TensorProto) -> _Place | str:
        """Where external data lie, or what is wrong with it."""
        entries = {text(entry.key): text(entry.value) for entry in tensor.external_data[:16]}
        location = entries.get("location", "")
        if fault := _location_fault(location):
            return fault
        for key in ("offset", "length"):
            if key in entries and not _NUMBER.fullmatch(entries[key]):
                return f"{key} {entries[key][:40]!r}"
        wanted = _byte_count(tensor)
        if wanted is None:
            return "a size that cannot be told from type and shape"
        offset, length = int(entries.get("offset", "0")), int(entries.get("length", wanted))
        if length != wanted:
            return f"length {length} for {wanted} bytes of {type_name(tensor.data_type)} {_shape(dims_of(tensor))}"
        if self._folder is None:
            return IN_MEMORY
        return self._file(location, offset, length)

    def _file(self, location: str, offset: int, length: int) -> _Place | str:
        assert self._folder is not None
        shown = location[:200]
        try:
            folder = os.path.realpath(self._folder)
            path = os.path.realpath(os.path.join(folder, location))
            if os.path.commonpath([folder, path]) != folder:
                return f"file {shown!r}, a link that leads out of the model's folder"
            status = os.stat(path)
        except FileNotFoundError:
            return f"file {shown!r}, which does not exist"
        except (OSError, ValueError) as error:
            return f"file {shown!r}, which cannot be read ({getattr(error, 'strerror', None) or error})"
        if not stat.S_ISREG(status.st_mode):
            return f"{shown!r}, which is no file"
        if offset + length > status.st_size:
            return f"bytes {offset} to {offset + length} of file {shown!r}, which has {status.st_size}"
        return _Place(path=path, offset=offset, size=length)


def stored_bytes(tensor: TensorProto) -> int:
    """Bytes that the data take inside the model."""
    if tensor.HasField("raw_data"):
        return len(tensor.raw_data)
    return 4 * len(tensor.float_data) + 8 * (
        len(tensor.double_data) + len(tensor.int64_data) + len(tensor.uint64_data) + len(tensor.int32_data)
    )


def _location_fault(location: str) -> str | None:
    if not location:
        return "no location"
    if "\0" in location:
        return "a location with a null character"
    kinds = (PurePosixPath(location), PureWindowsPath(location))
    if any(path.anchor for path in kinds):
        return f"location {location[:200]!r}, an absolute path"
    if any(".." in path.parts for path in kinds):
        return f"location {location[:200]!r}, a path that leads out of the model's folder"
    return None


def _byte_count(tensor: TensorProto) -> int | None:
    count = element_count(dims_of(tensor))
    if count is None or (tensor.data_type not in _BITS and tensor.data_type != _INT4):
        return None
    return (count + 1) // 2 if tensor.data_type == _INT4 else count * _BITS[tensor.data_type] // 8


def _typed(tensor: TensorProto) -> Sequence[Any]:
    """The field that holds data that are not raw."""
    if tensor.data_type in _IN_INT64:
        return tensor.int64_data
    if tensor.data_type in _IN_UINT64:
        return tensor.uint64_data
    if tensor.data_type in _IN_FLOAT:
        return tensor.float_data
    if tensor.data_type in _IN_DOUBLE:
        return tensor.double_data
    return tensor.string_data if tensor.data_type == TensorProto.STRING else tensor.int32_data


def _stored_fault(tensor: TensorProto, count: int) -> str | None:
    typed = len(_typed(tensor))
    raw = len(tensor.raw_data) if tensor.HasField("raw_data") else 0
    what = f"{type_name(tensor.data_type)} {_shape(dims_of(tensor))}"
    if typed and raw:
        return f"two sets of data for {what}"
    wanted = _byte_count(tensor)
    if raw and wanted is not None and raw != wanted:
        return f"{raw} bytes for {what}, which has {wanted}"
    elements = wanted if tensor.data_type == _INT4 and wanted is not None else count
    if tensor.data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128):
        elements *= 2
    if not raw and typed != elements:
        return f"{typed} numbers for {what}, which has {elements}"
    return None


def _dtype(tensor: TensorProto) -> np.dtype[Any] | None:
    complex_types = (TensorProto.COMPLEX64, TensorProto.COMPLEX128)  # no rule needs one
    if tensor.data_type not in _BITS or tensor.data_type in complex_types:
        return None
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)).newbyteorder("<")


def _read_stored(tensor: TensorProto, dtype: np.dtype[Any]) -> Array | None:
    typed = _typed(tensor)
    if tensor.HasField("raw_data") and not len(typed):
        raw = tensor.raw_data
        return np.frombuffer(raw, dtype) if len(raw) == _byte_count(tensor) else None
    if tensor.data_type == TensorProto.FLOAT16:
        return np.fromiter(typed, np.int64, len(typed)).astype(np.uint16).view(np.float16)
    wide = np.dtype({"i": np.int64, "u": np.uint64, "b": np.int64}.get(dtype.kind, dtype))
    if tensor.data_type in (TensorProto.UINT8, TensorProto.UINT16):
        wide = np.dtype(np.int64)  # they lie in int32_data
    return np.fromiter(typed, wide, len(typed)).astype(dtype)


def _shape(dims: Sequence[int]) -> str:
    return f"[{', '.join(str(dim) for dim in dims[:8])}{', ...' if len(dims) > 8 else ''}]"
