"""The .cfg file of training: protobuf text -> `RetrainConfig`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from amct_onnx.errors import ConfigError, located
from amct_onnx.formats.cfg_tree import tree_from_message
from amct_onnx.formats.message_text import parse_message
from amct_onnx.formats.schema import load_schema
from amct_onnx.formats.text_file import read_text
from amct_onnx.retrain_config import (
    ArqRetrain,
    FilterPrune,
    RetrainConfig,
    RetrainLayerConfig,
    SelectivePrune,
    UlqActivation,
    UlqRetrain,
)

Tree = Mapping[str, Any]

SCHEMA = "retrain_config_onnx"
ROOT = "AMCTRetrainConfig"

_LISTS = {
    "skip_layers": "skip_layers",
    "skip_layer_types": "skip_layer_types",
    "quant_skip_layers": "quant_skip_layers",
    "quant_skip_types": "quant_skip_types",
    "regular_prune_skip_layers": "prune_skip_layers",
    "regular_prune_skip_types": "prune_skip_types",
}
"""Name in the file -> in RetrainConfig."""

BITS = {"INT4": 4, "INT8": 8, "INT16": 16}


def read_retrain_cfg(path: str | os.PathLike[str]) -> RetrainConfig:
    """The configuration in the file at `path`.

    Raises:
        ConfigError: the file cannot be read, or what `parse_retrain_cfg` raises.
    """
    return parse_retrain_cfg(read_text(path, ConfigError), str(path))


def parse_retrain_cfg(text: str | bytes, source: str) -> RetrainConfig:
    """The configuration that `text` writes; an empty text asks for no more than the defaults.

    Args:
        text: the content of a .cfg file.
        source: what to call it in errors.

    Raises:
        ConfigError: not protobuf text, an unknown field, a value of the wrong type or out of its range, a required
            field missing, or a layer or type overridden twice. The message names the file and the place in it.
    """
    schema = load_schema(SCHEMA)
    message = parse_message(text, source, schema, ROOT, ConfigError)
    with located(source):
        return retrain_config_from_tree(tree_from_message(message, schema))


def retrain_config_from_tree(tree: Tree) -> RetrainConfig:
    """The configuration that `tree`, with the field names of the .proto file, asks for.

    Raises:
        ConfigError: a required field is missing, a layer or type is overridden twice, or a value is not allowed.
    """
    asked: dict[str, Any] = {ours: tuple(tree.get(theirs, ())) for theirs, ours in _LISTS.items()}
    asked |= {name: tree[name] for name in ("batch_num", "fakequant_precision_mode") if name in tree}
    return RetrainConfig(
        **asked,
        everywhere=_block(tree),
        override_layer_configs=_overrides(tree, "override_layer_configs", "layer_name"),
        override_layer_types=_overrides(tree, "override_layer_types", "layer_type"),
    )


def _overrides(tree: Tree, field: str, key: str) -> dict[str, RetrainLayerConfig]:
    blocks: dict[str, RetrainLayerConfig] = {}
    for number, override in enumerate(tree.get(field, ()), 1):
        name = override.get(key, "")
        if name == "":
            raise ConfigError(f"{field}, block {number}: {key} is missing or empty, it is required")
        with located(f"{field} of {name!r}"):
            if name in blocks:
                raise ConfigError(f"{key} {name!r} is overridden a second time; keep one block")
            blocks[name] = _block(override)
    return blocks


def _block(tree: Tree) -> RetrainLayerConfig:
    data, weight, prune = (
        tree.get(f"{name}_config") for name in ("retrain_data_quant", "retrain_weight_quant", "prune")
    )
    return RetrainLayerConfig(
        activation=None if data is None else _activation(data.get("ulq_quantize", {})),
        weight=None if weight is None else _weight(weight),
        prune=None if prune is None else _prune(prune),
    )


def _activation(block: Tree) -> UlqActivation:
    with located("ulq_quantize"):
        limits = block.get("clip_max_min", {})
        if "clip_max_min" in block and not limits:
            raise ConfigError("clip_max_min is empty; it takes clip_max and clip_min")
        return UlqActivation(
            clip_max=limits.get("clip_max"),
            clip_min=limits.get("clip_min"),
            fixed_min=block.get("fixed_min"),
            num_bits=BITS[block.get("dst_type", "INT8")],
        )


def _weight(block: Tree) -> ArqRetrain:
    name, make = ("ulq_retrain", UlqRetrain) if "ulq_retrain" in block else ("arq_retrain", ArqRetrain)
    parameters = block.get(name, {})
    with located(name):
        return make(channel_wise=parameters.get("channel_wise"), num_bits=BITS[parameters.get("dst_type", "INT8")])


def _prune(block: Tree) -> FilterPrune | SelectivePrune:
    with located("prune_config"):
        if (single := block.get("n_out_of_m_pruner", {}).get("l1_selective_prune")) is not None:
            return SelectivePrune(update_freq=single.get("update_freq", 0))
        whole = block.get("filter_pruner", {}).get("balanced_l2_norm_filter_prune")
        if whole is None:
            raise ConfigError(
                "names no algorithm; it takes filter_pruner { balanced_l2_norm_filter_prune { prune_ratio: ... } } or "
                "n_out_of_m_pruner { l1_selective_prune { } }"
            )
        if "prune_ratio" not in whole:
            raise ConfigError("balanced_l2_norm_filter_prune: prune_ratio is missing, it is required")
        return FilterPrune(prune_ratio=whole["prune_ratio"], ascend_optimized=whole.get("ascend_optimized", True))
