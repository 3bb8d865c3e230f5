"""Convolutions and matrix products."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from amct_onnx.errors import NotAvailableError
from amct_onnx.retrain.operators.call import Call, Operator
from amct_onnx.retrain.operators.windows import Windows, padded, windows_of

_CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSED = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}


def _axes(weight: Tensor) -> int:
    axes = weight.ndim - 2
    if axes not in _CONV:
        raise NotAvailableError(f"a {axes}-D convolution is not available for training, only 1-D, 2-D and 3-D ones")
    return axes


def _conv(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    axes = _axes(weight)
    at = windows_of(call, weight.shape[2:], x.shape[2:])
    conv = _CONV[axes]
    if at.begins != at.ends:
        x, padding = padded(x, at.begins, at.ends), (0,) * axes
    else:
        padding = at.begins
    return conv(x, weight, bias, at.strides, padding, at.dilations, call.get("group", 1))


def _conv_transpose(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """All that the windows reach, then cut to what pads or output_shape leave; the bias comes last."""
    axes = _axes(weight)
    at = windows_of(call, weight.shape[2:], x.shape[2:])
    y = _TRANSPOSED[axes](x, weight, None, at.strides, 0, 0, call.get("group", 1), at.dilations)
    begins, ends = _cuts(call, at, x.shape[2:], y.shape[2:])
    y = padded(y, [-b for b in begins], [-e for e in ends])
    return y if bias is None else y + bias.reshape(-1, *([1] * axes))


def _cuts(call: Call, at: Windows, sizes: torch.Size, reach: torch.Size) -> tuple[list[int], list[int]]:
    extra = call.get("output_padding") or [0] * len(reach)
    mode, wanted = call.get("auto_pad", "NOTSET"), call.get("output_shape")
    if wanted is None and mode in ("SAME_UPPER", "SAME_LOWER"):
        wanted = [size * stride for size, stride in zip(sizes, at.strides, strict=True)]
    if wanted is None:
        return list(at.begins), [end - more for end, more in zip(at.ends, extra, strict=True)]
    totals = [r + more - w for r, more, w in zip(reach, extra, wanted, strict=True)]
    smaller = [max(0, t) // 2 for t in totals]
    larger = [max(0, t) - s for t, s in zip(totals, smaller, strict=True)]
    begins = smaller if mode == "SAME_UPPER" else larger
    return begins, [r - b - w for r, b, w in zip(reach, begins, wanted, strict=True)]


def _gemm(call: Call, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    a = a.t() if call.get("transA", 0) else a
    b = b.t() if call.get("transB", 0) else b
    alpha, beta = call.get("alpha", 1.0), call.get("beta", 1.0)
    product = a @ b if alpha == 1.0 else alpha * (a @ b)
    if c is None or beta == 0.0:
        return product
    return product + (c if beta == 1.0 else beta * c)


def _matmul(call: Call, a: Tensor, b: Tensor) -> Tensor:
    return torch.matmul(a, b)


def _einsum(call: Call, *inputs: Tensor) -> Tensor:
    return torch.einsum(call.get("equation"), *inputs)


OPERATORS: dict[str, Operator] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Einsum": _einsum,
    "Gemm": _gemm,
    "MatMul": _matmul,
}
