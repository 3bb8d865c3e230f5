"""Turns whatever depends on constants alone into initializers, also where it is computed from known shapes.

Weights come as Constant nodes, behind Identity, Cast or Transpose; paddings come as chains of Shape, Gather, Concat
and arithmetic. After this pass both are plain initializers.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

import numpy as np
from onnx import helper

from amct_onnx.passes.graph import (
    RANDOM,
    Array,
    Graph,
    Node,
    Tensor,
    byte_count,
    constant,
    constant_input,
    dense_value,
    has_body,
    has_input,
    is_constant,
    is_standard,
    nodes_of,
    producer,
    unique_name,
)
from amct_onnx.passes.invariants import LIFTED, NAMED
from amct_onnx.passes.session import open_session
from amct_onnx.passes.shapes import TensorType, infer_types
from amct_onnx.passes.state import Pass, QuantState

_log = logging.getLogger("amct_onnx")

_NEVER = RANDOM | {"QuantizeLinear", "DequantizeLinear", "Dropout"}
"""Not deterministic, or a statement about quantization that folding would erase."""

_LARGEST_GROWTH = 1 << 20
"""A folded result may have this many bytes beyond eight times what it is computed from."""


def _run(state: QuantState) -> None:
    _lift_constant_nodes(state)
    _evaluate(state)
    # What is known of shapes grows with every shape that becomes a constant.
    while nodes_of(state.graph, "Shape", "Size", "CastLike") and _fold_known_shapes(state):
        _evaluate(state)


def _lift_constant_nodes(state: QuantState) -> None:
    names, lifted = state.graph.tensor_names(), []
    for node in nodes_of(state.graph, "Constant"):
        values = dense_value(node)
        if values is None or state.graph.is_output(node.outputs[0]):
            continue
        _put_constant(state.graph, node.outputs[0], values, names)
        lifted.append(node)
        state.gone.setdefault(node.name, "a constant, which is an initializer now")
    state.graph.remove(lifted)


def _evaluate(state: QuantState) -> None:
    """Compute, in one run of onnxruntime, every tensor that depends on constants alone and is used by what does not."""
    graph = state.graph
    foldable = _foldable_nodes(graph.nodes)
    inside = {id(node) for node in foldable}
    results = [
        tensor
        for node in foldable
        for tensor in node.outputs
        if not graph.is_output(tensor) and any(id(user) not in inside for user in tensor.outputs)
    ]
    if not results:
        return
    names, sources = graph.tensor_names(), _source_bytes(foldable)
    for tensor, values in zip(results, _compute(graph, foldable, results), strict=True):
        if not isinstance(values, np.ndarray) or values.dtype == object:
            continue
        if values.nbytes <= _LARGEST_GROWTH + 8 * sources[id(tensor)]:
            _put_constant(graph, tensor, values, names)
    for node in graph.drop_unreached():
        state.gone.setdefault(node.name, "computed from constants once and for all")


def _compute(graph: Graph, nodes: Sequence[Node], results: Sequence[Tensor]) -> list[Array | None]:
    """The values of `results`; None for what onnxruntime cannot compute, which then stays as it is."""
    model = graph.cut_out(_leading_to(nodes, results), results)
    try:
        session = open_session(model, "a constant part", optimize=False)
        return list(session.inner.run(None, {}))  # sequences among them as they are
    except Exception as error:
        if len(results) == 1:
            _log.debug("constant %r is not folded: %s", results[0].name, error)
            return [None]
    half = len(results) // 2
    return _compute(graph, nodes, results[:half]) + _compute(graph, nodes, results[half:])


def _leading_to(nodes: Sequence[Node], results: Iterable[Tensor]) -> list[Node]:
    """Those of `nodes` that `results` depend on, in order."""
    wanted = {id(tensor) for tensor in results}
    kept = []
    for node in reversed(nodes):
        if any(id(tensor) in wanted for tensor in node.outputs):
            kept.append(node)
            wanted.update(id(tensor) for tensor in node.inputs)
    return kept[::-1]


def _foldable_nodes(nodes: Iterable[Node]) -> list[Node]:
    found: list[Node] = []
    known: set[int] = set()
    for node in nodes:
        if is_standard(node) and node.op not in _NEVER and not has_body(node) and _reads_only(node, known):
            found.append(node)
            known.update(id(tensor) for tensor in node.outputs)
    return found


def _reads_only(node: Node, known: set[int]) -> bool:
    present = [tensor for tensor in node.inputs if tensor.name]
    return bool(present) and all(is_constant(tensor) or id(tensor) in known for tensor in present)


def _source_bytes(nodes: Iterable[Node]) -> dict[int, int]:
    """Id of each tensor that `nodes` compute -> size of all the initializers that it depends on."""
    behind: dict[int, dict[int, int]] = {}
    for node in nodes:
        found: dict[int, int] = {}
        for tensor in node.inputs:
            if tensor.name:
                found |= {id(tensor): byte_count(tensor)} if is_constant(tensor) else behind[id(tensor)]
        behind.update((id(tensor), found) for tensor in node.outputs)
    return {tensor: sum(found.values()) for tensor, found in behind.items()}


def _put_constant(graph: Graph, tensor: Tensor, values: Array, names: set[str]) -> None:
    """Let the users of a computed tensor read an initializer of the same name."""
    fresh = graph.new_constant(tensor.name, values)
    tensor.name = unique_name(f"{tensor.name}.computed", names)
    graph.replace_uses(tensor, fresh)


def _fold_known_shapes(state: QuantState) -> bool:
    """Replace Shape, and Gather or Slice of a Shape, where the dimensions asked for are known; CastLike likewise.

    Returns whether any was replaced.
    """
    graph = state.graph
    types, names = infer_types(graph), graph.tensor_names()
    folded = False
    for node in nodes_of(graph, "Shape", "Gather", "Slice", "Size", "CastLike"):
        values = _known_value(node, types)
        if values is not None and node.outputs[0].outputs and not graph.is_output(node.outputs[0]):
            _put_constant(graph, node.outputs[0], values, names)
            folded = True
    for node in graph.drop_unreached():
        state.gone.setdefault(node.name, "computed from known shapes once and for all")
    return folded


def _known_value(node: Node, types: dict[str, TensorType]) -> Array | None:
    if node.op == "CastLike":
        values, like = constant(node.inputs[0]), types.get(node.inputs[1].name)
        return (
            None if values is None or like is None else values.astype(helper.tensor_dtype_to_np_dtype(like.elem_type))
        )
    if node.op in ("Shape", "Size"):
        dims = _dims_of(node, types)
        if dims is None or None in dims:
            return None
        known = np.array(dims, np.int64)
        return known if node.op == "Shape" else np.array(known.prod(), np.int64)
    shape = producer(node.inputs[0])
    if shape is None or shape.op != "Shape" or not is_standard(shape):
        return None
    dims = _dims_of(shape, types)
    picked = None if dims is None else _pick(node, dims)
    return None if picked is None or None in picked.ravel().tolist() else picked.astype(np.int64)


def _dims_of(shape: Node, types: dict[str, TensorType]) -> tuple[int | None, ...] | None:
    """What a Shape node gives: dimensions, None where one is not known."""
    known = types.get(shape.inputs[0].name)
    if known is None or known.shape is None:
        return None
    return known.shape[slice(shape.attrs.get("start", 0), shape.attrs.get("end"))]


def _pick(node: Node, dims: tuple[int | None, ...]) -> Array | None:
    """The dimensions that a Gather or Slice takes out of a shape, as an array of integers and None."""
    table = np.array([*dims, None], dtype=object)[:-1]
    if node.op == "Gather":
        index = constant_input(node, 1)
        return None if index is None else np.asarray(table[index], dtype=object)
    bounds = [constant_input(node, i) if has_input(node, i) else None for i in range(1, 5)]
    if (
        bounds[0] is None
        or bounds[1] is None
        or any(b is None for i, b in enumerate(bounds[2:], 3) if has_input(node, i))
    ):
        return None
    step = 1 if bounds[3] is None else int(bounds[3][0])
    return table[slice(int(bounds[0][0]), int(bounds[1][0]), step)]


FOLD_CONSTANTS = Pass(name="fold constants", run=_run, requires=(NAMED,), ensures=(LIFTED,))
