"""Resize and Upsample: axis by axis, every mode of coordinates, in float32 as onnxruntime computes them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from amct_onnx.errors import NotAvailableError
from amct_onnx.retrain.operators.call import Call, Operator


@dataclass(frozen=True, slots=True, kw_only=True)
class _Axis:
    """Along which axis, to how many values, at which scale (new over old)."""

    axis: int
    size: int
    scale: float


def _resize(
    call: Call, x: Tensor, roi: Tensor | None = None, scales: Tensor | None = None, sizes: Tensor | None = None
) -> Tensor:
    if call.opset < 11:  # x, scales
        return _resized(call, x, _by_scales(call, x, roi), "asymmetric", "floor")
    call.refuse("antialias", 0)
    call.refuse("keep_aspect_ratio_policy", "stretch")
    axes = _by_scales(call, x, scales) if sizes is None or sizes.numel() == 0 else _by_sizes(call, x, sizes)
    mode = call.get("coordinate_transformation_mode", "half_pixel")
    if mode == "half_pixel_symmetric" and call.get("mode", "nearest") == "nearest":
        # its places fall on integers but for the last digit, which then decides between two neighbours
        raise NotAvailableError(f"coordinate_transformation_mode={mode!r} with mode='nearest' is not available yet")
    return _resized(call, x, axes, mode, call.get("nearest_mode", "round_prefer_floor"))


def _upsample(call: Call, x: Tensor, scales: Tensor | None = None) -> Tensor:
    return _resized(call, x, _by_scales(call, x, scales), "asymmetric", "floor")


def _listed(call: Call, x: Tensor) -> list[int]:
    return [axis % x.ndim for axis in call.get("axes") or range(x.ndim)]


def _by_scales(call: Call, x: Tensor, scales: Tensor | None) -> list[_Axis]:
    values = torch.tensor(call.get("scales"), dtype=torch.float32) if scales is None else scales.to(torch.float32)
    return [
        _Axis(axis=axis, size=int(torch.floor(x.shape[axis] * scale)), scale=float(scale))
        for axis, scale in zip(_listed(call, x), values.cpu(), strict=True)
    ]


def _by_sizes(call: Call, x: Tensor, sizes: Tensor) -> list[_Axis]:
    return [
        _Axis(axis=axis, size=size, scale=size / x.shape[axis])
        for axis, size in zip(_listed(call, x), sizes.tolist(), strict=True)
    ]


def _resized(call: Call, x: Tensor, axes: list[_Axis], mode: str, rounding: str) -> Tensor:
    for along in axes:
        if along.size == x.shape[along.axis] and along.scale == 1.0:
            continue
        places = _places(along, x.shape[along.axis], mode, x.device)
        method = call.get("mode", "nearest")
        if method == "nearest":
            x = x.index_select(along.axis, _nearest(places, rounding, x.shape[along.axis]))
        elif method == "linear":
            x = _linear(x, along.axis, places)
        else:
            x = _cubic(call, x, along.axis, places)
    return x


def _places(along: _Axis, old: int, mode: str, device: torch.device) -> Tensor:
    """Where each new value lies among the old ones."""
    new = torch.arange(along.size, dtype=torch.float32, device=device)
    scale = torch.tensor(along.scale, dtype=torch.float32, device=device)
    if mode == "asymmetric":
        return new / scale
    if mode == "align_corners":
        return new * (old - 1) / (along.size - 1) if along.size > 1 else torch.zeros_like(new)
    half_pixel = (new + 0.5) / scale - 0.5
    if mode == "half_pixel":
        return half_pixel
    if mode == "pytorch_half_pixel":
        return half_pixel if along.size > 1 else torch.zeros_like(new)
    if mode == "half_pixel_symmetric":
        # added in onnxruntime's order: where a place falls on an integer, the last digit decides between neighbours
        return old / 2 * (1 - along.size / (scale * old)) + (new + 0.5) / scale - 0.5
    raise NotAvailableError(f"coordinate_transformation_mode={mode!r} is not available for training")


def _nearest(places: Tensor, rounding: str, size: int) -> Tensor:
    down, up = torch.floor(places), torch.ceil(places)
    nearest = {
        "floor": down,
        "ceil": up,
        "round_prefer_floor": torch.ceil(places - 0.5),
        "round_prefer_ceil": torch.floor(places + 0.5),
    }[rounding]
    return nearest.clamp(0, size - 1).to(torch.int64)


def _along(x: Tensor, axis: int, weights: Tensor) -> Tensor:
    return weights.to(x.dtype).reshape(-1, *([1] * (x.ndim - axis - 1)))


def _linear(x: Tensor, axis: int, places: Tensor) -> Tensor:
    places = places.clamp(0, x.shape[axis] - 1)
    left = torch.floor(places)
    share = _along(x, axis, places - left)
    first = left.to(torch.int64)
    second = (first + 1).clamp(max=x.shape[axis] - 1)
    return x.index_select(axis, first) * (1 - share) + x.index_select(axis, second) * share


def _cubic(call: Call, x: Tensor, axis: int, places: Tensor) -> Tensor:
    """Keys' kernel over four values; those beyond the ends repeat the outermost, or do not count."""
    a = call.get("cubic_coeff_a", -0.75)
    left = torch.floor(places)
    t = places - left
    near = [((a + 2) * d - (a + 3)) * d * d + 1 for d in (t, 1 - t)]
    far = [((a * d - 5 * a) * d + 8 * a) * d - 4 * a for d in (t + 1, 2 - t)]
    weights = torch.stack([far[0], *near, far[1]])
    taps = left.to(torch.int64) + torch.arange(-1, 3, device=x.device).reshape(4, 1)
    if call.get("exclude_outside", 0):
        weights = weights * ((taps >= 0) & (taps < x.shape[axis]))
        weights = weights / weights.sum(0)
    taps = taps.clamp(0, x.shape[axis] - 1)
    parts = [x.index_select(axis, tap) * _along(x, axis, weight) for tap, weight in zip(taps, weights, strict=True)]
    return torch.stack(parts).sum(0)


OPERATORS: dict[str, Operator] = {"Resize": _resize, "Upsample": _upsample}
