"""AMCT's config.json of quantization-aware training: one object per layer. JSON <-> `RetrainConfig`."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Mapping
from typing import Any

from amct_onnx.errors import ConfigError, located, nearest
from amct_onnx.formats.cfg_dict import tree_from_dict
from amct_onnx.formats.json_text import load_json
from amct_onnx.formats.retrain_cfg import BITS, ROOT, SCHEMA, parse_retrain_cfg, retrain_config_from_tree
from amct_onnx.formats.schema import load_schema
from amct_onnx.formats.text_file import read_text
from amct_onnx.kernels.checks import require_bool, require_choice
from amct_onnx.retrain_config import ArqRetrain, RetrainConfig, RetrainLayerConfig, UlqActivation, UlqRetrain

RetrainSource = str | os.PathLike[str] | Mapping[str, Any] | RetrainConfig | None

SETTINGS = ("version", "fakequant_precision_mode", "batch_num")
"""Keys that are not layers."""

_LAYER_KEYS = ("retrain_enable", "retrain_data_config", "retrain_weight_config")
_DATA_KEYS = ("algo", "clip_max", "clip_min", "fixed_min", "dst_type")
_WEIGHT_KEYS = ("algo", "channel_wise", "dst_type")
_WEIGHTS: Mapping[str, type[ArqRetrain]] = {"arq_retrain": ArqRetrain, "ulq_retrain": UlqRetrain}
_JSON_BEGINS = re.compile(r"(\s|#[^\n]*(\n|$))*\{")


def load_retrain_config(source: RetrainSource) -> RetrainConfig:
    """The configuration that `source` stands for.

    Args:
        source: the path of a .cfg or of a config.json (told apart by content), a dict with the fields of a .cfg, a
            configuration ready made, or None for the defaults.

    Raises:
        ConfigError: the file cannot be read or is no text; or the configuration is not allowed.
    """
    if source is None:
        return RetrainConfig()
    if isinstance(source, RetrainConfig):
        return source
    if isinstance(source, Mapping):
        with located("configuration given as a dict"):
            return retrain_config_from_tree(tree_from_dict(source, ROOT, load_schema(SCHEMA)))
    if isinstance(source, (str, os.PathLike)):
        text = read_text(source, ConfigError)
        parse = parse_retrain_json if _JSON_BEGINS.match(text) else parse_retrain_cfg
        return parse(text, str(source))
    raise ConfigError(f"a configuration is a path, a dict, a RetrainConfig or None; found {type(source).__name__}")


def parse_retrain_json(text: str | bytes, source: str) -> RetrainConfig:
    """The configuration that `text` writes; layers that it does not list are not quantized.

    Args:
        text: the content of a config.json.
        source: what to call it in errors.

    Raises:
        ConfigError: not JSON, a key given twice or unknown, or a value of the wrong type or out of its range; the
            message names the layer.
    """
    found = load_json(text, source)
    with located(source):
        if not isinstance(found, Mapping):
            raise ConfigError(f"the outermost value must be an object, found {found!r:.60}")
        settings = {key: found[key] for key in SETTINGS if key in found}
        require_choice("version", settings.pop("version", 1), (1,))
        layers = {name: _layer(name, value) for name, value in found.items() if name not in SETTINGS}
        if not any(enabled for enabled, _ in layers.values()):
            raise ConfigError("no layer has retrain_enable: true")
        return RetrainConfig(
            **settings,
            override_layer_configs={name: block for name, (_, block) in layers.items()},
            only_layers=tuple(name for name, (enabled, _) in layers.items() if enabled),
        )


def _layer(name: str, value: object) -> tuple[bool, RetrainLayerConfig]:
    with located(f"layer {name!r}"):
        keys = _object(value, _LAYER_KEYS)
        require_bool("retrain_enable", enabled := keys.get("retrain_enable", True))
        with located("retrain_data_config"):
            data = _object(keys.get("retrain_data_config", {}), _DATA_KEYS)
            require_choice("algo", data.get("algo", "ulq_quantize"), ("ulq_quantize",))
            limits = {key: _number(key, data[key]) for key in ("clip_max", "clip_min") if key in data}
            activation = UlqActivation(**limits, fixed_min=data.get("fixed_min"), num_bits=_bits(data))
        with located("retrain_weight_config"):
            given = _object(keys.get("retrain_weight_config", {}), _WEIGHT_KEYS)
            require_choice("algo", algorithm := given.get("algo", "arq_retrain"), tuple(_WEIGHTS))
            weight = _WEIGHTS[algorithm](channel_wise=given.get("channel_wise"), num_bits=_bits(given))
        return enabled, RetrainLayerConfig(activation=activation, weight=weight)


def _object(value: object, keys: Collection[str]) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"must be an object with keys among {', '.join(keys)}, found {value!r:.60}")
    for key, item in value.items():
        if key not in keys:
            raise ConfigError(f"unknown key {key!r}{nearest(str(key), keys) or ';'} known keys: {', '.join(keys)}")
        if item is None:
            raise ConfigError(f"{key} must not be null; leave the key out to take the default")
    return value


def _number(key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) > 2**63:
        raise ConfigError(f"{key} must be a number of ordinary size, found {value!r:.60}")
    return float(value)


def _bits(block: Mapping[str, Any]) -> int:
    require_choice("dst_type", name := block.get("dst_type", "INT8"), tuple(BITS))
    return BITS[name]


def format_retrain_json(config: RetrainConfig, layers: Mapping[str, tuple[bool, RetrainLayerConfig]]) -> str:
    """The text of a config.json as AMCT writes it, byte for byte: its key order, its indent, no newline at the end.

    Args:
        config: the settings for the whole model.
        layers: every layer that could be quantized -> (whether it is, its configuration with `channel_wise` resolved).

    Raises:
        ConfigError: a layer is called like a setting.
    """
    settings: dict[str, Any] = {"version": 1}
    if config.fakequant_precision_mode != "DEFAULT":
        settings["fakequant_precision_mode"] = config.fakequant_precision_mode
    settings["batch_num"] = config.batch_num
    for name in layers:
        if name in SETTINGS:
            raise ConfigError(f"a layer cannot be called {name!r} in this file: that is the name of a setting")
    objects = {
        name: {
            "retrain_enable": enabled,
            "retrain_data_config": _data_object(block.activation or UlqActivation()),
            "retrain_weight_config": _weight_object(block.weight or ArqRetrain()),
        }
        for name, (enabled, block) in layers.items()
    }
    return json.dumps(settings | objects, indent=4, separators=(",", ":"))


def _data_object(activation: UlqActivation) -> dict[str, Any]:
    written: dict[str, Any] = {"algo": "ulq_quantize"}
    if activation.clip_max is not None and activation.clip_min is not None:
        written |= {"clip_max": float(activation.clip_max), "clip_min": float(activation.clip_min)}
    if activation.fixed_min is not None:
        written["fixed_min"] = activation.fixed_min
    return written | {"dst_type": f"INT{activation.num_bits}"}


def _weight_object(weight: ArqRetrain) -> dict[str, Any]:
    width, channel_wise = {"dst_type": f"INT{weight.num_bits}"}, {"channel_wise": weight.channel_wise}
    if isinstance(weight, UlqRetrain):
        return {"algo": "ulq_retrain", **width, **channel_wise}
    return {"algo": "arq_retrain", **channel_wise, **width}
