"""Layers that move a window, and the inner product: Convolution, Deconvolution, Pooling, InnerProduct."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from amct_onnx.formats.caffe.network import Shape
from amct_onnx.formats.caffe.site import Site


@dataclass(frozen=True, slots=True, kw_only=True)
class _Window:
    """A kernel and how it moves, one number for each spatial axis."""

    size: Shape
    stride: Shape
    pad: Shape
    dilation: Shape

    @property
    def extent(self) -> Shape:
        """Pixels from the first to the last that a kernel touches."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.size, self.dilation, strict=True))

    def attributes(self) -> dict[str, Any]:
        """Those of ONNX."""
        return {
            "kernel_shape": list(self.size),
            "strides": list(self.stride),
            "pads": [*self.pad, *self.pad],
            "dilations": list(self.dilation),
        }


def convolution(site: Site) -> list[Shape]:
    """Convolution -> Conv, in any number of spatial axes."""
    params = site.params("convolution_param")
    window, (count, channels, group) = _convolution_window(site, params), _channels(site, params)
    given = site.arrays(**_weight_and_bias(params, (count, channels // group, *window.size), count))
    names = [site.constant(role, values) for role, values in zip(("weight", "bias"), given, strict=False)]
    site.emit("Conv", [site.inputs[0].tensor, *names], group=group, **window.attributes())
    spatial = []
    for size, pad, extent, stride in zip(site.shape[2:], window.pad, window.extent, window.stride, strict=True):
        if size + 2 * pad < extent:
            raise site.error(f"its kernel reaches over {extent} pixels, its input has {size} and {pad} on either side")
        spatial.append((size + 2 * pad - extent) // stride + 1)
    return [(site.shape[0], count, *spatial)]


def deconvolution(site: Site) -> list[Shape]:
    """Deconvolution -> ConvTranspose: the weight is [Cin, Cout / group, ...] in both."""
    params = site.params("convolution_param")
    window, (count, channels, group) = _convolution_window(site, params), _channels(site, params)
    given = site.arrays(**_weight_and_bias(params, (channels, count // group, *window.size), count))
    names = [site.constant(role, values) for role, values in zip(("weight", "bias"), given, strict=False)]
    site.emit("ConvTranspose", [site.inputs[0].tensor, *names], group=group, **window.attributes())
    spatial = [
        stride * (size - 1) + extent - 2 * pad
        for size, pad, extent, stride in zip(site.shape[2:], window.pad, window.extent, window.stride, strict=True)
    ]
    return [(site.shape[0], count, *spatial)]


def _weight_and_bias(params: Any, weight: Shape, count: int) -> Mapping[str, Shape]:
    return {"weight": weight, "bias": (count,)} if params.bias_term else {"weight": weight}


def _channels(site: Site, params: Any) -> Shape:
    """Output channels, input channels and groups, which divide both."""
    count, channels, group = int(params.num_output), site.shape[1], int(params.group)
    if count < 1:
        raise site.error("num_output must be at least 1")
    if group < 1 or channels % group or count % group:
        raise site.error(f"group is {group}; it must divide the {channels} input and the {count} output channels")
    return count, channels, group


def _convolution_window(site: Site, params: Any) -> _Window:
    axes = len(site.shape) - 2
    if axes < 1:
        raise site.error(f"its input must have channels and at least one spatial axis, found {list(site.shape)}")
    if site.axis(params.axis) != 1:
        raise site.error(f"axis is {params.axis}; only channels along axis 1 are read")
    return _window(site, params, axes, tuple(params.dilation))


def _window(site: Site, params: Any, axes: int, dilation: Shape) -> _Window:
    return _Window(
        size=_per_axis(site, params, "kernel", axes, ()),
        stride=_per_axis(site, params, "stride", axes, (1,)),
        pad=_per_axis(site, params, "pad", axes, (0,)),
        dilation=_spread(site, "dilation", dilation or (1,), axes, low=1),
    )


def _per_axis(site: Site, params: Any, stem: str, axes: int, default: Shape) -> Shape:
    """One number for each spatial axis, given once, once for each, or as `<stem>_h` and `<stem>_w`."""
    name = "kernel_size" if stem == "kernel" else stem
    given = tuple(getattr(params, name))
    apart = [params.HasField(f"{stem}_{side}") for side in "hw"]
    low = 0 if stem == "pad" else 1
    if not any(apart):
        return _spread(site, name, given or default, axes, low=low)
    if given or axes != 2 or (low == 1 and not all(apart)):
        raise site.error(f"give either {name}, or both {stem}_h and {stem}_w (for two spatial axes)")
    return _spread(site, name, (getattr(params, f"{stem}_h"), getattr(params, f"{stem}_w")), axes, low=low)


def _spread(site: Site, name: str, given: Shape, axes: int, *, low: int) -> Shape:
    values = given * axes if len(given) == 1 else given
    if len(values) != axes or min(values) < low:
        raise site.error(f"{name} must be 1 or {axes} numbers, each at least {low}; found {list(given)}")
    return values


def pooling(site: Site) -> list[Shape]:
    """Pooling -> MaxPool, AveragePool, or the global ones; Caffe's rounding up is written as pads at the ends."""
    params = site.params("pooling_param")
    if len(site.shape) != 4:
        raise site.error(f"its input must have 4 axes, found {list(site.shape)}")
    if params.pool == 2:
        raise site.error("pool: STOCHASTIC is not supported; MAX and AVE are")
    kind = "Max" if params.pool == 0 else "Average"
    if params.global_pooling:
        site.emit(f"Global{kind}Pool", [site.inputs[0].tensor])
        return [(*site.shape[:2], 1, 1)]
    window = _window(site, params, 2, ())
    counts = _window_counts(site, window, rounds_up=params.round_mode == 0 and params.ceil_mode)
    over = tuple(
        max(0, (count - 1) * stride + size - side - pad)
        for count, stride, size, side, pad in zip(
            counts, window.stride, window.size, site.shape[2:], window.pad, strict=True
        )
    )
    fixed: dict[str, Any] = {"kernel_shape": list(window.size), "strides": list(window.stride)}
    if kind == "Max":
        site.emit("MaxPool", [site.inputs[0].tensor], pads=[*window.pad, *over], **fixed)
    else:
        _average(site, window.pad, over, fixed)
    return [(*site.shape[:2], *counts)]


def _window_counts(site: Site, window: _Window, *, rounds_up: bool) -> Shape:
    """How many windows there are along each axis.

    Rounding up, the last window may reach over the end, but where anything is padded it must begin before it does.
    """
    counts = []
    for side, size, stride, pad in zip(site.shape[2:], window.size, window.stride, window.pad, strict=True):
        room = side + 2 * pad - size  # below 0 for a window larger than the input: rounded up, it may still be one
        if pad >= size:
            raise site.error(f"pad must be smaller than the kernel; found {pad} and {size}")
        count = (math.ceil(room / stride) if rounds_up else room // stride) + 1
        if any(window.pad) and (count - 1) * stride >= side + pad:
            count -= 1
        if count < 1:
            raise site.error(f"its kernel of {size} is larger than its input of {side} with {pad} on either side")
        if (count - 1) * stride >= side + pad:
            raise site.error(
                f"its last window begins at {(count - 1) * stride}, outside of its input of {side}: kernel {size}, "
                f"stride {stride}; Caffe computes nothing of use there"
            )
        counts.append(count)
    return tuple(counts)


def _average(site: Site, pad: Shape, over: Shape, fixed: Mapping[str, Any]) -> None:
    """AVE: a window is divided by its pixels and padded ones, but not by those beyond the padding.

    over: pixels that the last window reaches over the end of the input.
    """
    source = site.inputs[0].tensor
    if all(o <= p for o, p in zip(over, pad, strict=True)):
        site.emit("AveragePool", [source], pads=[*pad, *over], count_include_pad=int(any(pad)), **fixed)
        return
    beyond = tuple(max(0, o - p) for o, p in zip(over, pad, strict=True))
    if any(pad):
        ends = [o - b for o, b in zip(over, beyond, strict=True)]
        source = site.step("pad", "Pad", [source, site.integers("pads", [0, 0, *pad, 0, 0, *ends])])
    site.emit("AveragePool", [source], pads=[0, 0, *beyond], count_include_pad=0, **fixed)


def inner_product(site: Site) -> list[Shape]:
    """InnerProduct -> Gemm, which carries the name, behind a Flatten where the input has other than two axes."""
    params = site.params("inner_product_param")
    axis, count = site.axis(params.axis), int(params.num_output)
    if count < 1:
        raise site.error("num_output must be at least 1")
    rows, columns = math.prod(site.shape[:axis]), math.prod(site.shape[axis:])
    weight = (columns, count) if params.transpose else (count, columns)
    given = site.arrays(**_weight_and_bias(params, weight, count))
    names = [site.constant(role, values) for role, values in zip(("weight", "bias"), given, strict=False)]
    source, shape = site.inputs[0].tensor, (*site.shape[:axis], count)
    if (rows, columns) != site.shape:
        source = site.step("flatten", "Flatten", [source], axis=axis)
    attributes: dict[str, Any] = {"transB": int(not params.transpose)}
    if shape == (rows, count):
        site.emit("Gemm", [source, *names], **attributes)
    else:
        product = site.new_tensor("product")
        site.emit("Gemm", [source, *names], outputs=[product], **attributes)
        site.step("reshape", "Reshape", [product, site.integers("shape", shape)], output=site.outputs[0])
    return [shape]
