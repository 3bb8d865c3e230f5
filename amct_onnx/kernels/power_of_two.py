"""Scales that are powers of two: 2^-position, as Vitis AI finds them for the DPU."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from amct_onnx.kernels.compiled import compiled
from amct_onnx.kernels.rounding import ROUND_MODES

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
    amps = np.array([2.0**position for position in range(first, first + _SCOPE)]).astype(np.float32)
    errors = np.zeros(_SCOPE)
    with np.errstate(over="ignore"):
        mode = ROUND_MODES.index(round_mode)
        _add_errors(np.ascontiguousarray(values).ravel(), amps, -half, half - 1, mode, errors)
    return min(first + int(np.argmin(errors)), _cap(num_bits))


@compiled
def _add_errors(
    values: NDArray[np.float32],
    amps: NDArray[np.float32],
    low: float,
    high: float,
    mode: int,
    errors: NDArray[np.float64],
) -> None:
    for candidate in range(amps.size):
        amp, step = amps[candidate], np.float32(1.0) / amps[candidate]
        total = 0.0
        for i in range(values.size):
            x = np.float64(values[i] * amp)  # the product is rounded to float32
            if mode == 0:
                level = np.rint(x)
            elif mode == 1:
                level = np.floor(x + 0.5)
            elif mode == 2:
                level = np.copysign(np.ceil(np.abs(x) - 0.5), x)
            else:
                level = np.copysign(np.floor(np.abs(x) + 0.5), x)
            difference = values[i] - np.float32(min(max(level, low), high)) * step
            total += np.float64(difference) * np.float64(difference)
        errors[candidate] = total


def _uncapped(values: NDArray[np.float32], num_bits: int) -> int:
    half = 2.0 ** (num_bits - 1)
    low, high = np.float32(values.min()), np.float32(values.max())
    step = max(low / np.float32(-half - 0.5), high / np.float32(half - 0.5))
    if step <= np.finfo(np.float64).tiny:
        return _POSITION_OF_ZEROS
    return math.floor(math.log2(1.0 / float(step)))


def _cap(num_bits: int) -> int:
    return 12 if num_bits <= 8 else 15
