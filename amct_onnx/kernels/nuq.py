"""NUQ: weights on 16 or 32 of the 256 steps of int8, chosen so that the error is the smallest possible."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amct_onnx.kernels.arq import arq
from amct_onnx.kernels.checks import require_choice
from amct_onnx.kernels.quant_params import FLT_EPS, QuantParams, quantize

STEPS = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Nuq:
    """Parameters of NUQ.

    num_steps: how many distinct integers remain.
    num_of_iteration: rounds in which the scales are fitted to the chosen integers, and these are chosen again; 0
        leaves the scales as ARQ finds them.
    """

    num_steps: int = 32
    num_of_iteration: int = 1

    def __post_init__(self) -> None:
        require_choice("num_steps", self.num_steps, (16, 32))
        require_choice("num_of_iteration", self.num_of_iteration, (0, 1, 2, 3, 4, 5))


def nuq(weight: NDArray[Any], settings: Nuq, *, axis: int | None) -> tuple[QuantParams, NDArray[np.int8]]:
    """Scales of a weight, and the integers that it may take, ascending, [num_steps].

    Args:
        weight: any float array; computed in float32.
        settings: how many integers, and how long to search.
        axis: the axis of the output channels, one scale each; None for a single scale.

    A round whose result has a larger squared error than that of the round before ends the search.

    Raises:
        ModelError: the weight holds NaN or inf.
    """
    params = arq(weight, axis=axis, num_bits=8)
    values = np.asarray(weight, np.float32)
    centres = optimal_centres(_histogram(quantize(values, params)), settings.num_steps)
    error = _error(values, params, centres)
    for _ in range(settings.num_of_iteration):
        fitted = _fitted(values, params, centres)
        chosen = optimal_centres(_histogram(quantize(values, fitted)), settings.num_steps)
        found = _error(values, fitted, chosen)
        if not found < error:
            break
        params, centres, error = fitted, chosen, found
    return params, centres


def optimal_centres(counts: NDArray[np.int64], number: int) -> NDArray[np.int8]:
    """The `number` integers that lose the least where each value goes to the nearest one, ascending.

    counts: how often each of -128 .. 127 occurs, [256].

    The exact optimum, by dynamic programming in integers: the best division of the first steps into k runs ends with a
    run behind the best division into k - 1. Of equal ones the one whose last run is the longest is taken.
    """
    cost = _costs(counts)
    best = cost[0].copy()  # of one run over steps 0 .. j
    starts = np.zeros((number, STEPS), np.int64)
    for k in range(1, number):
        # total[i, j]: k runs before step i, and one over i .. j
        total = np.full((STEPS, STEPS), np.iinfo(np.int64).max)
        total[k:] = np.where(
            np.arange(STEPS) >= np.arange(k, STEPS)[:, None], best[k - 1 : -1, None] + cost[k:], total[k:]
        )
        starts[k] = total.argmin(axis=0)
        best = total.min(axis=0)
    ends, last = [], STEPS - 1
    for k in range(number - 1, -1, -1):
        ends.append((int(starts[k, last]), last))
        last = int(starts[k, last]) - 1
    return np.array([_centre(counts, *run) for run in reversed(ends)], np.int8)


def _costs(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """What is lost where the steps i .. j become the best single integer, [256, 256]; 0 below the diagonal."""
    steps = np.arange(STEPS, dtype=np.int64)  # counted from -128; the loss does not depend on where they begin
    sums = [np.concatenate([[0], np.cumsum(counts * steps**power)]) for power in range(3)]
    number, total, squares = (s[None, 1:] - s[:-1, None] for s in sums)
    centre = (2 * total + number) // np.maximum(2 * number, 1)
    return np.asarray(np.triu(squares - 2 * centre * total + centre**2 * number))


def _centre(counts: NDArray[np.int64], first: int, last: int) -> int:
    """The integer nearest to the mean of the steps in a run; its first step where none of them occurs."""
    number = int(counts[first : last + 1].sum())
    total = int((counts[first : last + 1] * np.arange(first, last + 1)).sum())
    return ((2 * total + number) // (2 * number) if number else first) - STEPS // 2


def nearest_centre(levels: NDArray[np.signedinteger[Any]], centres: NDArray[np.int8]) -> NDArray[np.int8]:
    """Each of `levels` (int8) replaced by the nearest of `centres`, of two the smaller one; same shape."""
    steps = np.arange(-STEPS // 2, STEPS // 2)
    table = centres[np.abs(steps[:, None] - centres.astype(np.int64)).argmin(axis=1)]
    return np.asarray(table[levels.astype(np.int64) + STEPS // 2])


def _histogram(levels: NDArray[np.signedinteger[Any]]) -> NDArray[np.int64]:
    return np.bincount(levels.ravel().astype(np.int64) + STEPS // 2, minlength=STEPS).astype(np.int64)


def _channels(array: NDArray[Any], params: QuantParams) -> NDArray[np.float64]:
    """[C, n], or [1, n] for a single scale."""
    moved = array if params.axis is None else np.moveaxis(array, params.axis, 0)
    return np.asarray(moved.reshape(max(params.scale.size, 1), -1), np.float64)


def _error(values: NDArray[np.float32], params: QuantParams, centres: NDArray[np.int8]) -> float:
    levels = _channels(nearest_centre(quantize(values, params), centres), params)
    errors = levels * params.scale.reshape(-1, 1).astype(np.float64) - _channels(values, params)
    return float((errors**2).sum())


def _fitted(values: NDArray[np.float32], params: QuantParams, centres: NDArray[np.int8]) -> QuantParams:
    """The scales with the smallest squared error for these integers; as they were where there is none."""
    levels = _channels(nearest_centre(quantize(values, params), centres), params)
    size = (levels**2).sum(axis=1)
    fitted = (levels * _channels(values, params)).sum(axis=1) / np.maximum(size, 1.0)
    fitted = fitted.reshape(params.scale.shape).astype(np.float32)
    return replace(params, scale=np.where(fitted >= FLT_EPS, fitted, params.scale).astype(np.float32))
