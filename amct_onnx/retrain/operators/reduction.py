"""Reductions, and the places of largest and smallest values."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from amct_onnx.retrain.operators.call import Call, Operator

_Reduction = Callable[[Tensor, tuple[int, ...]], Tensor]


def _reduce(function: _Reduction) -> Operator:
    """A reduction with all reduced axes kept, as an operator."""

    def operator(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
        listed = call.integers("axes", axes)
        if not listed:
            if call.get("noop_with_empty_axes", 0):
                return x
            listed = list(range(x.ndim))
        dims = tuple(sorted({axis % x.ndim for axis in listed}))
        if not dims:  # a scalar
            dims, x = (0,), x.reshape(1)
            return function(x, dims).reshape(())
        y = function(x, dims)
        return y if call.get("keepdims", 1) else y.squeeze(dims)

    return operator


def _sum(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    return x.sum(dims, keepdim=True, dtype=x.dtype)


def _mean(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    if x.is_floating_point():
        return x.mean(dims, keepdim=True)
    count = 1
    for dim in dims:
        count *= x.shape[dim]
    return torch.div(_sum(x, dims), count, rounding_mode="trunc")


def _prod(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    for dim in dims:
        x = x.prod(dim, keepdim=True, dtype=x.dtype)
    return x


def _arg(largest: bool) -> Operator:
    def operator(call: Call, x: Tensor) -> Tensor:
        axis = call.get("axis", 0) % x.ndim
        last = bool(call.get("select_last_index", 0))
        values = x.flip(axis) if last else x
        best = values.amax(axis, keepdim=True) if largest else values.amin(axis, keepdim=True)
        # the first of the equal ones, which torch's own does not promise
        place = (values == best).to(torch.uint8).argmax(axis, keepdim=True)
        place = x.shape[axis] - 1 - place if last else place
        return place if call.get("keepdims", 1) else place.squeeze(axis)

    return operator


def _top_k(call: Call, x: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    largest, axis = bool(call.get("largest", 1)), call.get("axis", -1)
    values, places = torch.sort(x, dim=axis, descending=largest, stable=True)
    count = int(k.item())
    return values.narrow(axis, 0, count), places.narrow(axis, 0, count)


OPERATORS: dict[str, Operator] = {
    "ArgMax": _arg(True),
    "ArgMin": _arg(False),
    "ReduceL1": _reduce(lambda x, dims: _sum(x.abs(), dims)),
    "ReduceL2": _reduce(lambda x, dims: _sum(x * x, dims).sqrt()),
    "ReduceLogSum": _reduce(lambda x, dims: _sum(x, dims).log()),
    "ReduceLogSumExp": _reduce(lambda x, dims: x.logsumexp(dims, keepdim=True)),
    "ReduceMax": _reduce(lambda x, dims: x.amax(dims, keepdim=True)),
    "ReduceMean": _reduce(_mean),
    "ReduceMin": _reduce(lambda x, dims: x.amin(dims, keepdim=True)),
    "ReduceProd": _reduce(_prod),
    "ReduceSum": _reduce(_sum),
    "ReduceSumSquare": _reduce(lambda x, dims: _sum(x * x, dims)),
    "TopK": _top_k,
}
