"""Checks shared by the parameter classes of the algorithms: each raises one sentence that names the field."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from amct_onnx.errors import ConfigError

_LARGEST = sys.float_info.max


def require_bool(field: str, value: object, *, optional: bool = False) -> None:
    """`value` must be true or false (or None where `optional`)."""
    if isinstance(value, bool) or (optional and value is None):
        return
    raise ConfigError(f"{field} must be true or false, found {value!r}")


def require_int(field: str, value: object, *, low: int) -> None:
    """`value` must be an integer of at least `low`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(f"{field} must be an integer, found {value!r}")
    if value < low:
        raise ConfigError(f"{field} must be at least {low}, found {value}")


def require_choice(field: str, value: object, allowed: Sequence[object]) -> None:
    """`value` must be one of `allowed`, and of the same type."""
    if not any(type(value) is type(a) and value == a for a in allowed):
        raise ConfigError(f"{field} must be one of {', '.join(map(repr, allowed))}, found {value!r}")


def require_number(field: str, value: object, *, interval: str) -> None:
    """`value` must be a finite number inside `interval`, written as in mathematics: "(0, 1]"."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -_LARGEST <= value <= _LARGEST:
        raise ConfigError(f"{field} must be a finite number in {interval}, found {value!r}")
    low, high = (float(end) for end in interval[1:-1].split(","))
    above = value > low if interval[0] == "(" else value >= low
    below = value < high if interval[-1] == ")" else value <= high
    if not (above and below):
        raise ConfigError(f"{field} must lie in {interval}, found {value!r}")
