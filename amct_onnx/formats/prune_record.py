"""What AMCT's record file says of sparsity: channels that were taken away, and masks. Protobuf text <-> entries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from amct_onnx.errors import RecordError, located
from amct_onnx.formats.message_text import parse_message
from amct_onnx.formats.record import quoted
from amct_onnx.formats.schema import load_schema

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrunedLayer:
    """A layer that lost channels, or whose input did.

    begin, end: where the channels of the group lie among those of the layer.
    removed: which of all of the layer's are gone, ascending.
    group: of a convolution in groups that produces them.
    """

    name: str
    op_type: str
    begin: int
    end: int
    removed: tuple[int, ...]
    group: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class PrunedGroup:
    """Layers that lost the same channels: those that made them, and those that read them."""

    producers: tuple[PrunedLayer, ...]
    consumers: tuple[PrunedLayer, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneRecord:
    """All that a record file says of sparsity.

    masks: layer -> which weights stay, in the shape that torch gives the weight.
    """

    groups: tuple[PrunedGroup, ...] = ()
    masks: Mapping[str, Mask] = field(default_factory=dict)


def format_prune_record(record: PruneRecord) -> str:
    """The text, laid out as AMCT does."""
    return "".join([*map(_group_text, record.groups), *(_mask_text(*entry) for entry in record.masks.items())])


def _group_text(group: PrunedGroup) -> str:
    roles = (("producer", group.producers), ("consumer", group.consumers))
    return f"prune_record {{\n{''.join(_layer_text(role, layer) for role, all_ in roles for layer in all_)}}}\n"


def _layer_text(role: str, layer: PrunedLayer) -> str:
    text = _attr("type", "STRING", "s", [quoted(layer.op_type)])
    numbers = {"begin": layer.begin, "end": layer.end}
    if layer.group > 1:
        numbers |= {"group": layer.group, "prune_group": layer.group}
    text += "".join(_attr(name, "INT", "i", [str(value)]) for name, value in numbers.items())
    if layer.removed:
        text += _attr("prune_index", "INTS", "ints", map(str, layer.removed))
    return f"  {role} {{\n    name: {quoted(layer.name)}\n{text}  }}\n"


def _attr(name: str, kind: str, key: str, values: Iterable[str]) -> str:
    lines = "".join(f"      {key}: {value}\n" for value in values)
    return f'    attr {{\n      name: "{name}"\n      type: {kind}\n{lines}    }}\n'


def _mask_text(name: str, mask: Mask) -> str:
    packed = np.packbits(mask.ravel())
    whole = np.concatenate([packed, np.zeros(-len(packed) % 8, np.uint8)]).view("<i8")
    text = _attr("mask_shape", "INTS", "ints", map(str, mask.shape))
    text += _attr("selective_mask", "INTS", "ints", map(str, whole.tolist()))
    return f"prune_record {{\n  selective_prune {{\n    name: {quoted(name)}\n{text}  }}\n}}\n"


def parse_prune_record(text: str | bytes, source: str) -> PruneRecord:
    """What `text`, the content of a record file, says of sparsity; factors of quantization are passed over.

    Args:
        text: the content of a record file.
        source: what to call it in errors.

    Raises:
        RecordError: not protobuf text, or an entry lacks what it needs. The message names the file and the layer.
    """
    schema = load_schema("scale_offset_record_onnx")
    message: Any = parse_message(text, source, schema, "ScaleOffsetRecord", RecordError, allow_unknown=True)
    groups: list[PrunedGroup] = []
    masks: dict[str, Mask] = {}
    with located(source):
        for entry in message.prune_record:
            if entry.HasField("selective_prune"):
                masks[entry.selective_prune.name] = _mask(entry.selective_prune)
            if entry.producer:
                groups.append(
                    PrunedGroup(
                        producers=tuple(map(_layer, entry.producer)), consumers=tuple(map(_layer, entry.consumer))
                    )
                )
    return PruneRecord(groups=tuple(groups), masks=masks)


def _layer(node: Any) -> PrunedLayer:
    attrs = {attr.name: attr for attr in node.attr}
    with located(f"prune_record of {node.name!r}"):
        if missing := [name for name in ("begin", "end") if name not in attrs]:
            raise RecordError(f"{' and '.join(missing)} is missing")
        return PrunedLayer(
            name=node.name,
            op_type=attrs["type"].s.decode(errors="replace") if "type" in attrs else "",
            begin=attrs["begin"].i,
            end=attrs["end"].i,
            removed=tuple(sorted(attrs["prune_index"].ints)) if "prune_index" in attrs else (),
            group=attrs["group"].i if "group" in attrs else 1,
        )


def _mask(node: Any) -> Mask:
    attrs = {attr.name: list(attr.ints) for attr in node.attr}
    with located(f"selective_prune of {node.name!r}"):
        if "mask_shape" not in attrs or "selective_mask" not in attrs:
            raise RecordError("mask_shape or selective_mask is missing")
        shape, count = attrs["mask_shape"], int(np.prod(attrs["mask_shape"], dtype=np.int64))
        bits = np.unpackbits(np.array(attrs["selective_mask"], "<i8").view(np.uint8))
        if len(bits) < count or min(shape, default=1) < 1:
            raise RecordError(f"selective_mask has {len(bits)} bits, fewer than mask_shape {shape} takes")
        return np.asarray(bits[:count].reshape(shape).astype(np.bool_))
