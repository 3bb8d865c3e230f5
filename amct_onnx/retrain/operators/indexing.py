"""Operators that read or write at given places."""

from __future__ import annotations

import torch
from torch import Tensor

from amct_onnx.errors import NotAvailableError
from amct_onnx.retrain.operators.call import Call, Operator

_SCATTERED = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def _counted(indices: Tensor, size: int) -> Tensor:
    """Indices of which negative ones count from the end, all from the front."""
    return torch.where(indices < 0, indices + size, indices).to(torch.int64)


def _gather(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    axis = call.get("axis", 0) % x.ndim
    flat = _counted(indices, x.shape[axis]).reshape(-1)
    return x.index_select(axis, flat).reshape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


def _gather_elements(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    axis = call.get("axis", 0)
    return x.gather(axis, _counted(indices, x.shape[axis]))


def _gather_nd(call: Call, x: Tensor, indices: Tensor) -> Tensor:
    call.refuse("batch_dims", 0)
    return x[tuple(_counted(part, x.shape[i]) for i, part in enumerate(indices.unbind(-1)))]


def _scatter_elements(call: Call, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    axis, mode = call.get("axis", 0), call.get("reduction", "none")
    places = _counted(indices, x.shape[axis])
    if mode == "none":
        return x.scatter(axis, places, updates)
    return x.scatter_reduce(axis, places, updates, _SCATTERED[mode], include_self=True)


def _scatter_nd(call: Call, x: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
    mode = call.get("reduction", "none")
    if mode not in ("none", "add"):
        raise NotAvailableError(f"reduction={mode!r} is not available for training, only 'none' and 'add'")
    places = tuple(_counted(part, x.shape[i]) for i, part in enumerate(indices.unbind(-1)))
    return x.index_put(places, updates, accumulate=mode == "add")


def _non_zero(call: Call, x: Tensor) -> Tensor:
    return torch.nonzero(x).t()


def _one_hot(call: Call, indices: Tensor, depth: Tensor, values: Tensor) -> Tensor:
    count = int(depth.item())
    axis = call.get("axis", -1)
    axis += indices.ndim + 1 if axis < 0 else 0
    hot = _counted(indices, count).unsqueeze(axis) == torch.arange(count, device=indices.device).reshape(
        -1, *([1] * (indices.ndim - axis))
    )
    return torch.where(hot, values[1], values[0])


OPERATORS: dict[str, Operator] = {
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "NonZero": _non_zero,
    "OneHot": _one_hot,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
}
