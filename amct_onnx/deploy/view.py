"""A model as rules see it: nodes and values linked both ways, whatever the file holds."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from amct_onnx.deploy.tensors import text
from amct_onnx.errors import ModelError

_STANDARD = ("", "ai.onnx")
_MOST_INTS = 64


@dataclass(slots=True, eq=False, kw_only=True)
class Value:
    """A tensor of the graph.

    tensor: its data, where it is an initializer or what a Constant node gives.
    info: its declared type and shape.
    """

    name: str
    producer: Node | None = None
    tensor: TensorProto | None = None
    info: ValueInfoProto | None = None
    consumers: list[tuple[Node, int]] = field(default_factory=list)
    is_output: bool = False

    @property
    def shape(self) -> tuple[int | None, ...] | None:
        """The declared shape, None for an axis that is free; None where no shape is declared."""
        if self.tensor is not None:
            return tuple(self.tensor.dims[:_MOST_INTS])
        if self.info is None or not self.info.type.tensor_type.HasField("shape"):
            return None
        dims = self.info.type.tensor_type.shape.dim[:_MOST_INTS]
        return tuple(dim.dim_value if dim.dim_value > 0 else None for dim in dims)

    @property
    def elem_type(self) -> int:
        """The declared element type, 0 where none is declared."""
        if self.tensor is not None:
            return self.tensor.data_type
        return 0 if self.info is None else self.info.type.tensor_type.elem_type


@dataclass(slots=True, eq=False, kw_only=True)
class Node:
    """An operation; an omitted optional input or output is None.

    body: number of the graph that holds it, 0 for the main one.
    position: its number among all nodes.
    captures: outer values that its bodies read.
    """

    name: str
    op: str
    domain: str
    body: int
    position: int
    attributes: dict[str, AttributeProto]
    inputs: list[Value | None] = field(default_factory=list)
    outputs: list[Value | None] = field(default_factory=list)
    captures: list[Value] = field(default_factory=list)

    @property
    def label(self) -> str:
        """How findings name it."""
        return shown(self.name) if self.name else f"node {self.position} ({shown(self.op)})"

    @property
    def is_standard(self) -> bool:
        """Whether it belongs to the default operator set."""
        return self.domain in _STANDARD

    def input(self, index: int) -> Value | None:
        """The input at `index`, None where it is omitted."""
        return self.inputs[index] if index < len(self.inputs) else None

    def output(self) -> Value | None:
        """The first output."""
        return self.outputs[0] if self.outputs else None

    def integer(self, name: str, default: int) -> int | None:
        """An attribute of type INT, `default` where it is missing, None where it has another type."""
        found = self.attributes.get(name)
        if found is None:
            return default
        return int(found.i) if found.type == AttributeProto.INT else None

    def real(self, name: str, default: float | None = None) -> float | None:
        """An attribute of type FLOAT, `default` where it is missing, None where it has another type."""
        found = self.attributes.get(name)
        if found is None:
            return default
        return float(found.f) if found.type == AttributeProto.FLOAT else None

    def string(self, name: str, default: str) -> str | None:
        """An attribute of type STRING, `default` where it is missing, None where it has another type."""
        found = self.attributes.get(name)
        if found is None:
            return default
        return text(found.s) if found.type == AttributeProto.STRING else None

    def integers(self, name: str) -> tuple[int, ...] | None:
        """An attribute of type INTS, empty where it is missing; None for another type or one that is far too long."""
        found = self.attributes.get(name)
        if found is None:
            return ()
        usable = found.type == AttributeProto.INTS and len(found.ints) <= _MOST_INTS
        return tuple(found.ints) if usable else None


@dataclass(slots=True, eq=False)
class _Scope:
    graph: GraphProto
    parent: _Scope | None
    holder: Node | None
    values: dict[str, Value] = field(default_factory=dict)
    nodes: list[tuple[Node, NodeProto]] = field(default_factory=list)


@dataclass(slots=True, eq=False, kw_only=True)
class View:
    """Every node of a model, bodies of If, Loop and Scan included.

    nodes: each behind those that it depends on.
    inputs: what the caller feeds, initializers left out.
    tensors: every tensor in the file with a name for messages, those in attributes too.
    constants: initializers and the values of Constant nodes.
    opsets: domain and version of the operator sets.
    """

    nodes: list[Node]
    inputs: list[Value]
    tensors: list[tuple[str, TensorProto]]
    constants: list[Value]
    opsets: list[tuple[str, int]]

    def of_type(self, *ops: str) -> Iterator[Node]:
        """The nodes with one of these operators."""
        return (node for node in self.nodes if node.op in ops)


def view_of(model: ModelProto) -> View:
    """Link a model's nodes and values.

    Raises:
        ModelError: a tensor is read that nothing produces, or produced twice, or the graph runs in a circle.
    """
    tensors: list[tuple[str, TensorProto]] = []
    scopes = _scopes(model.graph, tensors)
    for scope in scopes:
        _define(scope, tensors)
    for scope in scopes:
        _link(scope)
    main = scopes[0]
    inputs = [main.values[text(value.name)] for value in main.graph.input if text(value.name) in main.values]
    return View(
        nodes=_in_order([node for scope in scopes for node, _ in scope.nodes]),
        inputs=[value for value in inputs if value.tensor is None],
        tensors=tensors,
        constants=[value for scope in scopes for value in scope.values.values() if value.tensor is not None],
        opsets=[(text(entry.domain), entry.version) for entry in model.opset_import],
    )


def shown(name: str) -> str:
    """A name as messages show it: no longer than a line, and nothing in it that a terminal obeys."""
    if not name.isprintable():
        name = name.encode("unicode_escape").decode()
    return name if len(name) <= 120 else f"{name[:100]}... ({len(name)} characters)"


def _scopes(graph: GraphProto, tensors: list[tuple[str, TensorProto]]) -> list[_Scope]:
    """The main graph and every body, outer ones first; no recursion, since bodies may be nested at will."""
    scopes = [_Scope(graph, None, None)]
    position = 0
    for body, scope in enumerate(scopes):
        for proto in scope.graph.node:
            attributes: dict[str, AttributeProto] = {}
            for attribute in proto.attribute:
                attributes.setdefault(text(attribute.name), attribute)
            node = Node(
                name=text(proto.name),
                op=text(proto.op_type),
                domain=text(proto.domain),
                body=body,
                position=position,
                attributes=attributes,
            )
            position += 1
            scope.nodes.append((node, proto))
            for attribute in attributes.values():
                graphs = [attribute.g] if attribute.HasField("g") else []
                scopes.extend(_Scope(inner, scope, node) for inner in (*graphs, *attribute.graphs))
                own = [attribute.t] if attribute.HasField("t") else []
                tensors.extend((node.label, tensor) for tensor in (*own, *attribute.tensors))
    return scopes


def _define(scope: _Scope, tensors: list[tuple[str, TensorProto]]) -> None:
    """Enter what the graph defines under its names."""
    graph, values = scope.graph, scope.values
    for info in graph.input:
        values[text(info.name)] = Value(name=text(info.name), info=info)
    given: set[str] = set()
    for tensor in graph.initializer:
        name = text(tensor.name)
        if name in given:
            raise ModelError(f"initializer {shown(name)!r} is given twice")
        given.add(name)
        values.setdefault(name, Value(name=name)).tensor = tensor
        tensors.append((shown(name), tensor))
    for sparse in graph.sparse_initializer:
        name = text(sparse.values.name)
        values.setdefault(name, Value(name=name))
        tensors.extend((shown(name), tensor) for tensor in (sparse.values, sparse.indices))
    for node, proto in scope.nodes:
        for raw in proto.output:
            _define_output(values, node, text(raw))
    for info in (*graph.value_info, *graph.output):
        known = values.get(text(info.name))
        if known is not None and known.info is None:
            known.info = info


def _define_output(values: dict[str, Value], node: Node, name: str) -> None:
    if not name:
        node.outputs.append(None)
        return
    if name in values:
        raise ModelError(f"tensor {shown(name)!r} is produced twice, the second time by {node.label!r}")
    value = values[name] = Value(name=name, producer=node)
    constant = node.attributes.get("value")
    if node.op == "Constant" and node.is_standard and constant is not None and constant.HasField("t"):
        value.tensor = constant.t
    node.outputs.append(value)


def _link(scope: _Scope) -> None:
    """Find the values that nodes read."""
    for node, proto in scope.nodes:
        for index, raw in enumerate(proto.input):
            value = _resolve(scope, text(raw)) if raw else None
            if raw and value is None:
                raise ModelError(f"{node.label!r} reads tensor {shown(text(raw))!r}, which nothing produces")
            node.inputs.append(value)
            if value is not None:
                value.consumers.append((node, index))
    for info in scope.graph.output:
        value = _resolve(scope, text(info.name))
        if value is None:
            raise ModelError(f"output {shown(text(info.name))!r} is produced by nothing")
        value.is_output = True


def _resolve(scope: _Scope, name: str) -> Value | None:
    """The value of this name in the graph or in those around it, whose holding nodes then depend on it."""
    found: _Scope | None = scope
    passed: list[Node] = []
    while found is not None:
        if name in found.values:
            for holder in passed:
                holder.captures.append(found.values[name])
            return found.values[name]
        if found.holder is not None:
            passed.append(found.holder)
        found = found.parent
    return None


def _in_order(nodes: list[Node]) -> list[Node]:
    """The nodes, each behind those that it depends on."""
    waiting: dict[int, int] = {}
    followers: dict[int, list[Node]] = {}
    for node in nodes:
        sources = {id(v.producer) for v in (*node.inputs, *node.captures) if v is not None and v.producer is not None}
        waiting[id(node)] = len(sources)
        for source in sources:
            followers.setdefault(source, []).append(node)
    ready = deque(node for node in nodes if waiting[id(node)] == 0)
    order: list[Node] = []
    while ready:
        node = ready.popleft()
        order.append(node)
        for follower in followers.get(id(node), ()):
            waiting[id(follower)] -= 1
            if waiting[id(follower)] == 0:
                ready.append(follower)
    if len(order) < len(nodes):
        stuck = next(node for node in nodes if waiting[id(node)] > 0)
        raise ModelError(f"the graph runs in a circle: {stuck.label!r} depends on its own result")
    return order
