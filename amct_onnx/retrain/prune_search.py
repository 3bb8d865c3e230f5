"""Searches how many channels each layer shall lose, so that the model computes as much less as is asked for."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amct_onnx.errors import ArgumentError, ConfigError, DataError, located
from amct_onnx.formats.auto_prune_cfg import AutoPruneSource, format_prune_cfg, load_auto_prune_config
from amct_onnx.formats.model_file import read_model, write_files
from amct_onnx.formats.retrain_json import load_retrain_config
from amct_onnx.kernels.sparsity import ALIGNMENT
from amct_onnx.passes.channel_groups import ChannelGroup, ChannelMap, channel_map
from amct_onnx.passes.channel_walk import FIXED
from amct_onnx.passes.graph import Array, Node, is_constant
from amct_onnx.passes.layers import channels_first
from amct_onnx.passes.shapes import TensorType, infer_types
from amct_onnx.passes.state import QuantState
from amct_onnx.prepare import prepare
from amct_onnx.retrain.channel_pruning import wanted_count
from amct_onnx.retrain.module import OnnxModule
from amct_onnx.retrain.prune_planning import plan_pruning
from amct_onnx.retrain.quantization import Model
from amct_onnx.retrain.trained import shared_layers
from amct_onnx.retrain_config import AutoPruneConfig, FilterPrune, RetrainConfig, RetrainLayerConfig

_log = logging.getLogger("amct_onnx")

Loss = Callable[[Any, Tensor], Tensor]

_STEPS = 32
"""In how many steps a group is searched where what remains need not be a multiple of 16."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRow:
    """What was found for one group of layers.

    layers: that make the channels.
    channels: how many they have.
    removed: how many shall go.
    sensitivity: how much the loss reacts to those, in proportion to that of all channels of all groups.
    cost: share of the model's products that hang on one channel, before anything is taken away.
    """

    layers: tuple[str, ...]
    channels: int
    removed: int
    sensitivity: float
    cost: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """What `auto_channel_prune_search` found.

    config: for `create_prune_retrain_model`.
    cfg: the same as a file where one was asked for, else as text.
    rows: group by group.
    compress_ratio: products of the whole model by those of the pruned one; below the target where that is too high.
    """

    config: RetrainConfig
    cfg: Path | str
    rows: tuple[SearchRow, ...]
    compress_ratio: float

    def table(self) -> str:
        """The rows as text."""
        head = ("layers", "channels", "removed", "sensitivity", "cost per channel")
        body = [
            (", ".join(r.layers), str(r.channels), str(r.removed), f"{r.sensitivity:.2%}", f"{r.cost:.4%}")
            for r in self.rows
        ]
        widths = [max(len(row[i]) for row in (head, *body)) for i in range(len(head))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (head, *body)]
        return "\n".join(line.rstrip() for line in (*lines, f"compress_ratio: {self.compress_ratio:.3f}"))


def auto_channel_prune_search(
    model: Model,
    config: AutoPruneSource,
    input_data: Sequence[Any],
    output_cfg: str | os.PathLike[str] | None = None,
    *,
    loss: Loss | None = None,
) -> SearchResult:
    """Find how many channels each layer shall lose, and write the configuration that says so.

    Channels go in the order of their norms, as `create_prune_retrain_model` takes them. Each step takes some from the
    group of layers whose next ones matter least for the loss (first-order Taylor expansion: magnitude of weight times
    gradient) in proportion to the products that go with them.

    Args:
        model: an .onnx file, or a model in memory, which stays untouched.
        config: a .cfg file, a dict with its fields (`compress_ratio`, `ascend_optimized`, `max_prune_ratio`,
            `test_iteration`, `override_prune_cfg`), or an AutoPruneConfig.
        input_data: [data, label], arrays with one sample after the other; data is a list of arrays, or a dict by name,
            for a model with several inputs.
        output_cfg: the file to write; None for none.
        loss: called with the output, or the tuple of outputs, and the label; None for their mean absolute difference.

    Raises:
        ConfigError, ModelError, DataError, NotAvailableError, OutputError: each names what was found, where, and what
            is allowed.
    """
    if loss is not None and not callable(loss):
        raise ArgumentError(f"loss must be callable, or None; found {loss!r:.60}")
    wanted = load_auto_prune_config(config)
    state, _ = prepare(read_model(model))
    asked = _asked(wanted)
    plan = plan_pruning(state, asked)
    channels = channel_map(state.graph, plan.filters, whole=shared_layers(state))
    module = OnnxModule(state.graph.to_light())
    samples = _samples(module, input_data, state, wanted.test_iteration)
    costs = _Costs(channels, infer_types(state.graph, {k: v.shape for k, v in samples[0][0].items()}))
    search = _Search(channels, costs, _sensitivities(module, channels, samples, loss or _l1), wanted)
    for group in channels.groups:
        if (own := _own_wish(group, plan.filters, asked)) is not None:
            search.settle(group, wanted_count(group, dict.fromkeys(group.names, own)))
    search.run()
    found = _found(asked, plan.filters, search)
    text = format_prune_cfg(found)
    if output_cfg is not None:
        write_files({Path(output_cfg): text})
    if search.ratio() < wanted.compress_ratio:
        _log.warning(
            "the target compress_ratio %g is too high: all that may go gives %.3f",
            wanted.compress_ratio,
            search.ratio(),
        )
    return SearchResult(
        config=found,
        cfg=text if output_cfg is None else Path(output_cfg),
        rows=search.rows(),
        compress_ratio=search.ratio(),
    )


def _asked(wanted: AutoPruneConfig) -> RetrainConfig:
    """The configuration that the search starts from."""
    block = RetrainLayerConfig(prune=FilterPrune(prune_ratio=0.3, ascend_optimized=wanted.ascend_optimized))
    if wanted.override_prune_cfg is None:
        return RetrainConfig(everywhere=block)
    given = load_retrain_config(wanted.override_prune_cfg)
    with located(wanted.override_prune_cfg):
        blocks = [*given.override_layer_configs.values(), *given.override_layer_types.values()]
        if given.everywhere != RetrainLayerConfig() or given.quant_skip_layers or given.quant_skip_types:
            raise ConfigError("an override_prune_cfg takes skip lists and overrides with filter_pruner only")
        if any(b.quantizes or not isinstance(b.prune, FilterPrune) for b in blocks):
            raise ConfigError(
                "an override in an override_prune_cfg takes prune_config with filter_pruner, nothing else"
            )
    return replace(given, everywhere=block)


def _own_wish(group: ChannelGroup, wishes: Mapping[str, FilterPrune], asked: RetrainConfig) -> FilterPrune | None:
    """What an override of the user's says of a group; None where the search is free."""
    own = [wishes[name] for name in group.names if wishes[name] is not asked.everywhere.prune]
    return min(own, key=lambda wish: wish.prune_ratio, default=None)


def _samples(
    module: OnnxModule, input_data: Sequence[Any], state: QuantState, count: int
) -> list[tuple[dict[str, Tensor], Tensor]]:
    """As many samples as asked for, each of the batch size that the model takes."""
    if not isinstance(input_data, (list, tuple)) or len(input_data) != 2:
        raise ArgumentError("input_data must be [data, label]")
    data, label = input_data
    if not isinstance(data, Mapping):
        listed = data if isinstance(data, (list, tuple)) else [data]
        if len(listed) != len(module.input_names):
            raise DataError(f"the model has the inputs {module.input_names}; {len(listed)} were given")
        data = dict(zip(module.input_names, listed, strict=True))
    shape = state.graph.inputs[0].shape
    batch = shape[0] if shape and isinstance(shape[0], int) and shape[0] > 0 else 1
    tensors = {name: _tensor(f"input {name!r}", values) for name, values in data.items()}
    answers = _tensor("label", label)
    available = min(len(values) for values in (*tensors.values(), answers)) // batch
    if available < count:
        raise DataError(f"input_data holds {available} samples of batch size {batch}; test_iteration is {count}")
    places = [slice(i * batch, (i + 1) * batch) for i in range(count)]
    return [({name: values[place] for name, values in tensors.items()}, answers[place]) for place in places]


def _tensor(what: str, values: Any) -> Tensor:
    try:
        found = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{what} in input_data is no array of numbers: {error}") from error
    if not found.ndim:
        raise DataError(f"{what} in input_data must hold one sample after the other, found {found.item()}")
    return found


def _l1(output: Any, label: Tensor) -> Tensor:
    first = output[0] if isinstance(output, tuple) else output
    if first.shape != label.shape:
        raise DataError(f"the output has shape {list(first.shape)}, the label {list(label.shape)}; give a loss")
    return torch.nn.functional.l1_loss(first, label.to(first.dtype))


def _sensitivities(
    module: OnnxModule, channels: ChannelMap, samples: list[tuple[dict[str, Tensor], Tensor]], loss: Loss
) -> dict[str, Array]:
    """Producer -> sum over its filters' weights of |weight * gradient|, over all samples; [Cout]."""
    module.eval()
    producers = [member.node for group in channels.groups for member in group.producers]
    parameters = {node.name: module.get_parameter(module.names[node.inputs[1].name]) for node in producers}
    totals = {node.name: np.zeros(len(channels_first(node, _numpy(parameters[node.name])))) for node in producers}
    for number, (inputs, label) in enumerate(samples):
        module.zero_grad()
        _checked_loss(loss(module(**inputs), label), number).backward()  # type: ignore[no-untyped-call]
        for node in producers:
            weight = parameters[node.name]
            if weight.grad is not None:
                taylor = channels_first(node, np.abs(_numpy(weight) * _numpy(weight.grad)))
                totals[node.name] += taylor.reshape(len(taylor), -1).sum(1)
    return totals


def _checked_loss(found: object, sample: int) -> Tensor:
    if not isinstance(found, Tensor) or found.numel() != 1 or not found.requires_grad:
        what = f"a tensor of shape {list(found.shape)}" if isinstance(found, Tensor) else repr(found)[:60]
        raise ArgumentError(f"loss must give a tensor of one number, computed from the output; found {what}")
    if not found.isfinite().all():
        raise DataError(f"the loss of sample {sample} in input_data is {found.item()}")
    return found


def _numpy(tensor: Tensor) -> Array:
    return tensor.detach().cpu().numpy()


class _Costs:
    """How many products each layer computes, and what is left of them."""

    def __init__(self, channels: ChannelMap, types: Mapping[str, TensorType]) -> None:
        self.whole = {
            id(node): _products(node, types) for node in channels.graph.nodes if len(node.inputs) > 1 and _counts(node)
        }
        self.cuts = [cut for cut in channels.cuts if cut.index == 1 and id(cut.node) in self.whole]
        self.numbers = 1 + max((int(cut.atoms.max()) for cut in self.cuts), default=0)

    def total(self, removed: set[int]) -> float:
        """All products without the removed classes."""
        stays, left = np.ones(self.numbers, np.bool_), dict(self.whole)
        stays[list(removed)] = False
        for cut in self.cuts:
            left[id(cut.node)] *= float(stays[cut.atoms].mean())
        return sum(left.values())


def _counts(node: Node) -> bool:
    return node.op in ("Conv", "ConvTranspose", "Gemm", "MatMul") and is_constant(node.inputs[1])


def _products(node: Node, types: Mapping[str, TensorType]) -> float:
    """Multiplications of a layer: its weights, each as often as there are places."""
    tensor, axis = (node.inputs[0], 1) if node.op == "ConvTranspose" else (node.outputs[0], None)
    known = types.get(tensor.name)
    shape = () if known is None or known.shape is None else known.shape
    axis = axis if axis is not None else (1 if node.op in ("Conv", "Gemm") else len(shape) - 1)
    places = math.prod(size or 1 for i, size in enumerate(shape) if i != axis)
    return float(math.prod(node.inputs[1].shape) * places)


@dataclass(slots=True)
class _Progress:
    """How far a group has got.

    gone: channels that are to go, `count` of them.
    following: those after one more step; None where that is not known yet.
    is_done: no more may go.
    """

    norms: Array
    sensitivity: dict[int, float]
    count: int = 0
    gone: set[int] = field(default_factory=set)
    following: set[int] | None = None
    is_done: bool = False


class _Search:
    """The greedy search."""

    def __init__(
        self, channels: ChannelMap, costs: _Costs, sensitivities: Mapping[str, Array], wanted: AutoPruneConfig
    ) -> None:
        self.channels, self.costs, self.wanted = channels, costs, wanted
        self.progress: list[_Progress] = []
        for group in channels.groups:
            sums = channels.sums(group, sensitivities)
            by_class = dict(zip(group.classes.tolist(), sums.tolist(), strict=True))
            self.progress.append(_Progress(norms=channels.norms(group), sensitivity=by_class))
        self.whole = costs.total(set())

    def settle(self, group: ChannelGroup, count: int) -> None:
        """Let a group lose this many, whatever the search finds."""
        progress = self.progress[self.channels.groups.index(group)]
        progress.gone = set(self.channels.lowest(group, progress.norms, count).tolist())
        progress.count, progress.is_done = len(progress.gone), True

    def run(self) -> None:
        """Take channels until the target is reached, or none are left that may go."""
        while self.ratio() < self.wanted.compress_ratio:
            best: tuple[float, int, set[int]] | None = None
            removed = self._removed()
            now = self.costs.total(removed)
            for place, (group, progress) in enumerate(zip(self.channels.groups, self.progress, strict=True)):
                if progress.following is None and not progress.is_done:
                    progress.following = self._next(group, progress)
                    progress.is_done = progress.following is None
                if (gone := progress.following) is None:
                    continue
                saved = now - self.costs.total(removed | gone)
                price = sum(progress.sensitivity[atom] for atom in gone - progress.gone) / max(saved, 1e-12)
                if best is None or price < best[0]:
                    best = (price, place, gone)
            if best is None:
                return
            taken = self.progress[best[1]]
            taken.gone, taken.count, taken.following = best[2], len(best[2]), None

    def _next(self, group: ChannelGroup, progress: _Progress) -> set[int] | None:
        """The channels that are gone after one more step; None where no more may go."""
        count = progress.count + self._step(group, progress.count)
        if count >= len(group.classes) or count > len(group.classes) * self.wanted.max_prune_ratio:
            return None
        gone = set(self.channels.lowest(group, progress.norms, count).tolist())
        return gone if len(gone) == count else None

    def _step(self, group: ChannelGroup, count: int) -> int:
        if self.wanted.ascend_optimized:
            whole = math.lcm(ALIGNMENT, group.blocks)
            return (len(group.classes) - count) % whole or whole
        return max(1, len(group.classes) // _STEPS // group.blocks) * group.blocks

    def _removed(self) -> set[int]:
        return set().union(*(progress.gone for progress in self.progress))

    def ratio(self) -> float:
        """Products of the whole model by those that are left."""
        return self.whole / max(self.costs.total(self._removed()), 1e-12)

    def rows(self) -> tuple[SearchRow, ...]:
        """What was found, group by group."""
        everything = sum(sum(progress.sensitivity.values()) for progress in self.progress) or 1.0
        return tuple(
            SearchRow(
                layers=group.names,
                channels=len(group.classes),
                removed=progress.count,
                sensitivity=sum(progress.sensitivity[atom] for atom in progress.gone) / everything,
                cost=self._cost(group),
            )
            for group, progress in zip(self.channels.groups, self.progress, strict=True)
        )

    def _cost(self, group: ChannelGroup) -> float:
        free = [atom for atom in group.classes.tolist() if atom != FIXED]
        return (self.whole - self.costs.total({free[0]})) / self.whole if self.whole else 0.0


def _found(asked: RetrainConfig, wishes: Mapping[str, FilterPrune], search: _Search) -> RetrainConfig:
    """The configuration that takes away what the search found."""
    overrides = dict(asked.override_layer_configs)
    skipped = list(asked.prune_skip_layers)
    listed: set[str] = set()
    for group, progress in zip(search.channels.groups, search.progress, strict=True):
        listed |= set(group.names)
        wish = _own_wish(group, wishes, asked)
        if wish is None and not progress.count:
            skipped += group.names
            continue
        if wish is None:
            ratio = float(f"{progress.count / len(group.classes):.6g}")
            wish = FilterPrune(prune_ratio=ratio, ascend_optimized=search.wanted.ascend_optimized)
        overrides |= {name: RetrainLayerConfig(prune=wish) for name in group.names}
    skipped += [name for name in wishes if name not in listed and name not in overrides]
    return replace(asked, override_layer_configs=overrides, prune_skip_layers=tuple(dict.fromkeys(skipped)))
