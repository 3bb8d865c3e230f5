"""How channels pass through operators that cut, join, turn and reshape tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from amct_onnx.passes.channel_walk import FIXED, Atoms, Channels, Kept, Walk
from amct_onnx.passes.graph import (
    Array,
    Node,
    Tensor,
    constant,
    constant_input,
    has_input,
    is_constant,
    producer,
    set_input,
    unique_name,
)

Rule = Callable[[Walk, Node], None]

_REDUCTIONS = ("ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum")


def _given(walk: Walk, node: Node) -> Channels:
    given = walk.of(node.inputs[0])
    assert given is not None, "called for nodes that read channels"
    return given


def _integers(node: Node, index: int, name: str) -> list[int] | None:
    """Integers that are an attribute in older operator sets and an input in newer ones; None if unset or computed."""
    if has_input(node, index):
        values = constant_input(node, index)
        return None if values is None else [int(value) for value in values.ravel()]
    found = node.attrs.get(name)
    return None if found is None else [int(value) for value in found]


def _is_computed(node: Node, index: int) -> bool:
    return has_input(node, index) and not is_constant(node.inputs[index])


def _set_integers(walk: Walk, node: Node, index: int, values: Sequence[int]) -> None:
    """Give a node its own initializer of integers; others may read the old one as it is."""
    old = constant_input(node, index)
    name = unique_name(f"{node.name}.{index}", walk.graph.tensor_names())
    dtype = np.int64 if old is None else old.dtype
    set_input(node, index, walk.graph.new_constant(name, np.array(values, dtype)))


def _concat(walk: Walk, node: Node) -> None:
    marked = [found for tensor in node.inputs if (found := walk.of(tensor)) is not None]
    rank, axes = marked[0].rank, {found.axis for found in marked}
    axis = int(node.attrs["axis"]) % rank
    if axes == {axis}:
        parts = [_atoms_along(walk, tensor, axis) for tensor in node.inputs]
        if all(part is not None for part in parts):
            atoms = np.concatenate([part for part in parts if part is not None])
            walk.mark(node.outputs[0], Channels(axis=axis, rank=rank, atoms=atoms))
            return
    elif len(axes) == 1 and len(marked) == len(node.inputs):  # side by side along another axis
        first = marked[0].atoms
        for other in marked[1:]:
            walk.join(first, other.atoms, f"they meet others at {node.name!r} ({node.op}) that stay")
        walk.mark(node.outputs[0], marked[0])
        return
    walk.fix_reads(node)


def _atoms_along(walk: Walk, tensor: Tensor, axis: int) -> Atoms | None:
    """The channels of an input of Concat, those that stay anyway included; None where it is not known how many."""
    if (found := walk.of(tensor)) is not None:
        return found.atoms
    shape = tensor.shape if is_constant(tensor) else walk.shape(tensor)
    size = None if shape is None else shape[axis]
    return None if size is None else np.full(size, FIXED, np.int64)


def _split(walk: Walk, node: Node) -> None:
    given = _given(walk, node)
    axis = int(node.attrs.get("axis", 0)) % given.rank
    if axis != given.axis:
        for output in node.outputs:
            walk.mark(output, given)
        return
    count = len(given.atoms)
    sizes = _integers(node, 1, "split")
    if sizes is None:
        each = -(-count // len(node.outputs))
        sizes = [min(each, count - each * i) for i in range(len(node.outputs))]
    if _is_computed(node, 1) or min(sizes) < 1 or sum(sizes) != count:
        walk.fix_reads(node)
        return
    parts = np.split(given.atoms, np.cumsum(sizes)[:-1])
    for output, part in zip(node.outputs, parts, strict=True):
        walk.mark(output, replace(given, atoms=part))

    def edit(kept: Kept) -> None:
        left = [int(kept(part).sum()) for part in parts]
        node.attrs.pop("num_outputs", None)
        if walk.graph.opset >= 13:
            _set_integers(walk, node, 1, left)
        else:
            node.attrs["split"] = left

    walk.edits.append(edit)


def _slice(walk: Walk, node: Node) -> None:
    given = _given(walk, node)
    starts, ends = _integers(node, 1, "starts"), _integers(node, 2, "ends")
    if starts is None or ends is None or _is_computed(node, 3) or _is_computed(node, 4):
        walk.fix_reads(node)
        return
    axes = [a % given.rank for a in _integers(node, 3, "axes") or range(len(starts))]
    if given.axis not in axes:
        walk.mark(node.outputs[0], given)
        return
    place, steps, count = axes.index(given.axis), _integers(node, 4, "steps"), len(given.atoms)
    first, last, _ = slice(starts[place], ends[place]).indices(count)
    if (steps is not None and steps[place] != 1) or first >= last:
        walk.fix_reads(node)
        return
    walk.mark(node.outputs[0], replace(given, atoms=given.atoms[first:last]))

    def edit(kept: Kept) -> None:
        stays = kept(given.atoms)
        for index, name, values, bound in ((1, "starts", starts, first), (2, "ends", ends, last)):
            new = [*values[:place], int(stays[:bound].sum()), *values[place + 1 :]]
            if has_input(node, index):
                _set_integers(walk, node, index, new)
            else:
                node.attrs[name] = new

    walk.edits.append(edit)


def _flatten(walk: Walk, node: Node) -> None:
    given = _given(walk, node)
    shape = walk.shape(node.inputs[0])
    behind = None if shape is None else shape[given.axis + 1 :]
    if int(node.attrs.get("axis", 1)) % given.rank != 1 or given.axis != 1 or behind is None or None in behind:
        walk.fix_reads(node)
        return
    times = int(np.prod([size for size in behind if size is not None], dtype=np.int64))
    walk.mark(node.outputs[0], Channels(axis=1, rank=2, atoms=np.repeat(given.atoms, times)))


def _reshape(walk: Walk, node: Node) -> None:
    """What lies before the channels stays; the channels stay, or are joined with axes behind them."""
    given = _given(walk, node)
    before, after = walk.shape(node.inputs[0]), walk.shape(node.outputs[0])
    axis, count = given.axis, len(given.atoms)
    if before is None or after is None or len(after) <= axis or not _same_front(before[:axis], after[:axis]):
        walk.fix_reads(node)
        return
    joined, size, times = axis + 1, after[axis], 1
    while joined < len(before) and size is not None and count * times < size and before[joined] is not None:
        times, joined = times * (before[joined] or 1), joined + 1
    wanted = _wanted_size(node, axis)
    if size != count * times or wanted is None:
        walk.fix_reads(node)
        return
    atoms = np.repeat(given.atoms, times)
    if wanted > 0 or (wanted == 0 and times > 1):
        walk.edits.append(lambda kept: _set_size(walk, node, axis, int(kept(atoms).sum())))
    walk.mark(node.outputs[0], Channels(axis=axis, rank=len(after), atoms=atoms))


def _same_front(before: Sequence[int | None], after: Sequence[int | None]) -> bool:
    """Whether the axes before the channels are untouched: at most the batch is not known."""
    unknown = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a is None or b is None]
    return unknown in ([], [0]) and all(a == b for a, b in zip(before, after, strict=True) if None not in (a, b))


def _wanted_size(node: Node, axis: int) -> int | None:
    """The number for an axis in the shape that Reshape asks for; None where it is computed."""
    if node.attrs.get("allowzero", 0):
        return None
    sizes = _integers(node, 1, "shape")
    if sizes is not None:
        return sizes[axis]
    joined = producer(node.inputs[1]) if has_input(node, 1) else None
    if joined is None or joined.op != "Concat" or len(joined.inputs) <= axis:
        return None
    parts = [constant(tensor) for tensor in joined.inputs]
    part = parts[axis]
    if part is None or part.size != 1 or any(other is not None and other.size != 1 for other in parts):
        return None
    return -1 if int(part.ravel()[0]) == -1 else None


def _set_size(walk: Walk, node: Node, axis: int, size: int) -> None:
    sizes = _integers(node, 1, "shape")
    assert sizes is not None, "checked when the node was visited"
    sizes[axis] = size
    if has_input(node, 1):
        _set_integers(walk, node, 1, sizes)
    else:
        node.attrs["shape"] = sizes


def _squeeze(walk: Walk, node: Node) -> None:
    given, axes = _given(walk, node), _integers(node, 1, "axes")
    if axes is None:
        walk.fix_reads(node)
        return
    gone = {axis % given.rank for axis in axes}
    axis = given.axis - sum(other < given.axis for other in gone)
    walk.mark(node.outputs[0], replace(given, axis=axis, rank=given.rank - len(gone)))


def _unsqueeze(walk: Walk, node: Node) -> None:
    given, axes = _given(walk, node), _integers(node, 1, "axes")
    if axes is None:
        walk.fix_reads(node)
        return
    rank = given.rank + len(axes)
    new = {axis % rank for axis in axes}
    old = [axis for axis in range(rank) if axis not in new]
    walk.mark(node.outputs[0], replace(given, axis=old[given.axis], rank=rank))


def _transpose(walk: Walk, node: Node) -> None:
    given = _given(walk, node)
    perm = [int(axis) for axis in node.attrs.get("perm", reversed(range(given.rank)))]
    walk.mark(node.outputs[0], replace(given, axis=perm.index(given.axis)))


def _reduce(walk: Walk, node: Node) -> None:
    given, axes = _given(walk, node), _integers(node, 1, "axes")
    gone = {axis % given.rank for axis in axes or ()}
    if not gone or given.axis in gone:
        walk.fix_reads(node)
        return
    if int(node.attrs.get("keepdims", 1)):
        walk.mark(node.outputs[0], given)
        return
    axis = given.axis - sum(other < given.axis for other in gone)
    walk.mark(node.outputs[0], replace(given, axis=axis, rank=given.rank - len(gone)))


def _pad(walk: Walk, node: Node) -> None:
    given, pads = _given(walk, node), _integers(node, 1, "pads")
    axes = _integers(node, 3, "axes")
    axes = list(range(given.rank)) if axes is None else [axis % given.rank for axis in axes]
    if pads is None or _is_computed(node, 3) or _touches(given.axis, axes, pads):
        walk.fix_reads(node)
        return
    walk.mark(node.outputs[0], given)


def _touches(axis: int, axes: Sequence[int], pads: Sequence[int]) -> bool:
    return axis in axes and any(pads[place] for place in (axes.index(axis), axes.index(axis) + len(axes)))


def _resize(walk: Walk, node: Node) -> None:
    """Scaled along other axes, by constant factors or to constant sizes."""
    given = _given(walk, node)
    scales: Array | None = constant_input(node, 1 if node.op == "Upsample" else 2)
    if scales is None and "scales" in node.attrs:
        scales = np.asarray(node.attrs["scales"])
    sizes = constant_input(node, 3)
    if "axes" in node.attrs:
        walk.fix_reads(node)
    elif scales is not None and scales.size == given.rank and scales[given.axis] == 1:
        walk.mark(node.outputs[0], given)
    elif sizes is not None and sizes.size == given.rank and sizes[given.axis] == len(given.atoms):
        walk.edits.append(lambda kept: _set_resized(walk, node, sizes, given, kept))
        walk.mark(node.outputs[0], given)
    else:
        walk.fix_reads(node)


def _set_resized(walk: Walk, node: Node, sizes: Array, given: Channels, kept: Kept) -> None:
    new = [int(size) for size in sizes]
    new[given.axis] = int(kept(given.atoms).sum())
    _set_integers(walk, node, 3, new)


def _shape(walk: Walk, node: Node) -> None:
    """Sizes of other axes may be asked for; who asks for that of the channels needs all of them."""
    given = _given(walk, node)
    for user in node.outputs[0].outputs:
        wanted = constant_input(user, 1) if user.op == "Gather" else None
        if wanted is None or user.inputs[0] is not node.outputs[0] or _asks(wanted, given) or node.attrs:
            walk.fix_reads(node)
            return
    if walk.graph.is_output(node.outputs[0]):
        walk.fix_reads(node)


def _asks(indices: Array, given: Channels) -> bool:
    return any(int(index) % given.rank == given.axis for index in indices.ravel())


SHAPE_RULES: Mapping[str, Rule] = {
    "Concat": _concat,
    "Flatten": _flatten,
    "Pad": _pad,
    **dict.fromkeys(_REDUCTIONS, _reduce),
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
    "Upsample": _resize,
}
