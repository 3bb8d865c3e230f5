"""Float types with fewer bits than float32: what of a value is left after a cast there and back."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

FLOAT_TYPES = ("bfloat16", "float16", "float32")


def cast_through(array: ArrayLike, datatype: str) -> NDArray[np.float32]:
    """The values after a cast to one of FLOAT_TYPES and back; the nearest, of two equally near the even one."""
    values = np.asarray(array, np.float32)
    if datatype == "float16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).astype(np.float32)
    return _through_bfloat16(values) if datatype == "bfloat16" else values


def _through_bfloat16(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The upper half of the bits of float32, rounded by the lower half; NaN stays NaN."""
    bits = np.ascontiguousarray(values).view(np.uint32).astype(np.uint64)
    upper = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    rounded = upper.astype(np.uint32).view(np.float32)
    return np.where(np.isnan(values), values, rounded).reshape(values.shape)
