"""Takes QuantizeLinear and DequantizeLinear out of a graph, and tells how they quantize its layers.

A pair in front of a layer, or in front of operators that move values or cut them off at zero, gives the scale of the
layer's input. A Clip takes its place: quantizers leave out activations that do no more than the range of the integers.
What DequantizeLinear makes of constants becomes an initializer on the grid of its integers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from onnx import TensorProto

from amct_onnx.errors import ModelError
from amct_onnx.kernels.quant_params import QuantParams
from amct_onnx.passes.graph import (
    Graph,
    Node,
    Tensor,
    constant_input,
    is_standard,
    nodes_of,
    producer,
    set_input,
    unique_name,
)
from amct_onnx.passes.layer_types import PER_CHANNEL, QUANTIZABLE
from amct_onnx.passes.layers import is_recurrent, layout_of
from amct_onnx.passes.quantized_constants import Grid, fold_constants
from amct_onnx.passes.quantizers import Quantizer, is_dequantizer, is_quantizer, quantizer_of

_MOVES = (
    *("Identity", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"),
    *("Slice", "MaxPool", "DepthToSpace", "SpaceToDepth"),
)
"""Operators whose results are some of their inputs: integers and reals alike."""

_KEEP_GRID = (*_MOVES, "Relu", "Dropout")
"""Operators that give rounded reals for rounded reals; zero is one of them, whatever the offset."""

_CLIP_TAKES_INPUTS = 11
"""The opset from which on the limits of Clip are inputs."""

_INTEGER = ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A DequantizeLinear and the QuantizeLinear in front of it, which are no more.

    clip: the node that limits values as the pair did; None where it has more than one scale.
    is_narrow: whether it limits them further than the range of the integers does.
    source: what gives the tensor that was quantized; None for an input of the model.
    layers: layers that have their input scale of it.
    others: what else reads it, directly or behind operators that move values; "" for an output of the model.
    """

    quantize: str
    dequantize: str
    clip: str | None
    is_narrow: bool
    source: str | None
    layers: tuple[str, ...]
    others: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What was found.

    activations, weights: layer -> scale and offset of its input, and scale of its weight, or of its second input.
    reasons: layers that are quantized only in part, or in a way that the chip has not -> the reason.
    pairs: what was taken out of the graph.
    gone: DequantizeLinear and QuantizeLinear over constants, and casts -> what became of them.
    """

    activations: dict[str, QuantParams] = field(default_factory=dict)
    weights: dict[str, QuantParams] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    pairs: list[Pair] = field(default_factory=list)
    gone: dict[str, str] = field(default_factory=dict)


def read_qdq(graph: Graph) -> Reading:
    """Read a graph without Constant nodes, and leave a float one.

    Raises:
        ModelError: it holds no pair, works on integers in another form, a scale is computed at run time, or a
            QuantizeLinear and the DequantizeLinear behind it do not belong together.
    """
    _require_pairs(graph)
    reading = Reading()
    _take_out_casts(graph, reading.gone)
    grids = fold_constants(graph, reading.gone)
    found = [_matched(node) for node in graph.nodes if is_dequantizer(node)]
    _require_all_matched(graph, found)
    used = _read_layers(graph, reading, grids, {id(match.dequantize.node.outputs[0]): match for match in found})
    names, nodes = graph.tensor_names(), graph.node_names()
    pairs = [_described(graph, match, used.get(match.dequantize.node.name, []), nodes) for match in found]
    for match, pair in zip(found, pairs, strict=True):
        _take_out(graph, match, pair.clip, names)
    reading.pairs.extend(pairs)
    graph.remove([node for node in graph.nodes if is_quantizer(node) or is_dequantizer(node)])
    return reading


@dataclass(frozen=True, slots=True, kw_only=True)
class _Match:
    """Two ends that belong together.

    between: operators on the integers between them, last first.
    limits: smallest and largest integer that get through; None where they are not integers, or have several scales.
    """

    quantize: Quantizer
    dequantize: Quantizer
    between: tuple[Node, ...]
    limits: tuple[int, int] | None

    @property
    def is_narrow(self) -> bool:
        """Whether less than the range of the integers gets through."""
        return self.limits is not None and self.limits != self.quantize.range


def _require_pairs(graph: Graph) -> None:
    for node in graph.nodes:
        if node.op in _INTEGER or (not is_standard(node) and node.op.startswith(("QLinear", "QGemm", "QAttention"))):
            raise ModelError(f"node {node.name!r} ({node.op}) works on integers; export the model in the QDQ form")
    for holder, node in graph.body_nodes():
        if is_quantizer(node) or is_dequantizer(node):
            raise ModelError(
                f"{node.op} {node.name!r} is inside the body of {holder.op} {holder.name!r}; only those of the main "
                "graph can be converted"
            )
    if not any(is_dequantizer(node) for node in graph.nodes):
        raise ModelError("the model has no QuantizeLinear and DequantizeLinear that say how it is quantized")


def _take_out_casts(graph: Graph, fates: dict[str, str]) -> None:
    """Take out what casts integers to the type that they have, as PyTorch writes it in front of DequantizeLinear."""
    for node in nodes_of(graph, "Cast"):
        front = producer(node.inputs[0])
        while front is not None and is_standard(front) and front.op in (*_MOVES, "Clip"):
            front = producer(front.inputs[0])
        if front is None or not is_quantizer(front):
            continue
        if str(TensorProto.DataType.Name(node.attrs["to"])).lower() == quantizer_of(front).kind:
            fates[node.name] = "casts integers to the type that they have"
            _let_pass(graph, node)


def _matched(node: Node) -> _Match:
    """A DequantizeLinear and the QuantizeLinear whose integers it reads.

    Raises:
        ModelError: there is none, or it has other parameters.
    """
    between = []
    front = producer(node.inputs[0])
    while front is not None and is_standard(front) and front.op in (*_MOVES, "Clip"):
        between.append(front)
        front = producer(front.inputs[0])
    if front is None or not is_quantizer(front):
        origin = f"input {node.inputs[0].name!r}" if front is None else f"{front.name!r} ({front.op})"
        raise ModelError(
            f"{node.op} {node.name!r} reads integers of {origin}; only those of a QuantizeLinear can be converted"
        )
    quantize, dequantize = quantizer_of(front), quantizer_of(node)
    if not quantize.is_alike(dequantize):
        raise ModelError(f"{front.name!r} and {node.name!r} behind it have different scales or zero points")
    limits = _limits_of(quantize, [step for step in between if step.op == "Clip"])
    return _Match(quantize=quantize, dequantize=dequantize, between=tuple(between), limits=limits)


def _limits_of(quantize: Quantizer, clips: Iterable[Node]) -> tuple[int, int] | None:
    if quantize.range is None or quantize.scale.ndim > 0:
        return None
    low, high = quantize.range
    for clip in clips:
        lowest, highest = constant_input(clip, 1), constant_input(clip, 2)
        low = low if lowest is None else max(low, int(lowest))
        high = high if highest is None else min(high, int(highest))
    return low, high


def _require_all_matched(graph: Graph, found: Iterable[_Match]) -> None:
    """Nothing but the DequantizeLinear that belong to them may read the integers of QuantizeLinear."""
    known = {id(part) for match in found for part in (*match.between, match.dequantize.node)}
    integers = [match.quantize.node for match in found] + [node for match in found for node in match.between]
    matched = {id(node) for node in integers}
    lone = [node for node in graph.nodes if is_quantizer(node) and id(node) not in matched]
    for node in (*integers, *lone):
        readers = [f"{user.name!r} ({user.op})" for user in node.outputs[0].outputs if id(user) not in known]
        readers += ["an output of the model"] if graph.is_output(node.outputs[0]) else []
        for reader in readers:
            raise ModelError(
                f"{reader} takes the integers of {node.name!r}; only those that DequantizeLinear takes can be converted"
            )


def _read_layers(
    graph: Graph, reading: Reading, grids: dict[int, Grid], matches: dict[int, _Match]
) -> dict[str, list[str]]:
    """Fill in the scales of the layers; DequantizeLinear -> the layers that have theirs of it."""
    used: dict[str, list[str]] = {}
    for node in graph.nodes:
        if node.op not in QUANTIZABLE or not is_standard(node):
            continue
        match = _match_behind(node.inputs[0], matches)
        if is_recurrent(node):
            reading.reasons.setdefault(
                node.name, "pairs around recurrent layers are not read; quantize the float model"
            )
            continue
        second = _match_behind(node.inputs[1], matches) if node.op == "MatMul" else None
        weight = _weight_of(node, grids) if node.op != "AveragePool" and second is None else None
        if match is None and not isinstance(weight, QuantParams):
            continue
        activation = match.quantize.activation() if match is not None else "no QuantizeLinear is in front of its input"
        if second is not None:
            activation, weight = _symmetric(activation), _symmetric(second.quantize.activation())
        for reason in (activation, weight):
            if isinstance(reason, str):
                reading.reasons.setdefault(node.name, reason)
        if node.name in reading.reasons or match is None or not isinstance(activation, QuantParams):
            continue
        reading.activations[node.name] = activation
        if isinstance(weight, QuantParams):
            reading.weights[node.name] = weight
        for one in (match,) if second is None else (match, second):
            layers = used.setdefault(one.dequantize.node.name, [])
            layers += [node.name] if node.name not in layers else []
    return used


def _symmetric(activation: QuantParams | str) -> QuantParams | str:
    """One of the two activations that a layer multiplies, or why it is none that the chip takes."""
    if isinstance(activation, str):
        return activation
    if activation.num_bits != 8 or activation.offset != 0:
        found = "a zero point" if activation.num_bits == 8 else f"{activation.num_bits} bits"
        return f"one of its inputs has {found}; a product of two activations takes 8 bits and symmetric scales"
    return activation


def _match_behind(tensor: Tensor, matches: dict[int, _Match]) -> _Match | None:
    """The pair whose rounded values `tensor` holds."""
    while id(tensor) not in matches:
        node = producer(tensor)
        if node is None or not is_standard(node) or not (node.op in _KEEP_GRID or _pads_with_zeros(node)):
            return None
        tensor = node.inputs[0]
    return matches[id(tensor)]


def _pads_with_zeros(node: Node) -> bool:
    if node.op != "Pad":
        return False
    value = constant_input(node, 2)
    return node.attrs.get("mode", "constant") != "constant" or (
        len(node.inputs) < 3 or not node.inputs[2].name or (value is not None and not value.any())
    )


def _weight_of(node: Node, grids: dict[int, Grid]) -> QuantParams | str:
    """The scale of a layer's weight, or why it has none that the chip takes."""
    if len(node.inputs) < 2:
        return "it has no weight"
    grid = _grid_behind(node.inputs[1], grids)
    if grid is None:
        return "its weight is not quantized: no DequantizeLinear is in front of it"
    if isinstance(grid, str):
        return grid
    if node.op == "Gemm" and node.attrs.get("alpha", 1.0) != 1.0:
        return f"Gemm with alpha={node.attrs['alpha']}, which changes the scale of its weight"
    scales = grid.scales.T if node.op == "Gemm" and node.attrs.get("transB", 0) else grid.scales
    rows = layout_of(node).channels_first(scales)
    rows = rows.reshape(rows.shape[0], -1)
    if (rows != rows[:, :1]).any():
        return "its weight has scales that do not run along the output channels"
    channels = np.ascontiguousarray(rows[:, 0], np.float32)
    if grid.is_per_channel and node.op in PER_CHANNEL:
        return QuantParams(scale=channels, offset=np.zeros(channels.shape, np.int32), axis=0)
    if (channels != channels[0]).any():
        return f"its weight has a scale for each channel; Ascend takes one for {node.op}"
    return QuantParams(scale=channels[0].reshape(()), offset=np.zeros((), np.int32))


def _grid_behind(tensor: Tensor, grids: dict[int, Grid]) -> Grid | str | None:
    """The scale of every value of a weight; why it has none, or None where it is no quantized constant."""
    if id(tensor) in grids:
        grid = grids[id(tensor)]
        return grid.objection or grid
    node = producer(tensor)
    if node is None or not is_standard(node) or node.op not in ("Identity", "Cast", "Transpose", "Reshape"):
        return None
    found = _grid_behind(node.inputs[0], grids)
    if not isinstance(found, Grid):
        return found
    if node.op == "Transpose":
        return found.moved(np.transpose(found.scales, node.attrs.get("perm")))
    if node.op == "Reshape":
        shape = constant_input(node, 1)
        if shape is None:
            return "its weight is given its shape at run time"
        dims = [found.scales.shape[axis] if d == 0 else int(d) for axis, d in enumerate(shape)]
        return found.moved(found.scales.reshape(dims))
    return found


def _described(graph: Graph, match: _Match, layers: list[str], nodes: set[str]) -> Pair:
    node, behind = match.dequantize.node, producer(match.quantize.node.inputs[0])
    return Pair(
        quantize=match.quantize.node.name,
        dequantize=node.name,
        clip=None if match.limits is None else unique_name(f"{node.name}.clip", nodes),
        is_narrow=match.is_narrow,
        source=None if behind is None else behind.name,
        layers=tuple(layers),
        others=tuple(dict.fromkeys(name for name in _readers(graph, node.outputs[0]) if name not in layers)),
    )


def _readers(graph: Graph, tensor: Tensor) -> Iterator[str]:
    """What reads rounded values; an output of the model has no name."""
    if graph.is_output(tensor):
        yield ""
    for node in tensor.outputs:
        if is_standard(node) and (node.op in _KEEP_GRID or _pads_with_zeros(node)):
            yield from _readers(graph, node.outputs[0])
        else:
            yield node.name


def _take_out(graph: Graph, match: _Match, clip: str | None, names: set[str]) -> None:
    """Let the readers of a pair read what it reads, within the limits of the integers."""
    quantize, dequantize = match.quantize.node, match.dequantize.node
    for node in match.between:
        if node.op != "Clip":
            node.outputs[0].dtype = node.outputs[0].shape = None
        else:
            _let_pass(graph, node)
    graph.replace_uses(quantize.outputs[0], quantize.inputs[0])
    if clip is not None and match.limits is not None:
        bounds = dict(zip(("min", "max"), match.quantize.reals(match.limits), strict=True))
        inputs, attributes = [dequantize.inputs[0]], {}
        if graph.opset < _CLIP_TAKES_INPUTS:
            attributes = {word: float(bound) for word, bound in bounds.items()}
        else:
            inputs += [graph.new_constant(unique_name(f"{clip}.{w}", names), bound) for w, bound in bounds.items()]
        output = graph.new_tensor(unique_name(f"{clip}.output0", names))
        graph.insert("Clip", clip, inputs, output, attributes, before=dequantize)
        set_input(dequantize, 0, output)
    _let_pass(graph, dequantize)


def _let_pass(graph: Graph, node: Node) -> None:
    """Take a node out whose readers shall read its input; an output of the model keeps its name."""
    if not node.outputs:
        return  # taken out with another pair already
    value, result = node.inputs[0], node.outputs[0]
    if not graph.is_output(result):
        graph.replace_uses(result, value)
        graph.remove([node])
        return
    name = unique_name(f"{node.name}.identity", graph.node_names())
    identity = graph.insert("Identity", name, [value], graph.new_tensor(""), before=node)
    graph.remove([node])
    identity.outputs[0] = result
