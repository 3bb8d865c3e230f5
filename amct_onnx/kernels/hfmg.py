"""HFMG: the activation range found by shrinking a histogram from both ends."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from amct_onnx.errors import DataError
from amct_onnx.kernels.checks import require_bool, require_choice
from amct_onnx.kernels.compiled import compiled
from amct_onnx.kernels.distribution import BARS, Distribution, RangeCandidate
from amct_onnx.kernels.quant_params import FLT_EPS, QuantParams, params_from_range

BLOCK = 512  # values that the counting kernel takes at a time; a constant, so that its loops need no remainders
GROUP = 32  # of them are placed, then counted: few enough for the processor to do both at once
LANES = 4  # histograms side by side: increments of one and the same bin would wait for each other

ROUNDING = 4e-12  # the bounds of the search are sums of up to 8192 roundings of up to (number of values) * bins^2

_MAGNITUDE = np.int32((1 << 31) - 1)
_SIGN_BITS = np.int32(31)
_ONE_VALUE = np.uint32(1)
# numba's indices are unsigned here: for others it would ask in every loop whether they count from the end
_GROUP = np.uint64(GROUP)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hfmg:
    """Parameters of HFMG.

    num_of_bins: resolution of the histogram.
    asymmetric: with an offset; None leaves it to the common block or to `activation_offset`.
    num_bits: width of the activations.
    """

    num_of_bins: int = 4096
    asymmetric: bool | None = None
    num_bits: int = 8

    def __post_init__(self) -> None:
        require_choice("num_of_bins", self.num_of_bins, (1024, 2048, 4096, 8192))
        require_bool("asymmetric", self.asymmetric, optional=True)
        require_choice("num_bits of the activations", self.num_bits, (4, 8, 16))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Histogram:
    """Equal bins from `low` to `high`, both float32; `counts` is int64 [bins]."""

    low: float
    high: float
    counts: NDArray[np.int64]


class HfmgObserver:
    """Watches a tensor batch by batch and finds its range as AMCT's HFMG does.

    The first batch sets the range of the histogram; when a later one is wider, the bins are poured into wider ones,
    each into two at the most. As in AMCT the result therefore depends a little on the split and the order of the
    batches. Counts are exact integers, where AMCT's float32 stop growing at 2^24.
    """

    def __init__(self, params: Hfmg, *, asymmetric: bool) -> None:
        """Start empty; `asymmetric` is the decision that `params` may leave open."""
        self.count = 0  # finite values seen
        self.finite = True  # False once a NaN or an infinity was seen; these values count for nothing else
        self._settings = params
        self.asymmetric = asymmetric
        self._histogram: _Histogram | None = None

    @property
    def extent(self) -> tuple[float, float]:
        """The smallest and the largest value seen, and zero."""
        return (
            (0.0, 0.0) if self._histogram is None else (min(self._histogram.low, 0.0), max(self._histogram.high, 0.0))
        )

    def update(self, array: ArrayLike) -> None:
        """Take in one batch of any shape; fp16 and float64 are converted to float32."""
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes an infinity, and is noted as such below
            values = np.require(array, np.float32, ["C", "A", "W"]).reshape(-1)
        low, high = extent(values)
        if not (math.isfinite(low) and math.isfinite(high)):
            self.finite = False
            values = values[np.isfinite(values)]
            low, high = extent(values)
        if values.size == 0:
            return
        self.count += values.size
        low, high = self._cover(low, high)
        self._pour(_Histogram(low=low, high=high, counts=bin_counts(values, low, high, self._settings.num_of_bins)))

    def merge(self, other: HfmgObserver) -> None:
        """Pour in what `other`, made with the same parameters, has seen, as if it were one batch.

        Raises:
            ValueError: it was made with other parameters.
        """
        if (self._settings, self.asymmetric) != (other._settings, other.asymmetric):
            raise ValueError("only observers with the same parameters can be merged")
        self.count += other.count
        self.finite = self.finite and other.finite
        if other._histogram is not None:
            low, high = self._cover(other._histogram.low, other._histogram.high)
            self._pour(_rebinned(other._histogram, low, high))

    def _cover(self, low: float, high: float) -> tuple[float, float]:
        """The range [low, high] together with what was seen so far."""
        if self._histogram is None:
            return low, high
        return min(low, self._histogram.low), max(high, self._histogram.high)

    def _pour(self, batch: _Histogram) -> None:
        """Add a batch whose histogram covers the old range too."""
        if self._histogram is not None:
            batch.counts[:] += _rebinned(self._histogram, batch.low, batch.high).counts
        self._histogram = batch

    def params(self) -> QuantParams:
        """The scale and the offset of the best range.

        Raises:
            DataError: no finite value was seen.
        """
        if self._histogram is None:
            raise DataError("no value was observed, so no range can be found")
        histogram, num_bits = self._histogram, self._settings.num_bits
        low, high = search(histogram.counts, histogram.low, histogram.high, num_bits=num_bits)
        return params_from_range(low, high, asymmetric=self.asymmetric, num_bits=num_bits)

    def distribution(self) -> Distribution:
        """What was seen, to be shown."""
        if self._histogram is None:
            return Distribution(low=0.0, high=0.0, counts=np.zeros(BARS, np.int64))
        low, high, counts = self._histogram.low, self._histogram.high, self._histogram.counts
        return Distribution(low=low, high=high, counts=counts.reshape(BARS, -1).sum(axis=1))

    def considered(self) -> tuple[RangeCandidate, ...]:
        """No range by name: the search passes through thousands."""
        return ()


def warm_up() -> None:
    """Compile the kernels, or load their machine code from the disk: for a thread beside other work."""
    observer = HfmgObserver(Hfmg(num_of_bins=1024), asymmetric=True)
    observer.update(np.linspace(-1, 1, 5000, dtype=np.float32))
    observer.params()


def _downscaled(low: float, high: float) -> float:
    """A power of two that keeps float32 arithmetic on this range from overflowing."""
    return 2.0**-32 if high / 2 - low / 2 > 2.0**100 else 1.0


def extent(values: NDArray[np.float32]) -> tuple[float, float]:
    """The smallest and the largest of `values` [n], (0, 0) if there are none; with a NaN, one of them is a NaN."""
    if values.size == 0:
        return 0.0, 0.0
    keys = np.array(_extent(values.view(np.int32)), np.int32)
    low, high = (keys ^ ((keys >> _SIGN_BITS) & _MAGNITUDE)).view(np.float32)
    return float(low), float(high)


@compiled
def _extent(patterns: NDArray[np.int32]) -> tuple[np.int32, np.int32]:
    """The extremes of floats with these bit patterns [n], as integers that order like the floats, NaN outermost."""
    low, high = _MAGNITUDE, np.int32(~_MAGNITUDE)
    for i in range(patterns.size):
        key = np.int32(patterns[i] ^ ((patterns[i] >> _SIGN_BITS) & _MAGNITUDE))
        low = min(low, key)
        high = max(high, key)
    return low, high


def bin_counts(values: NDArray[np.float32], low: float, high: float, bins: int) -> NDArray[np.int64]:
    """The histogram of `values` [n], which lie in [low, high], over equal bins; bin edges fall as in torch.histc."""
    if low == high:
        return np.bincount([0], [values.size], bins).astype(np.int64)
    factor = _downscaled(low, high)
    if factor != 1.0:
        values = values * np.float32(factor)
    start, end = np.float32(low * factor), np.float32(high * factor)
    scratch = np.zeros(2 * GROUP, np.uint32)
    scratch[GROUP:] = np.arange(GROUP) % LANES * bins
    counts = np.zeros(LANES * bins, np.uint32)  # a lane is full after 2^32 values of its own
    whole = values.size - values.size % BLOCK
    last = np.full(BLOCK, start)
    last[: values.size - whole] = values[whole:]
    for part in (values[:whole], last):
        _count(part, start, end - start, np.float32(bins), scratch, counts)
    total = counts.reshape(LANES, bins).sum(axis=0, dtype=np.int64)
    total[0] -= whole + BLOCK - values.size  # what the last block was filled up with
    return np.asarray(total)


@compiled
def _count(
    values: NDArray[np.float32],
    low: np.float32,
    span: np.float32,
    bins: np.float32,
    scratch: NDArray[np.uint32],
    counts: NDArray[np.uint32],
) -> None:
    """Count `values` [n * BLOCK] into `counts` [LANES * bins].

    `scratch` [2 * GROUP] has room for where the values of a group are counted, and says where their lanes start; it is
    one array, which spares the compiler the question whether two overlap.
    """
    last = np.int32(bins - np.float32(1))
    at, size = np.uint64(0), np.uint64(values.size)
    while at < size:
        for _ in range(BLOCK // GROUP):
            for i in range(_GROUP):
                position = np.int32((values[at + i] - low) * bins / span)
                scratch[i] = scratch[_GROUP + i] + np.uint32(min(position, last))
            for i in range(_GROUP):
                counts[scratch[i]] = counts[scratch[i]] + _ONE_VALUE
            at += _GROUP


def _rebinned(histogram: _Histogram, low: float, high: float) -> _Histogram:
    """The same counts over the wider range [low, high], with float32 edges as in AMCT.

    A bin that lies across two new ones is divided between them as if its values were spread evenly, rounded down for
    the lower one.
    """
    same_low = math.isclose(low, histogram.low, abs_tol=FLT_EPS)
    if same_low and math.isclose(high, histogram.high, abs_tol=FLT_EPS):
        return _Histogram(low=low, high=high, counts=histogram.counts.copy())
    bins = histogram.counts.size
    factor = _downscaled(low, high)
    start, end, new_start, new_end = (np.float32(edge * factor) for edge in (histogram.low, histogram.high, low, high))
    width, new_width = (end - start) / np.float32(bins), (new_end - new_start) / np.float32(bins)
    edges = start + np.arange(bins + 1, dtype=np.float32) * width
    into = np.clip((edges - new_start) // new_width, 0, bins - 1).astype(np.int64)
    lower, upper = into[:-1], into[1:]
    split = np.flatnonzero(lower != upper)
    border = new_start + (lower[split] + 1).astype(np.float32) * new_width
    share = np.clip((border - edges[split]) / (edges[split + 1] - edges[split]), 0, 1)
    below = histogram.counts.copy()
    below[split] = (histogram.counts[split].astype(np.float32) * share).astype(np.int64)
    counts = np.zeros(bins, np.int64)
    np.add.at(counts, lower, below)
    np.add.at(counts, upper, histogram.counts - below)
    return _Histogram(low=low, high=high, counts=counts)


def search(counts: NDArray[Any], low: float, high: float, *, num_bits: int) -> tuple[float, float]:
    """The clipped range that loses the least, among those that greedy shrinking passes through.

    Args:
        counts: values per bin [bins].
        low: lower edge of the first bin.
        high: upper edge of the last bin.
        num_bits: width of the integers.

    Returns:
        The lower and the upper end of the range.
    """
    bins, levels = counts.size, 1 << num_bits
    width = (high - low) / bins
    weights = counts.astype(np.float64)
    windows = np.zeros((bins, 2), np.int64)
    # each round gives up at least so many values; the shrinking ends at a quarter of the bins
    windows = windows[: _shrink(weights, max(1, math.ceil(weights.sum() / 100000)), math.ceil(bins / 4), windows)]
    # AMCT takes steps below float32's resolution for lossless; of such windows the first is as good as any
    lossless = (windows[:, 1] - windows[:, 0] + 1) * width / levels < FLT_EPS
    if lossless.any():
        left, right = windows[np.argmax(lossless)]
    else:
        below = _moments(weights)
        above = np.ascontiguousarray(_moments(weights[::-1].copy())[:, ::-1])
        floors = np.zeros(len(windows))
        ceiling = _bounds(weights, windows, levels, below, above, floors)
        # The best window is among those that are left here, whichever way the bounds were rounded; which one of them it
        # is does not depend on the bounds.
        windows = windows[floors <= ceiling + ROUNDING * weights.sum() * bins**2]
        losses = np.zeros(len(windows))
        _losses(weights, windows, levels, np.zeros(bins + 1), losses)
        left, right = windows[np.argmin(losses)]
    return low + float(left) * width, low + float(right + 1) * width


@compiled
def _shrink(counts: NDArray[np.float64], share: int, shortest: int, windows: NDArray[np.int64]) -> int:
    """Write the windows, first and last bin, that greedy shrinking passes through; return how many.

    Each round takes `share` values off both ends, and keeps the cut on the side where that took more bins. The full
    range is none of the windows.
    """
    number = 0
    left, right = 0, counts.size - 1
    while right - left > shortest:
        next_left, next_right = left, right
        taken = 0.0
        while next_left < next_right and taken < share:
            taken += counts[next_left]
            next_left += 1
        taken = 0.0
        while next_left < next_right and taken < share:
            taken += counts[next_right]
            next_right -= 1
        if right - next_right >= next_left - left:
            right = next_right
        else:
            left = next_left
        windows[number, 0] = left
        windows[number, 1] = right
        number += 1
    return number


@compiled
def _moments(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """For each edge of the bins the moments 0, 1, 2 of the values below it, as distances from it: [3, bins + 1].

    Values are spread evenly inside their bins, whose width is 1. All terms are positive, so nothing cancels.
    """
    moments = np.zeros((3, counts.size + 1))
    for i in range(counts.size):
        moments[0, i + 1] = moments[0, i] + counts[i]
        moments[1, i + 1] = moments[1, i] + moments[0, i] + counts[i] / 2.0
        moments[2, i + 1] = moments[2, i] + 2.0 * moments[1, i] + moments[0, i] + counts[i] / 3.0
    return moments


@compiled
def _bounds(
    counts: NDArray[np.float64],
    windows: NDArray[np.int64],
    levels: int,
    below: NDArray[np.float64],
    above: NDArray[np.float64],
    floors: NDArray[np.float64],
) -> float:
    """For each window a floor under what `_losses` finds, but for rounding; return what the best one cannot exceed.

    `below` and `above` are the `_moments` from either side. What values outside of the window lose is known from them.
    Where that alone is too much, it is the floor. Otherwise it takes one look per step: rounding up at a boundary t
    saves 2 * step * (x - t) of the squared error of x, so the loss is that of rounding all values to the first step,
    less 2 * step times the sum of all (x - t) with x > t, over the boundaries t. Steps finer than a bin would be too
    many to look at. But then the steps lose so little that only a few windows pass the floor.
    """
    ceiling = np.inf
    for window in range(floors.size):
        left, end = windows[window, 0], windows[window, 1] + 1
        step = (end - left) / levels
        half = step / 2.0
        loss = below[2, left] + half * (2.0 * below[1, left] + half * below[0, left])
        floors[window] = loss + above[2, end] + half * (2.0 * above[1, end] + half * above[0, end])
        if floors[window] > ceiling:
            continue
        if step < 1.0:
            inside = below[0, end] - below[0, left]
            ceiling = min(ceiling, floors[window] + half * half * inside)
            continue
        saved = 0.0
        for i in range(1, levels):
            boundary = left + i * step
            j = int(boundary)
            rest = (j + 1) - boundary
            saved += above[1, j + 1] + rest * (above[0, j + 1] + rest * counts[j] / 2.0)
        loss += above[2, left] - half * (2.0 * above[1, left] - half * above[0, left])
        floors[window] = loss - 2.0 * step * saved
        ceiling = min(ceiling, floors[window])
    return ceiling


@compiled
def _losses(
    counts: NDArray[np.float64],
    windows: NDArray[np.int64],
    levels: int,
    edges: NDArray[np.float64],
    losses: NDArray[np.float64],
) -> None:
    """For each window the squared error of rounding to `levels` steps over it, in units of a bin.

    Values are spread evenly inside their bins, and fall on the first or last step outside of the window. `edges`
    [bins + 1] is room for the integral of the squared distance to the centre of the step, up to each edge of the bins.
    """
    for window in range(losses.size):
        left = windows[window, 0]
        step = (windows[window, 1] - left + 1) / levels
        per_step = 1.0 / step
        full = step * step * step / 12.0
        last = levels - 1.0
        for i in range(edges.size):
            position = float(i - left)
            cell = np.floor(position * per_step)
            cell = 0.0 if cell < 0.0 else cell
            cell = last if cell > last else cell
            distance = position - (cell + 0.5) * step
            edges[i] = (cell + 0.5) * full + distance * distance * distance / 3.0
        loss = 0.0
        for i in range(counts.size):
            loss += counts[i] * (edges[i + 1] - edges[i])
        losses[window] = loss
