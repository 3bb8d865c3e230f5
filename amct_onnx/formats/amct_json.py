"""AMCT's full configuration, config.json: one object per layer. JSON <-> `QuantConfig`."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Mapping
from typing import Any

from amct_onnx.config import ACTIVATION_ALGORITHMS, WEIGHT_ALGORITHMS, LayerConfig, QuantConfig, TensorConfig
from amct_onnx.errors import ConfigError, located, nearest
from amct_onnx.formats.json_text import load_json
from amct_onnx.formats.text_file import read_text
from amct_onnx.kernels.adaround import AdaRound
from amct_onnx.kernels.arq import Arq
from amct_onnx.kernels.checks import require_bool, require_choice, require_int
from amct_onnx.kernels.dmq import Dmq
from amct_onnx.kernels.hfmg import Hfmg
from amct_onnx.kernels.ifmr import Ifmr
from amct_onnx.kernels.nuq import Nuq

SETTINGS = (
    "version",
    "batch_num",
    "activation_offset",
    "joint_quant",
    "weight_offset",
    "do_fusion",
    "fakequant_precision_mode",
    "skip_fusion_layers",
    "tensor_quantize",
)
"""Keys that are not layers."""

LAYER_KEYS = ("quant_enable", "dmq_balancer_param", "activation_quant_params", "weight_quant_params")

_OF_OLD_CAFFE = ("update_bn", "bn_update_config")
"""Keys of old files for Caffe, of the model or of a layer: statistics of BatchNorm were to be computed anew."""

_log = logging.getLogger("amct_onnx")

_OWN_KEYS: Mapping[str, tuple[str, ...]] = {
    "ifmr": ("num_bits", "max_percentile", "min_percentile", "search_range", "search_step", "asymmetric"),
    "hfmg": ("num_bits", "asymmetric", "num_of_bins"),
    "arq_quantize": ("num_bits", "channel_wise"),
    "ada_quantize": ("num_bits", "reg_param", "warm_start", "num_iteration", "beta_range", "channel_wise"),
    "nuq_quantize": ("num_steps", "num_of_iteration"),
}
_ACTIVATION_ORDER = (*_OWN_KEYS["ifmr"][:-1], "act_algo", "asymmetric", "num_of_bins")
_WEIGHT_ORDER = (*_OWN_KEYS["ada_quantize"][:-1], *_OWN_KEYS["nuq_quantize"], "channel_wise", "wts_algo")
_PAIRS = ("search_range", "beta_range")
_FLOATS = ("max_percentile", "min_percentile", "search_step", "reg_param", "warm_start")


def read_json(path: str | os.PathLike[str]) -> QuantConfig:
    """The configuration in the file at `path`.

    Raises:
        ConfigError: the file cannot be read or is empty, or what `parse_json` raises.
    """
    return parse_json(read_text(path, ConfigError), str(path))


def parse_json(text: str | bytes, source: str) -> QuantConfig:
    """The configuration that `text` writes.

    Args:
        text: the content of a config.json.
        source: what to call it in errors.

    Raises:
        ConfigError: not JSON, a key given twice, or what `config_from_json_object` raises.
    """
    return config_from_json_object(load_json(text, source), source)


def config_from_json_object(found: object, source: str) -> QuantConfig:
    """The configuration that a parsed config.json asks for.

    Enabled layers end up in `only_layers`; every listed layer keeps its block in `override_layer_configs`. A layer
    counts as disabled unless it says `"quant_enable": true`.

    Args:
        found: the object that the JSON text writes.
        source: what to call it in errors.

    Raises:
        ConfigError: an unknown key, or a value of the wrong type or out of its range; the message names the layer.
    """
    with located(source):
        if not isinstance(found, Mapping):
            raise ConfigError(f"the outermost value must be an object, found {found!r:.60}")
        found = _without_old_keys(found, source)
        layers = {name: _layer(name, value) for name, value in found.items() if name not in SETTINGS}
        return QuantConfig(
            **_settings(found),
            balance_batches=1,
            override_layer_configs={name: config for name, (_, config) in layers.items()},
            only_layers=tuple(name for name, (enabled, _) in layers.items() if enabled),
        )


def _without_old_keys(found: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The object without the keys that have no effect any more, each of which is told; a layer may be called as one."""
    kept = {}
    for key, value in found.items():
        is_layer = isinstance(value, Mapping) and any(name in value for name in LAYER_KEYS)
        if key in _OF_OLD_CAFFE and not is_layer:
            _log.warning("%s: %s is not used: BatchNorm keeps the statistics of the model", where, key)
        else:
            kept[key] = value
    return kept


def _settings(found: Mapping[str, Any]) -> dict[str, Any]:
    settings = {key: found[key] for key in SETTINGS if key in found}
    require_choice("version", settings.pop("version", 1), (1,))
    require_choice("weight_offset", settings.pop("weight_offset", False), (False,))
    require_int("batch_num", settings.setdefault("batch_num", 1), low=1)
    tensors = settings.get("tensor_quantize", [])
    if not isinstance(tensors, (list, tuple)):
        raise ConfigError(f"tensor_quantize must be a list of objects, found {tensors!r:.60}")
    settings["tensor_quantize"] = tuple(_tensor(number, tensor) for number, tensor in enumerate(tensors, 1))
    return settings


def _tensor(number: int, value: object) -> TensorConfig:
    with located(f"tensor_quantize, entry {number}"):
        keys = ("layer_name", "input_index", "activation_quant_params")
        tensor = _object(value, keys)
        for key in keys[:2]:
            if key not in tensor:
                raise ConfigError(f"{key} is missing, it is required")
        activation = _activation(tensor.get("activation_quant_params", {}))
        return TensorConfig(layer_name=tensor["layer_name"], input_index=tensor["input_index"], activation=activation)


def _layer(name: object, value: object) -> tuple[bool, LayerConfig]:
    if not isinstance(name, str) or not isinstance(value, Mapping):
        hint = nearest(str(name), SETTINGS) or f"; settings are {', '.join(SETTINGS)}"
        raise ConfigError(f"{name!r} is neither a setting nor the object of a layer, found {value!r:.60}{hint}")
    with located(f"layer {name!r}"):
        layer = _object(_without_old_keys(value, f"layer {name!r}"), LAYER_KEYS)
        enabled = layer.get("quant_enable", False)
        require_bool("quant_enable", enabled)
        balancer = None
        if "dmq_balancer_param" in layer:
            with located("dmq_balancer_param"):
                balancer = Dmq(migration_strength=layer["dmq_balancer_param"])
        return enabled, LayerConfig(
            activation=_activation(layer.get("activation_quant_params", {})),
            weight=_weight(layer.get("weight_quant_params", {})),
            balancer=balancer,
        )


def _activation(value: object) -> Ifmr | Hfmg:
    with located("activation_quant_params"):
        parameters = _object(value, _ACTIVATION_ORDER)
        algorithm = parameters.pop("act_algo", "hfmg" if "num_of_bins" in parameters else "ifmr")
        require_choice("act_algo", algorithm, tuple(ACTIVATION_ALGORITHMS))
        _refuse_foreign(parameters, "act_algo", algorithm)
        return ACTIVATION_ALGORITHMS[algorithm](**parameters)


def _weight(value: object) -> Arq | AdaRound | Nuq:
    with located("weight_quant_params"):
        parameters = _object(value, _WEIGHT_ORDER)
        algorithm = parameters.pop("wts_algo", "arq_quantize")
        require_choice("wts_algo", algorithm, tuple(WEIGHT_ALGORITHMS))
        if algorithm == "nuq_quantize":
            require_choice("num_bits of the weights", parameters.pop("num_bits", 8), (8,))
        _refuse_foreign(parameters, "wts_algo", algorithm)
        return WEIGHT_ALGORITHMS[algorithm](**parameters)


def _refuse_foreign(parameters: Mapping[str, Any], key: str, algorithm: str) -> None:
    own = _OWN_KEYS[algorithm]
    for name in parameters:
        if name not in own:
            raise ConfigError(f"{name} does not belong to {key} {algorithm!r}, which takes {', '.join(own)}")


def _object(value: object, keys: Collection[str]) -> dict[str, Any]:
    """A copy of the JSON object `value`, whose keys must be among `keys`; lists of two numbers become tuples."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"must be an object with keys among {', '.join(keys)}, found {value!r:.60}")
    for key, item in value.items():
        if key not in keys:
            raise ConfigError(f"unknown key {key!r}{nearest(str(key), keys) or ';'} known keys: {', '.join(keys)}")
        if item is None:
            raise ConfigError(f"{key} must not be null; leave the key out to take the default")
        if isinstance(item, int) and abs(item) > 2**63:
            raise ConfigError(f"{key} must be a number of ordinary size, found an integer of {item.bit_length()} bits")
    return {key: _pair(key, item) if key in _PAIRS else item for key, item in value.items()}


def _pair(key: str, value: object) -> tuple[Any, Any]:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise ConfigError(f"{key} must be a list of two numbers, found {value!r:.60}")
    for number in value:
        if isinstance(number, bool) or not isinstance(number, (int, float)) or abs(number) > 2**63:
            raise ConfigError(f"{key} must be a list of two numbers of ordinary size, found {value!r:.60}")
    return (value[0], value[1])


def format_json(
    config: QuantConfig, layers: Mapping[str, tuple[bool, LayerConfig]], *, batch_num: int | None = None
) -> str:
    """The text of a config.json as AMCT writes it, byte for byte: its key order, its indent, no newline at the end.

    Args:
        config: the settings for the whole model.
        layers: every layer that could be quantized -> (whether it is, its configuration with `asymmetric` and
            `channel_wise` resolved to true or false).
        batch_num: calibration batches in use; None takes the configuration's number, or 1 where that has none.

    Raises:
        ConfigError: a layer is called like a setting, or is not resolved.
    """
    settings: dict[str, Any] = {
        "version": 1,
        "batch_num": batch_num or config.batch_num or 1,
        "activation_offset": config.activation_offset,
    }
    if config.joint_quant:
        settings["joint_quant"] = True
    settings["do_fusion"] = config.do_fusion
    if config.fakequant_precision_mode != "DEFAULT":
        settings["fakequant_precision_mode"] = config.fakequant_precision_mode
    settings["skip_fusion_layers"] = list(config.skip_fusion_layers)
    if config.tensor_quantize:
        settings["tensor_quantize"] = [_tensor_object(tensor) for tensor in config.tensor_quantize]
    objects = {name: _layer_object(name, *layers[name]) for name in sorted(layers)}
    return json.dumps(settings | objects, indent=4, separators=(",", ":"))


def _layer_object(name: str, enabled: bool, layer: LayerConfig) -> dict[str, Any]:
    if name in SETTINGS:
        raise ConfigError(f"a layer cannot be called {name!r} in this file: that is the name of a setting")
    written: dict[str, Any] = {"quant_enable": enabled}
    if layer.balancer is not None:
        written["dmq_balancer_param"] = float(layer.balancer.migration_strength)
    written["activation_quant_params"] = _activation_object(layer.activation)
    written["weight_quant_params"] = _parameters_object(layer.weight, _WEIGHT_ORDER, "wts_algo", WEIGHT_ALGORITHMS)
    for parameters in (written["activation_quant_params"], written["weight_quant_params"]):
        for key, value in parameters.items():
            if value is None:
                raise ConfigError(f"layer {name!r}: {key} is not resolved to true or false")
    return written


def _tensor_object(tensor: TensorConfig) -> dict[str, Any]:
    activation = {key: value for key, value in _activation_object(tensor.activation).items() if value is not None}
    return {
        "layer_name": tensor.layer_name,
        "input_index": tensor.input_index,
        "activation_quant_params": activation,
    }


def _activation_object(activation: Ifmr | Hfmg) -> dict[str, Any]:
    return _parameters_object(activation, _ACTIVATION_ORDER, "act_algo", ACTIVATION_ALGORITHMS)


def _parameters_object(
    parameters: object, order: Collection[str], algorithm_key: str, algorithms: Mapping[str, type]
) -> dict[str, Any]:
    algorithm = next(name for name, kind in algorithms.items() if isinstance(parameters, kind))
    keys = (*_OWN_KEYS[algorithm], algorithm_key)
    return {
        key: algorithm if key == algorithm_key else _json_value(key, getattr(parameters, key))
        for key in order
        if key in keys
    }


def _json_value(key: str, value: Any) -> Any:
    """`value` as AMCT's JSON has it: where it expects a float, 1 is written 1.0."""
    if key in _PAIRS:
        return [float(number) for number in value]
    return float(value) if key in _FLOATS else value
