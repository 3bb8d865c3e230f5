"""JSON text -> values, strictly: no key twice, no numbers that are none."""

from __future__ import annotations

import json
from typing import Any, NoReturn

from amct_onnx.errors import ConfigError, located
from amct_onnx.formats.text_file import decode


def load_json(text: str | bytes, source: str) -> object:
    """What `text` writes.

    Args:
        text: JSON, as text or as bytes of UTF-8.
        source: what to call it in errors.

    Raises:
        ConfigError: not JSON, or a key given twice.
    """
    text = decode(text, source, ConfigError)
    with located(source):
        try:
            found: object = json.loads(text, object_pairs_hook=_distinct_keys, parse_constant=_refuse_constant)
        except json.JSONDecodeError as failure:
            raise ConfigError(f"line {failure.lineno}, column {failure.colno}: {failure.msg}") from failure
        except RecursionError as failure:
            raise ConfigError("objects are nested too deeply") from failure
        except ConfigError:
            raise
        except ValueError as failure:  # an integer of more digits than Python reads
            raise ConfigError(f"not readable as JSON: {failure}") from failure
    return found


def _distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ConfigError(f"the key {key!r} is given twice in one object; delete one of them")
        found[key] = value
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ConfigError(f"{name} is not a JSON number; write a finite number")
