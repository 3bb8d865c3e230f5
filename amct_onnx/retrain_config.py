"""What the user asks for when a model is trained: quantization and sparsity, checked when made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from amct_onnx.errors import ConfigError, located
from amct_onnx.kernels.checks import require_bool, require_choice, require_int, require_number
from amct_onnx.passes.layer_types import check_layer_type

WIDTHS = ((4, 4), (8, 8), (16, 8), (8, 4))
"""Bits of activations and weights that go together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UlqActivation:
    """Learned limits of activations (universal learned quantization).

    clip_max, clip_min: where the limits start, above and below zero; None for both: IFMR finds them on first batches.
    fixed_min: the lower limit stays at zero; None where the layer reads a Relu.
    num_bits: width of the activations.
    """

    clip_max: float | None = None
    clip_min: float | None = None
    fixed_min: bool | None = None
    num_bits: int = 8

    def __post_init__(self) -> None:
        if (self.clip_max is None) != (self.clip_min is None):
            given, missing = ("clip_max", "clip_min") if self.clip_min is None else ("clip_min", "clip_max")
            raise ConfigError(f"{missing} is missing beside {given}; give both, or none")
        if self.clip_max is not None:
            require_number("clip_max", self.clip_max, interval="(0, inf)")
            require_number("clip_min", self.clip_min, interval="(-inf, 0)")
        require_bool("fixed_min", self.fixed_min, optional=True)
        require_choice("dst_type of the activations", self.num_bits, (4, 8, 16))


@dataclass(frozen=True, slots=True, kw_only=True)
class ArqRetrain:
    """Weights on the scale of their present range, found anew each time.

    channel_wise: one scale per output channel; None leaves it to the layer's type.
    num_bits: width of the weights.
    """

    channel_wise: bool | None = None
    num_bits: int = 8

    def __post_init__(self) -> None:
        require_bool("channel_wise", self.channel_wise, optional=True)
        require_choice("dst_type of the weights", self.num_bits, (4, 8))


@dataclass(frozen=True, slots=True, kw_only=True)
class UlqRetrain(ArqRetrain):
    """Weights on learned scales, which start at those of their range; fields as those of ArqRetrain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FilterPrune:
    """Whole output channels are taken away, those of the smallest norm.

    prune_ratio: share of the channels.
    ascend_optimized: what remains is a multiple of 16.
    """

    prune_ratio: float
    ascend_optimized: bool = True

    def __post_init__(self) -> None:
        require_number("prune_ratio", self.prune_ratio, interval="(0, 1)")
        require_bool("ascend_optimized", self.ascend_optimized)


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectivePrune:
    """Of every 4 weights along the input channels the 2 smaller ones are zero.

    update_freq: training steps between two choices of which; 0 chooses once.
    """

    update_freq: int = 0

    def __post_init__(self) -> None:
        require_int("update_freq", self.update_freq, low=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoPruneConfig:
    """What the search for channels to take away shall reach.

    compress_ratio: products that the whole model computes, by those of the pruned one.
    ascend_optimized: what remains of a layer is a multiple of 16.
    max_prune_ratio: the most that a layer may lose.
    test_iteration: samples that the sensitivity is measured on.
    override_prune_cfg: a .cfg file with layers and types that are skipped, or pruned as it says.
    """

    compress_ratio: float
    ascend_optimized: bool = True
    max_prune_ratio: float = 1.0
    test_iteration: int = 1
    override_prune_cfg: str | None = None

    def __post_init__(self) -> None:
        require_number("compress_ratio", self.compress_ratio, interval="(1, inf)")
        require_bool("ascend_optimized", self.ascend_optimized)
        require_number("max_prune_ratio", self.max_prune_ratio, interval="(0, 1]")
        require_int("test_iteration", self.test_iteration, low=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrainLayerConfig:
    """How a layer, or all layers of a type, shall be trained. What is None comes from the next wider block.

    activation, weight: quantization of the input and of the weight.
    prune: sparsity.
    """

    activation: UlqActivation | None = None
    weight: ArqRetrain | None = None
    prune: FilterPrune | SelectivePrune | None = None

    def __post_init__(self) -> None:
        _require_type("activation", self.activation, UlqActivation)
        _require_type("weight", self.weight, ArqRetrain)
        _require_type("prune", self.prune, (FilterPrune, SelectivePrune))
        if self.activation is not None and self.weight is not None:
            require_widths(self.activation, self.weight)

    @property
    def quantizes(self) -> bool:
        """Whether the block says anything of quantization."""
        return self.activation is not None or self.weight is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrainConfig:
    """What the user asks for, for a whole model.

    batch_num: batches that the limits of activations are found on where none are given.
    everywhere: for every layer that no override names.
    skip_layers, skip_layer_types: neither quantized nor pruned, by name and by type.
    quant_skip_layers, quant_skip_types: not quantized.
    prune_skip_layers, prune_skip_types: not pruned.
    override_layer_configs, override_layer_types: blocks by layer name and by type; the former win.
    only_layers: quantize these and no others; None for every layer that can be.
    fakequant_precision_mode: "DEFAULT", or "FORCE_FP16_QUANT" for activation scales that fp16 can hold.
    """

    batch_num: int = 1
    everywhere: RetrainLayerConfig = field(default_factory=RetrainLayerConfig)
    skip_layers: tuple[str, ...] = ()
    skip_layer_types: tuple[str, ...] = ()
    quant_skip_layers: tuple[str, ...] = ()
    quant_skip_types: tuple[str, ...] = ()
    prune_skip_layers: tuple[str, ...] = ()
    prune_skip_types: tuple[str, ...] = ()
    override_layer_configs: Mapping[str, RetrainLayerConfig] = field(default_factory=dict)
    override_layer_types: Mapping[str, RetrainLayerConfig] = field(default_factory=dict)
    only_layers: tuple[str, ...] | None = None
    fakequant_precision_mode: str = "DEFAULT"

    def __post_init__(self) -> None:
        require_int("batch_num", self.batch_num, low=1)
        _require_type("everywhere", self.everywhere, RetrainLayerConfig)
        require_choice("fakequant_precision_mode", self.fakequant_precision_mode, ("DEFAULT", "FORCE_FP16_QUANT"))
        for name in (*NAME_LISTS, *TYPE_LISTS):
            object.__setattr__(self, name, _names(name, getattr(self, name)))
        if self.only_layers is not None:
            object.__setattr__(self, "only_layers", _names("only_layers", self.only_layers))
        for name in ("override_layer_configs", "override_layer_types"):
            blocks = getattr(self, name)
            if not isinstance(blocks, Mapping):
                raise ConfigError(f"{name} must map names to RetrainLayerConfig, found {blocks!r:.60}")
            for key, block in blocks.items():
                _require_type(f"{name}[{key!r}]", block, RetrainLayerConfig)
            object.__setattr__(self, name, MappingProxyType(dict(blocks)))
        for name in (*TYPE_LISTS, "override_layer_types"):
            with located(name):
                for layer_type in getattr(self, name):
                    check_layer_type(layer_type)

    @property
    def prunes(self) -> bool:
        """Whether sparsity is asked for anywhere."""
        blocks = (self.everywhere, *self.override_layer_configs.values(), *self.override_layer_types.values())
        return any(block.prune is not None for block in blocks)


NAME_LISTS = ("skip_layers", "quant_skip_layers", "prune_skip_layers")
TYPE_LISTS = ("skip_layer_types", "quant_skip_types", "prune_skip_types")


def require_widths(activation: UlqActivation, weight: ArqRetrain) -> None:
    """Raise ConfigError unless the two widths go together."""
    if (activation.num_bits, weight.num_bits) not in WIDTHS:
        allowed = ", ".join(f"INT{a} and INT{w}" for a, w in WIDTHS)
        raise ConfigError(
            f"activations of INT{activation.num_bits} and weights of INT{weight.num_bits} do not go together; "
            f"allowed are {allowed}"
        )


def _require_type(name: str, value: object, allowed: type | tuple[type, ...]) -> None:
    if value is not None and not isinstance(value, allowed):
        kinds = allowed if isinstance(allowed, tuple) else (allowed,)
        raise ConfigError(f"{name} must be a {' or '.join(kind.__name__ for kind in kinds)}, found {value!r:.60}")


def _names(name: str, value: object) -> tuple[str, ...]:
    """A tuple of distinct strings; a lone string is refused, since it would be read letter by letter."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise ConfigError(f"{name} must be a list of strings, found {value!r:.60}")
    names = tuple(value)
    for item, count in Counter(names).items():
        if not isinstance(item, str) or count > 1:
            what = f"{item!r} {count} times" if count > 1 else repr(item)
            raise ConfigError(f"{name} must list each name once, as a text; found {what}")
    return names
