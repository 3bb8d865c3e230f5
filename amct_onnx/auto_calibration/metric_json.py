"""Metrics of any kind as JSON, and back with the types they had: `metric_eval` may rely on them."""

from __future__ import annotations

from typing import Any

import numpy as np

_PLAIN = (type(None), bool, int, float, str)


class UnwritableError(Exception):
    """The metric holds something that JSON has no form for."""


def encode(metric: Any) -> Any:
    """What stands for a metric in JSON.

    Numbers, texts, arrays of numbers, and lists, tuples and dicts of these can be written.

    Raises:
        UnwritableError: it is something else.
    """
    if type(metric) in _PLAIN:
        return metric
    if isinstance(metric, (np.ndarray, np.generic)) and metric.dtype.kind in "fiub":
        array = np.asarray(metric)
        kind = "array" if isinstance(metric, np.ndarray) else "scalar"
        return {"kind": kind, "dtype": array.dtype.str, "shape": list(array.shape), "values": array.ravel().tolist()}
    if type(metric) in (list, tuple):
        return {"kind": type(metric).__name__, "items": [encode(item) for item in metric]}
    if type(metric) is dict:
        return {"kind": "dict", "items": [[encode(key), encode(value)] for key, value in metric.items()]}
    raise UnwritableError(type(metric).__name__)


def decode(found: Any) -> Any:
    """The metric that JSON stands for; the inverse of `encode`.

    Raises:
        KeyError, TypeError, ValueError: it is nothing that `encode` gives.
    """
    if not isinstance(found, dict):
        return found
    kind = found["kind"]
    if kind in ("array", "scalar"):
        array = np.array(found["values"], np.dtype(found["dtype"])).reshape(found["shape"])
        return array if kind == "array" else array[()]
    if kind == "dict":
        return {decode(key): decode(value) for key, value in found["items"]}
    return {"list": list, "tuple": tuple}[kind](decode(item) for item in found["items"])
