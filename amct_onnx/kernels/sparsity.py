"""Which weights are taken away: whole filters by their norm, or two of every four weights by their magnitude."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

ALIGNMENT = 16
"""The number of channels that the chip computes at once."""


def selective_mask(weight: Array, axis: int) -> NDArray[np.bool_]:
    """True for the two weights of largest magnitude among each four that follow each other along `axis`.

    What lacks to the last four counts as taken away first, so one or two left over all stay. Of equal magnitudes the
    earlier stays; NaN counts as infinite.

    Args:
        weight: any shape.
        axis: of the input channels.
    """
    rows = np.moveaxis(np.abs(weight), axis, -1).astype(np.float64)
    missing = -rows.shape[-1] % 4
    padded = np.concatenate([rows, np.full((*rows.shape[:-1], missing), -1.0)], axis=-1)
    fours = padded.reshape(*padded.shape[:-1], -1, 4)
    order = np.argsort(-np.where(np.isnan(fours), np.inf, fours), axis=-1, kind="stable")
    kept = np.zeros(fours.shape, np.bool_)
    np.put_along_axis(kept, order[..., :2], True, axis=-1)
    mask = kept.reshape(padded.shape)[..., : rows.shape[-1]]
    return np.ascontiguousarray(np.moveaxis(mask, -1, axis))


def filter_norms(rows: Array) -> NDArray[np.float64]:
    """The L2 norm of each filter in proportion to its size, on a scale from 0 for the least to 1 for the largest.

    Filters that are all of one norm get 0.

    Args:
        rows: a weight with its output channels first, [Cout, ...].

    Returns:
        [Cout].
    """
    flat = rows.reshape(len(rows), -1).astype(np.float64)
    norms = np.sqrt((flat * flat).sum(1)) / max(1, flat.shape[1])
    span = norms.max() - norms.min()
    if not span > 0:
        return np.zeros(len(rows))
    return np.asarray((norms - norms.min()) / span)


def pruned_count(channels: int, ratio: float, *, ascend_optimized: bool, group: int = 1) -> int:
    """How many of some channels are taken away.

    Args:
        channels: all there are.
        ratio: the share that is asked for; halves are rounded to even.
        ascend_optimized: what remains is raised to a multiple of 16.
        group: what remains is lowered to a multiple of this.
    """
    remain = channels - round(channels * ratio)
    if ascend_optimized:
        remain = max(1, -(-remain // ALIGNMENT)) * ALIGNMENT
    if group > 1:
        remain = remain // group * group
    return max(0, channels - (remain or group))


def balanced_choice(scores: Array, count: int, group: int = 1) -> NDArray[np.int64]:
    """The `count` channels of the lowest scores, as many from each of `group` equal blocks; ascending.

    Of equal scores the earlier goes first.
    """
    blocks = scores.reshape(group, -1)
    order = np.argsort(blocks, axis=1, kind="stable")[:, : count // group]
    return np.sort((order + np.arange(group)[:, None] * blocks.shape[1]).ravel())
