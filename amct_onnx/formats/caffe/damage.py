"""Where a .caffemodel that cannot be parsed is broken: protobuf itself does not tell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from google.protobuf.message import DecodeError, Message

_LAYERS: Mapping[int, tuple[str, int]] = {2: ("WeightsV1Layer", 4), 100: ("WeightsLayer", 1)}
"""Field of the net -> the message of a layer, and its field for the name."""


def broken_place(data: bytes, classes: Mapping[str, type[Message]]) -> str:
    """A sentence about the first thing in the file that is broken; it names the layer where there is one.

    Args:
        data: a net of weights in protobuf's binary form.
        classes: of the schema of Caffe.
    """
    last = "at its beginning"
    try:
        for number, begin, end in _fields(data):
            if number not in _LAYERS:
                continue
            message, name_field = _LAYERS[number]
            name = _name(data[begin:end], name_field)
            layer = f"the layer {last}" if name is None else f"layer {name!r}"
            if end > len(data):
                return f"it ends inside {layer}, {end - len(data)} bytes too early"
            try:
                classes[message]().ParseFromString(data[begin:end])
            except (DecodeError, UnicodeDecodeError):
                return f"{layer} in it is damaged"
            last = f"behind {layer}"
    except (IndexError, ValueError):
        pass
    return f"it makes no sense {last}"


def _name(data: bytes, name_field: int) -> str | None:
    """The name of a layer, None where it does not get that far."""
    try:
        for number, begin, end in _fields(data):
            if number == name_field and end <= len(data):
                return data[begin:end].decode("utf-8", "replace")
    except (IndexError, ValueError):
        pass
    return None


def _fields(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Number, begin and end of each field of a message, as far as it goes; the last may end behind the data.

    Raises:
        IndexError, ValueError: what stands there is no field.
    """
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        kind = key & 7
        if kind == 2:
            size, position = _varint(data, position)
        elif kind == 0:
            size = _varint(data, position)[1] - position
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError("groups are not used in these files")
        yield key >> 3, position, position + size
        position += size


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and the position behind it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise ValueError("a number of more than 64 bits")
