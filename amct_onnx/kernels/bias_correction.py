"""Bias correction by what a layer's output is off by on average, over the batches of the calibration data."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

_RATE = 0.05
_NEAR, _NEAR_ENOUGH = 4.0, 4.3
_SETTLED = 0.05


@dataclass(slots=True, kw_only=True)
class StepwiseCorrection:
    """Vitis AI's: after every batch the bias gives in to a small part of that batch's mean error.

    It stops where the output is near enough to the wanted one, or where the ratio of the two no longer changes.

    bias: what it is by now; float32, [C].
    axis: where the channels are in the layer's output.
    efficiency: 1.25 log10(signal / noise), smoothed over the batches.
    deviation: how far the batches lie from that, smoothed too.
    rate: the part of the mean error that the last batch took out, had it not stopped.
    stopped: the bias stays as it is from now on.
    """

    bias: NDArray[np.float32]
    axis: int
    efficiency: float = 0.0
    deviation: float = 0.0
    rate: float = _RATE
    stopped: bool = False

    def update(self, found: NDArray[Any], wanted: NDArray[Any]) -> None:
        """Take in one batch of what the layer computes, and of what it would compute unquantized; same shape."""
        if self.stopped:
            return
        error = np.asarray(found, np.float32) - np.asarray(wanted, np.float32)
        self._judge(_mean_square(error), _mean_square(wanted))
        if not self.stopped:
            mean = _rows(error, self.axis).mean(axis=1, dtype=np.float64).astype(np.float32)
            self.bias = (self.bias - self.rate * mean.astype(np.float64)).astype(np.float32)

    def _judge(self, noise: float, signal: float) -> None:
        self.rate = _RATE
        if not (noise > 0 and signal > 0 and math.isfinite(signal / noise)):
            self.stopped = True
            return
        efficiency = float(np.float32(1.25 * math.log10(signal / noise)))
        deviation = abs(efficiency - self.efficiency)
        if deviation == 0:
            self.stopped = True
            return
        self.efficiency = (4 * self.efficiency + efficiency) / 5
        self.deviation = (4 * self.deviation + deviation) / 5
        if self.efficiency > _NEAR:
            self.rate = _RATE / 2
        settled = self.efficiency < 0 or self.deviation < _SETTLED * self.efficiency
        settled = settled or abs(deviation - self.deviation / deviation) < _SETTLED
        self.stopped = settled or self.efficiency > _NEAR_ENOUGH


def _mean_square(values: NDArray[Any]) -> float:
    return float(np.mean(np.square(values, dtype=np.float64)))


@dataclass(slots=True, kw_only=True)
class WholeCorrection:
    """The bias without the mean error of all batches so far: Nagel et al., 2019, as measured.

    bias: what it is by now; float32, [C].
    axis: where the channels are in the layer's output.
    """

    bias: NDArray[np.float32]
    axis: int
    _start: NDArray[np.float64] = field(init=False)
    _total: NDArray[np.float64] = field(init=False)
    _count: int = 0

    def __post_init__(self) -> None:
        self._start, self._total = self.bias.astype(np.float64), np.zeros(self.bias.shape)

    def update(self, found: NDArray[Any], wanted: NDArray[Any]) -> None:
        """Take in one batch of what the layer computes, and of what it would compute unquantized; same shape."""
        error = _rows(np.asarray(found, np.float32) - np.asarray(wanted, np.float32), self.axis)
        if not np.isfinite(error).all():
            return
        taken_out = self._start - self.bias
        self._total += error.sum(axis=1, dtype=np.float64) + taken_out * error.shape[1]
        self._count += error.shape[1]
        self.bias = (self._start - self._total / max(self._count, 1)).astype(np.float32)


def _rows(error: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """Errors as [C, everything else]."""
    channels = np.moveaxis(error, axis, 0)
    return channels.reshape(len(channels), -1)
