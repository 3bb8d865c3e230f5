"""DMQ: outliers moved from the activations to the weights, one factor for each input channel.

Weights are multiplied by the factor and activations divided by it, so the layer computes the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from amct_onnx.errors import DataError
from amct_onnx.kernels.checks import require_number
from amct_onnx.kernels.quant_params import FLT_EPS


@dataclass(frozen=True, slots=True, kw_only=True)
class Dmq:
    """Parameters of the DMQ balancer.

    migration_strength: how much of the difficulty moves to the weights.
    """

    migration_strength: float = 0.5

    def __post_init__(self) -> None:
        require_number("migration_strength", self.migration_strength, interval="[0.2, 0.8]")


class MaximaObserver:
    """Watches a tensor batch by batch and keeps the largest magnitude of each channel.

    The state is one number for each channel; any batches in any order, also observed elsewhere and merged, give the
    same bits.
    """

    def __init__(self, *, axis: int) -> None:
        """Start empty; `axis` is where the channels of the tensor are."""
        self._axis = axis
        self._maxima = np.zeros(0, np.float32)
        self.count = 0
        """Values seen, those that are not finite included."""
        self.rank = 0
        """How many axes the tensor has."""

    @property
    def finite(self) -> bool:
        """False once a NaN or an infinity was seen."""
        return bool(np.isfinite(self._maxima).all())

    def update(self, array: ArrayLike) -> None:
        """Take in one batch.

        Raises:
            DataError: it has other channels than the batches before.
        """
        values = np.asarray(array)
        others = tuple(i for i in range(values.ndim) if i != self._axis % values.ndim)
        if values.size:
            maxima = np.maximum(values.max(axis=others), -values.min(axis=others)).astype(np.float32)
            self._take(maxima, values.size, values.ndim)

    def merge(self, other: MaximaObserver) -> None:
        """Take in what `other`, made for the same axis, has seen.

        Raises:
            ValueError: it looks at another axis.
            DataError: it has seen other channels.
        """
        if self._axis != other._axis:
            raise ValueError("only observers of the same axis can be merged")
        if other.count:
            self._take(other._maxima, other.count, other.rank)

    def maxima(self) -> NDArray[np.float32]:
        """The largest magnitude of each channel, [C].

        Raises:
            DataError: nothing was seen.
        """
        if self.count == 0:
            raise DataError("no value was observed, so no channel can be balanced")
        return self._maxima

    def _take(self, maxima: NDArray[np.float32], count: int, rank: int) -> None:
        if self.count and (self._maxima.shape, self.rank) != (maxima.shape, rank):
            found = f"{self._maxima.size} channels in one batch, {maxima.size} in another"
            raise DataError(f"the input of a layer to balance has {found}")
        self._maxima = np.maximum(self._maxima, maxima) if self.count else maxima
        self.count, self.rank = self.count + count, rank


def balance_factors(
    activation: NDArray[np.float32], weight: NDArray[np.float32], *, strength: float
) -> NDArray[np.float32]:
    """The factor of each input channel, activation^strength / weight^(1 - strength), as AMCT computes it in float32.

    Args:
        activation: largest magnitude of each channel of the layer's input, [C], finite.
        weight: the same of the weight, [C], finite.
        strength: share of the difficulty that moves to the weights.

    Magnitudes below float32's epsilon count as zero. A channel whose input is zero gets the factor that makes its
    weights as large as the largest balanced ones, one whose weight is zero that which makes its input as large as the
    largest balanced input; where both are, or where all of one kind are, it is 1. Factors stay within what a record
    takes, [2^-23, 2^23].
    """
    idle, unread = activation < FLT_EPS, weight < FLT_EPS
    if idle.all() or unread.all():
        return np.ones_like(weight)
    whole = ~(idle | unread)
    factors = np.ones_like(weight)
    share = np.float32(strength)
    factors[whole] = activation[whole] ** share / weight[whole] ** (np.float32(1) - share)
    only_idle, only_unread = idle & ~unread, unread & ~idle
    with np.errstate(over="ignore"):
        if whole.any():
            factors[only_idle] = (weight[whole] * factors[whole]).max() / weight[only_idle]
            factors[only_unread] = activation[only_unread] / (activation[whole] / factors[whole]).max()
    return np.clip(factors, np.float32(FLT_EPS), np.float32(1 / FLT_EPS))
