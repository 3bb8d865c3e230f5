"""What is kept of an observer to be shown: a histogram of few bars, and the ranges that were considered."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from amct_onnx.kernels.histogram import FRACTION_BITS, Side, SignedHistogram
from amct_onnx.kernels.quant_params import QuantParams

BARS = 64
"""Bars of a distribution; divides the number of bins of every histogram."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Distribution:
    """The finite values of a tensor, over all batches.

    low, high: the ends of the bars; zero is among them for a histogram of magnitudes.
    counts: values in each of the bars of equal width, int64 [BARS]. All are in the first where `low` is `high`.
    """

    low: float
    high: float
    counts: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeCandidate:
    """A range that was considered for a tensor.

    name: who proposes it, such as "min-max".
    low, high: its ends.
    loss: what it costs, by the measure of whoever chose; None where it was not measured.
    """

    name: str
    low: float
    high: float
    loss: float | None = None


def range_of(params: QuantParams) -> tuple[float, float]:
    """The smallest and the largest value that the integers stand for, of a tensor with one scale."""
    scale, offset = float(params.scale), int(params.offset)
    return (params.q_min - offset) * scale, (params.q_max - offset) * scale


def distribution_of(histogram: SignedHistogram) -> Distribution:
    """The bars of a histogram of magnitudes; each of its bins goes to the bar that the mean of its values is in."""
    positive, negative = histogram.positive, histogram.negative
    high = float(positive.largest[0]) if positive.size else 0.0
    low = -float(negative.largest[0]) if negative.size else 0.0
    counts = np.zeros(BARS, np.int64)
    if low == high:
        counts[0] = histogram.count
        return Distribution(low=low, high=high, counts=counts)
    for side, sign in ((positive, 1.0), (negative, -1.0)):
        filled = np.flatnonzero(side.counts)
        np.add.at(counts, _bars(sign * _means(side, filled), low, high), side.counts[filled])
    counts[_bars(np.zeros(1), low, high)] += histogram.count - positive.size - negative.size
    return Distribution(low=low, high=high, counts=counts)


def _means(side: Side, bins: NDArray[np.intp]) -> NDArray[np.float64]:
    """The mean magnitude of the values in each of some bins; in bin 0 the middle."""
    inside = side.sums[bins] / (side.counts[bins] * 2.0**FRACTION_BITS)
    return np.asarray((bins + np.where(bins == 0, 0.5, inside)) * side.width)


def _bars(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.intp]:
    return np.clip((values - low) / (high - low) * BARS, 0, BARS - 1).astype(np.intp)
