"""Layers that move values about: Concat, Slice, Flatten, Reshape, Permute, Crop, Interp, Upsample; and Softmax."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

from amct_onnx.formats.caffe.network import Shape
from amct_onnx.formats.caffe.site import Site


def softmax(site: Site) -> list[Shape]:
    """Softmax along one axis."""
    site.emit("Softmax", [site.inputs[0].tensor], axis=site.axis(site.params("softmax_param").axis))
    return [site.shape]


def concat(site: Site) -> list[Shape]:
    """Concat; the other axes must agree."""
    params = site.params("concat_param")
    axis = site.axis(params.concat_dim if params.HasField("concat_dim") else params.axis)
    shapes = [blob.shape for blob in site.inputs]
    if len({(*shape[:axis], *shape[axis + 1 :], len(shape)) for shape in shapes}) > 1:
        raise site.error(f"its inputs must agree but for axis {axis}; found {', '.join(str(list(s)) for s in shapes)}")
    site.emit("Concat", [blob.tensor for blob in site.inputs], axis=axis)
    return [(*site.shape[:axis], sum(shape[axis] for shape in shapes), *site.shape[axis + 1 :])]


def slice_(site: Site) -> list[Shape]:
    """Slice -> Split at the given points, or into equal parts."""
    params = site.params("slice_param")
    axis = site.axis(params.slice_dim if params.HasField("slice_dim") else params.axis)
    size, parts = site.shape[axis], len(site.outputs)
    points = list(params.slice_point) or [size * part // parts for part in range(1, parts)]
    bounds = [0, *points, size]
    sizes = [end - begin for begin, end in pairwise(bounds)]
    is_even = params.slice_point or size % parts == 0
    if len(sizes) != parts or min(sizes) < 1 or not is_even:
        raise site.error(
            f"{size} values along axis {axis} cannot be cut into {parts} tops at {list(params.slice_point)}"
        )
    site.emit("Split", [site.inputs[0].tensor, site.integers("split", sizes)], axis=axis)
    return [(*site.shape[:axis], part, *site.shape[axis + 1 :]) for part in sizes]


def flatten(site: Site) -> list[Shape]:
    """Flatten -> Flatten, or Reshape where not all axes behind the first are joined."""
    params = site.params("flatten_param")
    first, last = site.axis(params.axis), site.axis(params.end_axis, what="end_axis")
    if first > last:
        raise site.error(f"axis {first} is behind end_axis {last}")
    shape = (*site.shape[:first], math.prod(site.shape[first : last + 1]), *site.shape[last + 1 :])
    if (first, last) == (1, len(site.shape) - 1):
        site.emit("Flatten", [site.inputs[0].tensor], axis=1)
    else:
        _emit_reshape(site, shape)
    return [shape]


def reshape(site: Site) -> list[Shape]:
    """Reshape; 0 keeps a dimension, -1 takes what is left."""
    params = site.params("reshape_param")
    rank = len(site.shape)
    start = site.axis(params.axis, rank=rank + 1)
    end = rank if params.num_axes == -1 else start + params.num_axes
    if not start <= end <= rank:
        raise site.error(f"num_axes is {params.num_axes}, but its input has {rank} axes and axis is {start}")
    dims = list(params.shape.dim)
    for index, dim in enumerate(dims):
        if dim == 0 and start + index >= rank:
            raise site.error(f"dimension {index} shall be kept, but its input has {rank} axes")
        dims[index] = site.shape[start + index] if dim == 0 else dim
    around = (*site.shape[:start], *site.shape[end:])
    known = math.prod(around) * math.prod(dim for dim in dims if dim != -1)
    count = math.prod(site.shape)
    if dims.count(-1) == 1 and known > 0 and count % known == 0:
        dims[dims.index(-1)] = count // known
    shape = (*site.shape[:start], *dims, *site.shape[end:])
    if min(shape, default=1) < 1 or math.prod(shape) != count:
        raise site.error(f"{list(site.shape)} cannot take the shape {list(params.shape.dim)}")
    _emit_reshape(site, shape)
    return [shape]


def _emit_reshape(site: Site, shape: Shape) -> None:
    site.emit("Reshape", [site.inputs[0].tensor, site.integers("shape", shape)])


def permute(site: Site) -> list[Shape]:
    """Permute -> Transpose; axes that are not named follow in their order."""
    given = list(site.params("permute_param").order)
    rank = len(site.shape)
    if len(set(given)) != len(given) or any(axis >= rank for axis in given):
        raise site.error(f"order must name axes below {rank}, each once; found {given}")
    order = [*given, *(axis for axis in range(rank) if axis not in given)]
    site.emit("Transpose", [site.inputs[0].tensor], perm=order)
    return [tuple(site.shape[axis] for axis in order)]


def crop(site: Site) -> list[Shape]:
    """Crop -> Slice of the first input to the size of the second, from `axis` on."""
    params = site.params("crop_param")
    axis, wanted = site.axis(params.axis), site.inputs[1].shape
    if len(wanted) != len(site.shape):
        raise site.error(f"its inputs must have as many axes; found {list(site.shape)} and {list(wanted)}")
    axes = range(axis, len(site.shape))
    offsets = list(params.offset) or [0]
    offsets = offsets * len(axes) if len(offsets) == 1 else offsets
    if len(offsets) != len(axes):
        raise site.error(f"offset must be 1 or {len(axes)} numbers, found {len(offsets)}")
    for index, offset in zip(axes, offsets, strict=True):
        if offset + wanted[index] > site.shape[index]:
            raise site.error(f"axis {index} has {site.shape[index]} values, not {wanted[index]} from {offset} on")
    ends = [offset + wanted[index] for index, offset in zip(axes, offsets, strict=True)]
    bounds = {"starts": offsets, "ends": ends, "axes": list(axes)}
    names = [site.integers(role, values) for role, values in bounds.items()]
    site.emit("Slice", [site.inputs[0].tensor, *names])
    return [(*site.shape[:axis], *wanted[axis:])]


def interp(site: Site) -> list[Shape]:
    """Interp -> Resize, bilinear with the corners on each other."""
    params = site.params("interp_param")
    if len(site.shape) != 4:
        raise site.error(f"its input must have 4 axes, found {list(site.shape)}")
    if params.pad_beg or params.pad_end:
        raise site.error("pad_beg and pad_end other than 0 are not supported")
    shape = (*site.shape[:2], *_interp_sides(site, params))
    _emit_resize(site, shape, mode="linear", coordinate_transformation_mode="align_corners")
    return [shape]


def _interp_sides(site: Site, params: Any) -> Shape:
    """Height and width: those of a second input, those given, or the input's shrunk and then enlarged."""
    if len(site.inputs) == 2:
        if len(site.inputs[1].shape) != 4:
            raise site.error(f"its second input must have 4 axes, found {list(site.inputs[1].shape)}")
        return site.inputs[1].shape[2:]
    factors = params.HasField("shrink_factor") + params.HasField("zoom_factor")
    if params.HasField("height") and params.HasField("width") and factors != 1:  # a single factor wins over both
        sides: Shape = (params.height, params.width)
    elif factors:
        shrink, zoom = params.shrink_factor, params.zoom_factor
        if shrink < 1 or zoom < 1:
            raise site.error(f"shrink_factor and zoom_factor must be at least 1, found {shrink} and {zoom}")
        sides = tuple((side - 1) // shrink * zoom + 1 for side in site.shape[2:])
    else:
        raise site.error("interp_param must give height and width, shrink_factor or zoom_factor")
    return sides


def upsample(site: Site) -> list[Shape]:
    """Upsample -> Resize, every pixel repeated: as for YOLO, not the one that takes the places of maxima."""
    params = site.params("upsample_param")
    factor = params.stride if params.HasField("stride") else params.scale
    if params.HasField("stride") and params.scale != 1:
        raise site.error(f"scale beside stride must be 1, found {params.scale}")
    if len(site.shape) != 4 or factor != int(factor) or factor < 1:
        raise site.error(f"it takes an input of 4 axes and a whole factor; found {list(site.shape)} and {factor}")
    shape = (*site.shape[:2], *(side * int(factor) for side in site.shape[2:]))
    _emit_resize(site, shape, mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    return [shape]


def _emit_resize(site: Site, shape: Shape, **attributes: str) -> None:
    site.emit("Resize", [site.inputs[0].tensor, "", "", site.integers("sizes", shape)], **attributes)
