"""Caffe's layers, one value at a time and in float64, as its documentation and its CPU code define them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

Array = np.ndarray


def convolution(x: Array, w: Array, b: Array | None, *, stride, pad, dilation, group) -> Array:
    """x [N, C, ...], w [M, C / group, ...], in any number of spatial axes."""
    kernel, sides = w.shape[2:], x.shape[2:]
    out = [
        (side + 2 * p - (d * (k - 1) + 1)) // s + 1
        for side, k, s, p, d in zip(sides, kernel, stride, pad, dilation, strict=True)
    ]
    y = np.zeros((x.shape[0], w.shape[0], *out))
    per_group, outs = x.shape[1] // group, w.shape[0] // group
    for n, m, *at in np.ndindex(*y.shape):
        for c, *k in np.ndindex(*w.shape[1:]):
            place = [a * s - p + i * d for a, s, p, i, d in zip(at, stride, pad, k, dilation, strict=True)]
            if all(0 <= q < side for q, side in zip(place, sides, strict=True)):
                y[(n, m, *at)] += float(x[(n, m // outs * per_group + c, *place)]) * float(w[(m, c, *k)])
        y[(n, m, *at)] += 0 if b is None else b[m]
    return y


def deconvolution(x: Array, w: Array, b: Array | None, *, stride, pad, dilation, group) -> Array:
    """x [N, C, ...], w [C, M / group, ...]: every input pixel is spread over the output."""
    kernel, sides = w.shape[2:], x.shape[2:]
    out = [
        s * (side - 1) + d * (k - 1) + 1 - 2 * p
        for side, k, s, p, d in zip(sides, kernel, stride, pad, dilation, strict=True)
    ]
    y = np.zeros((x.shape[0], w.shape[1] * group, *out))
    per_group = x.shape[1] // group
    for n, c, *at in np.ndindex(*x.shape):
        for m, *k in np.ndindex(*w.shape[1:]):
            place = [a * s - p + i * d for a, s, p, i, d in zip(at, stride, pad, k, dilation, strict=True)]
            if all(0 <= q < side for q, side in zip(place, out, strict=True)):
                y[(n, c // per_group * w.shape[1] + m, *place)] += float(x[(n, c, *at)]) * float(w[(c, m, *k)])
    return y if b is None else y + b.reshape(-1, *[1] * len(out))


def pooled_size(sides: Sequence[int], kernel: Sequence[int], stride: Sequence[int], pad: Sequence[int]) -> list[int]:
    """Windows along each axis: rounded up, and clipped where anything is padded."""
    sizes = [math.ceil((side + 2 * p - k) / s) + 1 for side, k, s, p in zip(sides, kernel, stride, pad, strict=True)]
    if any(pad):
        for axis in range(2):
            if (sizes[axis] - 1) * stride[axis] >= sides[axis] + pad[axis]:
                sizes[axis] -= 1
    return sizes


def pooling(x: Array, method: str, *, kernel, stride, pad, sizes: Sequence[int] | None = None) -> Array:
    height, width = x.shape[2:]
    sizes = pooled_size((height, width), kernel, stride, pad) if sizes is None else sizes
    y = np.zeros((*x.shape[:2], *sizes))
    for n, c, ph, pw in np.ndindex(*y.shape):
        top, left = ph * stride[0] - pad[0], pw * stride[1] - pad[1]
        bottom, right = min(top + kernel[0], height + pad[0]), min(left + kernel[1], width + pad[1])
        area = (bottom - top) * (right - left)
        window = x[n, c, max(top, 0) : min(bottom, height), max(left, 0) : min(right, width)].astype(np.float64)
        y[n, c, ph, pw] = window.max() if method == "MAX" else window.sum() / area
    return y


def inner_product(x: Array, w: Array, b: Array | None, *, axis: int, transpose: bool) -> Array:
    rows = x.reshape(math.prod(x.shape[:axis]), -1).astype(np.float64)
    product = rows @ (w if transpose else w.T).astype(np.float64)
    return (product if b is None else product + b).reshape(*x.shape[:axis], -1)


def along(values: Array, axis: int, rank: int) -> Array:
    """Values in the shape that varies along the axes from `axis` on."""
    return values.reshape(*values.shape, *[1] * (rank - axis - values.ndim)) if values.ndim else values


def batch_norm(x: Array, mean: Array, variance: Array, factor: float, eps: float) -> Array:
    share = 0 if factor == 0 else 1 / factor
    mean, variance = (along(v.astype(np.float64) * share, 1, x.ndim) for v in (mean, variance))
    return (x - mean) / np.sqrt(variance + eps)


def lrn(x: Array, *, size: int, alpha: float, beta: float, k: float, within: bool) -> Array:
    y = np.zeros(x.shape)
    reach = size // 2
    for n, c, h, w in np.ndindex(*x.shape):
        if within:
            window = x[n, c, max(h - reach, 0) : h + reach + 1, max(w - reach, 0) : w + reach + 1]
            y[n, c, h, w] = x[n, c, h, w] * (1 + alpha / size**2 * np.sum(window.astype(np.float64) ** 2)) ** -beta
        else:
            window = x[n, max(c - reach, 0) : c + reach + 1, h, w]
            y[n, c, h, w] = x[n, c, h, w] * (k + alpha / size * np.sum(window.astype(np.float64) ** 2)) ** -beta
    return y


def normalize(x: Array, scale: Array, *, across_spatial: bool, eps: float) -> Array:
    y = np.zeros(x.shape)
    for n, c, h, w in np.ndindex(*x.shape):
        part = x[n] if across_spatial else x[n, :, h, w]
        norm = math.sqrt(np.sum(part.astype(np.float64) ** 2) + eps)
        y[n, c, h, w] = x[n, c, h, w] / norm * scale[c % scale.size]
    return y


def softmax(x: Array, axis: int) -> Array:
    powers = np.exp(x.astype(np.float64) - x.max(axis=axis, keepdims=True))
    return powers / powers.sum(axis=axis, keepdims=True)


def interp(x: Array, sides: Sequence[int]) -> Array:
    """Bilinear, the corners of input and output on each other."""
    y = np.zeros((*x.shape[:2], *sides))
    steps = [(a - 1) / (b - 1) if b > 1 else 0.0 for a, b in zip(x.shape[2:], sides, strict=True)]
    for h, w in itertools.product(*map(range, sides)):
        top, left = int(h * steps[0]), int(w * steps[1])
        below, right = min(top + 1, x.shape[2] - 1), min(left + 1, x.shape[3] - 1)
        dy, dx = h * steps[0] - top, w * steps[1] - left
        y[:, :, h, w] = (1 - dy) * ((1 - dx) * x[:, :, top, left] + dx * x[:, :, top, right]) + dy * (
            (1 - dx) * x[:, :, below, left] + dx * x[:, :, below, right]
        )
    return y
