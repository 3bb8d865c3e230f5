"""Two 4-bit integers in a byte, as the chip's compiler takes 4-bit weights."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def packed(levels: NDArray[np.signedinteger[Any]], *, axis: int) -> NDArray[np.int8]:
    """Pairs of neighbours along `axis` in one byte each: the first in the low half, the second in the high half.

    Args:
        levels: integers in [-8, 7]; an even number of them along `axis`.
        axis: which axis becomes half as long.

    Raises:
        ValueError: the number along `axis` is odd, or an integer needs more than 4 bits.
    """
    if levels.shape[axis] % 2:
        raise ValueError(f"{levels.shape[axis]} integers cannot be put into pairs")
    if levels.size and (levels.min() < -8 or levels.max() > 7):
        raise ValueError("4 bits hold no integer outside [-8, 7]")
    halves = np.moveaxis(levels, axis, 0).astype(np.uint8) & np.uint8(0xF)
    pairs = halves[0::2] | (halves[1::2] << np.uint8(4))
    return np.ascontiguousarray(np.moveaxis(pairs, 0, axis)).view(np.int8)


def unpacked(pairs: NDArray[np.int8], *, axis: int) -> NDArray[np.int8]:
    """The inverse of `packed`: integers in [-8, 7], twice as many along `axis`."""
    rows = np.moveaxis(pairs, axis, 0)
    levels = np.empty((2 * len(rows), *rows.shape[1:]), np.int8)
    levels[0::2] = (rows << np.int8(4)) >> np.int8(4)  # shifting back copies the sign
    levels[1::2] = rows >> np.int8(4)
    return np.ascontiguousarray(np.moveaxis(levels, 0, axis))
