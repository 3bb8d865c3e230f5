"""From what the user asks for to one decision per layer that becomes sparse; a sentence for every layer that does not.

What an override does not say comes from the next wider block: layer, then type, then everywhere. A layer that any skip
list names, by itself or by its type, stays as it is, also where an override names it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from amct_onnx.errors import ConfigError, ModelError
from amct_onnx.passes.graph import Node, is_constant, is_standard, type_name
from amct_onnx.passes.layers import is_depthwise, output_channels
from amct_onnx.passes.state import QuantState
from amct_onnx.retrain.planning import check_names, is_of, type_override
from amct_onnx.retrain.trained import shared_layers
from amct_onnx.retrain_config import FilterPrune, RetrainConfig, RetrainLayerConfig, SelectivePrune

_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True, slots=True, kw_only=True)
class PrunePlan:
    """One decision for every layer of a model.

    filters: layers that lose output channels, in the order of the graph.
    selective: layers that lose two of every four weights, likewise.
    skipped: every other layer -> the reason, a sentence that a user can read.
    """

    filters: Mapping[str, FilterPrune] = field(default_factory=dict)
    selective: Mapping[str, SelectivePrune] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)


def plan_pruning(state: QuantState, config: RetrainConfig) -> PrunePlan:
    """Decide for every layer of a prepared graph whether and how it becomes sparse.

    Raises:
        ConfigError: the configuration asks for no sparsity, names a layer that is not there, or asks an override for
            what its layer cannot have.
        ModelError: no layer is left.
    """
    if not config.prunes:
        raise ConfigError("the configuration asks for no sparsity; prune_config says which, for all layers or for some")
    check_names(state, config)
    shared = shared_layers(state)
    filters: dict[str, FilterPrune] = {}
    selective: dict[str, SelectivePrune] = {}
    skipped: dict[str, str] = {}
    for node in state.graph.nodes:
        own = config.override_layer_configs.get(node.name, RetrainLayerConfig()).prune
        if node.op not in _LAYERS or not is_standard(node):
            if own is not None:
                raise ConfigError(f"layer {node.name!r} is to be pruned, but {node.op} is no layer with a weight")
            continue
        wish = own or _wish(node, config)
        reason = _why_skipped(node, config) or _why_not(node, wish, shared)
        if wish is None or reason is not None:
            if own is not None and (why := _why_not(node, own, shared)) is not None:
                raise ConfigError(f"layer {node.name!r} cannot be pruned as its override asks: {why}")
            skipped[node.name] = reason or "the configuration does not ask for it"
        elif isinstance(wish, FilterPrune):
            filters[node.name] = wish
        else:
            selective[node.name] = wish
    if not filters and not selective:
        listed = "; ".join(f"{name!r}: {reason}" for name, reason in list(skipped.items())[:5])
        raise ModelError(f"no layer is left to prune: {listed}")
    return PrunePlan(filters=filters, selective=selective, skipped=skipped)


def _wish(node: Node, config: RetrainConfig) -> FilterPrune | SelectivePrune | None:
    name = type_override(node, config)
    of_type = None if name is None else config.override_layer_types[name].prune
    return of_type or config.everywhere.prune


def _why_skipped(node: Node, config: RetrainConfig) -> str | None:
    lists = {"skip_layers": config.skip_layers, "regular_prune_skip_layers": config.prune_skip_layers}
    for field_name, names in lists.items():
        if node.name in names:
            return f"listed in {field_name}"
    for layer_type in (*config.skip_layer_types, *config.prune_skip_types):
        if is_of(layer_type, node):
            return f"its type is skipped as {layer_type!r}"
    return None


def _why_not(node: Node, wish: FilterPrune | SelectivePrune | None, shared: Mapping[str, str]) -> str | None:
    """Why a layer cannot be pruned in this way; what lies behind it does not matter here."""
    if not is_constant(node.inputs[1]):
        return "its weight is computed at run time"
    if type_name(node.inputs[1]) not in ("float32", "float16"):
        return f"its weight is {type_name(node.inputs[1])}; only float32 and float16 weights are pruned"
    if node.op == "MatMul" and len(node.inputs[1].shape) != 2:
        return f"its weight has {len(node.inputs[1].shape)} dimensions; only those of 2 are pruned"
    if is_constant(node.inputs[0]):
        return "its input is a constant"
    if not isinstance(wish, FilterPrune):
        return None
    if node.name in shared:
        return shared[node.name]
    if is_depthwise(node):
        return "it treats every channel by itself, and loses those that its input loses"
    return "it has one output channel" if output_channels(node) < 2 else None
