"""Edits of a graph that is written out in other operators: chains of nodes with names and places of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto

from amct_onnx.passes.graph import Array, Graph, Node, Tensor, producer, unique_name


class Edits:
    """A graph with the names that are taken in it."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.names = graph.tensor_names()
        self.node_names = graph.node_names()

    def constant(self, name: str, values: Array) -> Tensor:
        """An initializer of about this name."""
        return self.graph.new_constant(self.name(name), values)

    def name(self, wanted: str) -> str:
        """A free name for a tensor."""
        return unique_name(wanted, self.names)

    def before(self, node: Node, value: Tensor | None = None) -> Chain:
        """A chain of new nodes in front of an old one, that begins with its input 0 unless told otherwise."""
        return Chain(self, node, node.inputs[0] if value is None else value)

    def stand_in(self, node: Node, chain: Chain) -> Tensor:
        """Let the end of a chain give what the node gave, under its name; returns that tensor."""
        result = node.outputs[0]
        last = producer(chain.value)
        assert last is not None
        result.dtype = result.shape = None
        self.graph.remove([node])
        last.outputs[0] = result
        chain.value = result
        return result

    def insert_behind(self, node: Node, op: str, *operands: Array, **attributes: Any) -> Node:
        """A new node between this one and its consumers, which takes over the tensor's name."""
        result = node.outputs[0]
        result.dtype = result.shape = None
        inner = self.graph.new_tensor(self.name(f"{result.name}.sum"))
        node.outputs[0] = inner
        constants = [self.constant(f"{node.name}.{op}", np.asarray(operand)) for operand in operands]
        name = unique_name(f"{node.name}.{op}", self.node_names)
        return self.graph.insert(op, name, [inner, *constants], result, attributes, after=node)


class Chain:
    """New nodes in front of an old one; `value` is the last tensor."""

    def __init__(self, edits: Edits, node: Node, value: Tensor) -> None:
        self._edits = edits
        self._node = node
        self.value = value

    def add(self, op: str, *operands: Any, **attributes: Any) -> Chain:
        """One node that reads the end, and operands: other tensors, or values that become constants."""
        edits, name = self._edits, f"{self._node.name}.{op}"
        inputs = [o if hasattr(o, "outputs") else edits.constant(name, np.asarray(o)) for o in operands]
        output = edits.graph.new_tensor(edits.name(f"{name}.output0"))
        own = unique_name(name, edits.node_names)
        edits.graph.insert(op, own, [self.value, *inputs], output, attributes, before=self._node)
        self.value = output
        return self

    def cast(self, to: int) -> Chain:
        """Another element type, as TensorProto numbers it."""
        return self.add("Cast", to=int(to))

    def half(self) -> Chain:
        """Round to float16."""
        return self.cast(TensorProto.FLOAT16).cast(TensorProto.FLOAT)
