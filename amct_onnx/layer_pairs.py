"""Every layer by itself: what it gives float and quantized, on the same input."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import onnx

from amct_onnx.data import Feed
from amct_onnx.passes.graph import Array, Node, is_constant
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
    behind = dict(twins.values())  # in the fake-quant model, the name of a layer's result may be its integers'
    sources = {node.name: _activations(node) for node in state.graph.nodes if node.name in twins}
    exposed = [name for names in sources.values() for name in names]
    observed = open_session(exposing(with_fake_weights(state).to_light(), exposed), "the calibration model")
    sessions: dict[str, tuple[Session, Session]] = {}
    for index, feed in enumerate(feeds):
        values = {**feed, **observed.run(feed, f"batch {index}")}
        found: dict[str, Pair] = {}
        for layer, (here, there) in twins.items():
            ours = {name: values[name] for name in sources[layer]}
            theirs = {behind.get(name, name): array for name, array in ours.items()}
            if layer not in sessions:
                what = f"layer {layer!r} by itself"
                parts = (_between(plain, ours, here), _between(fake_quant, theirs, there))
                sessions[layer] = (open_session(parts[0], what), open_session(parts[1], what))
            as_float, quantized = sessions[layer]
            found[layer] = (
                as_float.run(ours, f"batch {index}")[here],
                quantized.run(theirs, f"batch {index}")[there],
            )
        yield found


def _activations(node: Node) -> list[str]:
    """What a layer is fed, in the float graph: one tensor, or two that it multiplies."""
    return list(dict.fromkeys(tensor.name for tensor in node.inputs if tensor.name and not is_constant(tensor)))


def _between(model: LightModel, sources: Mapping[str, Array], result: str) -> LightModel:
    """The part of a model that computes `result` from tensors like `sources`, with free dimensions."""
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
