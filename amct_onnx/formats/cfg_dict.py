"""A configuration given as a Python dict with the field names of the .cfg -> the tree that `cfg_tree` reads.

What protobuf checks in a file is checked here: field names, types, one algorithm of a kind. None stands for unset, and
overrides may also be written as {name: block}.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from numbers import Integral, Real
from typing import Any

from amct_onnx.errors import ConfigError, located
from amct_onnx.formats.message_text import allowed_values, unknown_field
from amct_onnx.formats.schema import Field, Schema

_RANGES = {"uint32": range(2**32), "int32": range(-(2**31), 2**31)}
_NAMED_BLOCKS = {"OverrideLayerType": "layer_type", "OverrideLayer": "layer_name"}


def tree_from_dict(given: Mapping[Any, Any], message: str, schema: Schema) -> dict[str, Any]:
    """`given` as a tree of the message `message`, without what is None.

    Raises:
        ConfigError: a key is no field, a value has the wrong type, or two fields exclude each other.
    """
    fields = schema.messages[message]
    tree: dict[str, Any] = {}
    oneofs: dict[str, str] = {}
    for name, value in given.items():
        if name not in fields:
            raise ConfigError(unknown_field(str(name), message, schema))
        if value is None:
            continue
        field = fields[name]
        if field.oneof is not None and (other := oneofs.setdefault(field.oneof, name)) != name:
            raise ConfigError(f"{other} and {name} exclude each other; give one of them")
        with located(name) if field.type in schema.messages else nullcontext():
            tree[name] = _repeated(value, field, schema) if field.label == "repeated" else _value(value, field, schema)
    return tree


def _repeated(value: object, field: Field, schema: Schema) -> list[Any]:
    if field.type in _NAMED_BLOCKS and isinstance(value, Mapping):
        key = _NAMED_BLOCKS[field.type]
        places = {repr(name): {key: name, "calibration_config": block} for name, block in value.items()}
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        places = {f"entry {number}": item for number, item in enumerate(value, 1)}
    else:
        entry = _allowed(field, schema)
        raise ConfigError(f"{field.name} must be a list, each entry {entry}; found {_shown(value)}")
    entries = []
    for place, item in places.items():
        with located(place):
            entries.append(_value(item, field, schema))
    return entries


def _value(value: object, field: Field, schema: Schema) -> Any:
    plain = _plain(value)
    if field.type in schema.messages and isinstance(plain, Mapping):
        return tree_from_dict(plain, field.type, schema)
    if field.type in schema.enums:
        names = schema.enums[field.type]
        for name, number in names.items():
            if plain == name or (type(plain) is int and plain == number):
                return name
    if field.type == "string" and isinstance(plain, str):
        return plain
    if field.type == "bool" and isinstance(plain, bool):
        return plain
    if type(plain) is int and plain in _RANGES.get(field.type, ()):
        return plain
    if field.type == "float" and type(plain) in (int, float):
        return _as_float(plain, field)
    raise ConfigError(f"{field.name} must be {_allowed(field, schema)}, found {_shown(plain)}")


def _plain(value: object) -> Any:
    """`value` with the numbers of other libraries, such as numpy's, as Python's own."""
    if isinstance(value, bool) or not isinstance(value, (Integral, Real)):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def _as_float(value: int | float, field: Field) -> float:
    try:
        return float(value)
    except OverflowError as failure:
        raise ConfigError(f"{field.name} must be a number of ordinary size, found {_shown(value)}") from failure


def _allowed(field: Field, schema: Schema) -> str:
    return allowed_values(field, schema).replace("a quoted text", "a str").replace("true or false", "True or False")


def _shown(value: object) -> str:
    # Python refuses to write out integers of some thousand digits.
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    return f"{value!r:.60}"
