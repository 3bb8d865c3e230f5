"""What a record file gives, checked against the nodes of a prepared graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np

from amct_onnx.errors import NotAvailableError, RecordError, located, nearest
from amct_onnx.formats.record import LayerRecord
from amct_onnx.kernels.quant_params import QuantParams
from amct_onnx.passes.graph import Node, type_name
from amct_onnx.passes.layer_types import PER_CHANNEL
from amct_onnx.passes.layers import (
    has_weight,
    input_channels,
    is_product,
    is_recurrent,
    output_channels,
    spatial_axes,
    why_not_4_bits,
    why_not_16_bits,
)
from amct_onnx.passes.shapes import infer_types
from amct_onnx.passes.state import QuantState, TensorPlan
from amct_onnx.planning import GivenLayer, why_not_layer
from amct_onnx.planning_tensors import bias_holders, why_not_tensor


def given_layers(state: QuantState, records: Mapping[str, LayerRecord]) -> dict[str, GivenLayer]:
    """The scales of every layer that has factors, checked against the nodes of a prepared graph.

    Raises:
        RecordError: a key is no layer that can be quantized, or its factors do not fit the layer.
        NotAvailableError: a record asks for what is not carried out yet.
    """
    nodes, types = {node.name: node for node in state.graph.nodes}, infer_types(state.graph)
    given = {}
    for name, record in records.items():
        with located(f"record of {name!r}"):
            _refuse_unavailable(record)
            node = nodes.get(name)
            if (node is None or record.is_tensor_quantize) and _tensor_of(name, nodes) is not None:
                continue
            if record.is_tensor_quantize:
                raise RecordError('is_tensor_quantize is true, but the key is no "<node>:<input>" of this model')
            if node is None:
                raise RecordError(_why_unknown(state, name))
            if record.has_factors:
                if reason := why_not_layer(node, types):
                    raise RecordError(f"{node.op} cannot be quantized: {reason}")
                given[name] = _given_layer(node, record)
    return given


def given_tensors(
    state: QuantState, records: Mapping[str, LayerRecord], layers: Iterable[str]
) -> tuple[TensorPlan, ...]:
    """The tensors that are quantized by themselves, under "<node>:<input>", with their scales.

    layers: those that are quantized.

    Raises:
        RecordError: one of them cannot be quantized, or is given what only a layer has.
    """
    nodes, types = {node.name: node for node in state.graph.nodes}, infer_types(state.graph)
    biases = bias_holders(state, layers)
    found = []
    for name, record in records.items():
        is_tensor = record.is_tensor_quantize or name not in nodes
        place = _tensor_of(name, nodes) if is_tensor else None
        if place is None or not record.has_factors:
            continue
        with located(f"record of {name!r}"):
            node, index = place
            if reason := why_not_tensor(node, index, biases, types):
                raise RecordError(f"input {index} of {node.name!r} cannot be quantized: {reason}")
            if record.scale_w or record.act_type == "INT16":
                found_here = "scale_w" if record.scale_w else "act_type INT16"
                raise RecordError(f"a tensor that is quantized by itself has 8 bits and no weight, found {found_here}")
            found.append(TensorPlan(node=node.name, index=index, activation=_activation(record)))
    return tuple(found)


def _tensor_of(key: str, nodes: Mapping[str, Node]) -> tuple[Node, int] | None:
    """The node and the number of its input that a key "<node>:<input>" names; no operator that is taken has more."""
    name, _, index = key.rpartition(":")
    return (nodes[name], int(index)) if name in nodes and index in ("0", "1") else None


def _refuse_unavailable(record: LayerRecord) -> None:
    wishes = {
        "shift_bit other than 0": any(record.shift_bit),
        "kv_cache_value": record.kv_scale,
        "dst_type INT4": record.dst_type == "INT4",
        "act_type INT4": record.act_type == "INT4",
    }
    for wish, asked in wishes.items():
        if asked:
            raise NotAvailableError(f"{wish} is not available yet; remove it from the record")


def _why_unknown(state: QuantState, name: str) -> str:
    if name in state.gone:
        return f"the node is no layer any more: {state.gone[name]}"
    return f"the model has no node of that name{nearest(name, state.graph.node_names())}"


def _given_layer(node: Node, record: LayerRecord) -> GivenLayer:
    activation = _activation(record)
    what = "a 3-D convolution" if node.op == "Conv" else "a product of two activations"
    if (is_product(node) or (node.op == "Conv" and spatial_axes(node) == 3)) and activation.offset != 0:
        found = int(activation.offset)
        raise RecordError(f"offset_d must be 0 for {what}, whose activations are symmetric; found {found}")
    if activation.num_bits == 16 and (reason := why_not_16_bits(node)):
        raise RecordError(f"act_type INT16 is not possible for {node.op}: {reason}")
    if not has_weight(node):
        _require_no_weight(node, record)
    hidden, recurrent = _given_state(node, record)
    return GivenLayer(
        activation=activation,
        weight=_given_weight(node, record) if has_weight(node) or is_product(node) else None,
        hidden=hidden,
        recurrent=recurrent,
        factors=_given_factors(node, record),
        cluster=record.cluster,
        is_cut=record.fakequant_precision_mode == "FORCE_FP16_QUANT",
    )


def _given_state(node: Node, record: LayerRecord) -> tuple[QuantParams | None, QuantParams | None]:
    """The parameters of an LSTM's or GRU's hidden state, and of the weight that it is multiplied by."""
    if not is_recurrent(node):
        for field, value in (("scale_h", record.scale_h), ("scale_r", record.scale_r)):
            if value not in (None, ()):
                raise RecordError(f"{field} is for LSTM and GRU; this is {node.op}")
        return None, None
    if record.scale_h is None or not record.scale_r:
        missing = "scale_h and offset_h" if record.scale_h is None else "scale_r and offset_r"
        raise RecordError(f"{missing} are missing; {node.op} has a hidden state")
    for field in ("tensor_balance_factor", "cluster"):
        if getattr(record, field):
            raise RecordError(f"{node.op} takes no {field}")
    as_weight = replace(record, scale_w=record.scale_r, offset_w=record.offset_r)
    as_input = replace(record, scale_d=record.scale_h, offset_d=record.offset_h)
    with located("scale_r"):
        return _activation(as_input), _given_weight(node, as_weight)


def _require_no_weight(node: Node, record: LayerRecord) -> None:
    if not is_product(node) and record.scale_w not in ((), (1.0,)):
        raise RecordError(f"{node.op} has no weight: scale_w must be 1 or missing, found {list(record.scale_w)}")
    for field, values in (("tensor_balance_factor", record.tensor_balance_factor), ("cluster", record.cluster)):
        if values:
            raise RecordError(f"{node.op} has no weight that {field} could be for")


def _given_factors(node: Node, record: LayerRecord) -> tuple[float, ...]:
    factors = record.tensor_balance_factor
    if factors and len(factors) != input_channels(node):
        raise RecordError(
            f"the number of tensor_balance_factor must be {input_channels(node)} for {node.op}, found {len(factors)}"
        )
    return factors


def _activation(record: LayerRecord) -> QuantParams:
    return QuantParams(
        scale=np.asarray(record.scale_d, np.float32),
        offset=np.asarray(record.offset_d or 0, np.int32),
        num_bits=16 if record.act_type == "INT16" and not record.dst_type else 8,
    )


def _given_weight(node: Node, record: LayerRecord) -> QuantParams:
    found = len(record.scale_w)
    counts = {1, output_channels(node)} if node.op in PER_CHANNEL else {1}
    if found not in counts:
        allowed = " or ".join(f"{count}" for count in sorted(counts))
        raise RecordError(f"the number of scale_w and offset_w must be {allowed} for {node.op}, found {found}")
    name = type_name(node.inputs[1]) if has_weight(node) else "float32"
    if record.op_data_type is not None and record.op_data_type.lower() != name:
        raise RecordError(f"op_data_type is {record.op_data_type}, but the layer is {name}")
    num_bits = 8 if record.dst_type or record.wts_type is None else int(record.wts_type.removeprefix("INT"))
    if num_bits in (6, 7) and not (node.op == "Conv" and spatial_axes(node) == 2):
        raise RecordError(f"wts_type {record.wts_type} is for 2-D convolutions only; this is {node.op}")
    if num_bits != 8 and record.cluster:
        raise RecordError(f"cluster is for weights of 8 bits, found wts_type {record.wts_type}")
    if num_bits == 4 and (reason := _why_not_packed(node, record)):
        raise RecordError(f"wts_type INT4 is not possible for {node.op}: {reason}")
    scale = np.array(record.scale_w, np.float32)
    if found == 1:
        scale = scale.reshape(())
    axis = None if found == 1 else 0
    return QuantParams(scale=scale, offset=np.zeros(scale.shape, np.int32), num_bits=num_bits, axis=axis)


def _why_not_packed(node: Node, record: LayerRecord) -> str | None:
    return "its activations have 16" if record.act_type == "INT16" else why_not_4_bits(node)
