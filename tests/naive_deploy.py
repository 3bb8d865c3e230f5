"""Deploy models by plain integers in numpy, as chips are described to compute them: what a simulation must equal.

Written from the other end than the package: int8 values are padded with the offset, whose part of the sums is taken
off by a correction of the bias, as a chip does.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from naive import truncate_to_s19, unpacked
from onnx import helper, numpy_helper

Array = np.ndarray[Any, np.dtype[Any]]
F16, F32 = np.float16, np.float32


@dataclass
class Q:
    """int8 values."""

    q: Array
    offset: int


@dataclass
class Acc:
    """An accumulator, int64, or for pooling the sum and the number of values in each window."""

    values: Array
    axis: int
    counts: Array | None = None


def run_deploy(model: onnx.ModelProto, feed: dict[str, Array], profile: str) -> dict[str, Array]:
    """The outputs of a deploy model; `feed` and results float32 or float16."""
    with np.errstate(all="ignore"):
        return _Run(model, profile).run(feed)


class _Run:
    def __init__(self, model, profile):
        self.graph, self.profile = model.graph, profile
        self.env: dict[str, Any] = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        self.merged: dict[str, np.float32] = {}  # AscendDequant and AscendQuant -> factor of the merged scale
        self.skipped: set[str] = set()  # Relu that went into an AscendDequant

    def run(self, feed):
        self.env.update(feed)
        self.plan_merges()
        for node in self.graph.node:
            self.step(node)
        return {o.name: self.env[o.name] for o in self.graph.output}

    def readers(self, name):
        return [n for n in self.graph.node if name in n.input]

    def plan_merges(self):
        if self.profile not in ("v100", "v200"):
            return
        ends = {o.name for o in self.graph.output}
        for node in self.graph.node:
            if node.op_type != "AscendDequant" or node.output[0] in ends or attributes(node).get("sqrt_mode", 0):
                continue
            users, relu = self.readers(node.output[0]), None
            if len(users) == 1 and users[0].op_type == "Relu":
                relu = users[0]
                if relu.output[0] in ends:
                    continue
                users = self.readers(relu.output[0])
            if not users or any(u.op_type != "AscendQuant" for u in users):
                continue
            settings = [attributes(u) for u in users]
            if max(s["scale"] for s in settings) - min(s["scale"] for s in settings) > 1e-5 * settings[0]["scale"]:
                continue
            if len({s["offset"] for s in settings}) > 1:
                continue
            has_relu = relu is not None or attributes(node).get("relu_flag", 0)
            if self.profile == "v200" and has_relu and settings[0]["offset"] != -128:
                continue
            for n in (node, *users):
                self.merged[n.name] = F32(settings[0]["scale"])
            if relu is not None:
                self.skipped.add(relu.name)

    def step(self, node):
        inputs = [self.env[name] if name else None for name in node.input]
        results = getattr(self, node.op_type)(node, attributes(node), *inputs)
        results = results if isinstance(results, tuple) else (results,)
        self.env.update(zip(node.output, results, strict=False))

    # Ascend's operators

    def AscendQuant(self, node, a, x):
        offset = int(a["offset"])
        if node.name in self.merged and self.profile == "v200":
            t = np.clip(np.rint(x.astype(F32)), -256, 255) + F32(offset)
        elif self.profile in ("v100", "v200"):
            scale = F32(1) if node.name in self.merged else F32(a["scale"])
            t = x.astype(F32).astype(F16)
            if scale != 1 and F32(2.0**-14) <= scale <= F32(65504):
                t = t * F16(scale)
            elif scale != 1:
                t = t * F16(np.sqrt(scale)) * F16(np.sqrt(scale))
            if offset != 0 or scale == 1:
                t = t + F16(offset)
            assert t.dtype == F16
        else:
            t = x.astype(F32) * F32(a["scale"])
            if offset:
                t = t + F32(offset)
        t = np.where(np.isnan(t), 0, t).astype(np.float64)
        return Q(np.clip(np.rint(t), -128, 127).astype(np.int64), offset)

    def AscendAntiQuant(self, node, a, x):
        if self.profile in ("v100", "v200"):
            y = (x.q.astype(F16) + F16(-int(a["offset"]))) * F16(a["scale"])
        else:
            y = (x.q - int(a["offset"])).astype(F32) * F32(a["scale"])
            y = y.astype(F16) if self.profile == "fixpipe" else y
        return y.astype(F16 if a.get("dtype", 0) else F32)

    def AscendDequant(self, node, a, acc, words):
        scale = (words & np.uint64(0xFFFFFFFF)).astype(np.uint32).view(F32)
        merged = node.name in self.merged
        if merged:
            scale = scale * self.merged[node.name]
        roots = 2 if a.get("sqrt_mode", 0) else 1
        if self.profile == "fixpipe":
            scale = np.array([truncate_to_s19(s) for s in scale], F32)
        if self.profile == "v100":
            if roots == 1 and min(scale) < 2.0**-14:
                roots, scale = 2, np.sqrt(scale)
            scale = np.minimum(scale, F32(65504)).astype(F16).astype(F32)
        if len(scale) > 1:
            shape = [1] * acc.values.ndim
            shape[acc.axis] = -1
            scale = scale.reshape(shape)
        y = acc.values.astype(F32)
        if acc.counts is not None:
            y = y / acc.counts.astype(F32)
        whole = merged and self.profile == "v200"
        for _ in range(roots):
            y = y * scale
            if self.profile != "ideal" and not whole:
                y = np.clip(y, F32(-65504), F32(65504)).astype(F16).astype(F32)
        relu = a.get("relu_flag", 0) or any(n.name in self.skipped for n in self.readers(node.output[0]))
        y = np.maximum(y, 0) if relu else y
        return y.astype(F16) if a.get("dtype", 0) and not whole else y

    # Layers

    def Conv(self, node, a, x, w, b=None):
        w = whole(w, 1, x.q.shape[1], a.get("group", 1)) if isinstance(x, Q) else w
        if not isinstance(x, Q):
            exact = conv(x.astype(np.float64), w.astype(np.float64), a, 0, conv_pads(x, w, a))
            return (exact + b.reshape(1, -1, *[1] * (w.ndim - 2))).astype(F32)
        raw = conv(x.q, w.astype(np.int64), a, x.offset, conv_pads(x.q, w, a))
        correction = x.offset * w.astype(np.int64).reshape(w.shape[0], -1).sum(1)
        bias = (0 if b is None else b.astype(np.int64)) - correction
        return Acc(saturated(raw + bias.reshape(1, -1, *[1] * (w.ndim - 2))), 1)

    def ConvTranspose(self, node, a, x, w, b=None):
        w = whole(w, 0, x.q.shape[1], a.get("group", 1))
        acc = conv_transpose(x.q - x.offset, w.astype(np.int64), a)
        bias = np.zeros(acc.shape[1], np.int64) if b is None else b.astype(np.int64)
        return Acc(saturated(acc + bias.reshape(1, -1, *[1] * (w.ndim - 2))), 1)

    def Gemm(self, node, a, x, w, b=None):
        w = whole(w, 0, x.q.shape[-1])
        raw = x.q @ w.astype(np.int64) - x.offset * w.astype(np.int64).sum(0)
        return Acc(saturated(raw + (0 if b is None else b.astype(np.int64))), -1)

    def MatMul(self, node, a, x, w):
        if isinstance(w, Q):
            return Acc(saturated((x.q - x.offset) @ (w.q - w.offset)), -1)
        if not isinstance(x, Q):
            return (x.astype(np.float64) @ w).astype(F32)
        w = whole(w, 0, x.q.shape[-1])
        return Acc(saturated(x.q @ w.astype(np.int64) - x.offset * w.astype(np.int64).sum(0)), -1)

    def AveragePool(self, node, a, x):
        kernel, strides = a["kernel_shape"], a.get("strides", [1] * len(a["kernel_shape"]))
        values = x.q - x.offset
        sizes = values.shape[2:]
        pads = pool_pads(sizes, a)
        out = []
        for size, k, s, begin, end in zip(sizes, kernel, strides, *halves(pads), strict=True):
            count = (size + begin + end - k) / s
            steps = math.ceil(count) if a.get("ceil_mode", 0) else math.floor(count)
            if a.get("ceil_mode", 0) and steps * s >= size + begin:
                steps -= 1  # a window must not begin in the padding behind
            out.append(steps + 1)
        if min(out) < 1:
            raise ValueError("the window is larger than what it moves over")
        sums, counts = np.zeros((*values.shape[:2], *out), np.int64), np.zeros((1, 1, *out), np.int64)
        for place in np.ndindex(*out):
            window, count = [], 1
            for p, k, s, size, begin, end in zip(place, kernel, strides, sizes, *halves(pads), strict=True):
                first, last = p * s - begin, p * s - begin + k
                window.append(slice(max(first, 0), min(last, size)))
                inside = (
                    min(last, size + end) - first if a.get("count_include_pad", 0) else min(last, size) - max(first, 0)
                )
                count *= inside
            sums[(..., *place)] = values[(..., *window)].sum(axis=tuple(range(2, values.ndim)))
            counts[(..., *place)] = count
        return Acc(sums, 1, counts)

    # Moves, over anything

    def apply(self, x, move, fill=None):
        if isinstance(x, Q):
            return Q(move(x.q), x.offset)
        if isinstance(x, Acc):
            return Acc(move(x.values), x.axis, None if x.counts is None else move(x.counts))
        return move(x)

    def Concat(self, node, a, *xs):
        plain = [x.q if isinstance(x, Q) else x.values if isinstance(x, Acc) else x for x in xs]
        joined = np.concatenate(plain, axis=a["axis"])
        if isinstance(xs[0], Q):
            return Q(joined, xs[0].offset)
        return Acc(joined, xs[0].axis) if isinstance(xs[0], Acc) else joined

    def Split(self, node, a, x, sizes=None):
        count = len(node.output)
        ends = None if sizes is None else np.cumsum(sizes)[:-1]
        return tuple(
            self.apply(x, lambda v, i=i: np.split(v, count if ends is None else ends, axis=a.get("axis", 0))[i])
            for i in range(count)
        )

    def Transpose(self, node, a, x):
        return self.apply(x, lambda v: np.transpose(v, a.get("perm")))

    def Reshape(self, node, a, x, shape):
        return self.apply(x, lambda v: v.reshape([v.shape[i] if d == 0 else d for i, d in enumerate(shape)]))

    def Flatten(self, node, a, x):
        return self.apply(x, lambda v: v.reshape(v.shape[0], -1))

    def Identity(self, node, a, x):
        return self.apply(x, lambda v: v)

    def Pad(self, node, a, x, pads, value=None):
        n = len(pads) // 2
        widths = list(zip(pads[:n], pads[n:], strict=True))
        fill = 0 if value is None else value.item()
        return self.apply(x, lambda v: np.pad(v, widths, constant_values=v.dtype.type(fill)))

    def MaxPool(self, node, a, x):
        def move(v):
            lowest = np.iinfo(v.dtype).min if v.dtype.kind == "i" else -np.inf
            return pooled(v, a, lowest)

        return self.apply(x, move)

    def Mul(self, node, a, x, y):
        return x * y

    def Relu(self, node, a, x):
        return x if node.name in self.skipped else np.maximum(x, x.dtype.type(0))

    def Add(self, node, a, x, y):
        if isinstance(x, Acc) or isinstance(y, Acc):
            acc, bias = (x, y) if isinstance(x, Acc) else (y, x)
            return Acc(saturated(acc.values + bias.astype(np.int64)), acc.axis)
        return x + y


# Arithmetic


def whole(w, axis, channels, group=1):
    """A weight with one value in each byte: those of 4 bits have half of the channels."""
    if group != 1 or 2 * w.shape[axis] != channels:
        return w
    rows = np.moveaxis(w, axis, -1)
    values = [unpacked(row) for row in rows.reshape(-1, rows.shape[-1]).tolist()]
    return np.moveaxis(np.array(values, np.int8).reshape(*rows.shape[:-1], channels), -1, axis)


def attributes(node):
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


def saturated(values):
    return np.clip(values, -(2**31), 2**31 - 1)


def halves(pads):
    return pads[: len(pads) // 2], pads[len(pads) // 2 :]


def auto_pad(a):
    return a.get("auto_pad", b"NOTSET").decode()


def same_pads(sizes, spans, strides, upper):
    """Padding for ceil(size / stride) results."""
    begins, ends = [], []
    for size, span, stride in zip(sizes, spans, strides, strict=True):
        total = max((math.ceil(size / stride) - 1) * stride + span - size, 0)
        small, large = total // 2, total - total // 2
        begins.append(small if upper else large)
        ends.append(large if upper else small)
    return begins + ends


def conv_pads(x, w, a):
    axes = w.ndim - 2
    mode = auto_pad(a)
    if mode == "NOTSET":
        return list(a.get("pads", [0] * 2 * axes))
    if mode == "VALID":
        return [0] * 2 * axes
    dilations, strides = a.get("dilations", [1] * axes), a.get("strides", [1] * axes)
    spans = [d * (k - 1) + 1 for d, k in zip(dilations, w.shape[2:], strict=True)]
    return same_pads(x.shape[2:], spans, strides, mode == "SAME_UPPER")


def pool_pads(sizes, a):
    axes = len(sizes)
    mode = auto_pad(a)
    if mode == "NOTSET":
        return list(a.get("pads", [0] * 2 * axes))
    if mode == "VALID":
        return [0] * 2 * axes
    return same_pads(sizes, a["kernel_shape"], a.get("strides", [1] * axes), mode == "SAME_UPPER")


def conv(x, w, a, fill, pads):
    """Cross-correlation over x padded with `fill`: one product at a time of a kernel's place."""
    axes, group = w.ndim - 2, a.get("group", 1)
    strides, dilations = a.get("strides", [1] * axes), a.get("dilations", [1] * axes)
    begins, ends = halves(pads)
    x = np.pad(x, [(0, 0), (0, 0), *zip(begins, ends, strict=True)], constant_values=fill)
    spans = [d * (k - 1) + 1 for d, k in zip(dilations, w.shape[2:], strict=True)]
    out = [(size - span) // stride + 1 for size, span, stride in zip(x.shape[2:], spans, strides, strict=True)]
    if min(out) < 1:
        raise ValueError("the kernel is larger than what it moves over")
    result = np.zeros((x.shape[0], w.shape[0], *out), x.dtype)
    inputs, outputs = w.shape[1], w.shape[0] // group
    for g in range(group):
        part = x[:, g * inputs : (g + 1) * inputs]
        for place in np.ndindex(*w.shape[2:]):
            window = tuple(
                slice(p * d, p * d + (n - 1) * s + 1, s)
                for p, d, n, s in zip(place, dilations, out, strides, strict=True)
            )
            kernel = w[(slice(g * outputs, (g + 1) * outputs), slice(None), *place)]
            result[:, g * outputs : (g + 1) * outputs] += np.einsum("ni...,oi->no...", part[(..., *window)], kernel)
    return result


def conv_transpose(x, w, a):
    """Every value of x spread over its kernel, then the paddings cut off."""
    axes, group = w.ndim - 2, a.get("group", 1)
    strides, extra = a.get("strides", [1] * axes), a.get("output_padding", [0] * axes)
    sizes = [(n - 1) * s + k for n, s, k in zip(x.shape[2:], strides, w.shape[2:], strict=True)]
    mode = auto_pad(a)
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        totals = [size + e - n * s for size, e, n, s in zip(sizes, extra, x.shape[2:], strides, strict=True)]
        small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
        begins, ends = (small, large) if mode == "SAME_UPPER" else (large, small)
    else:
        begins, ends = halves(a.get("pads", [0] * 2 * axes))
    inputs, outputs = w.shape[0] // group, w.shape[1]
    full = np.zeros((x.shape[0], outputs * group, *[size + e for size, e in zip(sizes, extra, strict=True)]), x.dtype)
    for g in range(group):
        part = x[:, g * inputs : (g + 1) * inputs]
        for place in np.ndindex(*w.shape[2:]):
            window = tuple(
                slice(p, p + (n - 1) * s + 1, s) for p, n, s in zip(place, x.shape[2:], strides, strict=True)
            )
            kernel = w[(slice(g * inputs, (g + 1) * inputs), slice(None), *place)]
            full[(slice(None), slice(g * outputs, (g + 1) * outputs), *window)] += np.einsum(
                "ni...,io->no...", part, kernel
            )
    cut = tuple(slice(b, n - e) for b, e, n in zip(begins, ends, full.shape[2:], strict=True))
    return full[(..., *cut)]


def pooled(x, a, lowest):
    kernel = a["kernel_shape"]
    strides = a.get("strides", [1] * len(kernel))
    begins, ends = halves(a.get("pads", [0] * 2 * len(kernel)))
    x = np.pad(x, [(0, 0), (0, 0), *zip(begins, ends, strict=True)], constant_values=lowest)
    out = [(n - k) // s + 1 for n, k, s in zip(x.shape[2:], kernel, strides, strict=True)]
    windows = [
        x[(..., *(slice(p, p + (n - 1) * s + 1, s) for p, n, s in zip(place, out, strides, strict=True)))]
        for place in itertools.product(*map(range, kernel))
    ]
    return np.max(windows, axis=0)
