"""Vitis AI's quantization strategy (vai_q_pytorch): JSON <-> `StrategyConfig`.

Every value is looked up in the layer's section for its kind of tensor, the layer's overall section, the model's section
for the kind, the model's overall section, and the defaults, in this order.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from amct_onnx.errors import ConfigError, NotAvailableError, located, nearest
from amct_onnx.formats.json_text import load_json
from amct_onnx.kernels.checks import require_bool, require_choice
from amct_onnx.kernels.strategy import TensorStrategy
from amct_onnx.strategy_config import DEVICES, KINDS, SWITCHES, Kinds, StrategyConfig, default_kinds

_OVERALL, _TENSORS, _LAYERS = "overall_quantize_config", "tensor_quantize_config", "layer_quantize_config"
_LISTED = "quantizable_data_type"
MODEL_KEYS = (
    "target_device",
    *SWITCHES,
    "convert_silu_to_hswish",
    "onnx_opset_version",
    _LISTED,
    _OVERALL,
    _TENSORS,
    _LAYERS,
)
_LAYER_KEYS = ("layer_type", "layer_name", _LISTED, _OVERALL, _TENSORS)
_FIELDS = (
    "datatype",
    "bit_width",
    "method",
    "round_mode",
    "symmetry",
    "per_channel",
    "signed",
    "narrow_range",
    "scale_type",
    "calib_statistic_method",
    "percentage",
)
_AT_RUN_TIME = ("input", "activation")
_SPELLINGS = {"power_of_two": "poweroftwo"}
"""What the user guide writes -> what the tool reads."""


def parse_strategy(text: str | bytes, source: str) -> StrategyConfig:
    """The strategy that `text` writes.

    Args:
        text: the content of a strategy file.
        source: what to call it in errors.

    Raises:
        ConfigError: not JSON, a key given twice, or what `strategy_from_object` raises.
        NotAvailableError: what `strategy_from_object` raises.
    """
    return strategy_from_object(load_json(text, source), source)


def is_strategy(found: object) -> bool:
    """Whether a parsed JSON object is a strategy: no other dialect has any of these keys."""
    own = ("target_device", _OVERALL, _TENSORS, _LAYERS, _LISTED)
    return isinstance(found, Mapping) and any(key in found for key in own)


def strategy_from_object(found: object, source: str) -> StrategyConfig:
    """The strategy that a parsed JSON object asks for.

    Raises:
        ConfigError: an unknown key, a value of the wrong type or out of its range, or values that the target device
            does not take together; the message says where.
        NotAvailableError: a valid wish that the engine does not carry out.
    """
    with located(source):
        model = _object(found, MODEL_KEYS)
        if "target_device" not in model:
            raise ConfigError(f"target_device is missing; it is required: {', '.join(DEVICES)}")
        _check_listed(model.get(_LISTED))
        _refuse_unavailable(model)
        kinds = _with_sections(default_kinds(), model)
        types: dict[str, Kinds] = {}
        names: dict[str, Kinds] = {}
        for number, layer in enumerate(_list(model.get(_LAYERS), _LAYERS), 1):
            with located(f"{_LAYERS}, entry {number}"):
                _add_layer(layer, kinds, types, names)
        return StrategyConfig(
            target_device=model["target_device"],
            kinds=kinds,
            layer_types=types,
            layer_names=names,
            **{name: _switch(name, model[name]) for name in SWITCHES if name in model},
        )


def _switch(name: str, value: object) -> bool:
    require_bool(name, value)
    return bool(value)


def _refuse_unavailable(model: Mapping[str, Any]) -> None:
    if _switch("convert_silu_to_hswish", model.get("convert_silu_to_hswish", False)):
        raise NotAvailableError("convert_silu_to_hswish is not available; convert the activations before the export")
    opset = model.get("onnx_opset_version", -1)
    if isinstance(opset, bool) or not isinstance(opset, int):
        raise ConfigError(f"onnx_opset_version must be an integer, found {opset!r}")


def _check_listed(value: object) -> tuple[str, ...]:
    """The kinds of a quantizable_data_type. For a whole model it is never read: all kinds are quantized."""
    kinds = () if value is None else tuple(_list(value, _LISTED))
    for kind in kinds:
        require_choice(f"an entry of {_LISTED}", kind, KINDS)
    return kinds


def _add_layer(layer: object, model: Kinds, types: dict[str, Kinds], names: dict[str, Kinds]) -> None:
    given = _object(layer, _LAYER_KEYS)
    for key in ("layer_type", "layer_name"):
        if given.get(key) is not None and not isinstance(given[key], str):
            raise ConfigError(f"{key} must be a string or null, found {given[key]!r}")
    if given.get(_LISTED) is None:
        raise ConfigError(f"{_LISTED} is missing; list the kinds of tensors that the entry is for: {', '.join(KINDS)}")
    listed = _check_listed(given[_LISTED])
    kinds = _with_sections({kind: model[kind] for kind in listed}, given)
    if given.get("layer_type"):
        types[given["layer_type"].rpartition(".")[2]] = kinds
    elif given.get("layer_name"):
        names[given["layer_name"]] = kinds
    else:
        raise ConfigError("layer_type or layer_name is missing; without one the entry is for no layer")


def _with_sections(kinds: Kinds, holder: Mapping[str, Any]) -> dict[str, TensorStrategy]:
    """`kinds` with what the overall section of a model or layer and its sections for kinds say."""
    found = dict(kinds)
    if holder.get(_OVERALL) is not None:
        with located(_OVERALL):
            for kind in found:
                found[kind] = _changed(found[kind], holder[_OVERALL], kind)
    if holder.get(_TENSORS) is not None:
        with located(_TENSORS):
            for kind, section in _object(holder[_TENSORS], KINDS).items():
                if kind not in kinds:
                    raise ConfigError(f"says something of {kind!r}, which {_LISTED} does not list; list it")
                with located(kind):
                    found[kind] = _changed(found[kind], section, kind)
    return found


def _changed(tensor: TensorStrategy, section: object, kind: str) -> TensorStrategy:
    given = {key: value for key, value in _object(section, _FIELDS).items() if value is not None}
    if given.get("bit_width") == 0 and not isinstance(given["bit_width"], bool):
        del given["bit_width"]  # counts as not given
    if kind not in _AT_RUN_TIME:
        given.pop("calib_statistic_method", None)
    if isinstance(given.get("scale_type"), str):
        given["scale_type"] = _SPELLINGS.get(given["scale_type"], given["scale_type"])
    return replace(tensor, **given)


def _object(value: object, keys: Collection[str]) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"must be an object with keys among {', '.join(keys)}, found {value!r:.60}")
    for key in value:
        if key not in keys:
            raise ConfigError(f"unknown key {key!r}{nearest(str(key), keys) or ';'} known keys: {', '.join(keys)}")
    return dict(value)


def _list(value: object, name: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{name} must be a list, found {value!r:.60}")
    return list(value)


def format_strategy(config: StrategyConfig) -> str:
    """The strategy as a file that says everything; read again it is the same strategy."""
    model: dict[str, Any] = {"target_device": config.target_device}
    model |= {name: getattr(config, name) for name in SWITCHES}
    model[_LISTED] = list(KINDS)
    model[_TENSORS] = {kind: _section(config.kinds[kind], kind) for kind in KINDS}
    entries = [("layer_type", rules) for rules in config.layer_types.items()]
    entries += [("layer_name", rules) for rules in config.layer_names.items()]
    model[_LAYERS] = [
        {
            "layer_type": None,
            "layer_name": None,
            word: name,
            _LISTED: list(kinds),
            _TENSORS: {kind: _section(tensor, kind) for kind, tensor in kinds.items()},
        }
        for word, (name, kinds) in entries
    ]
    return json.dumps(model, indent=2)


def _section(tensor: TensorStrategy, kind: str) -> dict[str, Any]:
    names = [name for name in _FIELDS if name != "percentage" or tensor.method == "percentile"]
    return {name: getattr(tensor, name) for name in names if name != "calib_statistic_method" or kind in _AT_RUN_TIME}
