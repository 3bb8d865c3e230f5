"""IFMR: the activation range whose quantization loses the least, searched around a percentile.

AMCT keeps all activations and quantizes them once for every candidate. Here they are gone by then: the losses come from
a histogram (`kernels/histogram.py`), and from the values themselves where these are few or all alike.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from amct_onnx.errors import ConfigError, DataError
from amct_onnx.kernels.checks import require_bool, require_choice, require_number
from amct_onnx.kernels.compiled import compiled
from amct_onnx.kernels.histogram import BINS, FRACTION_BITS, Side, SignedHistogram
from amct_onnx.kernels.quant_params import FLT_EPS, QuantParams, scale_of_span


@dataclass(frozen=True, slots=True, kw_only=True)
class Ifmr:
    """Parameters of IFMR.

    search_range: first and last ratio of the percentile that are tried.
    search_step: distance of the ratios.
    max_percentile, min_percentile: share of the values that the start of the search covers.
    asymmetric: with an offset; None leaves it to the common block or to `activation_offset`.
    num_bits: width of the activations.
    """

    search_range: tuple[float, float] = (0.7, 1.3)
    search_step: float = 0.01
    max_percentile: float = 0.999999
    min_percentile: float = 0.999999
    asymmetric: bool | None = None
    num_bits: int = 8

    def __post_init__(self) -> None:
        start, end = self.search_range
        require_number("search_range start", start, interval="(0, inf)")
        require_number("search_range end", end, interval="(0, inf)")
        if not start < end:
            raise ConfigError(f"search_range must start below its end, found [{start}, {end}]")
        require_number("search_step", self.search_step, interval="(0, inf)")
        if Decimal(str(self.search_step)) > Decimal(str(end)) - Decimal(str(start)):
            raise ConfigError(f"search_step must not exceed the range [{start}, {end}], found {self.search_step}")
        require_number("max_percentile", self.max_percentile, interval="(0.5, 1]")
        require_number("min_percentile", self.min_percentile, interval="(0.5, 1]")
        require_bool("asymmetric", self.asymmetric, optional=True)
        require_choice("num_bits of the activations", self.num_bits, (4, 8, 16))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidates:
    """What the search tries, one entry per candidate.

    scales: float32.
    tops, bottoms: where values are clipped above and below zero, as magnitudes, float32.
    low: the lower end of the asymmetric range, at most 0.
    """

    scales: NDArray[np.float32]
    tops: NDArray[np.float32]
    bottoms: NDArray[np.float32]
    low: np.float32


class IfmrObserver:
    """Watches a tensor batch by batch and finds its range as AMCT's IFMR would.

    The state has a constant size (about 1 MB) and does not depend on how the data were split: any batches in any order,
    also observed elsewhere and merged, give the same bits.

    The losses are AMCT's for up to 1024 values of a sign, and for values that are all alike but for zeros; else they
    come from the histogram, and candidates that differ by less than some 1e-4 can be mistaken for each other. At 16
    bits a bin holds several steps: the losses are then right for values that are spread over the bins, but not for a
    grid of values such as that of 8-bit images. Percentiles that cut off more than 16384 values are interpolated.
    """

    def __init__(self, params: Ifmr, *, asymmetric: bool) -> None:
        """Start empty; `asymmetric` is the decision that `params` may leave open."""
        self._settings = params
        self._asymmetric = asymmetric
        share = 1.0 - min(params.max_percentile, params.min_percentile)
        # so many values are cut off 2^30 values by a percentile, which is then exact up to that size
        self._histogram = SignedHistogram(kept=min(max(math.ceil(share * 2**30), 1 << 10), 1 << 14))

    @property
    def count(self) -> int:
        """How many finite values were seen."""
        return self._histogram.count

    @property
    def finite(self) -> bool:
        """False once a NaN or an infinity was seen; these values count for nothing else."""
        return self._histogram.finite

    def update(self, array: ArrayLike) -> None:
        """Take in one batch of any shape; fp16 and float64 are converted to float32."""
        self._histogram.add(array)

    def merge(self, other: IfmrObserver) -> None:
        """Take in what `other`, made with the same parameters, has seen.

        Raises:
            ValueError: it was made with other parameters.
        """
        if (self._settings, self._asymmetric) != (other._settings, other._asymmetric):
            raise ValueError("only observers with the same parameters can be merged")
        self._histogram.merge(other._histogram)

    def params(self) -> QuantParams:
        """The scale with the smallest loss, and its offset.

        Raises:
            DataError: no finite value was seen.
        """
        if self.count == 0:
            raise DataError("no value was observed, so no range can be found")
        positive, negative = self._histogram.positive, self._histogram.negative
        candidates = self._candidates(positive, negative)
        losses = _losses(positive, candidates.scales, candidates.tops)
        losses += _losses(negative, candidates.scales, candidates.bottoms)
        scale = candidates.scales[np.argmin(losses)]
        half = 1 << (self._settings.num_bits - 1)
        offset = np.clip(-np.rint(candidates.low / scale) - half, -half, half - 1) if self._asymmetric else 0
        return QuantParams(
            scale=np.asarray(scale), offset=np.asarray(offset, np.int32), num_bits=self._settings.num_bits
        )

    def _candidates(self, positive: Side, negative: Side) -> _Candidates:
        """The ranges that AMCT tries: multiples of the percentile above zero, or of the larger one if symmetric."""
        high = positive.kth_largest(_rank(self._settings.max_percentile, self.count))
        low = negative.kth_largest(_rank(self._settings.min_percentile, self.count))
        start, end = self._settings.search_range
        step = self._settings.search_step
        ratios = (start + step * np.arange(math.ceil((end - start) / step))).astype(np.float32)
        levels = (1 << self._settings.num_bits) - 1
        with np.errstate(over="ignore"):
            tops = np.minimum(ratios * (high if self._asymmetric else max(high, low)), np.finfo(np.float32).max)
        if self._asymmetric:
            scales, bottoms = scale_of_span(-low, tops, levels), np.full_like(tops, low)
        else:
            scales, bottoms = scale_of_span(0, tops, (levels + 1) // 2 if high < low else levels // 2), tops
        return _Candidates(scales=scales, tops=tops, bottoms=bottoms, low=-low)


def warm_up() -> None:
    """Compile the kernels, or load their machine code from the disk: for a thread beside other work."""
    observer = IfmrObserver(Ifmr(max_percentile=1.0, min_percentile=1.0), asymmetric=True)
    observer.update(np.linspace(-1, 1, 5000, dtype=np.float32))  # too many values to be searched without a histogram
    observer.params()


def _rank(percentile: float, count: int) -> int:
    """Which largest value a percentile stands for, from 1: with AMCT's float arithmetic."""
    if 1.0 - percentile < FLT_EPS:
        return 1
    return max(1, count - int(percentile * count))


def _losses(side: Side, scales: NDArray[np.float32], bounds: NDArray[np.float32]) -> NDArray[np.float64]:
    """The sum of squared errors of the values of one sign for each candidate, up to a constant."""
    points = side.points()
    if points is None:
        return _losses_of_bins(side, scales, bounds)
    values, times = points
    # float32 as in AMCT: where several candidates are all but perfect, its rounding decides between them
    losses = np.empty(scales.size)
    for i, (scale, bound) in enumerate(zip(scales, bounds, strict=True)):
        with np.errstate(over="ignore"):  # an infinite loss is never the smallest
            errors = np.rint(np.minimum(values, bound) / scale) * scale - values
        losses[i] = (errors.astype(np.float64) ** 2 * times).sum()
    return losses


def _losses_of_bins(side: Side, scales: NDArray[np.float32], bounds: NDArray[np.float32]) -> NDArray[np.float64]:
    """The losses from a histogram.

    Rounding up at a boundary t saves 2 * scale * (x - t) of the squared error of x. So, up to the sum of all x^2, the
    loss is -2 * scale times the sum, over the boundaries (i + 1/2) * scale below the bound, of all (x - t) with x > t.
    That excess is known exactly at the edges of the bins; between them it is taken as the cubic that has the right
    value and the right slope at both edges.
    """
    counts = side.counts.astype(np.float64)
    inside = side.sums / 2.0**FRACTION_BITS
    inside[0] = counts[0] / 2  # in units of the width; in bin 0 only the number of values is known
    above = np.append(np.cumsum(counts[::-1])[::-1][1:], 0.0)
    excess = np.append(np.cumsum((above + inside)[::-1])[::-1][1:], 0.0)
    means = inside / np.maximum(counts, 1.0)
    steps = scales.astype(np.float64) / side.width
    levels = np.rint(bounds / scales).astype(np.int64)
    sums = np.zeros(scales.size)
    _add_excess(sums, steps, levels, counts, means, above, excess)
    return -2.0 * side.width**2 * steps * sums


@compiled
def _add_excess(
    sums: NDArray[np.float64],
    steps: NDArray[np.float64],
    levels: NDArray[np.int64],
    counts: NDArray[np.float64],
    means: NDArray[np.float64],
    above: NDArray[np.float64],
    excess: NDArray[np.float64],
) -> None:
    """For each candidate, add up the excess over each of its boundaries; all in units of the bin's width.

    `counts` and `means` describe a bin; `above` is the number of values behind its upper edge, `excess` by how much
    they exceed it in sum.
    """
    for candidate in range(steps.size):
        total = 0.0
        for i in range(levels[candidate]):
            boundary = (i + 0.5) * steps[candidate]
            if boundary >= BINS:
                break
            j = int(boundary)
            rest = 1.0 - (boundary - j)
            total += excess[j] + above[j] * rest
            total += counts[j] * rest * rest * (means[j] + (2.0 * means[j] - 1.0) * (1.0 - rest))
        sums[candidate] = total
