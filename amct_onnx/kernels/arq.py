"""ARQ: symmetric weights from the largest magnitude of each channel, or of the whole tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amct_onnx.errors import ModelError
from amct_onnx.kernels.checks import require_bool, require_choice
from amct_onnx.kernels.quant_params import QuantParams, params_from_range


@dataclass(frozen=True, slots=True, kw_only=True)
class Arq:
    """Parameters of ARQ.

    channel_wise: one scale per output channel; None leaves it to the layer's type.
    num_bits: width of the weights.
    """

    channel_wise: bool | None = None
    num_bits: int = 8

    def __post_init__(self) -> None:
        require_bool("channel_wise", self.channel_wise, optional=True)
        require_choice("num_bits of the weights", self.num_bits, (4, 6, 7, 8))


def arq(weight: NDArray[Any], *, axis: int | None, num_bits: int) -> QuantParams:
    """Scales of a weight, as AMCT's ARQ finds them: its range, without an offset and without any search.

    Args:
        weight: any float array; computed in float32.
        axis: the axis of the output channels, one scale each; None for a single scale.
        num_bits: width of the integers.

    Raises:
        ModelError: the weight is empty, or holds NaN or infinity.
    """
    values = np.asarray(weight, np.float32)
    if values.size == 0:
        raise ModelError(f"the weight has no values, its shape is {list(values.shape)}")
    others = None if axis is None else tuple(i for i in range(values.ndim) if i != axis % values.ndim)
    low, high = values.min(axis=others), values.max(axis=others)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ModelError("the weight holds NaN or infinity")
    return params_from_range(low, high, asymmetric=False, num_bits=num_bits, axis=axis)


def channels_first(weight: NDArray[Any], *, axis: int, group: int = 1) -> NDArray[Any]:
    """The weight with its output channels along axis 0, [C, ...], so that all layers look alike.

    `axis` is where the output channels are: 0 for Conv, 1 for ConvTranspose, the last one for MatMul. `group` is for
    ConvTranspose, whose weight [Cin, Cout / group, ...] holds the channels of all groups: it becomes
    [Cout, Cin / group, ...], and channel c belongs to group c // (Cout / group).
    """
    parts = weight.reshape(group, weight.shape[0] // group, *weight.shape[1:])
    moved = np.moveaxis(parts, axis % weight.ndim + 1, 1)
    return moved.reshape(-1, *moved.shape[2:])


def channels_restored(weight: NDArray[Any], *, axis: int, group: int = 1) -> NDArray[Any]:
    """The inverse of `channels_first`."""
    parts = weight.reshape(group, weight.shape[0] // group, *weight.shape[1:])
    moved = np.moveaxis(parts, 1, axis % weight.ndim + 1)
    return moved.reshape(-1, *moved.shape[2:])
