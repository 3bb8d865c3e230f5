"""Every layer by itself: what it gives float and quantized, on the same input."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from amct_onnx.data import Feed
from amct_onnx.passes.excerpt import between
from amct_onnx.passes.graph import Array, Node, is_constant
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
                parts = (between(plain, ours, here), between(fake_quant, theirs, there))
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
