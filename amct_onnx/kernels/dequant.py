"""What stands behind the integer arithmetic: the scale of its result, and the bias on that scale."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_INT32 = np.iinfo(np.int32)


def dequant_scale(activation: NDArray[np.float32], weight: NDArray[np.float32] | np.float32) -> NDArray[np.float32]:
    """scale_d * scale_w, multiplied in float32: [1] or [Cout]."""
    with np.errstate(over="ignore", under="ignore"):
        product = np.asarray(activation, np.float32) * np.asarray(weight, np.float32)
    return np.atleast_1d(product).astype(np.float32)


def bias_fits(bias: NDArray[Any], scale: NDArray[np.float32]) -> bool:
    """Whether every value of `bias` [Cout] lies in int32 on its scale."""
    with np.errstate(all="ignore"):
        levels = np.round(bias.astype(np.float64) / scale)
    return bool(((levels >= _INT32.min) & (levels <= _INT32.max)).all())


def quantize_bias(bias: NDArray[Any], scale: NDArray[np.float32]) -> NDArray[np.int32]:
    """round_half_even(bias / scale) as int32, same shape as `bias`; the caller has made sure that it fits."""
    return np.round(bias.astype(np.float32) / scale).astype(np.int64).astype(np.int32)


def restore_bias(levels: NDArray[np.int32], scale: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """The float32 values that `quantize_bias` makes `levels` of, or the nearest; same shape as `levels`."""
    step = np.asarray(scale, np.float32)
    found = np.asarray(levels.astype(np.float64) * step, np.float32)
    for end in (-np.inf, np.inf):  # beyond 2^24 the last digit decides
        other = np.nextafter(found, np.float32(end))
        with np.errstate(over="ignore"):
            is_nearer = np.abs(np.round(other / step) - levels.astype(np.float64)) < np.abs(
                np.round(found / step) - levels.astype(np.float64)
            )
        found = np.where(is_nearer, other, found)
    return found
