"""From what the user asks for to one decision per layer, and one sentence for every node left out.

Precedence, whole blocks at a time: override_layer_configs, override_layer_types, common_config. For `asymmetric`
also common_config where the algorithm is the same, then activation_offset. A request in common_config that a layer
cannot honour is dropped with a note; the same request in an override is an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from onnx import TensorProto

from amct_onnx.config import LayerConfig, QuantConfig
from amct_onnx.errors import ConfigError, ModelError, NotAvailableError, located, nearest
from amct_onnx.formats.fused_graph import read_compressible
from amct_onnx.kernels.adaround import AdaRound
from amct_onnx.kernels.arq import Arq
from amct_onnx.kernels.dmq import Dmq
from amct_onnx.kernels.hfmg import Hfmg
from amct_onnx.kernels.ifmr import Ifmr
from amct_onnx.kernels.nuq import Nuq
from amct_onnx.kernels.quant_params import QuantParams
from amct_onnx.passes.graph import Node
from amct_onnx.passes.layer_types import PER_CHANNEL, is_of_type, says_rank
from amct_onnx.passes.layers import (
    has_weight,
    is_depthwise,
    is_product,
    is_recurrent,
    spatial_axes,
    why_not,
    why_not_4_bits,
    why_not_16_bits,
)
from amct_onnx.passes.shapes import TensorType, infer_types
from amct_onnx.passes.state import LayerPlan, QuantPlan, QuantState, TensorPlan
from amct_onnx.planning_tensors import plan_tensors

_PRODUCT_NOT_ASKED = (
    "both of its inputs are computed at run time; such a MatMul is quantized only where override_layer_configs names it"
)
_RECURRENT_NOT_ASKED = (
    "LSTM and GRU are quantized only where a configuration asks for it: give recurrent_layers=True, or name it in "
    "override_layer_configs"
)


def make_plan(state: QuantState, config: QuantConfig) -> QuantPlan:
    """Decide for every node of a prepared graph.

    Raises:
        ConfigError: the configuration names a layer that is not there, or asks an override for what it cannot have.
        NotAvailableError: a valid request that the engine does not carry out yet.
        ModelError: nothing is left to quantize.
    """
    _check_names(state, config)
    layers: dict[str, LayerPlan] = {}
    disabled: dict[str, LayerPlan] = {}
    skipped = dict(state.gone)
    notes: dict[str, tuple[str, ...]] = {}
    types = infer_types(state.graph)
    wishes = _Wishes.of(state, config)
    for node in state.graph.nodes:
        if reason := why_not_layer(node, types):
            skipped[node.name] = reason
            if node.name in config.override_layer_configs and node.name not in _disabled_by_list(config):
                raise ConfigError(f"override_layer_configs names {node.name!r}, which cannot be quantized: {reason}")
            continue
        if node.name not in config.override_layer_configs and (reason := _why_not_asked(node, config)):
            skipped[node.name] = reason
            continue
        decided = _Request.of(node, wishes).decide()
        if reason := _why_disabled(node, config):
            disabled[node.name] = decided.layer
            skipped[node.name] = reason
            continue
        _check_available(decided.layer)
        layers[node.name] = decided.layer
        if decided.notes:
            notes[node.name] = decided.notes
    _skip_bodies(state, skipped, layers)
    tensors = plan_tensors(state, config, layers, types)
    if not layers and not tensors:
        raise ModelError(_nothing_left(skipped, disabled))
    return QuantPlan(
        layers=layers,
        tensors=tensors,
        disabled=disabled,
        skipped=skipped,
        notes=notes,
        batch_num=config.batch_num,
        do_fusion=config.do_fusion,
        wide_fusion=config.wide_fusion,
        skip_fusion=frozenset(config.skip_fusion_layers),
        balance_batches=config.balance_batches,
        fold_balancers=config.fold_balancers,
        fp16_scales=config.fakequant_precision_mode == "FORCE_FP16_QUANT",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenLayer:
    """The scales of a layer, where they need not be found.

    activation: of its input, per tensor.
    weight: of its weight, per tensor or along axis 0 of `channels_first`, or of its second input where that is an
        activation; None for a layer without either.
    factors: what its weight is multiplied by and its input divided by, [Cin]; empty for no balancing.
    cluster: the integers that are left to its weight; empty for all.
    is_cut: its dequantization scale is cut to 19 bits.
    hidden, recurrent: of the hidden state of an LSTM or GRU, and of the weight that it is multiplied by; else None.
    """

    activation: QuantParams
    weight: QuantParams | None
    factors: tuple[float, ...] = ()
    cluster: tuple[int, ...] = ()
    is_cut: bool = False
    hidden: QuantParams | None = None
    recurrent: QuantParams | None = None


def plan_given(
    state: QuantState,
    given: Mapping[str, GivenLayer],
    reasons: Mapping[str, str],
    otherwise: str,
    *,
    tensors: tuple[TensorPlan, ...] = (),
    wide_fusion: bool = False,
    skip_fusion: frozenset[str] = frozenset(),
    do_fusion: bool = True,
) -> QuantPlan:
    """The plan for layers whose scales are known already.

    Args:
        state: of a prepared graph.
        given: layer -> its scales; each of them can be quantized.
        reasons: node -> why it stays float, where there is more to say than `otherwise`.
        otherwise: why a layer that could be quantized stays float.
        tensors: what is quantized by itself, with its scale.
        wide_fusion: fold BatchNormalization behind ConvTranspose, Gemm and MatMul too.
        skip_fusion: layers whose BatchNormalization is not folded.
        do_fusion: fold BatchNormalization at all.
    """
    layers: dict[str, LayerPlan] = {}
    skipped = dict(state.gone)
    types = infer_types(state.graph)
    for node in state.graph.nodes:
        if node.name in given:
            scales = given[node.name]
            weight = scales.weight or Arq(channel_wise=False)
            layers[node.name] = LayerPlan(
                name=node.name,
                op_type=node.op,
                activation=scales.activation,
                weight=weight,
                balancer=scales.factors or None,
                cluster=scales.cluster,
                hidden=scales.hidden,
                recurrent=scales.recurrent,
            )
        else:
            skipped[node.name] = why_not_layer(node, types) or reasons.get(node.name, otherwise)
    _skip_bodies(state, skipped, layers)
    return QuantPlan(
        layers=layers,
        tensors=tensors,
        skipped=skipped,
        wide_fusion=wide_fusion,
        skip_fusion=skip_fusion,
        do_fusion=do_fusion,
        cut_scales=frozenset(name for name, scales in given.items() if scales.is_cut),
    )


def _skip_bodies(state: QuantState, skipped: dict[str, str], layers: Mapping[str, LayerPlan]) -> None:
    for holder, node in state.graph.body_nodes():
        name = (
            node.name if node.name and node.name not in {*skipped, *layers} else f"{holder.name}/{node.name or node.op}"
        )
        skipped[name] = f"inside the body of {holder.op} {holder.name!r}; bodies stay float"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Decided:
    layer: LayerPlan
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wishes:
    """The configuration, and the layers that its mapping file for NUQ names."""

    config: QuantConfig
    compressible: frozenset[str]

    @classmethod
    def of(cls, state: QuantState, config: QuantConfig) -> _Wishes:
        if config.nuq_config is None:
            return cls(config=config, compressible=frozenset())
        path = config.nuq_config.mapping_file
        with located("nuq_config"):
            compressible = read_compressible(path)
            if not compressible & state.graph.node_names():
                raise ConfigError(f"{path}: flags no layer of this model with fe_weight_compress")
        return cls(config=config, compressible=compressible)


class _Request:
    """The block that applies to one layer, and how its wishes become decisions."""

    def __init__(self, node: Node, wishes: _Wishes, block: LayerConfig, source: str | None) -> None:
        self.node, self.config, self.block, self.wishes = node, wishes.config, block, wishes
        self.source = source  # the override that the block comes from; None for common_config
        self.notes: list[str] = []

    @classmethod
    def of(cls, node: Node, wishes: _Wishes) -> _Request:
        config = wishes.config
        if node.name in config.override_layer_configs:
            return cls(node, wishes, config.override_layer_configs[node.name], f"layer {node.name!r}")
        axes = spatial_axes(node)
        types = [name for name in config.override_layer_types if is_of_type(name, node.op, axes, is_depthwise(node))]
        if types:
            name = sorted(types, key=says_rank)[-1]  # Conv2d says more than Conv
            for other in types:
                if other != name and says_rank(other) == says_rank(name):
                    raise ConfigError(f"override_layer_types has {name!r} and {other!r}, and both mean {node.name!r}")
            return cls(node, wishes, config.override_layer_types[name], f"layer type {name!r}")
        return cls(node, wishes, config.common_config, None)

    def decide(self) -> _Decided:
        layer = LayerPlan(
            name=self.node.name,
            op_type=self.node.op,
            activation=replace(self._activation(), asymmetric=self._asymmetric()),
            weight=self._weight(),
            balancer=self._balancer(),
            equalise=self.config.equalise_layers,
            correct_bias=self.config.correct_biases,
        )
        return _Decided(layer=layer, notes=tuple(self.notes))

    def _cannot(self, request: str, instead: str) -> None:
        """The layer cannot honour `request`: an error where an override asked for it, else a note."""
        if self.source is not None:
            raise ConfigError(f"{self.source}: {request} is not possible for {self._what()}; {instead}")
        self.notes.append(f"{request} of common_config is not possible for {self._what()}; {instead}")

    def _what(self) -> str:
        axes = spatial_axes(self.node)
        return self.node.op if axes is None else f"a {axes}-D {self.node.op}"

    def _activation(self) -> Ifmr | Hfmg:
        activation = self.block.activation
        if activation.num_bits == 16 and (reason := why_not_16_bits(self.node)):
            self._cannot("dst_type INT16", f"{reason}, so its activations have 8 bits")
            return replace(activation, num_bits=8)
        return activation

    def _asymmetric(self) -> bool:
        own, common = self.block.activation, self.config.common_config.activation
        if is_product(self.node) or (self.node.op == "Conv" and spatial_axes(self.node) == 3):
            if own.asymmetric:
                self._cannot("asymmetric: true", "its activations are symmetric")
            return False
        if own.asymmetric is not None:
            return own.asymmetric
        if type(own) is type(common) and common.asymmetric is not None:
            return common.asymmetric
        return self.config.activation_offset

    def _weight(self) -> Arq | AdaRound | Nuq:
        weight = self._nuq_of_mapping() or self.block.weight
        if isinstance(weight, Nuq) and self.node.op != "AveragePool":
            if self._can_be_non_uniform():
                return weight
            self._cannot("nuq_quantize", "its weights are quantized by arq_quantize")
            weight = Arq()
        if self.node.op == "AveragePool" and self.source is None:
            return Arq(channel_wise=False)  # it has no weight that anything could be said of
        if isinstance(weight, Nuq):
            self._cannot("nuq_quantize", "it has no weight")
            weight = Arq()
        if isinstance(weight, AdaRound) and not self._can_round():
            self._cannot("ada_quantize", "its weights are quantized by arq_quantize")
            weight = Arq()
        per_channel = self.node.op in PER_CHANNEL
        channel_wise = per_channel if weight.channel_wise is None else weight.channel_wise
        if channel_wise and not per_channel:
            self._cannot("channel_wise: true", "its weights have one scale")
            channel_wise = False
        num_bits = weight.num_bits
        if num_bits in (6, 7) and not (self.node.op == "Conv" and spatial_axes(self.node) == 2):
            self._cannot(f"quant_bits: {num_bits}", "its weights have 8 bits")
            num_bits = 8
        if num_bits == 4 and (reason := self._why_not_4_bits()):
            self._cannot("quant_bits: 4", f"{reason}, so its weights have 8 bits")
            num_bits = 8
        return replace(weight, channel_wise=channel_wise, num_bits=num_bits)

    def _why_not_4_bits(self) -> str | None:
        if self.block.activation.num_bits == 16 and why_not_16_bits(self.node) is None:
            return "its activations have 16"
        return why_not_4_bits(self.node)

    def _can_round(self) -> bool:
        return (has_weight(self.node) and self.node.op in ("Conv", "Gemm", "MatMul")) or (
            self.node.op == "ConvTranspose" and spatial_axes(self.node) == 2
        )

    def _can_be_non_uniform(self) -> bool:
        undilated = all(d == 1 for d in self.node.attrs.get("dilations", []))
        return self.node.op == "Gemm" or (self.node.op == "Conv" and spatial_axes(self.node) == 2 and undilated)

    def _nuq_of_mapping(self) -> Nuq | None:
        """NUQ where the mapping file names the layer; what an override says of this very layer goes before it."""
        asked = self.config.nuq_config
        if asked is None or self.node.name in self.config.override_layer_configs:
            return None
        return asked.nuq if self.node.name in self.wishes.compressible and self._can_be_non_uniform() else None

    def _balancer(self) -> Dmq | None:
        if self.block.balancer is not None and not has_weight(self.node):
            self._cannot("dmq_balancer", "it has no weight to balance with")
            return None
        if self.block.balancer is not None and is_recurrent(self.node):
            self._cannot("dmq_balancer", "only layers with one weight are balanced")
            return None
        return self.block.balancer


def why_not_layer(node: Node, types: dict[str, TensorType]) -> str | None:
    """Why a node cannot be quantized, as a sentence, or None where it can; `types` are those of the graph."""
    return why_not(node) or _why_not_type(node, types)


def _why_not_type(node: Node, types: dict[str, TensorType]) -> str | None:
    """Layers without weights tell element type and rank by their inputs only."""
    if has_weight(node):
        return None
    for known in [types[tensor.name] for tensor in node.inputs if tensor.name in types]:
        if known.elem_type not in (TensorProto.FLOAT, TensorProto.UNDEFINED):
            only = "pooling is" if node.op == "AveragePool" else "products of two activations are"
            found = TensorProto.DataType.Name(known.elem_type).lower()
            return f"its input is {found}; only float32 {only} quantized"
        if is_product(node) and known.shape is not None and len(known.shape) < 2:
            return "one of its inputs has less than 2 axes; Ascend multiplies matrices"
    return None


def _why_not_asked(node: Node, config: QuantConfig) -> str | None:
    """Why a layer stays float that is quantized only where it is asked for."""
    if is_product(node):
        return _PRODUCT_NOT_ASKED
    return _RECURRENT_NOT_ASKED if is_recurrent(node) and not config.recurrent_layers else None


def _why_disabled(node: Node, config: QuantConfig) -> str | None:
    if node.name in config.skip_layers:
        return "listed in skip_layers"
    for name in config.skip_layer_types:
        if is_of_type(name, node.op, spatial_axes(node), is_depthwise(node)):
            return f"its type is listed in skip_layer_types as {name!r}"
    if config.only_layers is not None and node.name not in config.only_layers:
        return "not enabled by the configuration (quant_enable)"
    return None


def _disabled_by_list(config: QuantConfig) -> set[str]:
    """Layers with a block of their own that the configuration switches off all the same."""
    off = set(config.skip_layers)
    if config.only_layers is not None:
        off |= set(config.override_layer_configs) - set(config.only_layers)
    return off


def _check_available(layer: LayerPlan) -> None:
    if getattr(layer.activation, "num_bits", 8) == 4:
        with located(f"layer {layer.name!r}"):
            raise NotAvailableError("4-bit activations are not available yet; remove them from the configuration")


def _check_names(state: QuantState, config: QuantConfig) -> None:
    known = state.graph.node_names() | set(state.gone) | {node.name for _, node in state.graph.body_nodes()}
    for name in set(config.override_layer_configs) & set(state.gone) - _disabled_by_list(config):
        raise ConfigError(f"override_layer_configs names {name!r}, which is no layer any more: {state.gone[name]}")
    for field, names in (
        ("skip_layers", config.skip_layers),
        ("skip_fusion_layers", config.skip_fusion_layers),
        ("override_layer_configs", config.override_layer_configs),
        ("only_layers", config.only_layers or ()),
        ("tensor_quantize", [tensor.layer_name for tensor in config.tensor_quantize]),
    ):
        _check_known(field, names, known)


def _check_known(field: str, names: Iterable[str], known: set[str]) -> None:
    for name in names:
        if name not in known:
            raise ConfigError(f"{field} names {name!r}, but the model has no node of that name{nearest(name, known)}")


def _nothing_left(skipped: dict[str, str], disabled: dict[str, LayerPlan]) -> str:
    shown = [f"{name!r}: {skipped[name]}" for name in disabled]
    shown += [f"{name!r}: {reason}" for name, reason in skipped.items() if not reason.endswith("can be quantized")]
    if not shown:
        kinds = "no Conv, ConvTranspose, Gemm, MatMul, AveragePool, LSTM or GRU"
        return f"the model has no layer that can be quantized: {kinds}"
    more = f"; and {len(shown) - 5} more" if len(shown) > 5 else ""
    return f"no layer is left to quantize: {'; '.join(dict.fromkeys(shown[:5]))}{more}"
