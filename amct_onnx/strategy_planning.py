"""From a Vitis AI strategy to decisions: which tensors are quantized, and how."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from amct_onnx.errors import ConfigError, ModelError, NotAvailableError
from amct_onnx.formats.torch_names import NamedNode, check_type, is_of_torch_type, nodes_named
from amct_onnx.kernels.strategy import TensorStrategy
from amct_onnx.passes.graph import Graph, Node, has_input, is_constant, type_name
from amct_onnx.passes.layers import bias_input, is_recurrent, spatial_axes
from amct_onnx.passes.shapes import infer_types
from amct_onnx.passes.state import LayerPlan, QuantPlan, QuantState
from amct_onnx.passes.tensor_points import Point, find_points
from amct_onnx.planning import why_not_layer
from amct_onnx.strategy_config import Kinds, StrategyConfig

_log = logging.getLogger("amct_onnx")


def plan_strategy(state: QuantState, config: StrategyConfig, rules: StrategyRules) -> QuantPlan:
    """Decide for every node of a prepared graph.

    Raises:
        ModelError: nothing is left to quantize.
        NotAvailableError: a float type that the model's opset does not have.
    """
    graph, types = state.graph, infer_types(state.graph)
    if graph.opset < _BFLOAT16 and "bfloat16" in config.datatypes():
        found = f"the model has {graph.opset}; export it anew"
        raise NotAvailableError(f"datatype 'bfloat16' needs opset {_BFLOAT16}, {found}")
    skipped = dict(state.gone)
    weighted = {}
    for node in graph.nodes:
        reason = why_not_layer(node, types) or _why_not_float(node)
        if reason is None:
            weighted[node.name] = node
        else:
            skipped[node.name] = reason if node.op in ("Conv", "ConvTranspose", "Gemm", "MatMul") else _NO_WEIGHT
    kept = _kept_float(graph, config, rules.weighted)
    skipped.update(kept)
    layers = {name: _layer(graph, node, rules, config) for name, node in weighted.items() if name not in kept}
    for holder, inner in graph.body_nodes():
        skipped[f"{holder.name}/{inner.name or inner.op}"] = (
            f"inside the body of {holder.op} {holder.name!r}; bodies stay float"
        )
    if not layers:
        raise ModelError(_nothing_left(skipped))
    return QuantPlan(
        layers=layers,
        skipped=skipped,
        batch_num=config.batch_num,
        wide_fusion=True,
        replace_relu6=config.convert_relu6_to_relu,
        align_concat=config.change_concat_input_fix,
        align_pool=config.change_pool_input_fix,
        dpu_shifts=config.target_device == "DPU",
        dpu_arithmetic=config.dpu_arithmetic,
        whole_bias_errors=config.correct_biases,
    )


def plan_tensor_strategies(state: QuantState, config: StrategyConfig, rules: StrategyRules) -> QuantPlan:
    """The plan with a decision for every tensor too; the float graph has its final form and names.

    Raises:
        ConfigError: two rules disagree about one tensor.
    """
    kept = _kept_float(state.graph, config, rules.weighted)
    points = find_points(state.graph, infer_types(state.graph))
    tensors = {p.tensor: rules.of_point(p) for p in points if not _belongs_to(state.graph, p, kept)}
    return replace(state.plan, tensor_strategies=tensors)


def _nothing_left(skipped: Mapping[str, str]) -> str:
    said = [f"{name!r}: {reason}" for name, reason in skipped.items() if reason != _NO_WEIGHT][:5]
    return f"no layer is left to quantize: {'; '.join(said) or 'the model has none with a weight'}"


_BFLOAT16 = 13
"""The opset in which Cast learned bfloat16."""

_NO_WEIGHT = "it has no weight; its result is quantized where the strategy says so"


def _why_not_float(node: Node) -> str | None:
    if node.op == "AveragePool":
        return _NO_WEIGHT
    if is_recurrent(node):
        return f"strategies know no {node.op}"
    if (found := type_name(node.inputs[1])) != "float32":
        return f"its weight is {found}; a strategy quantizes float32"
    return None


def _layer(graph: Graph, node: Node, rules: StrategyRules, config: StrategyConfig) -> LayerPlan:
    has_bias = bias_input(graph, node) is not None
    return LayerPlan(
        name=node.name,
        op_type=node.op,
        activation=rules.of_node(node, "activation"),
        weight=rules.of_node(node, "weights"),
        bias=rules.of_node(node, "bias") if has_bias else None,
        equalise=config.include_cle,
        correct_bias=(config.include_bias_corr or config.correct_biases) and has_bias,
    )


def _kept_float(graph: Graph, config: StrategyConfig, weighted: Sequence[str]) -> dict[str, str]:
    kept = {}
    if config.keep_first_last_layer_accuracy and weighted:
        kept = dict.fromkeys((weighted[0], weighted[-1]), "first or last layer (keep_first_last_layer_accuracy)")
    if config.keep_add_layer_accuracy:
        biases = {place[0].name for node in graph.nodes if (place := bias_input(graph, node)) is not None}
        adds = [node.name for node in graph.nodes if node.op == "Add" and node.name not in biases]
        kept.update(dict.fromkeys(adds, "an addition (keep_add_layer_accuracy)"))
    return kept


def _belongs_to(graph: Graph, point: Point, kept: Mapping[str, str]) -> bool:
    """Whether a tensor is read by nodes alone that stay float, or is the model's output and the result of one."""
    tensors = point.nodes[-1].outputs if point.nodes else [t for t in graph.inputs if t.name == point.tensor]
    users = [user for tensor in tensors for user in tensor.outputs]
    return all(user.name in kept for user in users) if users else any(node.name in kept for node in point.nodes)


@dataclass(frozen=True, slots=True, kw_only=True)
class StrategyRules:
    """The strategy, with its types and names resolved to the nodes of a prepared graph.

    by_type, by_name: node -> (the rule's own name, its kinds).
    weighted: the layers with a weight that can be quantized.
    """

    config: StrategyConfig
    by_type: Mapping[str, tuple[str, Kinds]]
    by_name: Mapping[str, tuple[str, Kinds]]
    weighted: Sequence[str]

    @classmethod
    def of(cls, graph: Graph, config: StrategyConfig) -> StrategyRules:
        """Find the nodes that the strategy means.

        Raises:
            ConfigError: a type or name of a layer means nothing here, or too much.
        """
        nodes = [_named(node) for node in graph.nodes]
        by_type: dict[str, tuple[str, Kinds]] = {}
        for name, kinds in config.layer_types.items():
            check_type(name, {node.op for node in nodes})
            found = [node.name for node in nodes if is_of_torch_type(node, name)]
            if not found:
                _log.warning("layer_type %r: the model has no such layer", name)
            by_type.update(dict.fromkeys(found, (name, kinds)))
        by_name: dict[str, tuple[str, Kinds]] = {}
        for name, kinds in config.layer_names.items():
            by_name.update(dict.fromkeys(nodes_named(name, nodes), (name, kinds)))
        types = infer_types(graph)
        weighted = [n.name for n in graph.nodes if (why_not_layer(n, types) or _why_not_float(n)) is None]
        return cls(config=config, by_type=by_type, by_name=by_name, weighted=weighted)

    def of_node(self, node: Node, kind: str) -> TensorStrategy:
        """A rule for the name goes before one for the type, whatever kinds it has."""
        own = self._said_of(node, kind)
        return replace(own, method="diffs") if self.config.target_device == "DPU" else own

    def _said_of(self, node: Node, kind: str) -> TensorStrategy:
        _, kinds = self.by_name.get(node.name) or self.by_type.get(node.name) or ("", self.config.kinds)
        return kinds.get(kind, self.config.kinds[kind])

    def of_point(self, point: Point) -> TensorStrategy:
        """The rule for a group: of those of its names, else of its types, the only one that speaks of activations."""
        chosen = self.config.kinds["activation"]
        for rules in (self.by_name, self.by_type):
            found = {rules[n.name][0]: rules[n.name][1] for n in point.nodes if n.name in rules}
            speaking = {name: kinds["activation"] for name, kinds in found.items() if "activation" in kinds}
            if len(set(speaking.values())) > 1:
                raise ConfigError(
                    f"{' and '.join(map(repr, speaking))} of layer_quantize_config disagree about tensor "
                    f"{point.tensor!r}, which their layers produce together"
                )
            if speaking:
                chosen = next(iter(speaking.values()))
                break
        if not point.nodes and chosen.scale_type == "poweroftwo":
            return replace(chosen, method="maxmin")
        if self.config.target_device == "DPU" and point.nodes:
            return replace(chosen, method="diffs")
        return chosen


def _named(node: Node) -> NamedNode:
    weight = node.inputs[1].name if has_input(node, 1) and is_constant(node.inputs[1]) else ""
    axes = spatial_axes(node) if node.op in ("Conv", "ConvTranspose") else None
    return NamedNode(name=node.name, op=node.op, weight=weight, axes=axes)
