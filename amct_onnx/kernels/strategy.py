"""Vitis AI's parameters for one tensor, and the grid that they give on its values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from amct_onnx.errors import ConfigError, DataError
from amct_onnx.kernels.batch_statistic import BATCH_STATISTICS, batch_statistic
from amct_onnx.kernels.cast import FLOAT_TYPES
from amct_onnx.kernels.checks import require_bool, require_choice, require_number
from amct_onnx.kernels.clip_range import clip_by_entropy, clip_by_mse, clip_by_percentile
from amct_onnx.kernels.grid import Grid
from amct_onnx.kernels.power_of_two import position_of_least_error, position_of_range
from amct_onnx.kernels.rounding import ROUND_MODES

METHODS = ("maxmin", "percentile", "entropy", "mse", "diffs")
SCALE_TYPES = ("float", "poweroftwo")
DATATYPES = ("int", *FLOAT_TYPES)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorStrategy:
    """How one tensor is quantized, in the words of Vitis AI.

    datatype: int, or a float type that values are cast to and back; then nothing else counts.
    bit_width: of the integers.
    method: how the range is found.
    round_mode: where halves go.
    symmetry: zero stays at 0.
    per_channel: one scale for each output channel.
    signed, narrow_range: integers of both signs; without the smallest one.
    scale_type: any float, or powers of two.
    calib_statistic_method: one scale from those of all batches; for what is computed at run time.
    percentage: share of the values that `percentile` keeps.
    """

    datatype: str = "int"
    bit_width: int = 8
    method: str = "diffs"
    round_mode: str = "std_round"
    symmetry: bool = True
    per_channel: bool = False
    signed: bool = True
    narrow_range: bool = False
    scale_type: str = "poweroftwo"
    calib_statistic_method: str = "modal"
    percentage: float = 99.99

    def __post_init__(self) -> None:
        require_choice("datatype", self.datatype, DATATYPES)
        if isinstance(self.bit_width, bool) or not isinstance(self.bit_width, int) or not 1 <= self.bit_width <= 32:
            raise ConfigError(f"bit_width must be an integer from 1 to 32, found {self.bit_width!r}")
        require_choice("method", self.method, METHODS)
        require_choice("round_mode", self.round_mode, ROUND_MODES)
        for name in ("symmetry", "per_channel", "signed", "narrow_range"):
            require_bool(name, getattr(self, name))
        require_choice("scale_type", self.scale_type, SCALE_TYPES)
        require_choice("calib_statistic_method", self.calib_statistic_method, BATCH_STATISTICS)
        require_number("percentage", self.percentage, interval="(0, 100]")
        if self.datatype == "int" and self.high <= 0:
            raise ConfigError(f"bit_width {self.bit_width} leaves no positive integer: [{self.low}, {self.high}]")

    @property
    def low(self) -> int:
        """The smallest integer; without a sign or without symmetry it is 0."""
        return -(1 << (self.bit_width - 1)) + self.narrow_range if self.signed and self.symmetry else 0

    @property
    def high(self) -> int:
        """The largest integer."""
        return (1 << (self.bit_width - (self.signed and self.symmetry))) - 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fit:
    """What one array asks for: scale float64 and zero point int64, [] or [C]. A scale of 0 is that of zeros."""

    scale: NDArray[np.float64]
    zero_point: NDArray[np.int64]


def fit(array: ArrayLike, strategy: TensorStrategy, axis: int | None = None) -> Fit:
    """Scale and zero point for an array of finite values, not empty.

    Args:
        array: of any shape.
        strategy: a combination that `StrategyConfig` lets through. For a float type there is nothing to find.
        axis: where the channels are, for scales per channel; None for one scale.

    Raises:
        DataError: unsigned symmetric integers cannot hold the negative values.
    """
    values = np.asarray(array, np.float32)
    if strategy.datatype != "int":
        return Fit(scale=np.ones(()), zero_point=np.zeros((), np.int64))
    if axis is None:
        scale, zero = _fit_whole(values, strategy)
        return Fit(scale=np.asarray(scale, np.float64), zero_point=np.asarray(zero, np.int64))
    channels = np.moveaxis(values, axis, 0)
    found = [_fit_whole(channel, strategy) for channel in channels]
    scales = np.array([scale for scale, _ in found])
    if strategy.scale_type == "float":
        scales = scales.astype(np.float32).astype(np.float64)
    return Fit(scale=scales, zero_point=np.array([zero for _, zero in found], np.int64))


def _fit_whole(values: NDArray[np.float32], strategy: TensorStrategy) -> tuple[float, int]:
    if strategy.scale_type == "poweroftwo":
        return 2.0 ** -_position(values, strategy), 0
    if strategy.method == "maxmin":
        low, high = float(values.min()), float(values.max())
        if not strategy.symmetry:
            scale = (high - low) / (strategy.high - strategy.low)
            return scale, round(-low / scale) if scale > 0 else 0
        if not strategy.signed and low < 0:
            raise DataError("it holds negative values, which unsigned symmetric integers cannot stand for")
        return max(-low, high) / strategy.high, 0
    return _clip(values, strategy) / strategy.high, 0


def _position(values: NDArray[np.float32], strategy: TensorStrategy) -> int:
    if strategy.method == "maxmin":
        return position_of_range(values, num_bits=strategy.bit_width)
    return position_of_least_error(values, num_bits=strategy.bit_width, round_mode=strategy.round_mode)


def _clip(values: NDArray[np.float32], strategy: TensorStrategy) -> float:
    if strategy.method == "percentile":
        return clip_by_percentile(values, strategy.percentage)
    if strategy.method == "mse":
        return clip_by_mse(values, low=strategy.low, high=strategy.high, q_max=strategy.high)
    return clip_by_entropy(values, groups=strategy.high + 1)


def joined(fits: Sequence[Fit], strategy: TensorStrategy) -> Fit:
    """One scale and zero point from those of all batches: the zero point, and positions, by the most frequent one."""
    zero = batch_statistic([float(each.zero_point) for each in fits], "modal")
    if strategy.scale_type == "poweroftwo":
        position = batch_statistic([-float(np.log2(each.scale)) for each in fits], "modal")
        scale = 2.0**-position
    else:
        scale = batch_statistic([float(each.scale) for each in fits], strategy.calib_statistic_method)
    return Fit(scale=np.asarray(scale), zero_point=np.asarray(int(zero), np.int64))


def grid_of(found: Fit, strategy: TensorStrategy, axis: int | None = None) -> Grid:
    """The grid with that scale and zero point."""
    is_int = strategy.datatype == "int"
    return Grid(
        scale=found.scale,
        zero_point=found.zero_point,
        low=strategy.low,
        high=strategy.high,
        round_mode=strategy.round_mode if is_int else "half_even",
        num_bits=strategy.bit_width,
        axis=axis if is_int else None,
        datatype=strategy.datatype,
    )
