"""Which channels of a graph can only be taken away together.

Every output channel of a layer that may lose some gets a number. The numbers travel with the tensors through the graph:
an addition makes two numbers one, a concatenation puts them side by side, a flattening repeats them. Where a channel
reaches a node that needs all of them, it becomes one with `FIXED` and stays. What reads or carries channels is noted as
a cut: an axis of an initializer that loses what its tensor loses.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from amct_onnx.passes.graph import Graph, Node, Tensor, reads
from amct_onnx.passes.shapes import TensorType

Atoms = NDArray[np.int64]
"""One number for each channel."""

Kept = Callable[[Atoms], NDArray[np.bool_]]
"""Numbers -> which of them stay."""

FIXED = 0


class Use(enum.Enum):
    """What an initializer is to the channels along one of its axes."""

    PRODUCES = enum.auto()
    READS = enum.auto()
    FOLLOWS = enum.auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Channels:
    """The channels of a tensor of `rank` axes, which lie along `axis`."""

    axis: int
    rank: int
    atoms: Atoms


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Input `index` of a node, an initializer whose `axis` holds these channels.

    group: of a convolution that reads them: the axis is a `group`-th as long.
    """

    node: Node
    index: int
    axis: int
    atoms: Atoms
    use: Use
    group: int = 1


class Walk:
    """What is known while the nodes are visited one after the other, in the order of the graph.

    Attributes:
        cuts: the axes that shrink.
        edits: attributes and shapes that must be written anew.
        parts: channels of which one at least must stay.
        blocks: channels that lie in equal blocks, and in how many: each must lose as many.
    """

    def __init__(self, graph: Graph, types: Mapping[str, TensorType], enabled: Collection[str]) -> None:
        self.graph, self.types, self.enabled = graph, types, enabled
        self.cuts: list[Cut] = []
        self.edits: list[Callable[[Kept], None]] = []
        self.parts: list[Atoms] = []
        self.blocks: list[tuple[Atoms, int]] = []
        self._channels: dict[int, Channels] = {}
        self._parent = [FIXED]
        self._why: dict[int, str] = {}

    def new_atoms(self, count: int) -> Atoms:
        """Numbers of channels that nothing ties to others yet."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        return np.arange(start, start + count, dtype=np.int64)

    def root(self, atom: int) -> int:
        """The number that stands for all that are one with `atom`."""
        last = self._last(atom)
        return FIXED if self._parent[last] == FIXED else last

    def _last(self, atom: int) -> int:
        """The number that stands for all that are one with `atom`, as long as `FIXED` is left aside."""
        while self._parent[atom] not in (atom, FIXED):
            atom = self._parent[atom]
        return atom

    def roots(self, atoms: Atoms) -> Atoms:
        """`root` of each."""
        return np.array([self.root(int(atom)) for atom in atoms], dtype=np.int64)

    def join(self, first: Atoms, second: Atoms, why: str) -> None:
        """Make channels one, pair by pair; `why` is kept for those that become one with `FIXED` by that."""
        for a, b in zip(first.tolist(), second.tolist(), strict=True):
            a, b = sorted((self.root(a), self.root(b)))
            if a != b:
                self._parent[b] = a
                if a == FIXED:
                    self._why[b] = why

    def fix(self, atoms: Atoms, why: str) -> None:
        """Keep these channels."""
        self.join(np.full(len(atoms), FIXED), atoms, why)

    def why_fixed(self, atoms: Atoms) -> str | None:
        """Why the first of these channels that stays does so; None where each may go."""
        return next((self._why.get(self._last(a), "") for a in atoms.tolist() if self.root(a) == FIXED), None)

    def of(self, tensor: Tensor) -> Channels | None:
        """The channels of a tensor; None where none of it may go."""
        return self._channels.get(id(tensor))

    def mark(self, tensor: Tensor, channels: Channels | None) -> None:
        """Note the channels of a tensor."""
        if channels is None:
            return
        self._channels[id(tensor)] = channels
        self.parts.append(channels.atoms)
        if self.graph.is_output(tensor):
            self.fix(channels.atoms, f"{tensor.name!r} is an output of the model")

    def fix_reads(self, node: Node) -> None:
        """Keep all that a node reads, also from inside of bodies."""
        for tensor in reads(node):
            if (channels := self.of(tensor)) is not None:
                self.fix(channels.atoms, f"{node.name!r} ({node.op}) needs all of its channels")

    def shape(self, tensor: Tensor) -> tuple[int | None, ...] | None:
        """The dimensions of a tensor, None for those not known; None where even the rank is not."""
        known = self.types.get(tensor.name)
        return None if known is None else known.shape

    def cut(self, node: Node, index: int, axis: int, atoms: Atoms, use: Use, group: int = 1) -> None:
        """Note that an axis of an initializer shrinks with these channels."""
        self.cuts.append(Cut(node=node, index=index, axis=axis, atoms=atoms, use=use, group=group))
