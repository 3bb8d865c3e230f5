"""Scales and offsets: real = (q - offset) * scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from amct_onnx.kernels.compiled import compiled

FLT_EPS = float(np.finfo(np.float32).eps)

_FP16_MAX = 65504.0
_FP16_MIN_NORMAL = 2.0**-14


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class QuantParams:
    """How a tensor maps onto integers: real = (q - offset) * scale.

    scale: float32, shape [] per tensor or [C] per channel; finite and positive.
    offset: int32, same shape; lies in the signed range of `num_bits`.
    num_bits: width of the signed integers, so q is in [-2^(n-1), 2^(n-1) - 1].
    axis: the axis of the tensor that `scale` runs along, None per tensor.
    """

    scale: NDArray[np.float32]
    offset: NDArray[np.int32]
    num_bits: int = 8
    axis: int | None = None

    @property
    def q_min(self) -> int:
        """The smallest integer of the range."""
        return -(1 << (self.num_bits - 1))

    @property
    def q_max(self) -> int:
        """The largest integer of the range."""
        return (1 << (self.num_bits - 1)) - 1


def params_from_range(
    minimum: ArrayLike, maximum: ArrayLike, *, asymmetric: bool, num_bits: int, axis: int | None = None
) -> QuantParams:
    """The scale and offset that cover [minimum, maximum], and zero, as AMCT computes them in float32.

    Args:
        minimum: smallest value, shape [] or [C].
        maximum: largest value, same shape.
        asymmetric: with an offset, so that all 2^n integers are used; else zero stays at 0, and the larger magnitude
            decides: a negative one falls on -2^(n-1), a positive one (or both alike) on 2^(n-1) - 1.
        num_bits: width of the signed integers.
        axis: where the scales run along in the tensor, for [C].

    A range too small for float32's resolution gets the scale 1.

    Raises:
        ValueError: the range is not finite.
    """
    low, high = np.asarray(minimum, np.float32), np.asarray(maximum, np.float32)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ValueError("no scale covers a range that is not finite")
    half = 1 << (num_bits - 1)
    if asymmetric:
        low, high = np.minimum(low, np.float32(0)), np.maximum(high, np.float32(0))
        scale = scale_of_span(low, high, 2 * half - 1)
    else:
        levels = np.where(np.abs(high) < np.abs(low), half, half - 1)
        scale = scale_of_span(np.float32(0), np.maximum(np.abs(low), np.abs(high)), levels)
    offset = np.rint(-half - low / scale) if asymmetric else np.zeros_like(scale)
    return QuantParams(
        scale=scale, offset=np.clip(offset, -half, half - 1).astype(np.int32), num_bits=num_bits, axis=axis
    )


def scale_of_span(low: ArrayLike, high: ArrayLike, levels: ArrayLike) -> NDArray[np.float32]:
    """(high - low) / levels in float32, or 1 where that is below float32's epsilon."""
    low, high, levels = (np.asarray(part, np.float32) for part in (low, high, levels))
    with np.errstate(over="ignore"):
        scale = (high - low) / levels
    # the difference of two large float32 can overflow, the scale itself does not
    wide = (high.astype(np.float64) - low.astype(np.float64)) / levels
    scale = np.where(np.isfinite(scale), scale, wide)
    return np.asarray(np.where(scale < FLT_EPS, 1.0, scale), np.float32)


def quantize(array: ArrayLike, params: QuantParams) -> NDArray[np.signedinteger[Any]]:
    """clip(round_half_even(array / scale + offset)) as int8, or int16 for more than 8 bits; same shape as `array`."""
    values = np.asarray(array, np.float32)
    if params.axis is None and values.flags.f_contiguous:
        values = values.T  # one scale for all: what matters is the order in memory
        return _quantized(values.reshape(1, -1), params).reshape(values.shape).T
    if params.axis is None:
        return _quantized(values.reshape(1, -1), params).reshape(values.shape)
    channels = np.moveaxis(values, params.axis, 0)
    levels = _quantized(channels.reshape(channels.shape[0], -1), params)
    return np.moveaxis(levels.reshape(channels.shape), 0, params.axis)


def _quantized(channels: NDArray[np.float32], params: QuantParams) -> NDArray[np.signedinteger[Any]]:
    """Each row of `channels` [C, n] on its own scale."""
    levels = np.empty(channels.shape, np.int8 if params.num_bits <= 8 else np.int16)
    rows = len(channels)
    scale, offset = (np.ascontiguousarray(np.broadcast_to(p, rows), np.float32) for p in (params.scale, params.offset))
    limits = np.float32(params.q_min), np.float32(params.q_max)
    with np.errstate(over="ignore"):  # infinity is clipped like any other value
        _round_to_levels(np.ascontiguousarray(channels), scale, offset, *limits, levels)
    return levels


@compiled
def _round_to_levels(
    values: NDArray[np.float32],
    scale: NDArray[np.float32],
    offset: NDArray[np.float32],
    low: np.float32,
    high: np.float32,
    levels: NDArray[np.signedinteger[Any]],
) -> None:
    for channel in range(values.shape[0]):
        for i in range(values.shape[1]):
            level = np.rint(values[channel, i] / scale[channel] + offset[channel])
            levels[channel, i] = min(max(level, low), high)


def dequantize(q: NDArray[np.signedinteger[Any]], params: QuantParams) -> NDArray[np.float32]:
    """(q - offset) * scale as float32, same shape as `q`."""
    if params.offset.any():
        q = q.astype(np.int32) - _broadcast(params.offset, params, q.ndim)
    return np.asarray(q.astype(np.float32) * _broadcast(params.scale, params, q.ndim))


def _broadcast(values: NDArray[Any], params: QuantParams, ndim: int) -> NDArray[Any]:
    """`values` [C] shaped so that they run along the axis of a tensor with `ndim` axes; [] stays as it is."""
    if params.axis is None:
        return values
    shape = [1] * ndim
    shape[params.axis] = -1
    return values.reshape(shape)


def round_to_fp16(scale: ArrayLike) -> NDArray[np.float32]:
    """The nearest scale that the chip can keep in fp16, as float32.

    Where fp16 has no normal number for it, the chip keeps the root and squares it. Larger scales than the square of
    fp16's largest number saturate.
    """
    scale = np.asarray(scale, np.float32)
    by_root = (scale > _FP16_MAX) | (scale < _FP16_MIN_NORMAL)
    kept = np.minimum(np.where(by_root, np.sqrt(scale), scale), _FP16_MAX).astype(np.float16).astype(np.float32)
    return np.asarray(np.where(by_root, kept * kept, kept), np.float32)


def truncate_to_s19(array: ArrayLike) -> NDArray[np.float32]:
    """The float32 values cut, not rounded, to sign, exponent and 10 bits of significand: the chip's dequantization."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32) & np.uint32(0xFFFFE000)
    return bits.view(np.float32).reshape(np.shape(array))
