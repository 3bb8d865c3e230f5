"""Every layer by itself: what it gives float and quantized, on the same input."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import onnx

from amct_onnx.data import Feed
from amct_onnx.passes.graph import Array
from amct_onnx.passes.protos import copy_fields
from amct_onnx.passes.quantize_weights import with_fake_weights
from amct_onnx.passes.session import Session, open_session
from amct_onnx.passes.state import QuantState
from amct_onnx.passes.weights import LightModel
from amct_onnx.report.compare import exposing, layer_twins

Pair = tuple[Array, Array]
"""What a layer gives in float, and quantized."""


def layer_pairs(state: QuantState, fake_quant: LightModel, feeds: Iterable[Feed]) -> Iterator[Mapping[str, Pair]]:
    """Batch by batch: layer -> what it gives, float and quantized, when it is fed as during calibration.

    Args:
        state: calibrated, over the float graph.
        fake_quant: the model in which all layers are quantized.
        feeds: the batches.

    Raises:
        ModelError: one of the models does not run.
    """
    plain, twins = state.graph.to_light(), layer_twins(state.graph.to_light().proto, fake_quant.proto)
    inputs = {node.name: node.inputs[0].name for node in state.graph.nodes if node.name in twins}
    observed = open_session(exposing(with_fake_weights(state).to_light(), inputs.values()), "the calibration model")
    sessions: dict[str, tuple[Session, Session]] = {}
    for index, feed in enumerate(feeds):
        values = {**feed, **observed.run(feed, f"batch {index}")}
        found: dict[str, Pair] = {}
        for layer, (here, there) in twins.items():
            source = inputs[layer]
            if layer not in sessions:
                what = f"layer {layer!r} by itself"
                parts = (
                    _between(plain, source, here, values[source]),
                    _between(fake_quant, source, there, values[source]),
                )
                sessions[layer] = (open_session(parts[0], what), open_session(parts[1], what))
            ours, theirs = (session.run({source: values[source]}, f"batch {index}") for session in sessions[layer])
            found[layer] = (ours[here], theirs[there])
        yield found


def _between(model: LightModel, source: str, result: str, example: Array) -> LightModel:
    """The part of a model that computes `result` from `source`, a tensor like `example` with free dimensions."""
    nodes = list(model.proto.graph.node)
    makers = {name: place for place, node in enumerate(nodes) for name in node.output}
    wanted, kept, names = [result], set[int](), set[str]()
    while wanted:
        name = wanted.pop()
        if name != source and name not in names:
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
    elem_type = onnx.helper.np_dtype_to_tensor_dtype(example.dtype)
    graph.input.append(onnx.helper.make_tensor_value_info(source, elem_type, [None] * example.ndim))
    graph.output.add().name = result
    weights = {name: weight for name, weight in model.weights.items() if name in names}
    return LightModel(proto=part, weights=weights)
