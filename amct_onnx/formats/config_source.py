"""One door for configurations: files and dicts of every dialect, told apart by their shape, or one ready made."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any

from amct_onnx.config import OWN_PRESET, QuantConfig
from amct_onnx.errors import ConfigError, located
from amct_onnx.formats.amct_cfg import ROOT, SCHEMA, parse_cfg
from amct_onnx.formats.amct_json import LAYER_KEYS, config_from_json_object
from amct_onnx.formats.cfg_dict import tree_from_dict
from amct_onnx.formats.cfg_tree import config_from_tree
from amct_onnx.formats.json_text import load_json
from amct_onnx.formats.schema import load_schema
from amct_onnx.formats.text_file import read_text
from amct_onnx.formats.vitis_json import is_strategy, strategy_from_object
from amct_onnx.strategy_config import StrategyConfig

ConfigSource = str | os.PathLike[str] | Mapping[str, Any] | QuantConfig | StrategyConfig | None

_JSON_BEGINS = re.compile(r"(\s|#[^\n]*(\n|$))*\{")
_DICT = "configuration given as a dict"


def load_config(source: ConfigSource) -> QuantConfig:
    """AMCT's configuration that `source` stands for.

    Args:
        source: the path of a .cfg or of a config.json (told apart by content, not by name), a dict with the fields of
            a .cfg or the keys of a config.json, a configuration ready made, or None for the engine's own preset. In a
            dict with the fields of a .cfg an unset batch_num means all batches, for DMQ too: such a caller hands the
            data over himself. An override_layer_types or override_layer_configs may map names to blocks there.

    Raises:
        ConfigError: the file cannot be read, is empty or no text; the configuration is not allowed, or a strategy.
    """
    config = load_any_config(source)
    if isinstance(config, StrategyConfig):
        raise ConfigError("a Vitis AI strategy says nothing here; give a configuration of AMCT")
    return config


def load_any_config(source: ConfigSource) -> QuantConfig | StrategyConfig:
    """The same, or the Vitis AI strategy that a JSON file, a dict or a StrategyConfig stands for."""
    if source is None:
        return OWN_PRESET
    if isinstance(source, (QuantConfig, StrategyConfig)):
        return source
    if isinstance(source, Mapping):
        return strategy_from_object(source, _DICT) if is_strategy(source) else _from_dict(source)
    if isinstance(source, (str, os.PathLike)):
        return _from_file(source)
    raise ConfigError(f"a configuration is a path, a dict, a QuantConfig or None; found {type(source).__name__}")


def _from_file(path: str | os.PathLike[str]) -> QuantConfig | StrategyConfig:
    text = read_text(path, ConfigError)
    if not _JSON_BEGINS.match(text):
        return parse_cfg(text, str(path))
    found = load_json(text, str(path))
    return strategy_from_object(found, str(path)) if is_strategy(found) else config_from_json_object(found, str(path))


def _from_dict(given: Mapping[Any, Any]) -> QuantConfig:
    if _has_json_shape(given):
        return config_from_json_object(given, _DICT)
    with located(_DICT):
        tree = tree_from_dict(given, ROOT, load_schema(SCHEMA))
        return config_from_tree(tree, batch_num=None)


def _has_json_shape(given: Mapping[Any, Any]) -> bool:
    """Whether a key that is no field of a .cfg holds the object of a layer."""
    fields = load_schema(SCHEMA).messages[ROOT]
    others = (value for key, value in given.items() if key not in fields)
    return any(isinstance(value, Mapping) and any(key in value for key in LAYER_KEYS) for value in others)
