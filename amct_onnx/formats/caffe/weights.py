"""The weights of a .caffemodel, by layer."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from amct_onnx.errors import ModelError, nearest
from amct_onnx.formats.caffe.damage import broken_place
from amct_onnx.formats.caffe.network import LARGEST, Layer, Shape
from amct_onnx.formats.schema import load_schema

Floats = NDArray[np.float32]

_MOST_AXES = 32
"""Of a blob, in Caffe."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """The arrays of each layer that has any.

    path: of the file, for errors.
    blobs: layer -> its arrays, float32, in the order of Caffe.
    """

    path: str
    blobs: Mapping[str, tuple[Floats, ...]]

    def of(self, layer: Layer, expected: Mapping[str, Shape]) -> list[Floats]:
        """The arrays of a layer, each in the shape that it should have.

        Old files give every array four axes, with ones in front: they count as equal.

        Args:
            layer: whose arrays.
            expected: what each is called in errors -> its shape, in the order of Caffe.

        Raises:
            ModelError: there are none for this layer, or not as many, or one is of another shape.
        """
        found = self.blobs.get(layer.name)
        if found is None:
            hint = nearest(layer.name, self.blobs) or "; are these the weights of this network?"
            raise layer.error(f"{self.path} has no weights for it{hint}")
        if len(found) != len(expected):
            listed = ", ".join(f"{what} {list(shape)}" for what, shape in expected.items())
            shapes = ", ".join(str(list(blob.shape)) for blob in found)
            raise layer.error(f"{self.path} must have {listed} for it, found {len(found)} arrays: {shapes}")
        for (what, shape), blob in zip(expected.items(), found, strict=True):
            if _without_leading_ones(blob.shape) != _without_leading_ones(shape):
                raise layer.error(
                    f"its {what} must have the shape {list(shape)}, found {list(blob.shape)} in {self.path}; "
                    "are these the weights of this network?"
                )
        return [blob.reshape(shape) for blob, shape in zip(found, expected.values(), strict=True)]


def _without_leading_ones(shape: Shape) -> Shape:
    first = next((axis for axis, size in enumerate(shape) if size != 1), len(shape))
    return shape[first:]


def read_weights(path: str | os.PathLike[str]) -> Weights:
    """The weights in a .caffemodel.

    Raises:
        ModelError: the file cannot be read or is no caffemodel, or an array in it is not whole.
    """
    net = _parsed(path)
    blobs: dict[str, tuple[Floats, ...]] = {}
    for layer in [*net.layers, *net.layer]:
        if layer.blobs:
            try:
                name = layer.name
            except UnicodeDecodeError as error:
                raise ModelError(f"{path}: the name of a layer is not UTF-8 text: {error}") from error
            blobs[name] = tuple(
                _array(blob, f"{path}: layer {name!r}, array {number}") for number, blob in enumerate(layer.blobs)
            )
    if not blobs:
        raise ModelError(f"{path}: no layer in it has weights; is it a caffemodel?")
    return Weights(path=str(path), blobs=blobs)


def _parsed(path: str | os.PathLike[str]) -> Any:
    try:
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot read the file: {getattr(error, 'strerror', None) or error}") from error
    if data.startswith(b"\x89HDF"):
        raise ModelError(f"{path}: HDF5 is not read; save the weights as a binary .caffemodel")
    classes = load_schema("caffe").classes
    net = classes["WeightsNet"]()
    try:
        net.ParseFromString(data)
    except (DecodeError, UnicodeDecodeError) as error:
        place = broken_place(data, classes)
        raise ModelError(f"{path}: not a caffemodel, or a truncated or damaged one: {place}") from error
    return net


def _array(blob: Any, where: str) -> Floats:
    old = (blob.num, blob.channels, blob.height, blob.width)
    values = blob.data or blob.double_data
    shape = tuple(blob.shape.dim) if blob.HasField("shape") else old if any(old) else (len(values),)
    if len(shape) > _MOST_AXES or math.prod(size or 1 for size in shape) > LARGEST:
        raise ModelError(f"{where}: its shape is {list(shape)!s:.100}, larger than Caffe has any; the file is damaged")
    if min(shape, default=1) < 0 or math.prod(shape) != len(values):
        raise ModelError(f"{where}: its shape is {list(shape)}, but it has {len(values)} values; the file is damaged")
    with np.errstate(over="ignore"):
        return np.array(values, np.float32).reshape(shape)
