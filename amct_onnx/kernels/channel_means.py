"""The mean of every channel of a tensor, from batches in any order and split in any way, to the bit."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from amct_onnx.errors import DataError

_FRACTION_BITS = 149
"""Every sum of float32 values that float64 holds is a multiple of 2^-149, the smallest float32."""


class MeansObserver:
    """Watches a tensor batch by batch and keeps the sum of each channel.

    Within a batch sums are float64; across batches they are integers of any size, so that neither the order of the
    batches nor merging with what was seen elsewhere changes a bit.
    """

    def __init__(self, *, axis: int) -> None:
        """Start empty; `axis` is where the channels of the tensor are."""
        self._axis = axis
        self._sums: list[int] = []
        self._each = 0
        self.count = 0
        """Values seen, those that are not finite included."""
        self.finite = True
        """False once a NaN or an infinity was seen; the batch with it counts for nothing else."""

    def update(self, array: ArrayLike) -> None:
        """Take in one batch.

        Raises:
            DataError: it has other channels than the batches before.
        """
        values = np.asarray(array)
        if values.size == 0:
            return
        others = tuple(i for i in range(values.ndim) if i != self._axis % values.ndim)
        with np.errstate(invalid="ignore", over="ignore"):
            sums = values.sum(axis=others, dtype=np.float64)
        if not np.isfinite(sums).all():
            self.finite, self.count = False, self.count + values.size
            return
        whole = [int(part) for part in np.ldexp(np.atleast_1d(sums), _FRACTION_BITS)]
        self._take(whole, values.size // len(whole), values.size)

    def merge(self, other: MeansObserver) -> None:
        """Take in what `other`, made for the same axis, has seen.

        Raises:
            ValueError: it looks at another axis.
            DataError: it has seen other channels.
        """
        if self._axis != other._axis:
            raise ValueError("only observers of the same axis can be merged")
        self.finite = self.finite and other.finite
        if other._sums:
            self._take(other._sums, other._each, 0)
        self.count += other.count

    def means(self) -> NDArray[np.float64]:
        """The mean of each channel, [C].

        Raises:
            DataError: no finite value was seen.
        """
        if self._each == 0:
            raise DataError("no value was observed, so no channel has a mean")
        return np.array([_quotient(part, self._each) for part in self._sums])

    def _take(self, sums: list[int], each: int, count: int) -> None:
        if self._sums and len(self._sums) != len(sums):
            raise DataError(f"a tensor has {len(self._sums)} channels in one batch, {len(sums)} in another")
        self._sums = [a + b for a, b in zip(self._sums or [0] * len(sums), sums, strict=True)]
        self._each, self.count = self._each + each, self.count + count


def _quotient(part: int, each: int) -> float:
    """Division of integers rounds once, however large they are."""
    return part / (each << _FRACTION_BITS)
