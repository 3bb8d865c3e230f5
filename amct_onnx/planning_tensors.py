"""Which single input tensors are quantized: inputs of Add and MaxPool that the user lists, and those of joint_quant."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace

from onnx import TensorProto

from amct_onnx.config import QuantConfig, TensorConfig
from amct_onnx.errors import ConfigError, located
from amct_onnx.kernels.hfmg import Hfmg
from amct_onnx.kernels.ifmr import Ifmr
from amct_onnx.passes.graph import Node, Tensor, has_input, is_constant, is_standard, nodes_of, producer
from amct_onnx.passes.layers import bias_add, last_node
from amct_onnx.passes.shapes import TensorType
from amct_onnx.passes.state import LayerPlan, QuantState, TensorPlan

_TAKEN = {"Add": 2, "MaxPool": 1}
"""Operator -> how many inputs it has."""


def plan_tensors(
    state: QuantState, config: QuantConfig, layers: Mapping[str, LayerPlan], types: Mapping[str, TensorType]
) -> tuple[TensorPlan, ...]:
    """The tensors that `tensor_quantize` lists, and with `joint_quant` both inputs of every Add between two layers.

    layers: what is planned otherwise.
    types: what is known of the tensors of the graph.

    Raises:
        ConfigError: one of them cannot be quantized, or is asked for what it cannot have.
    """
    nodes = {node.name: node for node in state.graph.nodes}
    biases = bias_holders(state, layers)
    plans = []
    for asked in config.tensor_quantize:
        with located(f"tensor_quantize, input {asked.input_index} of {asked.layer_name!r}"):
            if asked.layer_name not in nodes:
                gone = state.gone.get(asked.layer_name, "it is inside the body of another node")
                raise ConfigError(f"cannot be quantized: {gone}")
            if reason := why_not_tensor(nodes[asked.layer_name], asked.input_index, biases, types):
                raise ConfigError(f"cannot be quantized: {reason}")
            plan = _plan(asked, config)
            if plan.key in nodes:
                raise ConfigError(f"a record would confuse it with the node {plan.key!r}; rename that node")
            plans.append(plan)
    if config.joint_quant:
        plans += _joint(state, config, layers, types, {plan.node for plan in plans})
    return tuple(plans)


def _joint(
    state: QuantState,
    config: QuantConfig,
    layers: Mapping[str, LayerPlan],
    types: Mapping[str, TensorType],
    listed: Collection[str],
) -> Iterator[TensorPlan]:
    """Both inputs of every Add between two quantized layers, but for those of which an input is listed by itself.

    They are observed as the layer in front of the first input is: a config.json, which says everything layer by layer,
    then asks for the same.
    """
    nodes = {node.name: node for node in state.graph.nodes}
    results = {id(last_node(state.graph, nodes[name]).outputs[0]): layer for name, layer in layers.items()}
    for add in nodes_of(state.graph, "Add"):
        if add.name in listed or add.name in config.skip_layers:
            continue
        sources = [results.get(id(_behind_norm(tensor))) for tensor in add.inputs]
        if sources[0] is None or sources[1] is None:
            continue
        observed = sources[0].activation
        assert isinstance(observed, (Ifmr, Hfmg)), "a configuration of AMCT gives nothing else"
        activation = replace(observed, num_bits=8)
        plans = [TensorPlan(node=add.name, index=index, activation=activation, joint=True) for index in (0, 1)]
        if not any(why_not_tensor(add, p.index, {}, types) or p.key in nodes for p in plans):
            yield from plans


def bias_holders(state: QuantState, layers: Iterable[str]) -> dict[str, str]:
    """Add -> the layer, one of `layers`, whose bias it holds."""
    nodes = {node.name: node for node in state.graph.nodes}
    return {add.name: name for name in layers if (add := bias_add(state.graph, nodes[name])) is not None}


def _behind_norm(tensor: Tensor) -> Tensor:
    """The tensor in front of a BatchNormalization, most of which are folded into the layer in front of them."""
    norm = producer(tensor)
    return norm.inputs[0] if norm is not None and norm.op == "BatchNormalization" and is_standard(norm) else tensor


def _plan(asked: TensorConfig, config: QuantConfig) -> TensorPlan:
    activation = asked.activation
    if activation.num_bits != 8:
        raise ConfigError(f"has 8 bits, found num_bits {activation.num_bits}")
    asymmetric = config.activation_offset if activation.asymmetric is None else activation.asymmetric
    return TensorPlan(
        node=asked.layer_name, index=asked.input_index, activation=replace(activation, asymmetric=asymmetric)
    )


def why_not_tensor(node: Node, index: int, biases: Mapping[str, str], types: Mapping[str, TensorType]) -> str | None:
    """Why an input of a node cannot be quantized by itself, or None where it can.

    biases: Add -> the layer that takes its bias with it, see `bias_holders`.
    types: of the tensors of the graph.
    """
    if not is_standard(node) or node.op not in _TAKEN:
        return f"{node.op} is not an operator whose inputs are quantized by themselves; {' and '.join(_TAKEN)} are"
    if index >= _TAKEN[node.op] or not has_input(node, index):
        return f"{node.op} has {_TAKEN[node.op]} input(s), counted from 0"
    if is_constant(node.inputs[index]):
        return "it is a constant"
    if node.name in biases:
        return f"the node holds the bias of {biases[node.name]!r}, which is quantized with it"
    known = types.get(node.inputs[index].name)
    if known is not None and known.elem_type not in (TensorProto.FLOAT, TensorProto.UNDEFINED):
        kind = TensorProto.DataType.Name(known.elem_type).lower()
        return f"it is {kind}; only float32 tensors are quantized by themselves"
    return None
