"""From what the user asks for to one decision per layer that is trained, and one sentence for every node left out.

What an override does not say comes from the next wider block: layer, then type, then everywhere. Which of several
wishes decides whether a layer is quantized: an override of the layer, a skip list that names it, an override of its
type, a skip list that names its type.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

from amct_onnx.errors import ConfigError, ModelError, NotAvailableError, located, nearest
from amct_onnx.passes.fuse_batch_norm import folding_factors
from amct_onnx.passes.graph import Node, is_standard, producer
from amct_onnx.passes.layer_types import PER_CHANNEL, is_of_type, says_rank
from amct_onnx.passes.layers import (
    has_weight,
    is_depthwise,
    is_recurrent,
    layout_of,
    spatial_axes,
    why_not_4_bits,
    why_not_16_bits,
)
from amct_onnx.passes.shapes import infer_types
from amct_onnx.passes.state import QuantState
from amct_onnx.planning import why_not_layer
from amct_onnx.retrain_config import (
    NAME_LISTS,
    ArqRetrain,
    RetrainConfig,
    RetrainLayerConfig,
    UlqActivation,
    require_widths,
)

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrainLayer:
    """The decision for one layer.

    name, op_type: the node.
    activation, weight: as asked for, with `channel_wise` decided.
    fixed_min: whether the lower limit of the activations stays at zero.
    symmetric: whether the activations have no offset.
    axis, group: where the output channels of the weight are, and in how many groups.
    factors: initializers whose product has the sign that folding BatchNormalization gives each output channel.
    """

    name: str
    op_type: str
    activation: UlqActivation
    weight: ArqRetrain
    fixed_min: bool
    symmetric: bool
    axis: int
    group: int
    factors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrainPlan:
    """One decision for every node of the model.

    layers: what is trained quantized or sparse, in the order of the graph.
    disabled: what could be and was switched off by the user.
    skipped: every other node, and the disabled ones -> the reason, a sentence that a user can read.
    notes: layer -> what was decided otherwise than asked, one sentence each.
    order: every node of the graph.
    batch_num: batches that limits are found on.
    fp16_scales: activation scales are rounded to what fp16 holds.
    """

    layers: Mapping[str, RetrainLayer] = field(default_factory=dict)
    disabled: Mapping[str, RetrainLayer] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    order: tuple[str, ...] = ()
    batch_num: int = 1
    fp16_scales: bool = False

    def blocks(self) -> dict[str, tuple[bool, RetrainLayerConfig]]:
        """Every layer that can be quantized, in the order of the graph: whether it is, and how it is or would be."""
        both = {**self.disabled, **self.layers}
        return {
            name: (name in self.layers, RetrainLayerConfig(activation=both[name].activation, weight=both[name].weight))
            for name in self.order
            if name in both
        }


def plan_quantization(state: QuantState, config: RetrainConfig) -> RetrainPlan:
    """Decide for every node of a prepared graph whether and how it is trained quantized.

    Raises:
        ConfigError: the configuration asks for sparsity, names a layer that is not there, or asks an override for what
            its layer cannot have.
        NotAvailableError: a valid request that the engine does not carry out yet.
        ModelError: nothing is left to quantize.
    """
    if config.prunes:
        raise ConfigError("the configuration asks for sparsity (prune_config), which is no part of quantization")
    check_names(state, config)
    types, factors = infer_types(state.graph), folding_factors(state.graph)
    layers: dict[str, RetrainLayer] = {}
    disabled: dict[str, RetrainLayer] = {}
    skipped, notes = dict(state.gone), {}
    for node in state.graph.nodes:
        reason = why_not_layer(node, types)
        if reason is None and not has_weight(node):
            reason = f"{node.op} has no weight that could be trained"
        elif reason is None and is_recurrent(node):
            reason = f"{node.op} is not trained over integers"
        if reason is not None:
            if node.name in config.override_layer_configs and node.name in (config.only_layers or (node.name,)):
                raise ConfigError(f"layer {node.name!r} is configured, but cannot be quantized: {reason}")
            skipped[node.name] = reason
            continue
        request = _Request.of(node, config)
        layer = replace(request.decide(), factors=factors.get(node.name, ()))
        if reason := request.why_disabled():
            disabled[node.name], skipped[node.name] = layer, reason
            continue
        if layer.activation.num_bits == 4:
            raise NotAvailableError(f"layer {node.name!r}: activations of INT4 are not available; INT8 and INT16 are")
        layers[node.name] = layer
        if request.notes:
            notes[node.name] = tuple(request.notes)
    if not layers:
        listed = "; ".join(f"{name!r}: {skipped[name]}" for name in list(disabled or skipped)[:5])
        raise ModelError(f"no layer is left to quantize: {listed}")
    return RetrainPlan(
        layers=layers,
        disabled=disabled,
        skipped=skipped,
        notes=notes,
        batch_num=config.batch_num,
        fp16_scales=config.fakequant_precision_mode == "FORCE_FP16_QUANT",
        order=tuple(node.name for node in state.graph.nodes),
    )


class _Request:
    """The blocks that apply to one layer, and how their wishes become decisions."""

    def __init__(self, node: Node, config: RetrainConfig, type_name: str | None) -> None:
        self.node, self.config = node, config
        self.own = config.override_layer_configs.get(node.name, RetrainLayerConfig())
        self.of_type = RetrainLayerConfig() if type_name is None else config.override_layer_types[type_name]
        self.type_name = type_name
        self.notes: list[str] = []

    @classmethod
    def of(cls, node: Node, config: RetrainConfig) -> _Request:
        return cls(node, config, type_override(node, config))

    def _pick(self, own: _T | None, of_type: _T | None, everywhere: _T | None, default: _T) -> tuple[_T, str | None]:
        """The narrowest wish, and the override that it comes from; None for the widest block."""
        if own is not None:
            return own, f"layer {self.node.name!r}"
        if of_type is not None:
            return of_type, f"layer type {self.type_name!r}"
        return (default if everywhere is None else everywhere), None

    def decide(self) -> RetrainLayer:
        wide = self.config.everywhere
        activation, wider = self._pick(self.own.activation, self.of_type.activation, wide.activation, UlqActivation())
        weight, source = self._pick(self.own.weight, self.of_type.weight, wide.weight, ArqRetrain())
        with located(f"layer {self.node.name!r}"):
            require_widths(activation, weight)
        layout, front = layout_of(self.node), producer(self.node.inputs[0])
        behind_relu = front is not None and front.op == "Relu" and is_standard(front)
        return RetrainLayer(
            name=self.node.name,
            op_type=self.node.op,
            activation=self._activation(activation, wider),
            weight=self._weight(weight, source),
            fixed_min=behind_relu if activation.fixed_min is None else activation.fixed_min,
            symmetric=self.node.op == "Conv" and spatial_axes(self.node) == 3,
            axis=layout.axis,
            group=layout.group,
        )

    def _activation(self, activation: UlqActivation, source: str | None) -> UlqActivation:
        if activation.num_bits == 16 and (reason := why_not_16_bits(self.node)):
            self._cannot("dst_type INT16", f"{reason}, its activations have 8 bits", source)
            return replace(activation, num_bits=8)
        return activation

    def _weight(self, weight: ArqRetrain, source: str | None) -> ArqRetrain:
        per_channel = self.node.op in PER_CHANNEL
        channel_wise = per_channel if weight.channel_wise is None else weight.channel_wise
        if channel_wise and not per_channel:
            self._cannot("channel_wise: true", "its weights have one scale", source)
            channel_wise = False
        num_bits = weight.num_bits
        if num_bits == 4 and (reason := why_not_4_bits(self.node)):
            self._cannot("dst_type INT4", f"{reason}, its weights have 8 bits", source)
            num_bits = 8
        return replace(weight, channel_wise=channel_wise, num_bits=num_bits)

    def _cannot(self, request: str, instead: str, source: str | None) -> None:
        if source is not None:
            raise ConfigError(f"{source}: {request} is not possible for {self.node.name!r} ({self.node.op}): {instead}")
        self.notes.append(f"{request} is not possible for {self.node.op}: {instead}")

    def why_disabled(self) -> str | None:
        config, name = self.config, self.node.name
        if config.only_layers is not None:
            return None if name in config.only_layers else "not enabled by the configuration (retrain_enable)"
        if self.own.quantizes:
            return None
        for field_name, names in (("skip_layers", config.skip_layers), ("quant_skip_layers", config.quant_skip_layers)):
            if name in names:
                return f"listed in {field_name}"
        if self.of_type.quantizes:
            return None
        for layer_type in (*config.skip_layer_types, *config.quant_skip_types):
            if is_of(layer_type, self.node):
                return f"its type is skipped as {layer_type!r}"
        return None


def type_override(node: Node, config: RetrainConfig) -> str | None:
    """The type among `override_layer_types` that says the most of a node; None where none means it.

    Raises:
        ConfigError: two of them say as much.
    """
    types = [name for name in config.override_layer_types if is_of(name, node)]
    types.sort(key=says_rank)  # Conv2d says more than Conv
    for other in types[:-1]:
        if says_rank(other) == says_rank(types[-1]):
            listed = f"{types[-1]!r} and {other!r}"
            raise ConfigError(f"override_layer_types has {listed}, and both mean {node.name!r}")
    return types[-1] if types else None


def is_of(layer_type: str, node: Node) -> bool:
    """Whether a node is of a type that users write."""
    return is_of_type(layer_type, node.op, spatial_axes(node), is_depthwise(node))


def check_names(state: QuantState, config: RetrainConfig) -> None:
    """Raise ConfigError where the configuration names a node that the model does not have."""
    known = state.graph.node_names() | set(state.gone)
    lists = {name: getattr(config, name) for name in NAME_LISTS}
    lists |= {"override_layer_configs": config.override_layer_configs, "only_layers": config.only_layers or ()}
    for field_name, names in lists.items():
        for name in names:
            if name not in known:
                hint = nearest(name, known)
                raise ConfigError(f"{field_name} names {name!r}, but the model has no node of that name{hint}")
    for name in config.only_layers or ():
        if name in state.gone:
            raise ConfigError(f"the configuration names {name!r}, which is no layer any more: {state.gone[name]}")
