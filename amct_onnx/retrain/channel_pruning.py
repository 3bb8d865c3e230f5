"""Takes channels out of a graph, and proves that what is left computes what the whole does without them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from amct_onnx.convert import run_once
from amct_onnx.data import CalibrationSource
from amct_onnx.errors import ModelError, RecordError
from amct_onnx.formats.prune_record import PrunedGroup, PrunedLayer
from amct_onnx.kernels.sparsity import pruned_count
from amct_onnx.passes.channel_groups import ChannelGroup, ChannelMap
from amct_onnx.passes.channel_walk import FIXED, Atoms, Use
from amct_onnx.passes.graph import Node
from amct_onnx.passes.layers import group_of
from amct_onnx.passes.session import open_session
from amct_onnx.passes.weights import LightModel
from amct_onnx.report.compare import compare_outputs
from amct_onnx.retrain_config import FilterPrune

_SAME = 60.0
"""SQNR in dB above which the smaller model counts as computing the same; less only by the order of sums."""

_CONSUMERS = ("BatchNormalization", "Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True, slots=True, kw_only=True)
class PrunedRow:
    """What became of one group of layers.

    layers: that make the channels.
    channels: how many they had.
    asked: the share that was asked for.
    removed: how many are gone.
    """

    layers: tuple[str, ...]
    channels: int
    asked: float
    removed: int


def chosen_by_norm(channels: ChannelMap, wishes: Mapping[str, FilterPrune]) -> Atoms:
    """The channels of the least norms, group by group.

    Of the layers of a group the least `prune_ratio` counts, and `ascend_optimized` where any of them asks for it.
    """
    found = [channels.lowest(group, channels.norms(group), wanted_count(group, wishes)) for group in channels.groups]
    return np.concatenate([np.zeros(0, np.int64), *found])


def wanted_count(group: ChannelGroup, wishes: Mapping[str, FilterPrune]) -> int:
    """How many channels a group shall lose."""
    own = [wishes[name] for name in group.names]
    return pruned_count(
        len(group.classes),
        min(wish.prune_ratio for wish in own),
        ascend_optimized=any(wish.ascend_optimized for wish in own),
        group=group.blocks,
    )


def chosen_by_record(channels: ChannelMap, groups: Iterable[PrunedGroup]) -> Atoms:
    """The channels that a record lists.

    Raises:
        RecordError: it names a layer that is not there, or channels that cannot go, or not together.
    """
    producers = {member.node.name: member.atoms for group in channels.groups for member in group.producers}
    listed = [layer for group in groups for layer in group.producers if layer.removed]
    removed: set[int] = set()
    for layer in listed:
        atoms = producers.get(layer.name)
        if atoms is None:
            raise RecordError(f"prune_record of {layer.name!r}: it is no layer that this configuration prunes")
        if layer.removed[0] < 0 or layer.removed[-1] >= len(atoms):
            raise RecordError(f"prune_record of {layer.name!r}: prune_index must lie in [0, {len(atoms) - 1}]")
        removed |= {int(atoms[index]) for index in layer.removed}
    for layer in listed:
        gone = np.flatnonzero(np.isin(producers[layer.name], list(removed)))
        if FIXED in removed or tuple(gone.tolist()) != layer.removed:
            raise RecordError(
                f"prune_record of {layer.name!r}: prune_index lists channels that cannot go by themselves"
            )
    return np.array(sorted(removed), dtype=np.int64)


def described(channels: ChannelMap, removed: Atoms) -> tuple[PrunedGroup, ...]:
    """What the record says of each group; must be asked before the channels are taken away."""
    return tuple(
        PrunedGroup(
            producers=tuple(_layer(m.node, m.atoms, group, removed, group_of(m.node)) for m in group.producers),
            consumers=tuple(
                _layer(cut.node, cut.atoms, group, removed)
                for cut in channels.cuts
                if cut.index == 1
                and cut.use is not Use.PRODUCES
                and cut.node.op in _CONSUMERS
                and np.isin(cut.atoms, group.classes[group.free]).any()
            ),
        )
        for group in channels.groups
    )


def _layer(node: Node, atoms: Atoms, group: ChannelGroup, removed: Atoms, groups: int = 1) -> PrunedLayer:
    own = np.flatnonzero(np.isin(atoms, group.classes[group.free]))
    gone = np.flatnonzero(np.isin(atoms, np.intersect1d(removed, group.classes)))
    return PrunedLayer(
        name=node.name,
        op_type=node.op,
        begin=int(own[0]),
        end=int(own[-1]) + 1,
        removed=tuple(gone.tolist()),
        group=groups,
    )


def rows(channels: ChannelMap, wishes: Mapping[str, FilterPrune], removed: Atoms) -> tuple[PrunedRow, ...]:
    """What is asked for and done, group by group."""
    return tuple(
        PrunedRow(
            layers=group.names,
            channels=len(group.classes),
            asked=min(wishes[name].prune_ratio for name in group.names),
            removed=int(np.isin(group.classes, removed).sum()),
        )
        for group in channels.groups
    )


def take_away(channels: ChannelMap, removed: Atoms, data: CalibrationSource | None = None) -> None:
    """Take channels out of the graph, in place.

    Args:
        channels: of the graph.
        removed: numbers of channels.
        data: whose first batch both are run on; None for random numbers.

    Raises:
        DataError: the data do not fit the model.
        ModelError: onnxruntime does not run what is left, or it does not compute what the whole model does where
            nothing reads the removed channels.
    """
    gone = {int(atom) for atom in removed}
    if not gone:
        return
    with channels.zeroed(gone):
        whole = _owned(channels.graph.to_light())
    channels.remove(gone)
    pruned = channels.graph.to_light()
    feed, expected = run_once(open_session(whole, "the model with channels at zero"), whole, data)
    names = [name for group in channels.groups if np.isin(group.classes, list(gone)).any() for name in group.names]
    advice = f"list in regular_prune_skip_layers what is to stay; channels were taken from {', '.join(names[:20])}"
    try:
        errors = compare_outputs(expected, pruned, feed, "the pruned model")
    except ModelError as failure:
        raise ModelError(f"{failure}; {advice}") from failure
    for name, error in errors.items():
        if expected[name].dtype.kind == "f" and error.sqnr < _SAME and error.largest > 1e-4:
            raise ModelError(f"taking channels away changed output {name!r} ({error.sqnr:.1f} dB); {advice}")


def _owned(model: LightModel) -> LightModel:
    """A model that later changes of the graph do not reach."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    return LightModel(proto=proto, weights=dict(model.weights))
