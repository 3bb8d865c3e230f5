"""What is done to a model's own messages, before the graph is made of them and after it is written out again."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator

import numpy as np
import onnx
from google.protobuf.message import Message
from onnx import AttributeProto

from amct_onnx.errors import ModelError

HIDDEN = "\0hidden:"
"""How a string begins that stands for an attribute which the graph cannot carry."""

_NOTES = "\0notes"
_STRUCTURED = {AttributeProto.SPARSE_TENSOR, AttributeProto.SPARSE_TENSORS, AttributeProto.TYPE_PROTO}
_STRUCTURED |= {AttributeProto.TYPE_PROTOS, AttributeProto.TENSORS, AttributeProto.GRAPHS}
_LISTS = {AttributeProto.FLOATS: "floats", AttributeProto.INTS: "ints", AttributeProto.STRINGS: "strings"}


def all_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and the bodies of its control flow, at any depth."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from all_graphs(attribute.g)


def names_in_bodies(graph: onnx.GraphProto) -> set[str]:
    """Every name that a body of control flow reads, from inside or outside of it."""
    bodies = [body for body in all_graphs(graph) if body is not graph]
    read = {name for body in bodies for node in body.node for name in node.input}
    return read | {value.name for body in bodies for value in body.output}


def check_graph(graph: onnx.GraphProto) -> None:
    """Every tensor is produced once, before it is used.

    Raises:
        ModelError: one is not.
    """
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


def hide_what_is_lost(nodes: Iterable[onnx.NodeProto]) -> None:
    """Pack what the library cannot carry into string attributes: empty lists, types, raw bytes, documentation."""
    for node in nodes:
        for attribute in node.attribute:
            if not _is_importable(attribute):
                attribute.CopyFrom(_packed(attribute.name, attribute.SerializeToString()))
        if node.doc_string or node.metadata_props:
            notes = onnx.NodeProto(doc_string=node.doc_string, metadata_props=node.metadata_props)
            node.attribute.append(_packed(_NOTES, notes.SerializeToString()))


def empty_list(name: str, kind: AttributeProto.AttributeType) -> str:
    """An attribute without values, of the type FLOATS for one, as the library carries it."""
    return _packed(name, AttributeProto(name=name, type=kind).SerializeToString()).s.decode()


def _packed(name: str, content: bytes) -> AttributeProto:
    return onnx.helper.make_attribute(name, HIDDEN + base64.b64encode(content).decode())


def show_what_was_hidden(nodes: Iterable[onnx.NodeProto]) -> None:
    """Undo `hide_what_is_lost`."""
    hidden = HIDDEN.encode()
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


def drop_untensorlike(graph: onnx.GraphProto) -> None:
    """Forget the types of sequences, optionals and maps, which the library cannot export.

    Inside the graph they are hints only; those of the model's inputs and outputs are put back on export.
    """
    kept = [value for value in graph.value_info if value.type.HasField("tensor_type")]
    del graph.value_info[:]
    graph.value_info.extend(kept)
    for value in (*graph.input, *graph.output):
        if not value.type.HasField("tensor_type"):
            value.ClearField("type")


def drop_unused_opsets(model: onnx.ModelProto) -> None:
    """Forget the operator sets that no node and no function belongs to: ATC takes one alone. The default one stays."""
    nodes = [node for graph in all_graphs(model.graph) for node in graph.node]
    used = {"", "ai.onnx", *(node.domain for node in nodes), *(function.domain for function in model.functions)}
    for function in model.functions:
        used.update(node.domain for node in function.node)
    kept = [entry for entry in model.opset_import if entry.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(kept)


def copy_fields(source: Message, target: Message, omitted: str) -> None:
    """Copy every field of a message but one, which may be too large to copy."""
    for field, value in source.ListFields():
        if field.name == omitted:
            continue
        if hasattr(value, "extend"):
            getattr(target, field.name).extend(value)
        elif isinstance(value, Message):
            getattr(target, field.name).CopyFrom(value)
        else:
            setattr(target, field.name, value)
