"""The graph that passes rewrite: onnx-graphsurgeon's, behind types and without its traps.

This is the only module that touches onnx-graphsurgeon. What it shields the passes from: the library is untyped,
slice-assignment on a node's inputs corrupts the links, equality of nodes and tensors is by content and name, empty
list attributes cannot be exported, sorting is recursive, and importing renames tensors of the caller's own model.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterable, Iterator, MutableSequence
from typing import Any, Protocol, cast

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import AttributeProto
from onnx_graphsurgeon.logger import G_LOGGER

from amct_onnx.errors import ModelError

Array = NDArray[Any]

RANDOM = frozenset({"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike"})
RANDOM |= {"Multinomial", "Bernoulli"}
"""Operators whose result differs from run to run, unless they have a seed."""

_DEFAULT_DOMAINS = (None, "", "ai.onnx")
_HIDDEN = "\0hidden:"
_NOTES = "\0notes"
_STRUCTURED = {AttributeProto.SPARSE_TENSOR, AttributeProto.SPARSE_TENSORS, AttributeProto.TYPE_PROTO}
_STRUCTURED |= {AttributeProto.TYPE_PROTOS, AttributeProto.TENSORS, AttributeProto.GRAPHS}
_LISTS = {AttributeProto.FLOATS: "floats", AttributeProto.INTS: "ints", AttributeProto.STRINGS: "strings"}

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

    @classmethod
    def of_model(cls, model: onnx.ModelProto) -> Graph:
        """Import `model`, which stays untouched.

        Raises:
            ModelError: the graph uses a tensor that nothing produces, or produces one twice.
        """
        _check_graph(model.graph)
        private = onnx.ModelProto()
        private.CopyFrom(model)
        for function in private.functions:
            _hide_what_is_lost(function.node)
        for proto in all_graphs(private.graph):
            _hide_what_is_lost(proto.node)
            _drop_untensorlike(proto)
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
        return cls(gs.import_onnx(private), frame)

    def to_model(self) -> onnx.ModelProto:
        """Export as a model of the same IR version, opsets and metadata."""
        exported = gs.export_onnx(self._inner, do_type_check=False, opset_imports=list(self._frame.opset_import))
        for function in exported.functions:
            _show_what_was_hidden(function.node)
        for proto in all_graphs(exported.graph):
            _show_what_was_hidden(proto.node)
        frame = self._frame
        for field in ("ir_version", "producer_name", "producer_version", "domain", "model_version", "doc_string"):
            setattr(exported, field, getattr(frame, field))
        exported.metadata_props.extend(frame.metadata_props)
        exported.graph.metadata_props.extend(frame.graph.metadata_props)
        for ours, original in ((exported.graph.input, frame.graph.input), (exported.graph.output, frame.graph.output)):
            known = {value.name: value for value in original}
            for value in ours:
                if value.name in known:
                    value.CopyFrom(known[value.name])
        return cast(onnx.ModelProto, exported)

    def to_skeleton(self, small: int) -> onnx.ModelProto:
        """Export with every initializer above `small` bytes turned into an input: shapes without the weight."""
        skeleton = self.copy()
        for tensor in skeleton._inner.tensors().values():
            if isinstance(tensor, gs.Constant) and byte_count(tensor) > small:
                variable = tensor.to_variable(dtype=tensor.dtype, shape=tensor.shape)
                variable.type = "tensor_type"
                skeleton._inner.inputs.append(variable)
        return skeleton.to_model()

    def cut_out(self, nodes: Iterable[Node], outputs: Iterable[Tensor]) -> onnx.ModelProto:
        """A model of some nodes that depend on initializers alone, with `outputs` as its outputs."""
        inner = gs.Graph(nodes=list(nodes), outputs=list(outputs), opset=self.opset)
        imports = list(self._frame.opset_import)
        model = cast(onnx.ModelProto, gs.export_onnx(inner, do_type_check=False, opset_imports=imports))
        model.ir_version = self._frame.ir_version
        _show_what_was_hidden(model.graph.node)
        return model

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

    def new_constant(self, name: str, values: Array) -> Tensor:
        """An initializer; `name` must be free."""
        return cast(Tensor, gs.Constant(name, np.asarray(values, order="C")))

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
        before: Node | None = None,
        after: Node | None = None,
    ) -> Node:
        """A new node of the default domain, placed next to `before` or `after`, or else first."""
        node = gs.Node(op=op, name=name, attrs=attrs or {}, inputs=list(inputs), outputs=[output])
        anchor = before if before is not None else after
        position = 0 if anchor is None else self._position(anchor) + (after is not None)
        self.nodes.insert(position, cast(Node, node))
        return cast(Node, node)

    def remove(self, nodes: Iterable[Node]) -> None:
        """Take nodes out and unlink them."""
        gone = {id(node): node for node in nodes}
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
        return next(index for index, other in enumerate(self.nodes) if other is node)


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
    return cast(Array, tensor.values)


def constant_input(node: Node, index: int) -> Array | None:
    """The values of input `index` where it is an initializer, else None."""
    return constant(node.inputs[index]) if has_input(node, index) else None


def dense_value(node: Node) -> Array | None:
    """The values of a Constant node; None for the rare forms that stay nodes (strings, sparse values)."""
    (attribute, value), *_ = node.attrs.items()
    if attribute == "value":
        return None if type_name(value) == "object" else constant(value)
    if isinstance(value, str) and value.startswith(_HIDDEN):
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


LARGEST_MESSAGE = 2_000_000_000
"""Bytes of weights above which a model is not handed over as one message: protobuf stops at 2 GB."""


def weight_bytes(model: onnx.ModelProto) -> int:
    """Size of all initializers and constants; protobuf itself cannot tell the size of a large model."""
    total = 0
    for graph in all_graphs(model.graph):
        constants = [a.t for node in graph.node for a in node.attribute if a.type == AttributeProto.TENSOR]
        total += sum(_tensor_bytes(tensor) for tensor in (*graph.initializer, *constants))
    return total


def _tensor_bytes(tensor: onnx.TensorProto) -> int:
    if tensor.HasField("raw_data"):
        return len(tensor.raw_data)
    return int(np.prod(tensor.dims, dtype=np.int64)) * 8


def all_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and the bodies of its control flow, at any depth."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from all_graphs(attribute.g)


def _check_graph(graph: onnx.GraphProto) -> None:
    for tensor in graph.initializer:
        if tensor.data_type not in onnx.TensorProto.DataType.values() or tensor.data_type == 0:
            raise ModelError(f"initializer {tensor.name!r} has the unknown element type {tensor.data_type}")
    known = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    known |= {tensor.values.name for tensor in graph.sparse_initializer}
    for node in graph.node:
        for name in node.input:
            if name and name not in known:
                raise ModelError(
                    f"node {node.name!r} ({node.op_type}) reads tensor {name!r}, which nothing before it produces"
                )
        for name in node.output:
            if name and name in known:
                raise ModelError(
                    f"tensor {name!r} is produced twice, the second time by node {node.name!r} ({node.op_type})"
                )
            known.add(name)
    for value in graph.output:
        if value.name not in known:
            raise ModelError(f"output {value.name!r} of the model is produced by no node")


def _is_importable(attribute: AttributeProto) -> bool:
    if attribute.ref_attr_name or attribute.type in _STRUCTURED:
        return bool(attribute.ref_attr_name)
    if attribute.type in _LISTS and not getattr(attribute, _LISTS[attribute.type]):
        return False
    strings = [attribute.s] if attribute.type == AttributeProto.STRING else list(attribute.strings)
    try:
        for value in strings:
            value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _hide_what_is_lost(nodes: Iterable[onnx.NodeProto]) -> None:
    """Pack what the library cannot carry into string attributes: empty lists, types, raw bytes, documentation."""
    for node in nodes:
        for attribute in node.attribute:
            if not _is_importable(attribute):
                attribute.CopyFrom(_packed(attribute.name, attribute.SerializeToString()))
        if node.doc_string or node.metadata_props:
            notes = onnx.NodeProto(doc_string=node.doc_string, metadata_props=node.metadata_props)
            node.attribute.append(_packed(_NOTES, notes.SerializeToString()))


def _packed(name: str, content: bytes) -> AttributeProto:
    return onnx.helper.make_attribute(name, _HIDDEN + base64.b64encode(content).decode())


def _show_what_was_hidden(nodes: Iterable[onnx.NodeProto]) -> None:
    hidden = _HIDDEN.encode()
    for node in nodes:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.STRING and attribute.s.startswith(hidden):
                content = base64.b64decode(attribute.s[len(hidden) :])
                if attribute.name == _NOTES:
                    node.MergeFromString(content)
                else:
                    attribute.ParseFromString(content)
        kept = [attribute for attribute in node.attribute if attribute.name != _NOTES]
        if len(kept) < len(node.attribute):
            del node.attribute[:]
            node.attribute.extend(kept)


def make_dense(graph: onnx.GraphProto) -> None:
    """Write sparse initializers out: the library reads them as float64, whatever they are."""
    for sparse in graph.sparse_initializer:
        values = onnx.numpy_helper.to_array(sparse.values)
        indices = onnx.numpy_helper.to_array(sparse.indices)
        dense = np.zeros(tuple(sparse.dims), values.dtype)
        dense[np.unravel_index(indices, dense.shape) if indices.ndim == 1 else tuple(indices.T)] = values
        graph.initializer.append(onnx.numpy_helper.from_array(dense, sparse.values.name))
    del graph.sparse_initializer[:]


def _drop_untensorlike(graph: onnx.GraphProto) -> None:
    """Forget the types of sequences, optionals and maps, which the library cannot export.

    Inside the graph they are hints only; those of the model's inputs and outputs are put back on export.
    """
    kept = [value for value in graph.value_info if value.type.HasField("tensor_type")]
    del graph.value_info[:]
    graph.value_info.extend(kept)
    for value in (*graph.input, *graph.output):
        if not value.type.HasField("tensor_type"):
            value.ClearField("type")
