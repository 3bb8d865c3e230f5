"""Grids of Vitis AI: real = (q - zero_point) / amp, with any range of integers and any way to round."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from amct_onnx.kernels.cast import cast_through
from amct_onnx.kernels.compiled import compiled
from amct_onnx.kernels.rounding import ROUND_MODES, rounded

_SCALE_OF_ZEROS = 2.0**-18
"""Stands for a scale of zero, which a tensor of zeros gets, and for those whose reciprocal float32 does not hold."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Grid:
    """How a tensor maps onto integers: q = clip(round(x * amp) + zero_point, low, high), with amp = 1 / scale.

    scale: float64, shape [] per tensor or [C] per channel; 0 for a tensor of zeros.
    zero_point: int64, same shape.
    low, high: smallest and largest integer.
    round_mode: one of ROUND_MODES.
    num_bits: how many bits the integers were asked for in.
    axis: the axis of the tensor that `scale` runs along, None per tensor.
    datatype: "int", or a float type that values are cast to and back; then nothing else counts.
    """

    scale: NDArray[np.float64]
    zero_point: NDArray[np.int64]
    low: int
    high: int
    round_mode: str
    num_bits: int
    axis: int | None = None
    datatype: str = "int"

    @property
    def amp(self) -> NDArray[np.float32]:
        """What values are multiplied by: float32, [] or [C]."""
        scale = np.where(self.scale >= np.finfo(np.float32).tiny, self.scale, _SCALE_OF_ZEROS)
        return np.asarray(1.0 / scale, np.float32)

    @property
    def step(self) -> NDArray[np.float32]:
        """What integers are multiplied by: float32, [] or [C]."""
        return np.asarray(np.float32(1) / self.amp)

    @property
    def float_max(self) -> NDArray[np.float64]:
        """The largest real value, [] or [C]; what Vitis AI exports beside the scale."""
        return np.asarray(self.scale * self.high)


def grid_levels(array: ArrayLike, grid: Grid) -> NDArray[np.int64]:
    """The integers of finite values, same shape as `array`; beyond the range they are the range's ends."""
    values = np.asarray(array, np.float32)
    with np.errstate(over="ignore"):
        scaled = values * _along(grid.amp, grid, values.ndim)
    levels = rounded(scaled, grid.round_mode) + _along(grid.zero_point, grid, values.ndim)
    return np.asarray(np.clip(levels, grid.low, grid.high), np.int64)


def fake_quantized(array: ArrayLike, grid: Grid) -> NDArray[np.float32]:
    """The values that the integers stand for; float32, same shape. What holds NaN or inf, or nothing, stays itself."""
    values = np.asarray(array, np.float32)
    if grid.datatype != "int":
        return cast_through(values, grid.datatype)
    if values.size == 0 or not np.isfinite(values).all():
        return values
    if grid.axis is None:
        return _in_one_go(values.reshape(1, -1), grid).reshape(values.shape)
    channels = np.moveaxis(values, grid.axis, 0)
    flat = _in_one_go(channels.reshape(len(channels), -1), grid)
    return np.moveaxis(flat.reshape(channels.shape), 0, grid.axis)


def _in_one_go(rows: NDArray[np.float32], grid: Grid) -> NDArray[np.float32]:
    """Each row [C, n] on its own scale."""
    result = np.empty(rows.shape, np.float32)
    amp, step = (np.ascontiguousarray(np.broadcast_to(part, len(rows))) for part in (grid.amp, grid.step))
    zero = np.ascontiguousarray(np.broadcast_to(grid.zero_point, len(rows)).astype(np.float64))
    mode = ROUND_MODES.index(grid.round_mode)
    with np.errstate(over="ignore"):
        _fake_quantize(np.ascontiguousarray(rows), amp, step, zero, float(grid.low), float(grid.high), mode, result)
    return result


@compiled
def _fake_quantize(
    rows: NDArray[np.float32],
    amp: NDArray[np.float32],
    step: NDArray[np.float32],
    zero: NDArray[np.float64],
    low: float,
    high: float,
    mode: int,
    result: NDArray[np.float32],
) -> None:
    for channel in range(rows.shape[0]):
        for i in range(rows.shape[1]):
            x = np.float64(rows[channel, i] * amp[channel])  # the product is rounded to float32
            if mode == 0:
                level = np.rint(x)
            elif mode == 1:
                level = np.floor(x + 0.5)
            elif mode == 2:
                level = np.copysign(np.ceil(np.abs(x) - 0.5), x)
            else:
                level = np.copysign(np.floor(np.abs(x) + 0.5), x)
            level = min(max(level + zero[channel], low), high) - zero[channel]
            result[channel, i] = np.float32(level) * step[channel]


def grid_values(levels: NDArray[np.int64], grid: Grid) -> NDArray[np.float32]:
    """(q - zero_point) * step in float32, same shape as `levels`."""
    shifted = (levels - _along(grid.zero_point, grid, levels.ndim)).astype(np.float32)
    return np.asarray(shifted * _along(grid.step, grid, levels.ndim), np.float32)


def _along(values: NDArray[Any], grid: Grid, ndim: int) -> NDArray[Any]:
    """`values` [C] shaped to run along the axis of a tensor with `ndim` axes; [] stays as it is."""
    if grid.axis is None:
        return values
    shape = [1] * ndim
    shape[grid.axis] = -1
    return values.reshape(shape)
