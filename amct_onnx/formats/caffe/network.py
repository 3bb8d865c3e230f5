"""The network of a .prototxt as it is when the net is used: its inputs, and its layers in their order."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amct_onnx.errors import ModelError
from amct_onnx.formats.message_text import fields_passed_over, parse_message
from amct_onnx.formats.schema import load_schema
from amct_onnx.formats.text_file import decode, read_text

Shape = tuple[int, ...]

LARGEST = 2**31 - 1
"""The largest dimension, and the largest number of values, that Caffe counts up to."""

_log = logging.getLogger("amct_onnx")

_STRING_OR_COMMENT = re.compile(rb"""(?P<string>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')|#[^\n]*""")

_V1_TYPES = {
    "ABSVAL": "AbsVal",
    "ARGMAX": "ArgMax",
    "BNLL": "BNLL",
    "HDF5_DATA": "HDF5Data",
    "HDF5_OUTPUT": "HDF5Output",
    "LRN": "LRN",
    "MVN": "MVN",
    "RELU": "ReLU",
    "SOFTMAX_LOSS": "SoftmaxWithLoss",
    "TANH": "TanH",
}
"""Old names of layer types that are not the new ones in capitals."""

_DATA_TYPES = frozenset(
    ("AnnotatedData", "Data", "DummyData", "HDF5Data", "ImageData", "ImageSegData", "MemoryData", "WindowData")
)
"""Layers that read files of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A layer of the network.

    message: the LayerParameter or V1LayerParameter that it is written as; both call the blocks of parameters the same.
    """

    name: str
    type: str
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    message: Any

    def error(self, text: str) -> ModelError:
        """What is wrong with this layer."""
        return ModelError(f"layer {self.name!r} ({self.type}): {text}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A network: blobs that are fed with their shapes, and the layers that compute."""

    name: str
    inputs: dict[str, Shape]
    layers: tuple[Layer, ...]


def read_network(path: str | os.PathLike[str]) -> Network:
    """The network that a .prototxt describes, at test phase: layers of training only are left out.

    Older forms are taken too: `layers` with types in capitals, `input` with `input_dim` or `input_shape`.

    Raises:
        ModelError: the file cannot be read, is no description of a network, or gives no shape for an input.
    """
    schema = load_schema("caffe")
    text = _text(path)
    message: Any = parse_message(text, str(path), schema, "NetParameter", ModelError, allow_unknown=True)
    for place in fields_passed_over(text, schema, "NetParameter"):
        if "_param in LayerParameter" not in place:  # those belong to types, which are judged one by one
            _log.warning("%s: not known, so not used: %s", path, place)
    try:
        return _network(message)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def _text(path: str | os.PathLike[str]) -> str:
    """The text of a file; where comments are not UTF-8, as older editors wrote them, it comes without comments."""
    try:
        return read_text(path, ModelError)
    except ModelError as error:
        if not isinstance(error.__cause__, UnicodeError):
            raise
    bare = _STRING_OR_COMMENT.sub(lambda found: found["string"] or b"", Path(path).read_bytes())
    return decode(bare, str(path), ModelError)


def _network(message: Any) -> Network:
    if message.layer and message.layers:
        raise ModelError("both `layer` and `layers` (the older form) are used; upgrade the file with Caffe's tools")
    found = message.layer or message.layers
    if not found:
        raise ModelError("no layers: not the description of a Caffe network")
    inputs = _declared_inputs(message)
    layers = []
    for layer in _layers([entry for entry in found if _is_used(entry, message.state)]):
        if layer.type == "Input":
            inputs.update(_input_shapes(layer, inputs))
        elif layer.type in _DATA_TYPES:
            raise layer.error(
                "it reads data by itself; give the network as it is deployed, with an Input layer of a fixed shape"
            )
        else:
            layers.append(layer)
    return Network(name=message.name or "caffe", inputs=inputs, layers=tuple(layers))


def _layers(messages: Sequence[Any]) -> Iterator[Layer]:
    for number, message in enumerate(messages, 1):
        kind = _type_of(message)
        yield Layer(
            name=message.name or f"{kind}_{number}",
            type=kind,
            bottoms=tuple(message.bottom),
            tops=tuple(message.top),
            message=message,
        )


def _type_of(message: Any) -> str:
    if message.DESCRIPTOR.name == "LayerParameter":
        kind = str(message.type)
    elif message.HasField("layer"):
        raise ModelError("the layers are nested as they were before 2013; upgrade the file with Caffe's tools")
    else:
        enum = message.DESCRIPTOR.fields_by_name["type"].enum_type
        name = enum.values_by_number[message.type].name
        kind = "" if name == "NONE" else _V1_TYPES.get(name, "".join(part.capitalize() for part in name.split("_")))
    if not kind:
        raise ModelError(f"layer {message.name!r} has no type")
    return kind


def _is_used(message: Any, state: Any) -> bool:
    """Whether a layer is there at test phase, by its rules."""
    if message.include and message.exclude:
        raise ModelError(f"layer {message.name!r} has both include and exclude; Caffe allows one of them")
    if message.include:
        return any(_meets(state, rule) for rule in message.include)
    return not any(_meets(state, rule) for rule in message.exclude)


def _meets(state: Any, rule: Any) -> bool:
    if rule.HasField("phase") and rule.phase != 1:
        return False
    if rule.HasField("min_level") and state.level < rule.min_level:
        return False
    if rule.HasField("max_level") and state.level > rule.max_level:
        return False
    return set(rule.stage) <= set(state.stage) and not set(rule.not_stage) & set(state.stage)


def _declared_inputs(message: Any) -> dict[str, Shape]:
    """The inputs that stand outside of the layers, as in older files."""
    names = list(message.input)
    shapes = [tuple(shape.dim) for shape in message.input_shape]
    dims = list(message.input_dim)
    if dims and not shapes:
        shapes = [tuple(dims[i : i + 4]) for i in range(0, len(dims), 4)]
    if len(shapes) != len(names):
        found = f"{len(message.input_shape)} input_shape and {len(dims)} input_dim"
        raise ModelError(f"{len(names)} input need as many input_shape, or four input_dim each; found {found}")
    for index, (name, shape) in enumerate(zip(names, shapes, strict=True)):
        if not name or name in names[:index]:
            raise ModelError(f"input {name!r}: every input must have a name of its own")
        _check_shape(f"input {name!r}", shape)
    return dict(zip(names, shapes, strict=True))


def _input_shapes(layer: Layer, before: Collection[str]) -> dict[str, Shape]:
    shapes = [tuple(shape.dim) for shape in layer.message.input_param.shape]
    if len(shapes) == 1:
        shapes *= len(layer.tops)
    if not layer.tops or len(shapes) != len(layer.tops):
        raise layer.error(
            f"input_param must give one shape, or one for each of its {len(layer.tops)} tops; found {len(shapes)}"
        )
    for index, (name, shape) in enumerate(zip(layer.tops, shapes, strict=True)):
        if not name or name in before or name in layer.tops[:index]:
            raise layer.error(f"its top {name!r}: every input must have a name of its own")
        _check_shape(f"layer {layer.name!r} (Input)", shape)
    return dict(zip(layer.tops, shapes, strict=True))


def _check_shape(where: str, shape: Shape) -> None:
    if not shape or min(shape) < 1 or math.prod(shape) > LARGEST:
        raise ModelError(f"{where}: the shape must be of positive numbers, {LARGEST} values at most; found {shape}")
