"""Where to clip: the largest magnitude that a grid keeps, found on a histogram of 2048 bins as Vitis AI does.

The candidates of the last two begin at three quarters of the range, 16 bins apart.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_BINS = 2048
_CANDIDATES = range(1536, _BINS + 1, 16)

_SMALLEST, _LARGEST = 1e-18, 1e18
"""Ranges whose squares, and their reciprocals, float32 holds."""

Counts = NDArray[np.float64]
Edges = NDArray[np.float32]


def histogram(values: NDArray[np.float32]) -> tuple[Counts, Edges]:
    """How many magnitudes fall into each of the equal bins from 0 to the largest; counts and the 2049 edges."""
    sizes = np.abs(values).ravel()
    largest = np.float32(sizes.max())
    edges = np.linspace(0, largest, _BINS + 1, dtype=np.float32)
    if largest == 0:
        bins = np.zeros(sizes.size, np.int64)
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            places = (sizes * np.float32(_BINS)) / largest
        # only values near the end of float32 overflow; doubles hold them
        wide = np.where(np.isfinite(places), places, sizes.astype(np.float64) * _BINS / largest)
        bins = np.minimum(wide.astype(np.int64), _BINS - 1)
    return np.bincount(bins, minlength=_BINS).astype(np.float64), edges


def clip_by_percentile(values: NDArray[np.float32], percentage: float) -> float:
    """The left edge of the bin in which the share of the values is reached."""
    counts, edges = histogram(values)
    cumulative = np.cumsum(counts / counts.sum())
    return float(edges[np.searchsorted(cumulative, percentage / 100)])


def clip_by_mse(values: NDArray[np.float32], *, low: int, high: int, q_max: int) -> float:
    """The candidate with the least squared error of the bins' centres, weighted with their counts.

    Args:
        values: finite.
        low: the smallest integer.
        high: the largest one.
        q_max: the integer that the candidate falls on.
    """
    counts, edges = histogram(values)
    if not _SMALLEST < edges[-1] < _LARGEST:
        return float(edges[-1])  # float32 does not hold what is computed below
    centres = (edges[1:] + edges[:-1]) / np.float32(2)
    weights = counts.astype(np.float32)
    errors = []
    for index in _CANDIDATES[:-1]:
        amp = np.float32(q_max) / centres[index]
        quantized = np.clip(np.rint(centres * amp), np.float32(low), np.float32(high)) / amp
        errors.append(np.mean(weights * (quantized - centres) ** 2))
    return float(centres[_CANDIDATES[int(np.argmin(errors))]])


def clip_by_entropy(values: NDArray[np.float32], *, groups: int) -> float:
    """The candidate whose histogram, in so many groups, diverges least from the clipped one; the last of equal ones.

    Kullback-Leibler divergence, as in TensorRT's calibration.
    """
    counts, edges = histogram(values)
    counts[0] = counts[1]
    best, found = np.inf, _BINS
    for index in _CANDIDATES:
        divergence = _divergence(counts, index, groups)
        if divergence <= best:
            best, found = divergence, index
    return float(edges[found])


def _divergence(counts: Counts, index: int, groups: int) -> float:
    """Of the first bins with the mass above in the last one, from the same bins in groups."""
    kept = counts[:index]
    reference = kept.copy()
    reference[-1] += counts[index:].sum()
    group = np.digitize(np.arange(index), np.linspace(0, index, groups + 1)) - 1
    masses = np.bincount(group, weights=kept, minlength=groups)
    filled = kept > 0
    sizes = np.bincount(group, weights=filled, minlength=groups)
    spread = np.where(filled, (masses / np.maximum(sizes, 1))[group], 0.0)
    if reference.sum() == 0 or spread.sum() == 0:
        return np.inf
    p, q = reference / reference.sum(), spread / spread.sum()
    some = p > 0
    if (q[some] == 0).any():
        return np.inf
    return float(np.sum(p[some] * np.log(p[some] / q[some])))
