"""Scales and offsets: real = (q - offset) * scale."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FLT_EPS = float(np.finfo(np.float32).eps)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QuantParams:
    """How a tensor maps onto integers: real = (q - offset) * scale.

    scale: float32, shape [] per tensor or [C] per channel; finite and positive.
    offset: int32, same shape; lies in the signed range of `num_bits`.
    num_bits: width of the signed integers, so q is in [-2^(n-1), 2^(n-1) - 1].
    axis: the axis of the tensor that `scale` runs along, None per tensor.
    """

    scale: NDArray[np.float32]
    offset: NDArray[np.int32]
    num_bits: int = 8
    axis: int | None = None

    @property
    def q_min(self) -> int:
        """The smallest integer of the range."""
        return -(1 << (self.num_bits - 1))

    @property
    def q_max(self) -> int:
        """The largest integer of the range."""
        return (1 << (self.num_bits - 1)) - 1
