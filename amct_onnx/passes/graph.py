"""The graph that passes rewrite: onnx-graphsurgeon's, behind types and without its traps.

This is the only module that touches onnx-graphsurgeon. What it shields the passes from: the library is untyped,
slice-assignment on a node's inputs corrupts the links, equality of nodes and tensors is by content and name, empty
list attributes cannot be exported, sorting is recursive, and importing renames tensors of the caller's own model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, MutableSequence
from itertools import chain
from typing import Any, Protocol, cast

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx_graphsurgeon.logger import G_LOGGER

from amct_onnx.passes.protos import (
    HIDDEN,
    all_graphs,
    check_graph,
    drop_untensorlike,
    drop_unused_opsets,
    hide_what_is_lost,
    make_dense,
    show_what_was_hidden,
)
from amct_onnx.passes.weights import (
    ComputedArray,
    LightModel,
    StoredArray,
    Weight,
    detached,
    loaded,
    stub,
    stub_for,
)

Array = NDArray[Any]

RANDOM = frozenset({"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike"})
RANDOM |= {"Multinomial", "Bernoulli"}
"""Operators whose result differs from run to run, unless they have a seed."""

_DEFAULT_DOMAINS = (None, "", "ai.onnx")

_BEHIND = 32
"""How far behind the last place a node is looked for first."""

G_LOGGER.severity = G_LOGGER.CRITICAL
logging.getLogger("ONNX_GRAPHSURGEON").setLevel(logging.CRITICAL)


class Tensor(Protocol):
    """A value that flows between nodes, or a constant. Compare with `is`: equality goes by name."""

    name: str
    dtype: Any
    shape: Any
    inputs: MutableSequence[Node]
    outputs: MutableSequence[Node]


class Node(Protocol):
    """An operation. Compare with `is`. An omitted optional input is a tensor with an empty name."""

    op: str
    name: str
    domain: str | None
    attrs: dict[str, Any]
    inputs: MutableSequence[Tensor]
    outputs: MutableSequence[Tensor]


class Graph:
    """The main graph of a model: nodes in topological order, linked both ways.

    Bodies of If, Loop and Scan stay inside their node's attributes; their uses of outer tensors are linked too.
    """

    def __init__(self, inner: Any, model: onnx.ModelProto) -> None:
        self._inner = inner
        self._frame = model
        self._near = 0  # where a node was found last: rewrites go through the graph from node to node

    @classmethod
    def of_model(cls, source: onnx.ModelProto | LightModel) -> Graph:
        """Import a model, which stays untouched.

        Raises:
            ModelError: the graph uses a tensor that nothing produces, or produces one twice.
        """
        light = detached(source)
        model = light.proto
        check_graph(model.graph)
        private = onnx.ModelProto()
        private.CopyFrom(model)
        for function in private.functions:
            hide_what_is_lost(function.node)
        for proto in all_graphs(private.graph):
            hide_what_is_lost(proto.node)
            drop_untensorlike(proto)
            make_dense(proto)
        frame = onnx.ModelProto()
        for field in ("ir_version", "producer_name", "producer_version", "domain", "model_version", "doc_string"):
            setattr(frame, field, getattr(model, field))
        frame.metadata_props.extend(model.metadata_props)
        frame.opset_import.extend(model.opset_import)
        # Before version 4, initializers had to be listed as inputs, which they are not any more.
        frame.ir_version = max(frame.ir_version, 4)
        frame.graph.metadata_props.extend(model.graph.metadata_props)
        frame.graph.input.extend(model.graph.input)
        frame.graph.output.extend(model.graph.output)
        inner = gs.import_onnx(private)
        for name, tensor in inner.tensors().items():
            if name in light.weights and isinstance(tensor, gs.Constant):
                weight = light.weights[name]
                tensor.values = weight if isinstance(weight, np.ndarray) else _Elsewhere(name, weight)
        return cls(inner, frame)

    def to_model(self) -> onnx.ModelProto:
        """Export as one message, with the same IR version, operator sets and metadata."""
        return self.to_light().whole()

    def to_light(self) -> LightModel:
        """Export as a model that shares the large weights with this graph, without operator sets that no node uses."""
        exported, weights = _export_light(self._inner, self._frame)
        for function in exported.functions:
            show_what_was_hidden(function.node)
        for proto in all_graphs(exported.graph):
            show_what_was_hidden(proto.node)
        frame = self._frame
        for field in ("ir_version", "producer_name", "producer_version", "domain", "model_version", "doc_string"):
            setattr(exported, field, getattr(frame, field))
        drop_unused_opsets(exported)
        exported.metadata_props.extend(frame.metadata_props)
        exported.graph.metadata_props.extend(frame.graph.metadata_props)
        for ours, original in ((exported.graph.input, frame.graph.input), (exported.graph.output, frame.graph.output)):
            known = {value.name: value for value in original}
            for value in ours:
                if value.name in known:
                    value.CopyFrom(known[value.name])
        return LightModel(proto=exported, weights=weights)

    def to_skeleton(self, small: int) -> onnx.ModelProto:
        """Export with every initializer above `small` bytes turned into an input: shapes without the weight."""
        skeleton = self.copy()
        for tensor in skeleton._inner.tensors().values():
            if isinstance(tensor, gs.Constant) and byte_count(tensor) > small:
                variable = tensor.to_variable(dtype=tensor.dtype, shape=tensor.shape)
                variable.type = "tensor_type"
                skeleton._inner.inputs.append(variable)
        return skeleton.to_light().proto

    def cut_out(self, nodes: Iterable[Node], outputs: Iterable[Tensor]) -> LightModel:
        """A model of some nodes that depend on initializers alone, with `outputs` as its outputs."""
        inner = gs.Graph(nodes=list(nodes), outputs=list(outputs), opset=self.opset)
        model, weights = _export_light(inner, self._frame)
        model.ir_version = self._frame.ir_version
        show_what_was_hidden(model.graph.node)
        return LightModel(proto=model, weights=weights)

    def copy(self) -> Graph:
        """An independent graph over the same constant arrays."""
        inner = self._inner.copy()
        originals = self._inner.tensors()
        for name, tensor in inner.tensors().items():
            kind = getattr(originals.get(name), "type", None)
            if kind is not None and isinstance(tensor, gs.Variable):
                tensor.type = kind
        return Graph(inner, self._frame)

    @property
    def opset(self) -> int:
        """Version of the default operator set."""
        return int(self._inner.opset)

    @property
    def nodes(self) -> list[Node]:
        """The nodes of the main graph, in topological order."""
        return cast("list[Node]", self._inner.nodes)

    @property
    def inputs(self) -> list[Tensor]:
        """What the caller feeds."""
        return cast("list[Tensor]", self._inner.inputs)

    @property
    def outputs(self) -> list[Tensor]:
        """What the caller gets."""
        return cast("list[Tensor]", self._inner.outputs)

    def node_names(self) -> set[str]:
        """The name of every node of the main graph."""
        return {node.name for node in self.nodes}

    def tensor_names(self) -> set[str]:
        """Every tensor name in use, bodies included."""
        names = set(self._inner.tensors())
        for body in self._inner.subgraphs(recursive=True):
            names.update(body.tensors())
        return names

    def body_nodes(self) -> Iterator[tuple[Node, Node]]:
        """Every node inside a body, with the node of the main graph that holds it."""
        for holder in self._inner.nodes:
            for body in holder.subgraphs(recursive=True):
                for node in body.nodes:
                    yield cast(Node, holder), cast(Node, node)

    def is_output(self, tensor: Tensor) -> bool:
        """Whether `tensor` is an output of the model."""
        return any(out is tensor for out in self.outputs)

    def new_constant(self, name: str, values: Array | ComputedArray) -> Tensor:
        """An initializer; `name` must be free."""
        if isinstance(values, ComputedArray):
            if stub_for(name, values) is not None:
                return cast(Tensor, gs.Constant(name, _Elsewhere(name, values)))
            values = values.load()
        return cast(Tensor, gs.Constant(name, np.asarray(values, order="C")))

    def new_input(self, name: str, dtype: Any, shape: Iterable[int | str]) -> Tensor:
        """One more tensor that the caller feeds; `name` must be free, and a text in `shape` is a free axis."""
        tensor = gs.Variable(name, dtype=dtype, shape=list(shape))
        self._inner.inputs.append(tensor)
        return cast(Tensor, tensor)

    def new_tensor(self, name: str) -> Tensor:
        """A tensor that a node will produce; `name` must be free."""
        return cast(Tensor, gs.Variable(name))

    def insert(
        self,
        op: str,
        name: str,
        inputs: Iterable[Tensor],
        output: Tensor,
        attrs: dict[str, Any] | None = None,
        *,
        domain: str | None = None,
        before: Node | None = None,
        after: Node | None = None,
    ) -> Node:
        """A new node, of the default domain unless told otherwise, placed next to `before` or `after`, or else first.

        Another domain must be imported, see `import_domain`.
        """
        node = gs.Node(op=op, name=name, attrs=attrs or {}, inputs=list(inputs), outputs=[output], domain=domain)
        anchor = before if before is not None else after
        position = 0 if anchor is None else self._position(anchor) + (after is not None)
        self.nodes.insert(position, cast(Node, node))
        return cast(Node, node)

    def import_domain(self, domain: str, version: int) -> None:
        """Let nodes come from another set of operators; one that the model has already keeps its version."""
        if all(entry.domain != domain for entry in self._frame.opset_import):
            frame = onnx.ModelProto()
            frame.CopyFrom(self._frame)  # copies of this graph have it too
            frame.opset_import.append(onnx.helper.make_opsetid(domain, version))
            self._frame = frame

    def remove(self, nodes: Iterable[Node]) -> None:
        """Take nodes out and unlink them."""
        gone = {id(node): node for node in nodes}
        if len(gone) == 1:
            del self.nodes[self._position(*gone.values())]
        else:
            self._inner.nodes = [node for node in self._inner.nodes if id(node) not in gone]
        for node in gone.values():
            while node.inputs:
                node.inputs.pop()
            while node.outputs:
                node.outputs.pop()

    def replace_uses(self, old: Tensor, new: Tensor, *, keep: Node | None = None) -> None:
        """Let every consumer of `old`, except `keep`, and the model's outputs read `new` instead."""
        for node in list(old.outputs):
            if node is not keep:
                for index, tensor in enumerate(node.inputs):
                    if tensor is old:
                        node.inputs[index] = new
        for index, tensor in enumerate(self.outputs):
            if tensor is old:
                self.outputs[index] = new

    def drop_unreached(self) -> list[Node]:
        """Remove the nodes that lead to no output; returns them."""
        wanted = {id(tensor) for tensor in self.outputs}
        kept, gone = [], []
        for node in reversed(self.nodes):
            if any(id(out) in wanted for out in node.outputs):
                kept.append(node)
                wanted.update(id(tensor) for tensor in reads(node))
            else:
                gone.append(node)
        self.remove(gone)
        return gone

    def _position(self, node: Node) -> int:
        nodes, start = self.nodes, max(0, self._near - _BEHIND)
        for index in chain(range(start, len(nodes)), range(min(start, len(nodes)))):
            if nodes[index] is node:
                self._near = index
                return index
        raise ValueError(f"node {node.name!r} is not in the graph")


class _Elsewhere(gs.ir.tensor.LazyValues):  # type: ignore[misc]
    """A constant in a file or yet to be computed; unlike the library's own, it is loaded each time it is asked for."""

    def __init__(self, name: str, weight: StoredArray | ComputedArray) -> None:
        super().__init__(stub(name, onnx.helper.np_dtype_to_tensor_dtype(weight.dtype), weight.shape))
        self.weight = weight


def _export_light(inner: Any, frame: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, Weight]]:
    """Export without the large constants, and those beside it."""
    weights: dict[str, Weight] = {}
    taken_out = []
    in_bodies = {name for body in inner.subgraphs(recursive=True) for name in body.tensors()}
    for name, tensor in inner.tensors().items():
        weight = weight_behind(tensor)
        if weight is None or (name in in_bodies and isinstance(weight, np.ndarray)):
            continue
        found = None if name in in_bodies else stub_for(name, weight)
        if found is None and isinstance(weight, np.ndarray):
            continue
        taken_out.append((tensor, tensor._values))
        tensor.values = loaded(weight) if found is None else gs.ir.tensor.LazyValues(found)
        if found is not None:
            weights[name] = weight
    try:
        exported = gs.export_onnx(inner, do_type_check=False, opset_imports=list(frame.opset_import))
    finally:
        for tensor, values in taken_out:
            tensor.values = values
    return cast(onnx.ModelProto, exported), weights


def nodes_of(graph: Graph, *ops: str) -> list[Node]:
    """The nodes of the main graph with one of these standard operators, as a list that survives edits."""
    return [node for node in graph.nodes if node.op in ops and is_standard(node)]


def is_standard(node: Node) -> bool:
    """Whether the node belongs to the default operator set."""
    return node.domain in _DEFAULT_DOMAINS


def constant(tensor: Tensor) -> Array | None:
    """The values of an initializer, or None for anything computed."""
    if not isinstance(tensor, gs.Constant):
        return None
    if isinstance(tensor._values, _Elsewhere):
        return tensor._values.weight.load()
    return cast(Array, tensor.values)


def weight_behind(tensor: Tensor) -> Weight | None:
    """Where the values of an initializer are; None for anything computed, and for what the library has not read yet."""
    if not isinstance(tensor, gs.Constant):
        return None
    if isinstance(tensor._values, _Elsewhere):
        return tensor._values.weight
    return tensor._values if isinstance(tensor._values, np.ndarray) else None


def derived(tensor: Tensor, dtype: Any, shape: Iterable[int], compute: Callable[[Array], Array]) -> ComputedArray:
    """An array that is computed from an initializer when it is needed, as it is now."""
    values = constant(tensor) if weight_behind(tensor) is None else None
    weight = values if values is not None else weight_behind(tensor)
    assert weight is not None, f"{tensor.name} is no initializer"
    return ComputedArray(dtype=np.dtype(dtype), shape=tuple(shape), compute=lambda: compute(loaded(weight)))


def constant_input(node: Node, index: int) -> Array | None:
    """The values of input `index` where it is an initializer, else None."""
    return constant(node.inputs[index]) if has_input(node, index) else None


def dense_value(node: Node) -> Array | None:
    """The values of a Constant node; None for the rare forms that stay nodes (strings, sparse values)."""
    (attribute, value), *_ = node.attrs.items()
    if attribute == "value":
        return None if type_name(value) == "object" else constant(value)
    if isinstance(value, str) and value.startswith(HIDDEN):
        value = []
    dtype = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    return np.asarray(value, dtype=dtype[attribute]) if attribute in dtype else None


def is_constant(tensor: Tensor) -> bool:
    """Whether `tensor` is an initializer; does not load its values."""
    return isinstance(tensor, gs.Constant)


def set_constant(tensor: Tensor, values: Array) -> None:
    """Give an initializer new values; every consumer sees them."""
    cast(Any, tensor).values = np.asarray(values, order="C")


def type_name(tensor: Tensor) -> str:
    """The element type of an initializer, as numpy names it, or as ONNX does where numpy has none."""
    if isinstance(tensor.dtype, int):
        return str(onnx.TensorProto.DataType.Name(tensor.dtype)).lower()
    return str(np.dtype(tensor.dtype).name)


def has_input(node: Node, index: int) -> bool:
    """Whether input `index` is present and not omitted."""
    return len(node.inputs) > index and node.inputs[index].name != ""


def producer(tensor: Tensor) -> Node | None:
    """The node that computes `tensor`; None for inputs of the model and initializers."""
    return tensor.inputs[0] if tensor.inputs else None


def sole_consumer(graph: Graph, tensor: Tensor) -> Node | None:
    """The one node that reads `tensor`, or None where there is none, more than one, or the model outputs it."""
    if graph.is_output(tensor) or len(tensor.outputs) != 1:
        return None
    node = tensor.outputs[0]
    return node if any(node is own for own in graph.nodes) else None


def reads(node: Node) -> Iterator[Tensor]:
    """Every tensor that the node reads, those that its bodies read from outside included."""
    yield from node.inputs
    for body in cast(Any, node).subgraphs(recursive=True):
        for inner in body.nodes:
            yield from inner.inputs
        yield from body.outputs


def has_body(node: Node) -> bool:
    """Whether the node holds other nodes, as If, Loop and Scan do."""
    return any(True for _ in cast(Any, node).subgraphs())


def set_input(node: Node, index: int, tensor: Tensor) -> None:
    """Let the node read `tensor` at `index`, which may be one past the end."""
    if index == len(node.inputs):
        node.inputs.append(tensor)
    else:
        node.inputs[index] = tensor


def take_over_output(graph: Graph, node: Node, new: Node, *, own_name: str) -> None:
    """Let `new`, which reads the node's output 0, stand for it: consumers and the model's outputs read `new`.

    Where the model outputs the node's tensor, `new` takes over its name and the node's own tensor becomes `own_name`.
    """
    old = node.outputs[0]
    result = new.outputs[0]
    if graph.is_output(old):
        result.name, old.name = old.name, own_name
        result.dtype, result.shape = old.dtype, old.shape
    graph.replace_uses(old, result, keep=new)
    old.dtype = old.shape = None


def unique_name(wanted: str, taken: set[str]) -> str:
    """`wanted`, or with the first free number behind it; the result is added to `taken`."""
    name, number = wanted, 1
    while name in taken:
        name, number = f"{wanted}_{number}", number + 1
    taken.add(name)
    return name


def byte_count(tensor: Tensor) -> int:
    """Size of an initializer in bytes; does not load its values."""
    # Element types that numpy does not have are given as their number in TensorProto; none is wider than 2 bytes.
    size = 2 if isinstance(tensor.dtype, int) else np.dtype(tensor.dtype).itemsize
    return int(np.prod(tensor.shape, dtype=np.int64)) * size
