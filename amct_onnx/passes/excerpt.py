"""A part of a model as a model of its own."""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from amct_onnx.passes.graph import Array
from amct_onnx.passes.protos import copy_fields
from amct_onnx.passes.weights import LightModel


def between(model: LightModel, sources: Mapping[str, Array], result: str) -> LightModel:
    """The part of a model that computes `result` from tensors like `sources`, with free dimensions.

    Args:
        model: stays as it is.
        sources: tensor -> a value, for its type and rank.
        result: a tensor.
    """
    nodes = list(model.proto.graph.node)
    makers = {name: place for place, node in enumerate(nodes) for name in node.output}
    wanted, kept, names = [result], set[int](), set[str]()
    while wanted:
        name = wanted.pop()
        if name not in sources and name not in names:
            names.add(name)
            if name in makers:
                kept.add(makers[name])
                wanted.extend(nodes[makers[name]].input)
    part = onnx.ModelProto()
    copy_fields(model.proto, part, "graph")
    graph = part.graph
    graph.name = "layer"
    graph.node.extend(nodes[place] for place in sorted(kept))
    graph.initializer.extend(tensor for tensor in model.proto.graph.initializer if tensor.name in names)
    for name, array in sources.items():
        elem_type = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        graph.input.append(onnx.helper.make_tensor_value_info(name, elem_type, [None] * array.ndim))
    graph.output.add().name = result
    weights = {name: weight for name, weight in model.weights.items() if name in names}
    return LightModel(proto=part, weights=weights)
