"""The .cfg file of the search for channels to prune: protobuf text -> `AutoPruneConfig`; and what the search writes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from amct_onnx.errors import ConfigError, located
from amct_onnx.formats.cfg_dict import tree_from_dict
from amct_onnx.formats.cfg_tree import tree_from_message
from amct_onnx.formats.message_text import parse_message
from amct_onnx.formats.record import quoted
from amct_onnx.formats.schema import load_schema
from amct_onnx.formats.text_file import read_text
from amct_onnx.retrain_config import AutoPruneConfig, FilterPrune, RetrainConfig

_SCHEMA, _ROOT = "auto_channel_prune_onnx", "AutoChannelPruneConfig"

AutoPruneSource = str | os.PathLike[str] | Mapping[str, Any] | AutoPruneConfig


def load_auto_prune_config(source: AutoPruneSource) -> AutoPruneConfig:
    """The configuration that a .cfg file, or a dict with its fields, stands for.

    Raises:
        ConfigError: the file cannot be read, or the configuration is not allowed.
    """
    schema = load_schema(_SCHEMA)
    if isinstance(source, AutoPruneConfig):
        return source
    if isinstance(source, Mapping):
        with located("configuration given as a dict"):
            return _config(tree_from_dict(source, _ROOT, schema))
    if isinstance(source, (str, os.PathLike)):
        message = parse_message(read_text(source, ConfigError), str(source), schema, _ROOT, ConfigError)
        with located(str(source)):
            return _config(tree_from_message(message, schema))
    raise ConfigError(f"a configuration is a path, a dict or an AutoPruneConfig; found {type(source).__name__}")


def _config(tree: Mapping[str, Any]) -> AutoPruneConfig:
    if "compress_ratio" not in tree:
        raise ConfigError("compress_ratio is missing, it is required")
    return AutoPruneConfig(**tree)


def format_prune_cfg(config: RetrainConfig) -> str:
    """The text of a .cfg file that asks for channels to be taken away, as `config` does."""
    lines = [_pruner(config.everywhere.prune)]
    for field, names in (
        ("skip_layers", config.skip_layers),
        ("skip_layer_types", config.skip_layer_types),
        ("regular_prune_skip_layers", config.prune_skip_layers),
        ("regular_prune_skip_types", config.prune_skip_types),
    ):
        lines += [f"{field}: {quoted(name)}\n" for name in names]
    for kind, key, blocks in (
        ("override_layer_configs", "layer_name", config.override_layer_configs),
        ("override_layer_types", "layer_type", config.override_layer_types),
    ):
        for name, block in blocks.items():
            lines.append(f"{kind} {{\n  {key}: {quoted(name)}\n{_indented(_pruner(block.prune).splitlines())}}}\n")
    return "".join(lines)


def _pruner(prune: object) -> str:
    assert isinstance(prune, FilterPrune), "the search knows whole channels only"
    return (
        "prune_config {\n  filter_pruner {\n    balanced_l2_norm_filter_prune {\n"
        f"      prune_ratio: {prune.prune_ratio}\n"
        f"      ascend_optimized: {str(prune.ascend_optimized).lower()}\n"
        "    }\n  }\n}\n"
    )


def _indented(lines: Iterable[str]) -> str:
    return "".join(f"  {line}\n" for line in lines)
