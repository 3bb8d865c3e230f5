"""Layers that scale and shift: BatchNorm, Scale, Bias, LRN, Normalize."""

from __future__ import annotations

from typing import Any

import numpy as np

from amct_onnx.formats.caffe.network import Shape
from amct_onnx.formats.caffe.site import Site
from amct_onnx.formats.caffe.weights import Floats


def batch_norm(site: Site) -> list[Shape]:
    """BatchNorm -> BatchNormalization with gamma 1 and beta 0; Caffe keeps sums and the factor to divide them by."""
    params = site.params("batch_norm_param")
    if not params.use_global_stats:
        raise site.error("use_global_stats is false: statistics of the batch itself cannot be quantized; make it true")
    if len(site.shape) < 2:
        raise site.error(f"its input must have at least 2 axes, found {list(site.shape)}")
    channels = site.shape[1]
    mean, variance, (factor,) = site.arrays(mean=(channels,), variance=(channels,), factor=(1,))
    ones, zeros = np.ones(channels, np.float32), np.zeros(channels, np.float32)
    with np.errstate(all="ignore"):
        share = np.float32(0) if factor == 0 else np.float32(1) / factor
        mean, variance = mean * share, variance * share
    _emit_norm(site, ones, zeros, mean, variance, params.eps)
    return [site.shape]


def _emit_norm(site: Site, gamma: Floats, beta: Floats, mean: Floats, variance: Floats, epsilon: float) -> None:
    roles = {"scale": gamma, "bias": beta, "mean": mean, "var": variance}
    names = [site.constant(role, values) for role, values in roles.items()]
    site.emit("BatchNormalization", [site.inputs[0].tensor, *names], epsilon=epsilon)


def scale(site: Site) -> list[Shape]:
    """Scale by constants or by a second input, and shift.

    Constants along the channels become a BatchNormalization that normalises nothing, which folds into a layer in front
    of it; behind the BatchNormalization of a BatchNorm a Mul and an Add, which are taken into that.
    """
    params = site.params("scale_param")
    covered = _covered(site, params)
    expected = {} if len(site.inputs) == 2 else {"scale": covered}
    if params.bias_term:
        expected["bias"] = covered
    given = dict(zip(expected, site.arrays(**expected), strict=True)) if expected else {}
    source = site.inputs[0].tensor
    along_channels = covered == site.shape[1:2] and site.axis(params.axis) == 1
    if "scale" in given and along_channels and site.parts.operator_of(source) != "BatchNormalization":
        zeros, ones = np.zeros_like(given["scale"]), np.ones_like(given["scale"])
        _emit_norm(site, given["scale"], given.get("bias", zeros), zeros, ones, 0.0)
        return [site.shape]
    shape = _aligned(site, params.axis, covered)
    factor = _operand(site, "scale", given, shape)
    if "bias" in given:
        scaled = site.step("mul", "Mul", [source, factor])
        site.emit("Add", [scaled, site.constant("bias", given["bias"].reshape(shape))])
    else:
        site.emit("Mul", [source, factor])
    return [site.shape]


def bias(site: Site) -> list[Shape]:
    """Bias -> Add of constants or of a second input."""
    params = site.params("bias_param")
    covered = _covered(site, params)
    given = {} if len(site.inputs) == 2 else {"bias": site.arrays(bias=covered)[0]}
    site.emit("Add", [site.inputs[0].tensor, _operand(site, "bias", given, _aligned(site, params.axis, covered))])
    return [site.shape]


def _covered(site: Site, params: Any) -> Shape:
    """The part of the first input's shape that scales or biases vary along."""
    count = params.num_axes
    if len(site.inputs) == 2:
        other = site.inputs[1].shape
        first = site.axis(params.axis)
        if site.shape[first : first + len(other)] != other:
            raise site.error(
                f"its second input has shape {list(other)}, which is no part of {list(site.shape)} from axis {first} on"
            )
        return other
    first = site.axis(params.axis)
    if count < -1 or first + count > len(site.shape):
        raise site.error(f"num_axes is {count}, but its input has {len(site.shape)} axes and axis is {first}")
    return site.shape[first:] if count == -1 else site.shape[first : first + count]


def _aligned(site: Site, axis: int, covered: Shape) -> Shape:
    """`covered` with ones behind it, as ONNX's broadcasting wants it."""
    behind = len(site.shape) - site.axis(axis) - len(covered) if covered else 0
    return (*covered, *[1] * behind)


def _operand(site: Site, role: str, given: dict[str, Floats], shape: Shape) -> str:
    if role in given:
        return site.constant(role, given[role].reshape(shape))
    other = site.inputs[1]
    if other.shape == shape:
        return other.tensor
    return site.step("reshape", "Reshape", [other.tensor, site.integers("shape", shape)])


def lrn(site: Site) -> list[Shape]:
    """LRN -> LRN across channels; within a channel as x * (1 + alpha / n^2 * sum of squares) ^ -beta."""
    params = site.params("lrn_param")
    size = int(params.local_size)
    if size % 2 == 0 or len(site.shape) != 4:
        raise site.error(f"local_size must be odd and the input have 4 axes; found {size} and {list(site.shape)}")
    source = site.inputs[0].tensor
    if params.norm_region == 0:
        site.emit("LRN", [source], size=size, alpha=params.alpha, beta=params.beta, bias=params.k)
        return [site.shape]
    # no AveragePool: that would be quantized, and squares do not stand it
    norm = site.step("norm", "LpPool", [source], kernel_shape=[size, size], pads=[size // 2] * 4, strides=[1, 1], p=2)
    squares = site.step("squares", "Mul", [norm, norm])
    share = site.step("share", "Mul", [squares, site.number("alpha", params.alpha / size**2)])
    above_one = site.step("above_one", "Add", [share, site.number("one", 1)])
    factor = site.step("factor", "Pow", [above_one, site.number("beta", -params.beta)])
    site.emit("Mul", [source, factor])
    return [site.shape]


def normalize(site: Site) -> list[Shape]:
    """Normalize (of SSD): x / sqrt(sum of x^2 + eps), over the channels or all of a sample, times a scale."""
    params = site.params("norm_param")
    if len(site.shape) != 4:
        raise site.error(f"its input must have 4 axes, found {list(site.shape)}")
    (given,) = site.arrays(scale=(1,) if params.channel_shared else site.shape[1:2])
    axes = [1, 2, 3] if params.across_spatial else [1]
    squares = site.step("squares", "ReduceSumSquare", [site.inputs[0].tensor], axes=axes, keepdims=1)
    above_zero = site.step("above_zero", "Add", [squares, site.number("eps", params.eps)])
    norm = site.step("norm", "Sqrt", [above_zero])
    unit = site.step("unit", "Div", [site.inputs[0].tensor, norm])
    site.emit("Mul", [unit, site.constant("scale", given.reshape(1, -1, 1, 1))])
    return [site.shape]
