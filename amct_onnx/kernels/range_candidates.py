"""Ranges worth trying for an activation, all from the histogram of one pass over the data."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from amct_onnx.kernels import hfmg
from amct_onnx.kernels.clip_range import divergence
from amct_onnx.kernels.distribution import RangeCandidate, bin_means
from amct_onnx.kernels.histogram import SignedHistogram

_PERCENTILES = (0.9999, 0.999)
_HFMG_BINS = 4096
_KL_BINS = 2048
_KL_STEP = 16
_ENDS = 48
"""Ends of the range that are tried on each side of zero by the squared error; each pair of them is."""

_NARROWEST = 1 / 64
"""The narrowest of these ends, as a share of the widest."""


def range_candidates(histogram: SignedHistogram, *, num_bits: int) -> tuple[RangeCandidate, ...]:
    """Ranges that contain zero; equal ones once.

    min-max, percentiles, the least squared error of rounding and clipping over both ends jointly, the least
    Kullback-Leibler divergence of the magnitudes, and HFMG.

    Args:
        histogram: of a tensor, at least one value.
        num_bits: of the integers that the range is divided into.
    """
    values, counts = _points(histogram)
    low, high = min(0.0, float(values[0])), max(0.0, float(values[-1]))
    if low == high:
        return (RangeCandidate(name="min-max", low=low, high=high),)
    found = {"min-max": (low, high)}
    for share in _PERCENTILES:
        found[f"percentile {100 * share:g}"] = _between_percentiles(values, counts, share)
    found["least squared error"] = least_error(values, counts, levels=(1 << num_bits) - 1)
    sizes, order = np.abs(values), np.argsort(np.abs(values), kind="stable")
    clip = least_divergence(sizes[order], counts[order], groups=(1 << num_bits) // (2 if low < 0 else 1))
    found["least divergence"] = (max(low, -clip), min(high, clip))
    even = np.histogram(values, _HFMG_BINS, (low, high), weights=counts)[0]
    found["HFMG"] = hfmg.search(even, low, high, num_bits=num_bits)
    ranges: dict[tuple[float, float], str] = {}
    for name, (bottom, top) in found.items():
        if bottom < top:
            ranges.setdefault((min(bottom, 0.0), max(top, 0.0)), name)
    return tuple(RangeCandidate(name=name, low=bottom, high=top) for (bottom, top), name in ranges.items())


def _points(histogram: SignedHistogram) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The bins as values, ascending, and how many each stands for; the outermost are the extremes, which are exact."""
    values, counts = [np.zeros(1)], [np.array([histogram.count], np.int64)]
    for side, sign in ((histogram.positive, 1.0), (histogram.negative, -1.0)):
        if side.size == 0:
            continue
        filled = np.flatnonzero(side.counts)
        times = side.counts[filled].copy()
        times[-1] -= 1
        values += [sign * bin_means(side, filled), np.array([sign * float(side.largest[0])])]
        counts += [times, np.ones(1, np.int64)]
        counts[0] = counts[0] - side.size
    joined, times = np.concatenate(values), np.concatenate(counts)
    order = np.argsort(joined, kind="stable")
    some = order[times[order] > 0]
    return joined[some], times[some]


def _between_percentiles(values: NDArray[np.float64], counts: NDArray[np.int64], share: float) -> tuple[float, float]:
    """The range that leaves out so much of the values at either end."""
    up_to = np.cumsum(counts)
    outside = (1 - share) * up_to[-1]
    first = np.searchsorted(up_to, outside, side="right")
    last = np.searchsorted(up_to, up_to[-1] - outside, side="left")
    return min(float(values[first]), 0.0), max(float(values[min(last, values.size - 1)]), 0.0)


def least_error(values: NDArray[np.float64], counts: NDArray[np.int64], *, levels: int) -> tuple[float, float]:
    """The pair of ends with the least squared error, by what clipping costs and the mean error of rounding.

    Zeros are exact on every grid; all other values inside count as spread evenly between its steps.

    Args:
        values: ascending, [N].
        counts: how often each occurs, [N].
        levels: steps that the range is divided into.
    """
    tops, bottoms = (_ends(max(0.0, float(end))) for end in (values[-1], -values[0]))
    above, more = _clipped(values, counts, tops)
    below, less = _clipped(-values[::-1], counts[::-1], bottoms)
    inside = float(counts[values != 0].sum()) - more[:, None] - less[None, :]
    steps = (tops[:, None] + bottoms[None, :]) / levels
    losses = above[:, None] + below[None, :] + inside * steps**2 / 12
    top, bottom = np.unravel_index(int(np.argmin(losses)), losses.shape)
    return -float(bottoms[bottom]), float(tops[top])


def _ends(widest: float) -> NDArray[np.float64]:
    """Where a side may end, the widest first; nowhere but at zero where it has no values."""
    return widest * np.geomspace(1, _NARROWEST, _ENDS) if widest > 0 else np.zeros(1)


def _clipped(
    values: NDArray[np.float64], counts: NDArray[np.int64], tops: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What clipping at each top costs, in squared error, and how many values it clips."""
    powers = np.stack([counts, counts * values, counts * values**2])[:, ::-1].cumsum(axis=1)[:, ::-1]
    powers = np.concatenate([powers, np.zeros((3, 1))], axis=1)
    number, sums, squares = powers[:, np.searchsorted(values, tops, side="right")]
    return np.maximum(squares - 2 * tops * sums + tops**2 * number, 0.0), number


def least_divergence(sizes: NDArray[np.float64], counts: NDArray[np.int64], *, groups: int) -> float:
    """The magnitude to clip at whose histogram, in so many groups, diverges least from the one before.

    Migacz, "8-bit inference with TensorRT", 2017, over 2048 bins. Zeros are left out: every grid holds them.

    Args:
        sizes: magnitudes, ascending, [N].
        counts: how often each occurs, [N].
        groups: steps from zero to the clip.
    """
    some = sizes > 0
    largest = float(sizes[-1])
    bins = np.histogram(sizes[some], _KL_BINS, (0, largest), weights=counts[some])[0].astype(np.float64)
    tried = range(groups, _KL_BINS + 1, _KL_STEP)
    divergences = [divergence(bins, size, groups) for size in tried]
    best = len(tried) - 1 - int(np.argmin(divergences[::-1]))  # the widest of equal ones
    return largest * tried[best] / _KL_BINS
