"""Activation functions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from amct_onnx.retrain.operators.call import Call, Operator


def _elu(call: Call, x: Tensor) -> Tensor:
    return functional.elu(x, call.get("alpha", 1.0))


def _celu(call: Call, x: Tensor) -> Tensor:
    return functional.celu(x, call.get("alpha", 1.0))


def _selu(call: Call, x: Tensor) -> Tensor:
    alpha, gamma = call.get("alpha", 1.67326319217681884765625), call.get("gamma", 1.05070102214813232421875)
    return functional.elu(x, alpha).mul(gamma)


def _gelu(call: Call, x: Tensor) -> Tensor:
    return functional.gelu(x, approximate=call.get("approximate", "none"))


def _hard_sigmoid(call: Call, x: Tensor) -> Tensor:
    return x.mul(call.get("alpha", 0.2)).add(call.get("beta", 0.5)).clamp(0, 1)


def _hard_swish(call: Call, x: Tensor) -> Tensor:
    return x * (x / 6 + 0.5).clamp(0, 1)


def _leaky_relu(call: Call, x: Tensor) -> Tensor:
    return functional.leaky_relu(x, call.get("alpha", 0.01))


def _prelu(call: Call, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, slope * x, x)


def _thresholded_relu(call: Call, x: Tensor) -> Tensor:
    return torch.where(x > call.get("alpha", 1.0), x, torch.zeros_like(x))


def _softmax(call: Call, x: Tensor) -> Tensor:
    rows, dim = _rows(call, x)
    return rows.softmax(dim).reshape(x.shape)


def _log_softmax(call: Call, x: Tensor) -> Tensor:
    rows, dim = _rows(call, x)
    return rows.log_softmax(dim).reshape(x.shape)


def _rows(call: Call, x: Tensor) -> tuple[Tensor, int]:
    """What is normalised along which axis: up to opset 12 all axes from `axis` on are one."""
    if call.opset >= 13:
        return x, call.get("axis", -1)
    axis = call.get("axis", 1) % x.ndim
    return x.reshape((*x.shape[:axis], -1)), axis


def _dropout(
    call: Call, x: Tensor, ratio: Tensor | None = None, mode: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """Drops in train mode, whatever mode the model was exported in: exporters write inference."""
    share = call.get("ratio", 0.5) if ratio is None else float(ratio)
    if not call.training:
        return x if call.outputs == 1 else (x, torch.ones_like(x, dtype=torch.bool))
    kept = torch.rand_like(x) >= share
    dropped = torch.where(kept, x / (1 - share) if share < 1 else x, torch.zeros_like(x))
    return dropped if call.outputs == 1 else (dropped, kept)


OPERATORS: dict[str, Operator] = {
    "Celu": _celu,
    "Dropout": _dropout,
    "Elu": _elu,
    "Gelu": _gelu,
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _hard_swish,
    "LeakyRelu": _leaky_relu,
    "LogSoftmax": _log_softmax,
    "Mish": lambda call, x: functional.mish(x),
    "PRelu": _prelu,
    "Relu": lambda call, x: x.relu(),
    "Selu": _selu,
    "Sigmoid": lambda call, x: x.sigmoid(),
    "Softmax": _softmax,
    "Softplus": lambda call, x: functional.softplus(x),
    "Softsign": lambda call, x: functional.softsign(x),
    "Tanh": lambda call, x: x.tanh(),
    "ThresholdedRelu": _thresholded_relu,
}
