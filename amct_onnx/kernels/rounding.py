"""Four ways to round to the nearest integer; they differ in where halves go."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

ROUND_MODES = ("half_even", "half_up", "half_down", "std_round")
"""Halves go to the even neighbour, towards plus infinity, towards zero, away from zero."""


def rounded(values: NDArray[Any], mode: str) -> NDArray[np.float64]:
    """`values` (float32) rounded to integers, as float64, in which half of an integer of 32 bits can be told."""
    wide = np.asarray(values, np.float64)
    if mode == "half_even":
        return np.rint(wide)
    if mode == "half_up":
        return np.floor(wide + 0.5)
    sizes = np.abs(wide)
    whole = np.ceil(sizes - 0.5) if mode == "half_down" else np.floor(sizes + 0.5)
    return np.asarray(np.copysign(whole, wide))
