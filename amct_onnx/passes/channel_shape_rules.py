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
    """What lies before the channels stays, but for axes of 1; these stay, or are joined with axes behind them."""
    given = _given(walk, node)
    before = walk.shape(node.inputs[0])
    after = walk.shape(node.outputs[0]) or _joined_shape(node, given.axis, before)
    place = None if before is None or after is None else _place(given, before, after)
    wanted = None if place is None else _wanted_size(node, place[0])
    if after is None or place is None or wanted is None:
        walk.fix_reads(node)
        return
    axis, times = place
    atoms = np.repeat(given.atoms, times)
    if wanted > 0 or (wanted == 0 and place != (given.axis, 1)):
        walk.edits.append(lambda kept: _set_size(walk, node, axis, int(kept(atoms).sum())))
    walk.mark(node.outputs[0], Channels(axis=axis, rank=len(after), atoms=atoms))


def _place(given: Channels, before: Sequence[int | None], after: Sequence[int | None]) -> tuple[int, int] | None:
    """The axis that holds the channels afterwards, and how many places each has on it."""
    for axis, size in enumerate(after):
        if size is None or size == 1 or not _same_front(before[: given.axis], after[:axis]):
            continue
        times = 1
        for joined in before[given.axis + 1 :]:
            if len(given.atoms) * times >= size or joined is None:
                break
            times *= joined
        if size == len(given.atoms) * times:
            return axis, times
    return None


def _same_front(before: Sequence[int | None], after: Sequence[int | None]) -> bool:
    """Whether two beginnings of shapes are the same but for axes of 1; at most the batch is not known."""
    first, second = ([size for size in sizes if size != 1] for sizes in (before, after))
    return first == second and None not in first[1:]


def _joined(node: Node) -> Node | None:
    """The Concat of single numbers that computes the shape which Reshape asks for; None where there is no such."""
    joined = producer(node.inputs[1]) if has_input(node, 1) else None
    if joined is None or joined.op != "Concat" or len(joined.outputs[0].outputs) != 1:
        return None
    sizes = [constant(tensor) for tensor in joined.inputs]
    return joined if all(size is None or size.size == 1 for size in sizes) else None


def _joined_shape(node: Node, axis: int, before: tuple[int | None, ...] | None) -> tuple[int | None, ...] | None:
    """The shape that such a Concat asks for, which leaves all axes behind the channels to the last one."""
    joined = _joined(node)
    if joined is None or before is None or len(joined.inputs) != axis + 1 or None in before[axis:]:
        return None
    return (*before[:axis], int(np.prod([size or 0 for size in before[axis:]], dtype=np.int64)))


def _wanted_size(node: Node, axis: int) -> int | None:
    """The number for an axis in the shape that Reshape asks for; None where it is computed."""
    if node.attrs.get("allowzero", 0):
        return None
    sizes = _integers(node, 1, "shape")
    if sizes is not None:
        return sizes[axis]
    joined = _joined(node)
    size = None if joined is None or len(joined.inputs) <= axis else constant(joined.inputs[axis])
    return None if size is None else int(size.ravel()[0])


def _set_size(walk: Walk, node: Node, axis: int, size: int) -> None:
    sizes, joined = _integers(node, 1, "shape"), _joined(node)
    if joined is not None:
        name = unique_name(f"{joined.name}.{axis}", walk.graph.tensor_names())
        set_input(joined, axis, walk.graph.new_constant(name, np.array([size], np.int64)))
        return
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
    """Constants in front of the channels and behind them stay."""
    given, pads = _given(walk, node), _integers(node, 1, "pads")
    axes = _integers(node, 3, "axes")
    axes = list(range(given.rank)) if axes is None else [axis % given.rank for axis in axes]
    if pads is None or _is_computed(node, 3):
        walk.fix_reads(node)
        return
    place = axes.index(given.axis) if given.axis in axes else None
    around = (0, 0) if place is None else (pads[place], pads[place + len(axes)])
    if min(around) < 0 or (any(around) and node.attrs.get("mode", "constant") != "constant"):
        walk.fix_reads(node)
        return
    walk.mark(node.outputs[0], replace(given, atoms=np.pad(given.atoms, around, constant_values=FIXED)))


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
    if node.attrs or _asks(walk, node.outputs[0], _given(walk, node)):
        walk.fix_reads(node)


def _asks(walk: Walk, sizes: Tensor, given: Channels) -> bool:
    """Whether anything that reads the sizes looks at more than those of other axes."""
    if walk.graph.is_output(sizes):
        return True
    for user in sizes.outputs:
        if user.op == "Cast":
            if _asks(walk, user.outputs[0], given):
                return True
            continue
        first, second = constant_input(user, 1), constant_input(user, 2)
        if user.op == "Gather" and first is not None and user.inputs[0] is sizes:
            places = [int(index) % given.rank for index in first.ravel()]
        elif user.op == "Slice" and first is not None and second is not None and not _is_computed(user, 4):
            steps = constant_input(user, 4)
            step = 1 if steps is None else int(steps[0])
            places = list(range(given.rank))[slice(int(first[0]), int(second[0]), step)]
        else:
            return True
        if given.axis in places:
            return True
    return False


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
