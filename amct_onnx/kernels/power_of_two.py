"""Scales that are powers of two: 2^-position, as Vitis AI finds them for the DPU."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from amct_onnx.kernels.rounding import rounded

_POSITION_OF_ZEROS = 18
_SCOPE = 5
"""How many positions the search tries."""


def position_of_range(values: NDArray[np.float32], *, num_bits: int) -> int:
    """The largest position at which no finite value is cut by more than half a step (`maxmin`)."""
    return min(_uncapped(values, num_bits), _cap(num_bits))


def position_of_least_error(values: NDArray[np.float32], *, num_bits: int, round_mode: str) -> int:
    """The position, of that of the range and the four finer ones, with the least sum of squared errors (`diffs`)."""
    first = _uncapped(values, num_bits)
    half = 2.0 ** (num_bits - 1)
    errors = []
    for position in range(first, first + _SCOPE):
        with np.errstate(over="ignore"):
            levels = np.clip(rounded(values * np.float32(2.0**position), round_mode), -half, half - 1)
        difference = values - levels.astype(np.float32) * np.float32(2.0**-position)
        errors.append(float(np.sum(difference.astype(np.float64) ** 2)))
    return min(first + int(np.argmin(errors)), _cap(num_bits))


def _uncapped(values: NDArray[np.float32], num_bits: int) -> int:
    half = 2.0 ** (num_bits - 1)
    low, high = np.float32(values.min()), np.float32(values.max())
    step = max(low / np.float32(-half - 0.5), high / np.float32(half - 0.5))
    if step <= np.finfo(np.float64).tiny:
        return _POSITION_OF_ZEROS
    return math.floor(math.log2(1.0 / float(step)))


def _cap(num_bits: int) -> int:
    return 12 if num_bits <= 8 else 15
