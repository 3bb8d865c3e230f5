"""What a Vitis AI strategy asks for: one dataclass, checked when made, that `formats.vitis_json` reads files into."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from amct_onnx.errors import ConfigError, located
from amct_onnx.kernels.checks import require_bool, require_choice, require_int
from amct_onnx.kernels.strategy import TensorStrategy

KINDS = ("input", "weights", "bias", "activation")
DEVICES = ("DPU", "CPU", "GPU")

Kinds = Mapping[str, TensorStrategy]
"""Kind of tensor -> its strategy."""


def default_kinds() -> dict[str, TensorStrategy]:
    """What holds where nothing is said: the DPU's strategy."""
    return {kind: TensorStrategy(round_mode="half_up" if kind == "activation" else "std_round") for kind in KINDS}


@dataclass(frozen=True, slots=True, kw_only=True)
class StrategyConfig:
    """A quantization strategy for a whole model.

    target_device: DPU, CPU or GPU; it decides which combinations are allowed.
    kinds: for each of KINDS how such tensors are quantized.
    layer_types, layer_names: the same for some kinds of single layers, by type and by name; the latter win.
    convert_relu6_to_relu: Clip between 0 and 6 becomes Relu.
    include_cle: scale the channels between two convolutions for the good of both weights.
    include_bias_corr: take out of the biases what the error of the weights adds on average.
    keep_first_last_layer_accuracy: leave the first and the last layer with a weight float.
    keep_add_layer_accuracy: leave additions float.
    change_concat_input_fix, change_pool_input_fix: its inputs get the scale of a concatenation's, or pooling's, output.
    batch_num: calibration batches to use; None for all.
    dpu_arithmetic: average pooling and LeakyRelu compute what they do on the DPU; the tool does that for every device.
    correct_biases: include_bias_corr takes out the whole mean error at the end, not a twentieth of it with each batch.
    """

    target_device: str
    kinds: Kinds = field(default_factory=default_kinds)
    layer_types: Mapping[str, Kinds] = field(default_factory=dict)
    layer_names: Mapping[str, Kinds] = field(default_factory=dict)
    convert_relu6_to_relu: bool = False
    include_cle: bool = True
    include_bias_corr: bool = True
    keep_first_last_layer_accuracy: bool = False
    keep_add_layer_accuracy: bool = False
    change_concat_input_fix: bool = False
    change_pool_input_fix: bool = False
    batch_num: int | None = None
    dpu_arithmetic: bool = False
    correct_biases: bool = False

    def __post_init__(self) -> None:
        require_choice("target_device", self.target_device, DEVICES)
        for name in (*SWITCHES, "dpu_arithmetic", "correct_biases"):
            require_bool(name, getattr(self, name))
        if self.batch_num is not None:
            require_int("batch_num", self.batch_num, low=1)
        _require_kinds("kinds", self.kinds)
        object.__setattr__(self, "kinds", MappingProxyType({**default_kinds(), **self.kinds}))
        self._check("tensor", self.kinds)
        for field_name, word in (("layer_types", "layer_type"), ("layer_names", "layer_name")):
            _require_mapping(field_name, getattr(self, field_name), "names to kinds of tensors")
            for name, kinds in getattr(self, field_name).items():
                _require_kinds(f"{field_name}[{name!r}]", kinds)
                self._check(f"{word} {name!r}, tensor", {**self.kinds, **kinds})

    def datatypes(self) -> set[str]:
        """All that tensors of any kind and layer are quantized to."""
        sections = (self.kinds, *self.layer_types.values(), *self.layer_names.values())
        return {tensor.datatype for kinds in sections for tensor in kinds.values()}

    def _check(self, where: str, kinds: Kinds) -> None:
        for kind in KINDS:
            with located(f"{where} kind {kind!r}"):
                if kinds[kind].datatype == "int":
                    why = (
                        _why_not_dpu(kind, kinds[kind]) if self.target_device == "DPU" else _why_not(kind, kinds[kind])
                    )
                    if why is not None:
                        raise ConfigError(f"target_device {self.target_device!r} {why}")
        both = [kinds[kind] for kind in ("activation", "bias")]
        widths = {tensor.bit_width for tensor in both if tensor.datatype == "int"}
        if self.target_device == "DPU" and len(widths) > 1:
            raise ConfigError(
                f"{where}s: target_device 'DPU' takes one bit_width for activation and bias, found "
                f"{kinds['activation'].bit_width} and {kinds['bias'].bit_width}"
            )


SWITCHES = (
    "convert_relu6_to_relu",
    "include_cle",
    "include_bias_corr",
    "keep_first_last_layer_accuracy",
    "keep_add_layer_accuracy",
    "change_concat_input_fix",
    "change_pool_input_fix",
)
"""Fields of StrategyConfig that are true or false."""


def _require_mapping(field_name: str, value: object, what: str) -> None:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{field_name} must map {what}, found {value!r:.60}")


def _require_kinds(field_name: str, kinds: object) -> None:
    _require_mapping(field_name, kinds, "kinds of tensors to a TensorStrategy each")
    assert isinstance(kinds, Mapping)
    for kind, tensor in kinds.items():
        require_choice(f"a key of {field_name}", kind, KINDS)
        if not isinstance(tensor, TensorStrategy):
            raise ConfigError(f"{field_name}[{kind!r}] must be a TensorStrategy, found {tensor!r:.60}")


def _why_not_dpu(kind: str, tensor: TensorStrategy) -> str | None:
    round_mode = "half_up" if kind == "activation" else "std_round"
    wanted: dict[str, tuple[object, ...]] = {
        "symmetry": (True,),
        "per_channel": (False,),
        "signed": (True,),
        "narrow_range": (False,),
        "scale_type": ("poweroftwo",),
        "method": ("diffs", "maxmin"),
        "round_mode": (round_mode,),
    }
    if kind in ("input", "activation"):
        wanted["calib_statistic_method"] = ("modal",)
    for name, allowed in wanted.items():
        if getattr(tensor, name) not in allowed:
            said = f"takes {name} {_listed(allowed)} here, found {_word(getattr(tensor, name))}"
            return f"{said}; {_NO_ONE_ROUNDING}" if name == "round_mode" else said
    return None


_NO_ONE_ROUNDING = (
    "no overall round_mode fits all kinds: the DPU rounds activations half_up and the rest std_round; leave it out, or "
    'write "std_round" overall and "half_up" for activation in tensor_quantize_config'
)


def _why_not(kind: str, tensor: TensorStrategy) -> str | None:
    by_two = tensor.scale_type == "poweroftwo"
    if tensor.per_channel and kind != "weights":
        return "takes per_channel for weights alone"
    allowed: tuple[str, ...] = ("diffs", "maxmin") if by_two else ("maxmin",)
    if not by_two and not tensor.per_channel:
        allowed = ("maxmin", "percentile", "mse", "entropy")
    form = f"scale_type {tensor.scale_type!r}" + (" and per_channel" if tensor.per_channel else "")
    if tensor.method not in allowed:
        return f"takes method {_listed(allowed)} with {form}, found {tensor.method!r}"
    if by_two and not (tensor.symmetry and tensor.signed):
        return "takes symmetry and signed true with scale_type 'poweroftwo'"
    if not tensor.symmetry and tensor.method != "maxmin":
        return f"takes symmetry false with method 'maxmin' alone, found {tensor.method!r}"
    statistics: tuple[str, ...] = ("modal",) if by_two else ("max", "mean", "median")
    if kind in ("input", "activation") and tensor.calib_statistic_method not in statistics:
        found = tensor.calib_statistic_method
        return f"takes calib_statistic_method {_listed(statistics)} with {form}, found {found!r}"
    return None


def _listed(allowed: tuple[object, ...]) -> str:
    return " or ".join(_word(value) for value in allowed)


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)
