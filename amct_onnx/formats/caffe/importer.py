"""A Caffe model -> one ONNX model of the same names and numbers."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import onnx
from onnx import TensorProto, helper

from amct_onnx.errors import ModelError, nearest
from amct_onnx.formats.caffe.layers import LAYER_TYPES, NOT_READING, PASSING, SIZES_ONLY, is_head, is_known
from amct_onnx.formats.caffe.network import LARGEST, Layer, Network, read_network
from amct_onnx.formats.caffe.site import Blob, GraphParts, Site
from amct_onnx.formats.caffe.weights import Weights, read_weights
from amct_onnx.passes.graph import unique_name

_OPSET, _IR = 13, 8

_log = logging.getLogger("amct_onnx")


def read_caffe(prototxt: str | os.PathLike[str], caffemodel: str | os.PathLike[str]) -> onnx.ModelProto:
    """A Caffe network, as it is at test phase, as an ONNX model of opset 13.

    Node names are the names of the layers; a layer that takes several nodes gives its name to the one that carries its
    weights, else to the last, and `<layer>.<step>` to the others. Tensors have the names of blobs; where layers work in
    place, the last one keeps the name. Detection heads and losses are left out: what they read become outputs.

    Args:
        prototxt: the description of the network, as it is deployed: with the shapes of its inputs.
        caffemodel: its weights, in binary form.

    Raises:
        ModelError: a file cannot be read; a layer is not supported, does not fit its input, or has no weights, or some
            of another shape. The message names the layer.
    """
    for what, path in (("prototxt", prototxt), ("caffemodel", caffemodel)):
        if not isinstance(path, (str, os.PathLike)):
            raise ModelError(f"the {what} is a {type(path).__name__}; give the path of a file")
    if str(prototxt).endswith(".onnx"):
        raise ModelError(f"{prototxt}: weights of Caffe go with a .prototxt; an ONNX model is given alone")
    if str(prototxt).endswith(".caffemodel") or str(caffemodel).endswith(".prototxt"):
        raise ModelError(f"{prototxt}, {caffemodel}: the .prototxt comes first, then the .caffemodel")
    network = read_network(prototxt)
    weights = read_weights(caffemodel)
    try:
        return _model(network, weights)
    except ModelError as error:
        raise ModelError(f"{prototxt}: {error}") from error


def _model(network: Network, weights: Weights) -> onnx.ModelProto:
    layers = _distinct(network.layers)
    wiring = _wire(network, layers)
    if unknown := [layer for i, layer in enumerate(layers) if i not in wiring.left_out and not is_known(layer)]:
        listed = ", ".join(f"{layer.name!r} ({layer.type})" for layer in unknown)
        supported = ", ".join(sorted({*LAYER_TYPES, *PASSING, "Input"}))
        raise ModelError(f"no way to convert the layers {listed}; supported types are {supported}")
    blobs = {name: Blob(tensor=name, shape=shape) for name, shape in network.inputs.items()}
    imports = [helper.make_opsetid("", _OPSET)]
    model = onnx.ModelProto(ir_version=_IR, producer_name="amct_onnx", opset_import=imports)
    tensors = {*network.inputs, *(top for layer in layers for top in layer.tops)}
    parts = GraphParts(graph=model.graph, tensors=tensors, layers={layer.name for layer in layers})
    results = []
    for index, layer in enumerate(layers):
        results += [(name, blobs[name]) for name in wiring.wanted.get(index, ())]
        if layer.type in PASSING and index not in wiring.left_out:
            blobs.update(dict.fromkeys(layer.tops, blobs[layer.bottoms[0]]))
        elif index not in wiring.left_out:
            outputs = _output_names(layer, index, wiring, network, parts)
            inputs = tuple(blobs[name] for name in layer.bottoms)
            site = Site(layer=layer, inputs=inputs, outputs=outputs, weights=weights, parts=parts)
            blobs.update(zip(layer.tops, _converted(site), strict=True))
    results += [(name, blobs[name]) for name in wiring.wanted[len(layers)]]
    _close(network, model.graph, [_result(name, blob, parts) for name, blob in dict.fromkeys(results)])
    return model


def _distinct(layers: Sequence[Layer]) -> list[Layer]:
    """The layers, with a number behind a name that was there before."""
    taken = {layer.name for layer in layers}
    seen: set[str] = set()
    found = []
    for layer in layers:
        name = unique_name(layer.name, taken) if layer.name in seen else layer.name
        if name != layer.name:
            _log.warning("layer %r (%s) is called as one before it; its name is %r now", layer.name, layer.type, name)
        seen.add(name)
        found.append(replace(layer, name=name))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wiring:
    """What follows from who reads which blob.

    left_out: positions of the layers that are left to the caller.
    last_writers: blob -> position of the last layer that computes it.
    wanted: position -> blobs that are outputs as they are in front of this layer; behind the last one: all unread ones.
    """

    left_out: set[int] = field(default_factory=set)
    last_writers: dict[str, int] = field(default_factory=dict)
    wanted: dict[int, list[str]] = field(default_factory=dict)


def _wire(network: Network, layers: Sequence[Layer]) -> _Wiring:
    wiring = _Wiring()
    known, missing = set(network.inputs), set[str]()  # blobs that are written; those that are left to the caller
    computed, unread = set[str](), dict[str, None]()
    for index, layer in enumerate(layers):
        _check_blobs(layer, known)
        if layer.type not in SIZES_ONLY:
            for name in layer.bottoms:
                unread.pop(name, None)
        if is_head(layer) or missing.intersection(layer.bottoms):
            wiring.left_out.add(index)
            found = [name for name in layer.bottoms if name in computed and name not in missing]
            wiring.wanted[index] = [] if layer.type in NOT_READING else found
            missing.update(layer.tops)
            _tell_left_out(layer, wiring.wanted[index])
        else:
            missing.difference_update(layer.tops)
            unread.update(dict.fromkeys(layer.tops))
            if layer.type not in PASSING or computed.intersection(layer.bottoms):
                computed.update(layer.tops)
            if layer.type not in PASSING:
                wiring.last_writers.update(dict.fromkeys(layer.tops, index))
        known.update(layer.tops)
    wiring.wanted[len(layers)] = list(unread)
    return wiring


def _check_blobs(layer: Layer, known: set[str]) -> None:
    if "" in (*layer.bottoms, *layer.tops):
        raise layer.error("a bottom or top of it has no name")
    for name in layer.bottoms:
        if name not in known:
            raise layer.error(f"its bottom {name!r} is the top of no layer before it{nearest(name, known)}")
    for index, name in enumerate(layer.tops):
        is_in_place = layer.bottoms[index : index + 1] == (name,)
        if layer.tops.index(name) != index or (name in known and not is_in_place):
            raise layer.error(f"its top {name!r} is that of another layer too, and it does not work in place")
    if layer.type in LAYER_TYPES:
        LAYER_TYPES[layer.type].check(layer)
    elif layer.type in PASSING and (len(layer.bottoms) != 1 or not layer.tops):
        raise layer.error(f"it must have 1 bottom and a top, found {len(layer.bottoms)} and {len(layer.tops)}")
    if layer.type == "Dropout" and not layer.message.dropout_param.scale_train:
        kept = 1 - layer.message.dropout_param.dropout_ratio
        raise layer.error(f"scale_train is false, so it scales when the net is used: write it as Power, scale {kept:g}")


def _tell_left_out(layer: Layer, results: Sequence[str]) -> None:
    if layer.type == "Silence":
        return
    ends = f"; outputs of the ONNX model in its place: {', '.join(map(repr, results))}" if results else ""
    _log.warning("layer %r (%s) is left out%s", layer.name, layer.type, ends)


def _output_names(layer: Layer, index: int, wiring: _Wiring, network: Network, parts: GraphParts) -> tuple[str, ...]:
    """Tensors for the tops of a layer: the last one to write a blob has the blob's name for it."""
    return tuple(
        name
        if wiring.last_writers[name] == index and name not in network.inputs
        else unique_name(f"{layer.name}.out", parts.tensors)
        for name in layer.tops
    )


def _converted(site: Site) -> list[Blob]:
    shapes = LAYER_TYPES[site.layer.type].convert(site)
    for shape in shapes:
        if min(shape, default=1) < 1 or math.prod(shape) > LARGEST:
            raise site.error(f"its output would have the shape {list(shape)}")
    return [Blob(tensor=name, shape=shape) for name, shape in zip(site.outputs, shapes, strict=True)]


def _result(name: str, blob: Blob, parts: GraphParts) -> Blob:
    """The tensor of an output: of the blob's name, unless another tensor has that, as an input worked on in place."""
    if blob.tensor == name:
        return blob
    if any(name in (*node.input, *node.output) for node in parts.graph.node):
        _log.warning("the output for blob %r is called %r: its own name belongs to another tensor", name, blob.tensor)
        return blob
    node = helper.make_node("Identity", [blob.tensor], [name], name=unique_name(name, parts.layers))
    parts.graph.node.append(node)
    return replace(blob, tensor=name)


def _close(network: Network, graph: onnx.GraphProto, results: Sequence[Blob]) -> None:
    """Give the graph its name, its outputs, and those inputs that are read."""
    if not results:
        raise ModelError("the network has no output: no layer computes anything")
    graph.name = network.name
    read = {name for node in graph.node for name in node.input}
    for name, shape in network.inputs.items():
        if name in read:
            graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    for blob in results:
        graph.output.append(helper.make_tensor_value_info(blob.tensor, TensorProto.FLOAT, blob.shape))
