"""The scales of AMCT's AdaRound: the range of a weight, trimmed where that distorts its histogram least."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from amct_onnx.errors import ModelError
from amct_onnx.kernels.compiled import compiled
from amct_onnx.kernels.quant_params import FLT_EPS, QuantParams

_BINS = 512
_TRIMS = 20
_EPS = 1e-4


def kl_scale(weight: NDArray[Any], *, axis: int | None, num_bits: int) -> QuantParams:
    """Scales of a weight by the smallest Kullback-Leibler divergence, symmetric, as AMCT finds them for AdaRound.

    A histogram of 512 bins over [-a, a], a the largest magnitude, loses 0 to 19 bins at either end, whose values count
    as those at the border. It is merged into 2^n - 1 groups, whose mean takes the place of their bins that are not
    empty. The trimmed bound that the two histograms differ least for, on 2^(n-1), is the scale; of equals the widest.

    Args:
        weight: any float array; computed in float32.
        axis: 0 for one scale for each index of axis 0, None for a single scale.
        num_bits: width of the integers; AMCT knows 8 only.

    A channel of zeros gets the scale 1.

    Raises:
        ModelError: the weight is empty, or holds NaN or infinity.
    """
    values = np.ascontiguousarray(weight, np.float32)
    if values.size == 0:
        raise ModelError(f"the weight has no values, its shape is {list(values.shape)}")
    rows = values.reshape(1 if axis is None else values.shape[0], -1)
    largest = np.abs(rows).max(axis=1)
    if not np.isfinite(largest).all():
        raise ModelError("the weight holds NaN or infinity")
    trims = np.zeros(len(rows), np.int64)
    half = 1 << (num_bits - 1)
    _find_trims(rows, largest, 2 * half - 1, trims)
    width = (largest + largest) / np.float32(_BINS)
    scale = (largest - trims.astype(np.float32) * width) / np.float32(half)
    scale = np.where(scale < FLT_EPS, np.float32(1), scale).astype(np.float32)
    scale = scale.reshape(() if axis is None else (-1,))
    return QuantParams(scale=scale, offset=np.zeros(scale.shape, np.int32), num_bits=num_bits, axis=axis)


@compiled
def _find_trims(rows: NDArray[np.float32], largest: NDArray[np.float32], groups: int, trims: NDArray[np.int64]) -> None:
    counts = np.empty(_BINS, np.float64)
    kept = np.empty(_BINS, np.float64)
    merged = np.empty(_BINS, np.float64)
    for c in range(rows.shape[0]):
        bound = largest[c]
        if bound == 0:
            continue
        counts[:] = 0.0
        for value in rows[c]:
            counts[min(int((value + bound) * np.float32(_BINS) / (bound + bound)), _BINS - 1)] += 1.0
        smallest = np.inf
        for trim in range(_TRIMS):
            size = _BINS - 2 * trim
            kept[:size] = counts[trim : trim + size]
            kept[0] += counts[:trim].sum()
            kept[size - 1] += counts[trim + size :].sum()
            _merge(kept, merged, size, groups)
            divergence = _divergence(kept, merged, size)
            if divergence < smallest:
                smallest = divergence
                trims[c] = trim


@compiled
def _merge(kept: NDArray[np.float64], merged: NDArray[np.float64], size: int, groups: int) -> None:
    """The mean of each group in place of its bins that are not empty."""
    width = size / groups
    merged[:size] = 0.0
    for group in range(groups):
        start = int(np.ceil(group * width))
        end = size if group == groups - 1 else int(np.ceil((group + 1) * width))
        filled = 0
        for k in range(start, end):
            filled += kept[k] != 0
        if filled:
            mean = kept[start:end].sum() / filled
            for k in range(start, end):
                if kept[k] != 0:
                    merged[k] = mean


@compiled
def _divergence(kept: NDArray[np.float64], merged: NDArray[np.float64], size: int) -> float:
    """KL divergence of two histograms with the same empty bins, which count a little, as the filled ones do more."""
    empty = 0
    for k in range(size):
        empty += kept[k] == 0
    more = _EPS * empty / (size - empty)
    total = kept[:size].sum() + _EPS * empty + more * (size - empty)
    result = 0.0
    for k in range(size):
        if kept[k] != 0:
            p, q = kept[k] + more, merged[k] + more
            result += p / total * np.log(p / q)
    return result
