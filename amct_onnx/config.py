"""What the user asks for. Every outside dialect is translated into these types, and nowhere else.

The types are frozen and check themselves when made: a `QuantConfig` that exists is valid as far as that can be
known without the model. What depends on the model (names, shapes) is checked by `planning`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, TypeVar

from amct_onnx.errors import ConfigError, located, nearest
from amct_onnx.kernels.adaround import AdaRound
from amct_onnx.kernels.arq import Arq
from amct_onnx.kernels.checks import require_bool, require_choice, require_int
from amct_onnx.kernels.dmq import Dmq
from amct_onnx.kernels.hfmg import Hfmg
from amct_onnx.kernels.ifmr import Ifmr
from amct_onnx.kernels.nuq import Nuq
from amct_onnx.passes.layer_types import check_layer_type
from amct_onnx.strategy_config import StrategyConfig

ACTIVATION_ALGORITHMS: Mapping[str, type[Ifmr] | type[Hfmg]] = {"ifmr": Ifmr, "hfmg": Hfmg}
WEIGHT_ALGORITHMS: Mapping[str, type[Arq] | type[AdaRound] | type[Nuq]] = {
    "arq_quantize": Arq,
    "ada_quantize": AdaRound,
    "nuq_quantize": Nuq,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerConfig:
    """How a layer shall be quantized.

    activation: algorithm and parameters for the input.
    weight: algorithm and parameters for the weight, where the layer has one.
    balancer: moves outliers from the input to the weight; None for no balancing.
    """

    activation: Ifmr | Hfmg = field(default_factory=Ifmr)
    weight: Arq | AdaRound | Nuq = field(default_factory=Arq)
    balancer: Dmq | None = None

    def __post_init__(self) -> None:
        _require_type("activation", self.activation, (Ifmr, Hfmg))
        _require_type("weight", self.weight, (Arq, AdaRound, Nuq))
        if self.balancer is not None:
            _require_type("balancer", self.balancer, (Dmq,))


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorConfig:
    """One input tensor of a node that shall be quantized by itself.

    layer_name: the node.
    input_index: which of its inputs.
    activation: algorithm and parameters.
    """

    layer_name: str
    input_index: int
    activation: Ifmr | Hfmg = field(default_factory=Ifmr)

    def __post_init__(self) -> None:
        _require_type("layer_name", self.layer_name, (str,))
        require_int("input_index", self.input_index, low=0)
        _require_type("activation", self.activation, (Ifmr, Hfmg))


@dataclass(frozen=True, slots=True, kw_only=True)
class NuqConfig:
    """Non-uniform weights for the layers that a mapping file of ATC names.

    mapping_file: path of the JSON file that ATC makes from the fused model.
    nuq: parameters.
    """

    mapping_file: str
    nuq: Nuq = field(default_factory=Nuq)

    def __post_init__(self) -> None:
        _require_type("mapping_file", self.mapping_file, (str,))
        _require_type("nuq", self.nuq, (Nuq,))


AnyConfig = TypeVar("AnyConfig", "QuantConfig", StrategyConfig)
"""A configuration of any dialect."""

_SWITCHES = (
    "activation_offset",
    "joint_quant",
    "do_fusion",
    "wide_fusion",
    "global_pools",
    "recurrent_layers",
    "fold_balancers",
    "equalise_layers",
    "correct_biases",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantConfig:
    """What the user asks for, for a whole model.

    batch_num: calibration batches to use; None uses all that are given.
    activation_offset: asymmetric activations wherever no layer, type or common block says otherwise.
    joint_quant: one scale for the inputs of an element-wise addition.
    do_fusion: fold BatchNormalization into the layer in front of it.
    wide_fusion: also behind ConvTranspose, Gemm and MatMul, which AMCT does not do.
    balance_batches: batches that DMQ looks at; None for all. AMCT, and so its files, look at the first alone.
    global_pools: quantize GlobalAveragePool where the size of its input is fixed, as an AveragePool; AMCT does not.
    recurrent_layers: quantize LSTM and GRU too, as AMCT does; else only those that override_layer_configs names.
    fold_balancers: fold DMQ's Mul into what produces the input where that can be, which AMCT does not do.
    equalise_layers: scale the channels between two convolutions for the good of both weights.
    correct_biases: take out of the biases what the error of the weights adds on average.
    skip_layers, skip_layer_types: what stays float, by name and by type.
    skip_fusion_layers: layers whose BatchNormalization is not folded.
    fakequant_precision_mode: "DEFAULT", or "FORCE_FP16_QUANT" for scales that fp16 can hold.
    common_config: for every layer that no override names.
    override_layer_types, override_layer_configs: whole blocks by type and by layer name; the latter win.
    only_layers: quantize these and no others; None for every quantizable layer.
    tensor_quantize: single input tensors to quantize.
    nuq_config: non-uniform weights.
    """

    batch_num: int | None = None
    activation_offset: bool = True
    joint_quant: bool = False
    do_fusion: bool = True
    wide_fusion: bool = False
    global_pools: bool = False
    recurrent_layers: bool = True
    balance_batches: int | None = None
    fold_balancers: bool = False
    equalise_layers: bool = False
    correct_biases: bool = False
    skip_layers: tuple[str, ...] = ()
    skip_layer_types: tuple[str, ...] = ()
    skip_fusion_layers: tuple[str, ...] = ()
    fakequant_precision_mode: str = "DEFAULT"
    common_config: LayerConfig = field(default_factory=LayerConfig)
    override_layer_types: Mapping[str, LayerConfig] = field(default_factory=dict)
    override_layer_configs: Mapping[str, LayerConfig] = field(default_factory=dict)
    only_layers: tuple[str, ...] | None = None
    tensor_quantize: tuple[TensorConfig, ...] = ()
    nuq_config: NuqConfig | None = None

    def __post_init__(self) -> None:
        for name in ("batch_num", "balance_batches"):
            if getattr(self, name) is not None:
                require_int(name, getattr(self, name), low=1)
        for name in _SWITCHES:
            require_bool(name, getattr(self, name))
        for name in ("skip_layers", "skip_layer_types", "skip_fusion_layers", "only_layers"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, _names(name, value))
        require_choice("fakequant_precision_mode", self.fakequant_precision_mode, ("DEFAULT", "FORCE_FP16_QUANT"))
        _require_type("common_config", self.common_config, (LayerConfig,))
        for name in ("override_layer_types", "override_layer_configs"):
            object.__setattr__(self, name, _blocks(name, getattr(self, name)))
        for name in ("skip_layer_types", "override_layer_types"):
            with located(name):
                for layer_type in getattr(self, name):
                    check_layer_type(layer_type)
        object.__setattr__(self, "tensor_quantize", tuple(self.tensor_quantize))
        for tensor in self.tensor_quantize:
            _require_type("tensor_quantize", tensor, (TensorConfig,))
        for (name, index), count in Counter((t.layer_name, t.input_index) for t in self.tensor_quantize).items():
            if count > 1:
                raise ConfigError(f"tensor_quantize lists input {index} of {name!r} {count} times; list it once")
        if self.nuq_config is not None:
            _require_type("nuq_config", self.nuq_config, (NuqConfig,))


def with_options(config: AnyConfig, options: Mapping[str, Any]) -> AnyConfig:
    """`config` with the fields that `options` names replaced.

    Raises:
        ConfigError: an option is no field of the configuration, or its value is not allowed.
    """
    known = [f.name for f in fields(config)]
    for name in options:
        if name not in known:
            raise ConfigError(f"unknown option {name!r}{nearest(name, known) or ';'} known options: {', '.join(known)}")
    return replace(config, **options)


def _require_type(name: str, value: object, allowed: tuple[type, ...]) -> None:
    if not isinstance(value, allowed):
        expected = " or ".join(t.__name__ for t in allowed)
        raise ConfigError(f"{name} must be a {expected}, found {value!r}")


def _names(name: str, value: Iterable[str]) -> tuple[str, ...]:
    """A tuple of distinct strings; a lone string is refused, since it would be read letter by letter."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ConfigError(f"{name} must be a list of strings, found {value!r}")
    names = tuple(value)
    for item in names:
        _require_type(f"an entry of {name}", item, (str,))
    for item, count in Counter(names).items():
        if count > 1:
            raise ConfigError(f"{name} lists {item!r} {count} times; list it once")
    return names


def _blocks(name: str, value: object) -> Mapping[str, LayerConfig]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{name} must map names to LayerConfig, found {value!r}")
    for key, block in value.items():
        _require_type(f"a key of {name}", key, (str,))
        _require_type(f"{name}[{key!r}]", block, (LayerConfig,))
    return MappingProxyType(dict(value))


EFFORTS = ("fast", "balanced", "best")
"""How much is tried to find the best settings where none are given."""

OWN_PRESET = QuantConfig(wide_fusion=True, recurrent_layers=False)
"""What the engine does when it is asked for nothing."""
