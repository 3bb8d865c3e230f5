"""Rounding to integers and back inside of training: forward the rounded values, backward what the methods learn from.

ULQ of activations: PACT (Choi et al. 2018) with two limits, and the gradient of the grid as in LSQ (Esser et al. 2020).
ULQ of weights: LSQ's learned step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from amct_onnx.kernels.quant_params import FLT_EPS


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """What integers stand for: real = (q - offset) * scale, with q in [q_min, q_max] of `num_bits`.

    scale, offset: [] per tensor, or [C, 1, ...] along axis 0.
    """

    scale: Tensor
    offset: Tensor
    num_bits: int

    @property
    def q_min(self) -> int:
        """The smallest integer."""
        return -(1 << (self.num_bits - 1))

    @property
    def q_max(self) -> int:
        """The largest integer."""
        return (1 << (self.num_bits - 1)) - 1

    def rounded(self, x: Tensor) -> Tensor:
        """The value on the grid that is nearest to each of `x`."""
        q = torch.round(x / self.scale + self.offset).clamp(self.q_min, self.q_max)
        return (q - self.offset) * self.scale


def grid_of_range(low: Tensor, high: Tensor, *, num_bits: int, symmetric: bool) -> Grid:
    """The grid that covers [low, high] and zero, float32; a range too small for float32's resolution gets the scale 1.

    Symmetric ones have no offset: of the two ends the larger magnitude decides, a negative one falls on
    -2^(n-1), a positive one (or both alike) on 2^(n-1) - 1.
    """
    half = 1 << (num_bits - 1)
    if symmetric:
        top, bottom = high.abs(), low.abs()
        scale = torch.where(top < bottom, bottom / half, top / (half - 1))
        scale = torch.where(scale < FLT_EPS, torch.ones_like(scale), scale)
        return Grid(scale=scale, offset=torch.zeros_like(scale), num_bits=num_bits)
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = (high - low) / (2 * half - 1)
    is_flat = scale < FLT_EPS
    scale = torch.where(is_flat, torch.ones_like(scale), scale)
    offset = torch.where(is_flat, torch.full_like(scale, -half), torch.round(-half - low / scale))
    return Grid(scale=scale, offset=offset.clamp(-half, half - 1), num_bits=num_bits)


class _QuantizedActivation(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, clip_max: Tensor, clip_min: Tensor, high: Tensor, low: Tensor, grid: Grid
    ) -> Tensor:
        ctx.save_for_backward(x, high, low, grid.scale, grid.offset)
        ctx.grid = (grid.q_min, grid.q_max, grid.num_bits)
        return grid.rounded(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, high, low, scale, offset = ctx.saved_tensors
        q_min, q_max, num_bits = ctx.grid
        above, below = x > scale * (q_max - offset), x < scale * (q_min - offset)
        t = torch.where(above, high, torch.where(below, low, x)) / scale
        error = (torch.round(t) - t) / ((1 << num_bits) - 1)
        for_max = ((error + above) * gradient).sum()
        for_min = ((below.to(error.dtype) - error) * gradient).sum()
        return gradient.masked_fill(above | below, 0.0), for_max, for_min, None, None, None


def quantized_activation(
    x: Tensor, clip_max: Tensor, clip_min: Tensor, high: Tensor, low: Tensor, grid: Grid
) -> Tensor:
    """`x` on the grid; the limits learn from what lies beyond them and from the error inside.

    Args:
        x: any shape.
        clip_max: the parameter, []; it gets the gradient.
        clip_min: likewise.
        high: the limit in use, [], which the grid was made of.
        low: likewise.
        grid: per tensor.
    """
    y: Tensor = _QuantizedActivation.apply(x, clip_max, clip_min, high, low, grid)  # type: ignore[no-untyped-call]
    return y


class _QuantizedWeight(Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor, grid: Grid) -> Tensor:
        if ctx.needs_input_grad[1]:
            ctx.save_for_backward(weight, grid.scale)
        ctx.grid = (grid.q_min, grid.q_max, scale.shape)
        return grid.rounded(weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if not ctx.needs_input_grad[1]:
            return gradient, None, None
        weight, scale = ctx.saved_tensors
        q_min, q_max, shape = ctx.grid
        # the order of these operations is AMCT's: learned scales react to the last bit
        levels = weight / scale
        above, below = (weight > scale * q_max).to(levels.dtype), (weight < scale * q_min).to(levels.dtype)
        slope = (levels.round() - levels) * (1 - (above + below)) + q_min * below + q_max * above
        rows = slope.reshape(shape[0], -1)
        rows = rows * torch.sqrt(torch.tensor(rows.shape[1] * q_max)).reciprocal()
        return gradient, (rows * gradient.reshape(rows.shape)).sum(1).reshape(shape), None


def quantized_weight(weight: Tensor, scale: Tensor, grid: Grid) -> Tensor:
    """`weight` on the grid, with the gradient handed through to it as it is.

    Args:
        weight: [Cout, ...].
        scale: [Cout] or [1]; where it is a parameter, it gets LSQ's gradient.
        grid: of that scale.
    """
    y: Tensor = _QuantizedWeight.apply(weight, scale, grid)  # type: ignore[no-untyped-call]
    return y
