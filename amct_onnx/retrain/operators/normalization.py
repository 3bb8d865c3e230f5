"""Normalization."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from amct_onnx.errors import NotAvailableError
from amct_onnx.retrain.operators.call import Call, Operator


def _batch_normalization(call: Call, x: Tensor, scale: Tensor, shift: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """In train mode with the statistics of the batch, which also move `mean` and `var`, as torch's own does."""
    call.refuse("spatial", 1)
    momentum = 1.0 - call.get("momentum", 0.9)  # ONNX says what stays of the old value, torch what comes in
    epsilon = call.get("epsilon", 1e-5)
    return functional.batch_norm(x, mean, var, scale, shift, call.training, momentum, epsilon)


def _instance_normalization(call: Call, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    along = (-1, *([1] * (x.ndim - 2)))
    return _standardized(call, x, tuple(range(2, x.ndim))) * scale.reshape(along) + shift.reshape(along)


def _layer_normalization(call: Call, x: Tensor, scale: Tensor, shift: Tensor | None = None) -> Tensor:
    axis = call.get("axis", -1) % x.ndim
    y = _standardized(call, x, tuple(range(axis, x.ndim))) * scale
    return y if shift is None else y + shift


def _group_normalization(call: Call, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    groups, channels = call.get("num_groups"), x.shape[1]
    rows = x.reshape(x.shape[0], groups, -1)
    y = _standardized(call, rows, (2,)).reshape(x.shape)
    if call.opset < 21:  # one value per group
        scale, shift = (part.repeat_interleave(channels // groups) for part in (scale, shift))
    along = (-1, *([1] * (x.ndim - 2)))
    return y * scale.reshape(along) + shift.reshape(along)


def _standardized(call: Call, x: Tensor, axes: tuple[int, ...]) -> Tensor:
    if call.outputs > 1:
        raise NotAvailableError("outputs other than the first are not available for training")
    centred = x - x.mean(axes, keepdim=True)
    return centred * torch.rsqrt((centred * centred).mean(axes, keepdim=True) + call.get("epsilon", 1e-5))


def _lrn(call: Call, x: Tensor) -> Tensor:
    size = call.get("size")
    before, after = (size - 1) // 2, size // 2
    squares = functional.pad((x * x).movedim(1, -1), (before, after)).unfold(-1, size, 1).sum(-1).movedim(-1, 1)
    base = call.get("bias", 1.0) + call.get("alpha", 1e-4) / size * squares
    return x / torch.pow(base, call.get("beta", 0.75))


def _lp_normalization(call: Call, x: Tensor) -> Tensor:
    axis, p = call.get("axis", -1), call.get("p", 2)
    norm = x.norm(p, axis, keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(x), x / norm)


OPERATORS: dict[str, Operator] = {
    "BatchNormalization": _batch_normalization,
    "GroupNormalization": _group_normalization,
    "InstanceNormalization": _instance_normalization,
    "LRN": _lrn,
    "LayerNormalization": _layer_normalization,
    "LpNormalization": _lp_normalization,
}
