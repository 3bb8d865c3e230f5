"""Groups of layers whose output channels can only be taken away together, and how a graph is made smaller by them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from amct_onnx.errors import ModelError
from amct_onnx.kernels.sparsity import balanced_choice, filter_norms
from amct_onnx.passes.channel_rules import visit
from amct_onnx.passes.channel_walk import FIXED, Atoms, Cut, Kept, Use, Walk
from amct_onnx.passes.graph import Array, Graph, Node, constant, is_standard, set_constant, set_input, unique_name
from amct_onnx.passes.layers import channels_first
from amct_onnx.passes.shapes import infer_types


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A layer of a group; `atoms` has the number of each of its output channels."""

    node: Node
    atoms: Atoms


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelGroup:
    """Layers that lose the same channels.

    producers: layers whose output channels these are.
    classes: one number for each channel that can go or stay as one, in the order of the first producer.
    free: which of them may go at all, [classes].
    blocks: equal blocks of the classes that must lose as many each.
    """

    producers: tuple[Member, ...]
    classes: Atoms
    free: NDArray[np.bool_]
    blocks: int = 1

    @property
    def names(self) -> tuple[str, ...]:
        """The producers."""
        return tuple(member.node.name for member in self.producers)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelMap:
    """What can be taken from a graph, and what goes with it.

    groups: in the order of the graph.
    cuts: all axes that shrink, with numbers that are the same for channels that are one.
    parts: channels of tensors, of each of which one at least stays.
    stays: layers that were to lose channels and have some that cannot go -> why.
    """

    graph: Graph
    groups: tuple[ChannelGroup, ...]
    cuts: tuple[Cut, ...]
    parts: tuple[Atoms, ...]
    stays: Mapping[str, str]
    edits: tuple[Callable[[Kept], None], ...] = field(repr=False)
    root: Callable[[Atoms], Atoms] = field(repr=False)

    def norms(self, group: ChannelGroup) -> NDArray[np.float64]:
        """The norm of each class: the mean over the filters of all producers that belong to it, [classes].

        Raises:
            ModelError: a weight holds NaN or inf.
        """
        total, count = self._collected(group, _norms)
        return np.asarray(total / np.maximum(count, 1))

    def sums(self, group: ChannelGroup, values: Mapping[str, Array]) -> NDArray[np.float64]:
        """The sum, for each class, of numbers of the filters that belong to it; `values`: producer -> [Cout]."""
        return self._collected(group, lambda node: values[node.name])[0]

    def _collected(
        self, group: ChannelGroup, of: Callable[[Node], Array]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        place = {int(c): i for i, c in enumerate(group.classes)}
        total, count = np.zeros(len(group.classes)), np.zeros(len(group.classes))
        for member in group.producers:
            for atom, value in zip(member.atoms.tolist(), of(member.node), strict=True):
                if atom in place:
                    total[place[atom]] += value
                    count[place[atom]] += 1
        return total, count

    def lowest(self, group: ChannelGroup, scores: Array, count: int) -> Atoms:
        """The `count` classes of the lowest scores, as many from each block; fewer where no more can go."""
        if group.blocks > 1:
            return group.classes[balanced_choice(scores, count // group.blocks * group.blocks, group.blocks)]
        parts = [set(part.tolist()) for part in self.parts if np.isin(part, group.classes).any()]
        return _spared(group, np.argsort(scores, kind="stable"), count, parts)

    def remove(self, removed: Collection[int]) -> None:
        """Take classes out of the graph, in place: initializers, attributes and shapes."""
        kept = self._kept(removed)
        for tensor in (tensor for node in self.graph.nodes for tensor in node.outputs):
            if not self.graph.is_output(tensor):
                tensor.dtype = tensor.shape = None  # sizes that the exporter noted do not hold any more
        for edit in self.edits:
            edit(kept)
        for (_, index), cuts in self._by_input().items():
            self._shrink(cuts[0].node, index, cuts, kept)

    @contextmanager
    def zeroed(self, removed: Collection[int]) -> Iterator[None]:
        """The graph as it is, but nothing reads the removed channels: their weights are zero inside of the block."""
        kept, before = self._kept(removed), []
        for cut in self.cuts:
            if cut.use is Use.READS and not (stays := kept(cut.atoms)).all():
                tensor = cut.node.inputs[cut.index]
                values = _values(cut.node, cut.index)
                before.append((tensor, values))
                set_constant(tensor, _masked(values, cut, stays))
        try:
            yield
        finally:
            for tensor, values in reversed(before):
                set_constant(tensor, values)

    def _kept(self, removed: Collection[int]) -> Kept:
        gone = np.array(sorted(removed), dtype=np.int64)
        return lambda atoms: ~np.isin(self.root(atoms), gone)

    def _by_input(self) -> dict[tuple[int, int], list[Cut]]:
        found: dict[tuple[int, int], list[Cut]] = {}
        for cut in self.cuts:
            found.setdefault((id(cut.node), cut.index), []).append(cut)
        return found

    def _shrink(self, node: Node, index: int, cuts: Iterable[Cut], kept: Kept) -> None:
        values = old = _values(node, index)
        for cut in sorted(cuts, key=lambda cut: cut.use is not Use.READS):  # groups are of the outputs before
            if not (stays := kept(cut.atoms)).all():
                values = _grouped(values, cut, stays) if cut.group > 1 else np.compress(stays, values, axis=cut.axis)
        if values is old:
            return
        tensor = node.inputs[index]
        is_shared = len(tensor.outputs) > 1 or self.graph.is_output(tensor)
        name = unique_name(f"{node.name}.{index}", self.graph.tensor_names()) if is_shared else tensor.name
        set_input(node, index, self.graph.new_constant(name, np.ascontiguousarray(values)))


def _norms(node: Node) -> Array:
    values = _values(node, 1)
    if not np.isfinite(values).all():
        kind = "NaN" if np.isnan(values).any() else "inf"
        raise ModelError(f"the weight {node.inputs[1].name!r} of layer {node.name!r} holds {kind}")
    return filter_norms(channels_first(node, values))


def _spared(group: ChannelGroup, order: Array, count: int, parts: list[set[int]]) -> Atoms:
    """The first classes in `order` that may go, without taking the last one from any part."""
    gone: list[int] = []
    for place in order.tolist():
        if len(gone) == count:
            break
        atom = int(group.classes[place])
        if group.free[place] and all(atom not in part or len(part) > 1 for part in parts):
            gone.append(atom)
            for part in parts:
                part.discard(atom)
    return np.array(sorted(gone), dtype=np.int64)


def _values(node: Node, index: int) -> Array:
    values = constant(node.inputs[index])
    assert values is not None, f"input {index} of {node.name} is no initializer"
    return values


def _grouped(values: Array, cut: Cut, stays: Array) -> Array:
    """The weight of a convolution in groups, whose inputs lose as many in each group: [Cout, Cin / group, ...]."""
    parts = np.split(values, cut.group, axis=0)
    blocks = stays.reshape(cut.group, -1)
    return np.concatenate([np.compress(block, part, axis=1) for part, block in zip(parts, blocks, strict=True)])


def _masked(values: Array, cut: Cut, stays: Array) -> Array:
    masked = values.copy()
    if cut.group > 1:
        for part, block in zip(np.split(masked, cut.group, axis=0), stays.reshape(cut.group, -1), strict=True):
            part[:, ~block] = 0
    else:
        np.moveaxis(masked, cut.axis, 0)[~stays] = 0
    return masked


def channel_map(graph: Graph, enabled: Collection[str], *, whole: Collection[str] = ()) -> ChannelMap:
    """What can be taken from a prepared graph.

    Args:
        graph: stays untouched; the result refers to it.
        enabled: layers that may lose output channels.
        whole: layers whose weight keeps its shape.
    """
    walk = Walk(graph, infer_types(graph), enabled)
    for node in graph.nodes:
        visit(walk, node, standard=is_standard(node) and node.name not in whole)
    _settle_blocks(walk)
    cuts = tuple(_resolved(walk, cut) for cut in walk.cuts)
    return ChannelMap(
        graph=graph,
        groups=_groups(walk, [cut for cut in cuts if cut.use is Use.PRODUCES]),
        cuts=cuts,
        parts=tuple(walk.roots(part) for part in walk.parts),
        stays=dict(_staying(walk)),
        edits=tuple(walk.edits),
        root=walk.roots,
    )


def _staying(walk: Walk) -> Iterator[tuple[str, str]]:
    for cut in walk.cuts:
        if cut.use is Use.PRODUCES and (why := walk.why_fixed(cut.atoms)) is not None:
            yield cut.node.name, why


def _resolved(walk: Walk, cut: Cut) -> Cut:
    return Cut(node=cut.node, index=cut.index, axis=cut.axis, atoms=walk.roots(cut.atoms), use=cut.use, group=cut.group)


def _settle_blocks(walk: Walk) -> None:
    """Keep the channels of convolutions in groups unless they are exactly those of one group, in its order."""
    changed = True
    while changed:
        changed = False
        groups = _groups(walk, [_resolved(walk, cut) for cut in walk.cuts if cut.use is Use.PRODUCES])
        for atoms, _ in walk.blocks:
            roots = walk.roots(atoms)
            if (roots == FIXED).all():
                continue
            group = next((g for g in groups if np.array_equal(g.classes, roots)), None)
            if group is None or not group.free.all() or len(roots) % group.blocks:
                walk.fix(atoms, "a convolution in groups needs all of its channels")
                changed = True


def _groups(walk: Walk, producers: list[Cut]) -> tuple[ChannelGroup, ...]:
    """Producers that have a channel in common are of one group."""
    together: list[tuple[set[int], list[Cut]]] = []
    for cut in producers:
        own = {int(atom) for atom in cut.atoms} - {FIXED}
        if not own:
            continue
        joined = [cut]
        for other in [entry for entry in together if entry[0] & own]:
            together.remove(other)
            own |= other[0]
            joined = [*other[1], *joined]
        together.append((own, joined))
    order = {id(cut): place for place, cut in enumerate(producers)}
    found = [_group(walk, sorted(cuts, key=lambda cut: order[id(cut)])) for _, cuts in together]
    return tuple(sorted(found, key=lambda group: order[id(_first(producers, group))]))


def _first(producers: list[Cut], group: ChannelGroup) -> Cut:
    return next(cut for cut in producers if cut.node is group.producers[0].node)


def _group(walk: Walk, cuts: list[Cut]) -> ChannelGroup:
    classes: dict[int, bool] = {}
    fixed = 0
    for cut in cuts:
        for atom in cut.atoms.tolist():
            if atom == FIXED:
                fixed += 1
            else:
                classes[atom] = True
    numbers = np.array([*classes, *([FIXED] * fixed)], dtype=np.int64)
    matching = [count for atoms, count in walk.blocks if np.array_equal(walk.roots(atoms), numbers)]
    return ChannelGroup(
        producers=tuple(Member(node=cut.node, atoms=cut.atoms) for cut in cuts),
        classes=numbers,
        free=numbers != FIXED,
        blocks=math.lcm(1, *matching),
    )
