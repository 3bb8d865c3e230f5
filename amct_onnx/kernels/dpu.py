"""What the arithmetic of the DPU, Xilinx's processor for networks, asks of positions, and what its pooling computes."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPositions:
    """The positions of a layer's input, weight, output and, where it has one, bias: scale = 2^-position."""

    input: int
    weight: int
    output: int
    bias: int | None = None


def shifted_within_reach(layer: LayerPositions) -> LayerPositions:
    """The positions nearest to these that the DPU's shifters reach.

    The result is shifted by input + weight - output, 0 to 16 bits; the bias by input + weight - bias.
    """
    weight, output, bias = layer.weight, layer.output, layer.bias
    cut = layer.weight + layer.input - layer.output
    if cut < 0:
        output += cut
    elif cut > 16:
        weight -= cut - 16
    if bias is not None:
        lowest = min(0, cut - 16)
        shift = weight + layer.input - bias
        if shift < lowest:
            bias -= lowest - shift
        elif shift > 16:
            weight -= shift - 16
    return LayerPositions(input=layer.input, weight=weight, output=output, bias=bias)


LEAKY_SLOPE = 26 / 256
"""The slope of every LeakyRelu on the DPU."""

_POOLS = {
    (3, 3): 63 / 64,
    (5, 5): 250 / 256,
    (6, 6): 252 / 256,
    (3, 6): 252 / 256,
    (6, 3): 252 / 256,
    (7, 7): 1029 / 1024,
    (14, 14): 4116 / 4096,
}


def pooling_factor(kernel: tuple[int, int]) -> float:
    """What the mean of a window is off by on the DPU, which divides by shifts."""
    if kernel in _POOLS:
        return _POOLS[kernel]
    size = kernel[0] * kernel[1]
    shifts = range(math.ceil(math.log2(128 * size)))
    factors = [size * round((1 << s) / size) / (1 << s) for s in shifts]
    return min(factors, key=lambda factor: abs(factor - 1))
