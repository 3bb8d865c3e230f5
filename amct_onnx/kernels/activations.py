"""Activation functions behind a layer, with their slopes: what AdaRound compares outputs through."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from amct_onnx.kernels.compiled import compiled

Array = NDArray[np.float32]


class Activation(Protocol):
    """An elementwise function. Arrays are float32 [G, R, M]: groups, rows, output channels of a group."""

    def value(self, y: Array) -> Array:
        """The function."""
        ...

    def slope(self, y: Array) -> Array:
        """Its derivative; at a kink that of either side."""
        ...

    def part(self, groups: slice, channels: slice) -> Activation:
        """The function for some of the groups and channels."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Clipped:
    """min(max(y, low), high): ReLU, ReLU6."""

    low: float = 0.0
    high: float = math.inf

    def value(self, y: Array) -> Array:
        """The function."""
        return np.clip(y, np.float32(self.low), np.float32(self.high))

    def slope(self, y: Array) -> Array:
        """Its derivative."""
        return ((y > self.low) & (y < self.high)).astype(np.float32)

    def part(self, groups: slice, channels: slice) -> Activation:
        """The same for every channel."""
        return self


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Leaky:
    """y, or y times a slope where it is negative: LeakyReLU, RReLU, PReLU.

    slopes: float32, broadcast to [G, 1, M].
    """

    slopes: Array

    def value(self, y: Array) -> Array:
        """The function."""
        return np.where(y < 0, y * self.slopes, y)

    def slope(self, y: Array) -> Array:
        """Its derivative."""
        return np.where(y < 0, self.slopes, np.float32(1))

    def part(self, groups: slice, channels: slice) -> Activation:
        """With the slopes of those channels."""
        return Leaky(slopes=self.slopes[groups, :, channels])


@dataclass(frozen=True, slots=True)
class Tanh:
    """The hyperbolic tangent."""

    def value(self, y: Array) -> Array:
        """The function."""
        return np.asarray(np.tanh(y), np.float32)

    def slope(self, y: Array) -> Array:
        """Its derivative."""
        return np.asarray(1 - np.tanh(y) ** 2, np.float32)

    def part(self, groups: slice, channels: slice) -> Activation:
        """The same for every channel."""
        return self


@dataclass(frozen=True, slots=True)
class Sigmoid:
    """1 / (1 + exp(-y))."""

    def value(self, y: Array) -> Array:
        """The function."""
        return np.asarray(0.5 * np.tanh(0.5 * y) + 0.5, np.float32)

    def slope(self, y: Array) -> Array:
        """Its derivative."""
        value = self.value(y)
        return np.asarray(value * (1 - value), np.float32)

    def part(self, groups: slice, channels: slice) -> Activation:
        """The same for every channel."""
        return self


@dataclass(frozen=True, slots=True)
class Gelu:
    """y times the normal distribution's probability of less than y; also for its approximation by tanh."""

    def value(self, y: Array) -> Array:
        """The function."""
        return np.asarray(y * _below(y), np.float32)

    def slope(self, y: Array) -> Array:
        """Its derivative."""
        density = np.exp(np.float32(-0.5) * y * y) * np.float32(1 / math.sqrt(2 * math.pi))
        return np.asarray(_below(y) + y * density, np.float32)

    def part(self, groups: slice, channels: slice) -> Activation:
        """The same for every channel."""
        return self


def _below(y: Array) -> Array:
    flat = np.ascontiguousarray(y).ravel()
    result = np.empty_like(flat)
    _fill_below(flat, result)
    return result.reshape(y.shape)


@compiled
def _fill_below(y: NDArray[Any], result: NDArray[Any]) -> None:
    for i in range(y.size):
        result[i] = 0.5 + 0.5 * math.erf(y[i] * 0.7071067811865476)
