"""Operators that move values around or make new shapes; the shapes themselves are int64 tensors."""

from __future__ import annotations

import math

import torch
from onnx import TensorProto
from torch import Tensor

from amct_onnx.errors import NotAvailableError
from amct_onnx.retrain.operators.call import Call, Operator

DTYPES = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.INT8: torch.int8,
    TensorProto.UINT8: torch.uint8,
    TensorProto.INT16: torch.int16,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.BOOL: torch.bool,
}
"""Element type of ONNX -> of torch."""

_NUMBERS = {
    "value_float": torch.float32,
    "value_floats": torch.float32,
    "value_int": torch.int64,
    "value_ints": torch.int64,
}


def _cast(call: Call, x: Tensor) -> Tensor:
    if (to := call.get("to")) not in DTYPES:
        raise NotAvailableError(f"the element type {TensorProto.DataType.Name(to)} is not available for training")
    return x.to(DTYPES[to])


def _cast_like(call: Call, x: Tensor, like: Tensor) -> Tensor:
    return x.to(like.dtype)


def _shape(call: Call, x: Tensor) -> Tensor:
    sizes = list(x.shape)[call.get("start", 0) : call.get("end")]
    return torch.tensor(sizes, dtype=torch.int64, device=x.device)


def _size(call: Call, x: Tensor) -> Tensor:
    return torch.tensor(x.numel(), device=x.device)


def _reshape(call: Call, x: Tensor, shape: Tensor | None = None) -> Tensor:
    wanted = call.integers("shape", shape) or []
    if not call.get("allowzero", 0):
        wanted = [x.shape[i] if size == 0 else size for i, size in enumerate(wanted)]
    return x.reshape(wanted)


def _flatten(call: Call, x: Tensor) -> Tensor:
    axis = call.get("axis", 1)
    axis += x.ndim if axis < 0 else 0
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


def _squeeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    listed = call.integers("axes", axes)
    if listed is None:
        return x.squeeze()
    gone = {axis % x.ndim for axis in listed}
    return x.reshape([size for axis, size in enumerate(x.shape) if axis not in gone])


def _unsqueeze(call: Call, x: Tensor, axes: Tensor | None = None) -> Tensor:
    listed = call.integers("axes", axes) or []
    rank = x.ndim + len(listed)
    new, sizes = {axis % rank for axis in listed}, iter(x.shape)
    return x.reshape([1 if axis in new else next(sizes) for axis in range(rank)])


def _transpose(call: Call, x: Tensor) -> Tensor:
    return x.permute(call.get("perm") or tuple(reversed(range(x.ndim))))


def _concat(call: Call, *inputs: Tensor) -> Tensor:
    return torch.cat(inputs, call.get("axis", 1))


def _split(call: Call, x: Tensor, split: Tensor | None = None) -> tuple[Tensor, ...]:
    axis = call.get("axis", 0)
    sizes = call.integers("split", split)
    if sizes is None:
        part = -(-x.shape[axis] // call.outputs)
        sizes = [part] * (call.outputs - 1)
        sizes.append(x.shape[axis] - sum(sizes))
    return tuple(torch.split(x, sizes, axis))


def _slice(
    call: Call,
    x: Tensor,
    starts: Tensor | None = None,
    ends: Tensor | None = None,
    axes: Tensor | None = None,
    steps: Tensor | None = None,
) -> Tensor:
    begins, stops = call.integers("starts", starts) or [], call.integers("ends", ends) or []
    listed = call.integers("axes", axes) or list(range(len(begins)))
    strides = call.integers("steps", steps) or [1] * len(begins)
    for axis, begin, stop, step in zip(listed, begins, stops, strides, strict=True):
        size = x.shape[axis]
        begin, stop = (place + size if place < 0 else place for place in (begin, stop))
        if step > 0:
            begin, stop = min(max(begin, 0), size), min(max(stop, 0), size)
            x = x[(slice(None),) * (axis % x.ndim) + (slice(begin, stop, step),)]
        else:  # torch has no such slices
            places = range(min(max(begin, 0), size - 1), min(max(stop, -1), size - 1), step)
            x = x.index_select(axis, torch.tensor(list(places), dtype=torch.int64, device=x.device))
    return x


def _expand(call: Call, x: Tensor, shape: Tensor) -> Tensor:
    wanted = shape.tolist()
    own = [1] * (len(wanted) - x.ndim) + list(x.shape)
    wanted = [1] * (x.ndim - len(wanted)) + wanted
    return x.expand([size if other == 1 else other for size, other in zip(own, wanted, strict=True)])


def _tile(call: Call, x: Tensor, repeats: Tensor) -> Tensor:
    return x.repeat(repeats.tolist())


def _constant(call: Call) -> Tensor:
    """Those Constants that hold numbers; tensors are stored with the weights."""
    for name, dtype in _NUMBERS.items():
        if (value := call.get(name)) is not None:
            return torch.tensor(value, dtype=dtype)
    raise NotAvailableError(f"a Constant with {', '.join(call.attributes)} is not available for training")


def _constant_of_shape(call: Call, shape: Tensor) -> Tensor:
    value = call.get("value")
    value = torch.zeros(1) if value is None else value
    return value.to(shape.device).reshape(()).expand(shape.tolist()).clone()


def _range(call: Call, start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    count = max(0, math.ceil((limit.item() - start.item()) / delta.item()))
    return start + delta * torch.arange(count, device=start.device).to(start.dtype)


def _depth_to_space(call: Call, x: Tensor) -> Tensor:
    n, channels, height, width = x.shape
    size = call.get("blocksize")
    if call.get("mode", "DCR") == "DCR":
        blocks = x.reshape(n, size, size, -1, height, width).permute(0, 3, 4, 1, 5, 2)
    else:
        blocks = x.reshape(n, -1, size, size, height, width).permute(0, 1, 4, 2, 5, 3)
    return blocks.reshape(n, channels // size**2, height * size, width * size)


def _space_to_depth(call: Call, x: Tensor) -> Tensor:
    n, channels, height, width = x.shape
    size = call.get("blocksize")
    blocks = x.reshape(n, channels, height // size, size, width // size, size).permute(0, 3, 5, 1, 2, 4)
    return blocks.reshape(n, channels * size**2, height // size, width // size)


def _trilu(call: Call, x: Tensor, k: Tensor | None = None) -> Tensor:
    diagonal = 0 if k is None else int(k.item())
    return x.triu(diagonal) if call.get("upper", 1) else x.tril(diagonal)


def _pad(
    call: Call, x: Tensor, pads: Tensor | None = None, value: Tensor | None = None, axes: Tensor | None = None
) -> Tensor:
    amounts = call.integers("pads", pads) or []
    listed = list(range(x.ndim)) if axes is None else [axis % x.ndim for axis in axes.tolist()]
    fill = call.get("value", 0.0) if value is None else value
    mode = call.get("mode", "constant")
    for axis, begin, end in zip(listed, amounts[: len(listed)], amounts[len(listed) :], strict=True):
        x = _padded_axis(x, axis, begin, end, mode, fill)
    return x


def _padded_axis(x: Tensor, axis: int, begin: int, end: int, mode: str, fill: float | Tensor) -> Tensor:
    size = x.shape[axis]
    if (begin, end) == (0, 0):
        return x
    if mode == "constant":
        x = x.narrow(axis, max(0, -begin), size + min(0, begin) + min(0, end))
        sides = [[*x.shape[:axis], max(0, count), *x.shape[axis + 1 :]] for count in (begin, end)]
        filled = torch.as_tensor(fill, dtype=x.dtype, device=x.device).reshape(())
        return torch.cat([filled.expand(sides[0]), x, filled.expand(sides[1])], axis)
    places = torch.arange(-begin, size + end, device=x.device)
    if mode == "edge":
        places = places.clamp(0, size - 1)
    elif mode == "wrap":
        places = places % size
    else:
        places = places % max(1, 2 * (size - 1))
        places = torch.minimum(places, 2 * (size - 1) - places)
    return x.index_select(axis, places)


OPERATORS: dict[str, Operator] = {
    "Cast": _cast,
    "CastLike": _cast_like,
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "DepthToSpace": _depth_to_space,
    "Expand": _expand,
    "Flatten": _flatten,
    "Identity": lambda call, x: x,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _unsqueeze,
}
