"""Cross-layer equalisation: one factor for each channel between two layers, so that both weights use their range.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019, with the damping of large
biases that Vitis AI adds.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

_SMALLEST_WEIGHT = np.float32(1e-7)
_SMALLEST_RANGES = np.float32(0.5)


def equalisation_factors(rows: Floats, bias: Floats | None, behind: Floats) -> Floats:
    """What the first layer's channels are divided by, and the input channels of the second multiplied by.

    Args:
        rows: weight of the first layer, output channels first, [C, n].
        bias: its bias, [C]; None where it has none.
        behind: largest magnitude of the second layer's weight for each of its input channels, [C].

    Returns [C], float32, positive; 1 for a channel that one of the two does not use, or whose weights are small anyway.
    """
    ranges = np.abs(rows).max(axis=1, initial=0)
    if bias is not None:
        ranges = np.maximum(ranges, _damped(rows, bias))
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        middle = np.sqrt(ranges * behind)
        factors = ranges / middle
    usable = (middle > 0) & np.isfinite(factors) & (factors > 0) & (ranges + behind >= _SMALLEST_RANGES)
    return np.where(usable, factors, np.float32(1)).astype(np.float32)


def _damped(rows: Floats, bias: Floats) -> Floats:
    """The magnitudes of a bias [C], divided by what keeps a large one from outweighing its channel's weights."""
    magnitudes = np.abs(rows)
    largest = magnitudes.max(axis=1, initial=0)
    smallest = np.where(magnitudes > 0, magnitudes, np.float32(np.inf)).min(axis=1, initial=np.float32(np.inf))
    filled = np.where(magnitudes > 0, magnitudes, smallest[:, None])
    idle = largest == 0
    filled[idle] = _SMALLEST_WEIGHT
    filled = np.maximum(filled, _SMALLEST_WEIGHT)
    sizes = np.where(idle, np.float32(0), np.abs(bias))
    return np.asarray(sizes / np.float32(_damping(sizes, filled)), np.float32)


def _damping(sizes: Floats, filled: Floats) -> int:
    """How much less a bias counts than a weight, by Vitis AI's table."""
    ratios = sizes[:, None] / filled
    median, mean, peak = float(np.median(ratios)), float(ratios.mean()), float(sizes.max(initial=0))
    if peak < 10 and peak / float(filled.max()) < 20:
        return 5 if median > 100 or mean > 1000 else 2
    if median > 30 or mean > 500:
        return 20
    return 10 if median > 15 or mean > 100 else 5
