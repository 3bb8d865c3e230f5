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
from amct_onnx.kernels.distribution import Distribution, RangeCandidate, distribution_of
from amct_onnx.kernels.histogram import BINS, FRACTION_BITS, Side, SignedHistogram
from amct_onnx.kernels.quant_params import FLT_EPS, QuantParams, scale_of_span

LANES = 64  # edges of bins that are looked at side by side; divides BINS
_LANES = np.uint64(LANES)


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
        self.asymmetric = asymmetric
        share = 1.0 - min(params.max_percentile, params.min_percentile)
        # so many values are cut off 2^30 values by a percentile, which is then exact up to that size
        self._kept = min(max(math.ceil(share * 2**30), 1 << 10), 1 << 14)
        self._histogram = SignedHistogram(kept=self._kept)

    @property
    def count(self) -> int:
        """How many finite values were seen."""
        return self._histogram.count

    @property
    def finite(self) -> bool:
        """False once a NaN or an infinity was seen; these values count for nothing else."""
        return self._histogram.finite

    @property
    def extent(self) -> tuple[float, float]:
        """The smallest and the largest value seen, and zero."""
        return -float(self._histogram.negative.kth_largest(1)), float(self._histogram.positive.kth_largest(1))

    def update(self, array: ArrayLike) -> None:
        """Take in one batch of any shape; fp16 and float64 are converted to float32."""
        self._histogram.add(array)

    def merge(self, other: IfmrObserver) -> None:
        """Take in what `other`, made with the same parameters, has seen.

        Raises:
            ValueError: it was made with other parameters.
        """
        if (self._settings, self.asymmetric) != (other._settings, other.asymmetric):
            raise ValueError("only observers with the same parameters can be merged")
        self._histogram.merge(other._histogram)

    def state(self) -> NDArray[np.int64]:
        """Everything that was seen, as numbers that `resume` understands."""
        return self._histogram.state()

    def resume(self, state: NDArray[np.int64]) -> None:
        """Go on where another observer with the same parameters was when it gave its `state`.

        Raises:
            ValueError: it is no such state.
        """
        self._histogram = SignedHistogram.of_state(state, kept=self._kept)

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
        offset = np.clip(-np.rint(candidates.low / scale) - half, -half, half - 1) if self.asymmetric else 0
        return QuantParams(
            scale=np.asarray(scale), offset=np.asarray(offset, np.int32), num_bits=self._settings.num_bits
        )

    def distribution(self) -> Distribution:
        """What was seen, to be shown."""
        return distribution_of(self._histogram)

    def considered(self) -> tuple[RangeCandidate, ...]:
        """The narrowest and the widest range that the search tries; none where nothing was seen."""
        if self.count == 0:
            return ()
        tried = self._candidates(self._histogram.positive, self._histogram.negative)
        ends = (("IFMR, narrowest", 0), ("IFMR, widest", -1))
        return tuple(
            RangeCandidate(name=name, low=-float(tried.bottoms[i]), high=float(tried.tops[i])) for name, i in ends
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
            tops = np.minimum(ratios * (high if self.asymmetric else max(high, low)), np.finfo(np.float32).max)
        if self.asymmetric:
            scales, bottoms = scale_of_span(-low, tops, levels), np.full_like(tops, low)
        else:
            scales, bottoms = scale_of_span(0, tops, (levels + 1) // 2 if high < low else levels // 2), tops
        return _Candidates(scales=scales, tops=tops, bottoms=bottoms, low=-low)


def warm_up() -> None:
    """Compile the kernels, or load their machine code from the disk: for a thread beside other work."""
    for num_bits in (8, 16):  # they are searched in different ways
        observer = IfmrObserver(Ifmr(max_percentile=1.0, min_percentile=1.0, num_bits=num_bits), asymmetric=True)
        observer.update(np.linspace(-1, 1, 5000, dtype=np.float32))  # too many values to be searched one by one
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
    losses = np.zeros(scales.size)
    if values.size == 0:
        return losses
    # float32 as in AMCT: where several candidates are all but perfect, its rounding decides between them
    with np.errstate(over="ignore"):  # an infinite loss is never the smallest
        for i, (scale, bound) in enumerate(zip(scales, bounds, strict=True)):
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
    table = np.zeros((4, BINS))
    _tabulate(side.counts, side.sums, table)
    steps = scales.astype(np.float64) / side.width
    levels = np.rint(bounds / scales).astype(np.int64)
    if steps.min() < 1:
        return -2.0 * side.width**2 * _excess_between_edges(table, steps, levels)
    sums = np.zeros(scales.size)
    _add_excess(sums, steps, levels, table)
    return -2.0 * side.width**2 * steps * sums


@compiled
def _tabulate(counts: NDArray[np.int64], sums: NDArray[np.int64], table: NDArray[np.float64]) -> None:
    """Fill the `table` [4, BINS] with what describes a bin, in units of its width.

    Rows 0 and 1: how many values, and their mean distance from the lower edge. Row 2: how many values lie behind the
    upper edge. Row 3: by how much these exceed it in sum.
    """
    above, excess = 0.0, 0.0
    for j in range(counts.size - 1, -1, -1):
        count = float(counts[j])
        inside = count / 2.0 if j == 0 else sums[j] / 2.0**FRACTION_BITS  # in bin 0 only the number of values is known
        table[0, j] = count
        table[1, j] = inside / max(count, 1.0)
        table[2, j] = above
        table[3, j] = excess
        excess += above + inside
        above += count


@compiled
def _add_excess(
    sums: NDArray[np.float64], steps: NDArray[np.float64], levels: NDArray[np.int64], table: NDArray[np.float64]
) -> None:
    """For each candidate, add up the excess over each of its boundaries; all in units of the bin's width."""
    counts, means, above, excess = table[0], table[1], table[2], table[3]
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


def _excess_between_edges(
    table: NDArray[np.float64], steps: NDArray[np.float64], levels: NDArray[np.int64]
) -> NDArray[np.float64]:
    """What `_add_excess` finds, times the step and but for a constant, at a cost that does not grow with the levels.

    Equally spaced samples of a function add up to its integral and terms of its derivatives at both ends, which is the
    Euler-Maclaurin formula: step * sum = integral - step^2/24 * (change of the first) + 7/5760 step^4 * (change of the
    third) - ... The excess is a cubic between the edges of the bins, so the series ends there; but each edge where the
    second or the third derivative jumps adds a term. The constant is the integral over everything: as large as it is,
    only the last digits would be left for the differences between the candidates. So these are more exact than from
    `_add_excess`, by about three digits.
    """
    counts, means, above, excess = np.concatenate([table, np.zeros((4, LANES))], axis=1)  # nothing behind the last bin
    # With r as the distance from the upper edge, the excess is excess + above * r + square * r^2 - cube * r^3.
    square, cube = counts * (3.0 * means - 1.0), counts * (2.0 * means - 1.0)
    integrals = excess + above / 2.0 + square / 3.0 - cube / 4.0
    behind = np.append(np.cumsum(integrals[::-1])[::-1][1:], 0.0)
    jumps = np.zeros((2, counts.size))
    jumps[0, 1:] = 2.0 * (square[1:] - square[:-1]) - 6.0 * cube[1:]
    jumps[1, 1:] = 6.0 * (cube[1:] - cube[:-1])
    ends = levels * steps
    last = np.minimum(ends, BINS).astype(np.int64)
    r = last + 1.0 - ends
    above, square, cube_at_0, cube = above[last], square[last], cube[0], cube[last]
    missing = behind[last] + r * (excess[last] + r * (above / 2.0 + r * (square / 3.0 - r * cube / 4.0)))
    first = -above - r * (2.0 * square - 3.0 * r * cube)
    terms = np.zeros(steps.size)
    _add_jumps(terms, steps, ends, jumps, np.arange(counts.size, dtype=np.float64))
    terms -= steps**2 / 24.0 * (first + counts.sum())
    terms += steps**4 * 7.0 / 960.0 * (cube - cube_at_0)
    return np.asarray(terms - missing)


@compiled
def _add_jumps(
    terms: NDArray[np.float64],
    steps: NDArray[np.float64],
    ends: NDArray[np.float64],
    jumps: NDArray[np.float64],
    edges: NDArray[np.float64],
) -> None:
    """For each candidate, add the terms of the edges up to its end.

    They are step^3/6 * B3(x) times the jump of the second derivative and -step^4/24 * B4(x) times that of the third,
    with Bernoulli's polynomials, and x as the share of a step that the edge lies behind a boundary. `jumps`
    [2, BINS + LANES] are those of both derivatives, at the `edges` [BINS + LANES].
    """
    second, third = jumps[0], jumps[1]
    partial = np.zeros(LANES)  # sums side by side: only then does strict arithmetic allow vector instructions
    for candidate in range(steps.size):
        per_step, quarter, end = 1.0 / steps[candidate], steps[candidate] / 4.0, ends[candidate]
        partial[:] = 0.0
        for start in range(np.uint64(0), np.uint64(edges.size), _LANES):
            if edges[start] > end:
                break
            for lane in range(_LANES):
                j = start + lane
                position = edges[j] * per_step - 0.5
                x = position - np.floor(position)
                q = x * (x - 1.0)
                term = q * (x - 0.5) * second[j] - quarter * (q * q - 1.0 / 30.0) * third[j]
                partial[lane] += term if edges[j] <= end else 0.0
        terms[candidate] += steps[candidate] ** 3 / 6.0 * partial.sum()
