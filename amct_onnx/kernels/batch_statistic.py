"""One number for all batches, from one for each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

BATCH_STATISTICS = ("modal", "max", "mean", "median")


def batch_statistic(values: Sequence[float], method: str) -> float:
    """The largest, the mean, the median or the most frequent of `values`, of equally frequent ones the smallest."""
    found = np.asarray(values, np.float64)
    if method == "max":
        return float(found.max())
    if method == "mean":
        return float(found.mean())
    if method == "median":
        return float(np.median(found))
    distinct, counts = np.unique(found, return_counts=True)
    return float(distinct[np.argmax(counts)])
