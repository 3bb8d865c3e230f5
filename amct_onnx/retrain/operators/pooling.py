"""Pooling."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from amct_onnx.errors import NotAvailableError
from amct_onnx.retrain.operators.call import Call, Operator
from amct_onnx.retrain.operators.windows import Windows, padded, windows_of

_MAX = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}


def _window(call: Call, x: Tensor) -> tuple[Windows, list[int]]:
    """The windows, and what the last of them reads beyond the data."""
    kernel = call.get("kernel_shape")
    if len(kernel) not in _MAX:
        raise NotAvailableError(f"a {len(kernel)}-D pooling is not available for training, only 1-D, 2-D and 3-D ones")
    at = windows_of(call, kernel, x.shape[2:])
    beyond = at.excess(x.shape[2:], ceil=bool(call.get("ceil_mode", 0)))
    return at, [end + more for end, more in zip(at.ends, beyond, strict=True)]


def _max_pool(call: Call, x: Tensor) -> Tensor:
    call.refuse("storage_order", 0)
    if call.outputs > 1:
        raise NotAvailableError("the second output, the indices, is not available for training")
    at, ends = _window(call, x)
    lowest = -torch.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
    return _MAX[len(at.kernel)](padded(x, at.begins, ends, lowest), at.kernel, at.strides, 0, at.dilations)


def _average_pool(call: Call, x: Tensor) -> Tensor:
    """Sums over the windows, divided by how many values count: padding does where the node says so."""
    if any(d != 1 for d in call.get("dilations") or []):
        raise NotAvailableError("pooling with dilations is not available for training")
    at, ends = _window(call, x)
    total = _sums(padded(x, at.begins, ends), at)
    ones = torch.ones(1, 1, *x.shape[2:], dtype=x.dtype, device=x.device)
    if call.get("count_include_pad", 0):
        ones = padded(ones, at.begins, at.ends, 1.0)
        counted = padded(ones, [0] * len(ends), [end - own for end, own in zip(ends, at.ends, strict=True)])
    else:
        counted = padded(ones, at.begins, ends)
    return total / _sums(counted, at)


def _sums(x: Tensor, at: Windows) -> Tensor:
    if len(at.kernel) == 1:
        kernel, strides = (1, *at.kernel), (1, *at.strides)
        return functional.avg_pool2d(x.unsqueeze(2), kernel, strides, divisor_override=1).squeeze(2)
    pool = functional.avg_pool2d if len(at.kernel) == 2 else functional.avg_pool3d
    return pool(x, at.kernel, at.strides, divisor_override=1)


def _spatial(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


def _global_average_pool(call: Call, x: Tensor) -> Tensor:
    return x.mean(_spatial(x), keepdim=True)


def _global_max_pool(call: Call, x: Tensor) -> Tensor:
    return x.amax(_spatial(x), keepdim=True)


OPERATORS: dict[str, Operator] = {
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_average_pool,
    "GlobalMaxPool": _global_max_pool,
    "MaxPool": _max_pool,
}
