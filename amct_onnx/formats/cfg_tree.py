"""The fields of a .cfg as plain dicts and lists, and the `QuantConfig` that they ask for.

A tree has the field names of calibration_config_onnx.proto and only what the user wrote: presence matters, since an
unset `asymmetric` or `channel_wise` takes its value from elsewhere.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from google.protobuf.message import Message

from amct_onnx.config import LayerConfig, NuqConfig, QuantConfig, TensorConfig
from amct_onnx.errors import ConfigError, located
from amct_onnx.formats.schema import Field, Schema
from amct_onnx.kernels.adaround import AdaRound
from amct_onnx.kernels.arq import Arq
from amct_onnx.kernels.dmq import Dmq
from amct_onnx.kernels.hfmg import Hfmg
from amct_onnx.kernels.ifmr import Ifmr
from amct_onnx.kernels.nuq import Nuq
from amct_onnx.passes.layer_types import PER_CHANNEL, QUANTIZABLE

Tree = Mapping[str, Any]

_LOG = logging.getLogger("amct_onnx")
_TYPE_BITS = {"INT8": 8, "INT16": 16}
_SAME_IN_CONFIG = (
    "batch_num",
    "activation_offset",
    "joint_quant",
    "do_fusion",
    "skip_layers",
    "skip_layer_types",
    "skip_fusion_layers",
    "fakequant_precision_mode",
)


def tree_from_message(message: Message, schema: Schema) -> dict[str, Any]:
    """What is set in `message`, enums by name and floats by the shortest decimal that means the same float32."""
    tree: dict[str, Any] = {}
    fields = schema.messages[message.DESCRIPTOR.name]
    for descriptor, value in message.ListFields():
        field = fields[descriptor.name]
        repeated = field.label == "repeated"
        tree[field.name] = [_plain(v, field, schema) for v in value] if repeated else _plain(value, field, schema)
    return tree


def _plain(value: Any, field: Field, schema: Schema) -> Any:
    if field.type in schema.messages:
        return tree_from_message(value, schema)
    if field.type in schema.enums:
        return next(name for name, number in schema.enums[field.type].items() if number == value)
    return float(str(np.float32(value))) if field.type == "float" else value


def config_from_tree(tree: Tree, *, batch_num: int | None) -> QuantConfig:
    """The configuration that `tree` asks for.

    Args:
        tree: fields and values whose names and types fit the schema.
        batch_num: calibration batches where the tree does not say, and batches that balancing looks at; None for all.

    Raises:
        ConfigError: a required field is missing, a layer or type is overridden twice, or a value is not allowed.
    """
    if tree.get("skip_approximation_layers"):
        _LOG.warning("skip_approximation_layers is ignored: it concerns TensorFlow graphs only")
    types = _overrides(tree, "override_layer_types", "layer_type")
    asked: dict[str, Any] = {"batch_num": batch_num, "balance_batches": batch_num, "override_layer_types": types}
    asked |= {name: tree[name] for name in _SAME_IN_CONFIG if name in tree}
    if "common_config" in tree:
        with located("common_config"):
            asked["common_config"] = _layer(tree["common_config"])
    asked |= _deprecated(tree)
    asked["override_layer_configs"] = _overrides(tree, "override_layer_configs", "layer_name")
    asked["tensor_quantize"] = tuple(_tensor(number, t) for number, t in enumerate(tree.get("tensor_quantize", ()), 1))
    if "nuq_config" in tree:
        asked["nuq_config"] = _nuq_config(tree["nuq_config"])
    return QuantConfig(**asked)


def _overrides(tree: Tree, field: str, key: str) -> dict[str, LayerConfig]:
    blocks: dict[str, LayerConfig] = {}
    for number, override in enumerate(tree.get(field, ()), 1):
        with located(f"{field}, block {number}"):
            name = _required(override, key)
        with located(f"{field} of {name!r}"):
            if name in blocks:
                raise ConfigError(f"{key} {name!r} is overridden a second time; keep one block")
            blocks[name] = _layer(_required(override, "calibration_config"))
    return blocks


def _required(tree: Tree, field: str) -> Any:
    if field not in tree:
        raise ConfigError(f"{field} is missing, it is required")
    if tree[field] == "":
        raise ConfigError(f"{field} is an empty text, a name is required")
    return tree[field]


def _layer(block: Tree) -> LayerConfig:
    """Which algorithms a CalibrationConfig names; what it leaves out takes that algorithm's defaults."""
    chosen: dict[str, Any] = {}
    for field, parameters in block.items():
        slot, make = _ALGORITHMS[field]
        written = " ".join(f"{name}: {_spelled(value)}" for name, value in parameters.items())
        with located(f"{field} {{ {written} }}" if written else field):
            chosen[slot] = make(parameters)
    return LayerConfig(**chosen)


def _spelled(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _ifmr(block: Tree) -> Ifmr:
    start, end = Ifmr().search_range
    search_range = (block.get("search_range_start", start), block.get("search_range_end", end))
    return Ifmr(search_range=search_range, **_activation(block, "search_step", "max_percentile", "min_percentile"))


def _hfmg(block: Tree) -> Hfmg:
    return Hfmg(**_activation(block, "num_of_bins"))


def _activation(block: Tree, *own: str) -> dict[str, Any]:
    parameters = _picked(block, "asymmetric", *own)
    if "dst_type" in block:
        parameters["num_bits"] = _TYPE_BITS[block["dst_type"]]
    return parameters


def _arq(block: Tree) -> Arq:
    parameters = _picked(block, "channel_wise")
    if "quant_bits" in block:
        parameters["num_bits"] = block["quant_bits"]
    return Arq(**parameters)


def _adaround(block: Tree) -> AdaRound:
    start, end = AdaRound().beta_range
    beta_range = (block.get("beta_range_start", start), block.get("beta_range_end", end))
    parameters = _picked(block, "num_iteration", "reg_param", "warm_start", "channel_wise")
    return AdaRound(beta_range=beta_range, **parameters)


def _nuq(block: Tree) -> Nuq:
    return Nuq(**_picked(block, "num_steps", "num_of_iteration"))


def _dmq(block: Tree) -> Dmq:
    return Dmq(**_picked(block, "migration_strength"))


def _picked(block: Tree, *names: str) -> dict[str, Any]:
    return {name: block[name] for name in names if name in block}


_ALGORITHMS: Mapping[str, tuple[str, Callable[[Tree], object]]] = {
    "arq_quantize": ("weight", _arq),
    "ada_quantize": ("weight", _adaround),
    "nuq_quantize": ("weight", _nuq),
    "ifmr_quantize": ("activation", _ifmr),
    "hfmg_quantize": ("activation", _hfmg),
    "dmq_balancer": ("balancer", _dmq),
}
"""Field of a CalibrationConfig -> (field of LayerConfig, how to make it)."""


def _tensor(number: int, tree: Tree) -> TensorConfig:
    with located(f"tensor_quantize, block {number}"):
        name, index = _required(tree, "layer_name"), _required(tree, "input_index")
        algorithms = {field: value for field, value in tree.items() if field in _ALGORITHMS}
        return TensorConfig(layer_name=name, input_index=index, activation=_layer(algorithms).activation)


def _nuq_config(tree: Tree) -> NuqConfig:
    with located("nuq_config"):
        return NuqConfig(mapping_file=_required(tree, "mapping_file"), nuq=_nuq(tree.get("nuq_quantize", {})))


def _deprecated(tree: Tree) -> dict[str, Any]:
    """What the two blocks of older files ask for; they count only where neither of their successors is written."""
    given = [name for name in ("conv_calibration_config", "fc_calibration_config") if name in tree]
    if not given:
        return {}
    if "common_config" in tree or tree.get("override_layer_types"):
        _LOG.warning("%s ignored: common_config or override_layer_types is given", " and ".join(given))
        return {}
    _LOG.warning("%s is deprecated; use common_config and override_layer_types", " and ".join(given))
    asked: dict[str, Any] = {}
    if "conv_calibration_config" in tree:
        with located("conv_calibration_config"):
            asked["common_config"] = _layer(tree["conv_calibration_config"])
    if "fc_calibration_config" in tree:
        with located("fc_calibration_config"):
            block = _layer(tree["fc_calibration_config"])
            if getattr(block.weight, "channel_wise", None):
                raise ConfigError("channel_wise must be false: these layers have one scale per weight, found true")
            asked["override_layer_types"] = {op: block for op in QUANTIZABLE if op not in PER_CHANNEL}
    return asked
