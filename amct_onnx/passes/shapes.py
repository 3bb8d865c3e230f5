"""Types and shapes of the tensors of a graph, as far as they follow from the model alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx
from onnx.helper import make_tensor_value_info

from amct_onnx.passes.graph import Graph, is_standard

_SMALL = 1024
"""Constants up to this many bytes stay in the skeleton: shapes may depend on their values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorType:
    """What is known of a tensor: element type as in TensorProto, and dimensions, None where unknown.

    `shape` is None where even the rank is unknown.
    """

    elem_type: int
    shape: tuple[int | None, ...] | None


def infer_types(graph: Graph, fed: Mapping[str, Sequence[int]] | None = None) -> dict[str, TensorType]:
    """Types of the tensors of the main graph; a tensor of which nothing is known is absent.

    fed: inputs -> the shape that they have in a certain run.
    """
    skeleton = graph.to_skeleton(_SMALL)
    # Exporters note the sizes that they traced with, also where an axis is free: only the inputs are believed.
    # Of the operators of other domains nothing is known but what the file says.
    foreign = {tensor.name for node in graph.nodes if not is_standard(node) for tensor in node.outputs}
    noted = [value for value in skeleton.graph.value_info if value.name in foreign]
    for value in skeleton.graph.input:
        if fed is not None and value.name in fed:
            value.CopyFrom(make_tensor_value_info(value.name, value.type.tensor_type.elem_type, fed[value.name]))
    del skeleton.graph.value_info[:]
    skeleton.graph.value_info.extend(noted)
    for output in skeleton.graph.output:
        if output.name not in foreign and output.type.HasField("tensor_type"):
            output.type.tensor_type.ClearField("shape")
    try:
        inferred = onnx.shape_inference.infer_shapes(skeleton, data_prop=True)
    except Exception:
        # Inference is a help, not a requirement: operators of other domains or odd models may defeat it.
        inferred = skeleton
    values = [*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output]
    tensors = [value for value in values if value.type.HasField("tensor_type")]
    return {value.name: _type_of(value) for value in tensors}


def _type_of(value: onnx.ValueInfoProto) -> TensorType:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return TensorType(elem_type=tensor.elem_type, shape=None)
    dims = tuple(d.dim_value if d.HasField("dim_value") and d.dim_value >= 0 else None for d in tensor.shape.dim)
    return TensorType(elem_type=tensor.elem_type, shape=dims)
