"""Training of sparse models, and of models that are sparse and quantized: from ONNX to a torch module, and back."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
from torch import nn

from amct_onnx.convert import run_once
from amct_onnx.data import CalibrationSource
from amct_onnx.errors import ConfigError, ModelError, RecordError, located
from amct_onnx.formats.model_file import read_model, write_files
from amct_onnx.formats.prune_record import PrunedGroup, format_prune_record, parse_prune_record
from amct_onnx.formats.retrain_json import RetrainSource, load_retrain_config
from amct_onnx.formats.text_file import read_text
from amct_onnx.passes.channel_groups import channel_map
from amct_onnx.passes.layers import input_axis
from amct_onnx.passes.manager import run_passes
from amct_onnx.passes.pipelines import FUSE
from amct_onnx.passes.state import QuantState
from amct_onnx.prepare import prepare, require_same
from amct_onnx.results import QuantizeResult, Target
from amct_onnx.retrain.channel_pruning import chosen_by_norm, chosen_by_record, described, rows, take_away
from amct_onnx.retrain.compressed_module import CompressedModule, Pruning
from amct_onnx.retrain.module import onnx_module
from amct_onnx.retrain.planning import RetrainPlan, is_of, plan_quantization
from amct_onnx.retrain.prune_planning import PrunePlan, plan_pruning
from amct_onnx.retrain.quantization import Model, load_checkpoint, save_quantized
from amct_onnx.retrain.trained import shared_layers, ties_of, warn_of_copies
from amct_onnx.retrain_config import RetrainConfig, RetrainLayerConfig

_FILES = ("deploy_model.onnx", "fake_quant_model.onnx", "record.txt")


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneResult:
    """What `save_prune_retrain_model` made.

    deploy_model, fake_quant_model: the same float model twice, as AMCT has it; paths where `save_path` was given, else
        models in memory.
    record: path where `save_path` was given, else the text.
    """

    deploy_model: Path | onnx.ModelProto
    fake_quant_model: Path | onnx.ModelProto
    record: Path | str


def create_prune_retrain_model(
    model: Model,
    config_defination: RetrainSource,
    record_file: str | os.PathLike[str] | None = None,
    *,
    data: CalibrationSource | None = None,
) -> CompressedModule:
    """An ONNX model as a torch module with fewer channels, or with two of every four weights at zero.

    Before it is handed out, onnxruntime runs the smaller model, and its outputs are compared with those of the whole
    model where nothing reads the removed channels.

    Args:
        model: an .onnx file, or a model in memory, which stays untouched.
        config_defination: a .cfg file, a dict with its fields, or a configuration.
        record_file: the file to write down in what was taken away; None for none.
        data: inputs whose first batch the smaller model is proven on; None for random numbers.

    Raises:
        ConfigError, ModelError, NotAvailableError, OutputError: each names what was found, where, and what is allowed.
    """
    config = load_retrain_config(config_defination)
    with _in_file(config_defination):
        if _quantizes(config):
            raise ConfigError(
                "the configuration asks for quantization too (retrain_data_quant_config or "
                "retrain_weight_quant_config); create_compressed_retrain_model does both"
            )
        if not config.prunes:
            raise ConfigError("the configuration asks for no sparsity; prune_config says which")
        return _created(model, config, record_file, data)


def restore_prune_retrain_model(
    model: Model,
    record_file: str | os.PathLike[str],
    config_defination: RetrainSource,
    pth_file: str | os.PathLike[str],
    state_dict_name: str | None = None,
    *,
    data: CalibrationSource | None = None,
) -> CompressedModule:
    """The module of `create_prune_retrain_model` with the channels that a record lists taken away, and a checkpoint.

    Args:
        model: what the module was made from.
        record_file: written by `create_prune_retrain_model` or `save_prune_retrain_model`.
        config_defination: what the module was made with.
        pth_file: written by `torch.save`: the `state_dict` of the module, also of DistributedDataParallel around it, or
            a dict that holds it.
        state_dict_name: the key that it has in that dict.
        data: as of `create_prune_retrain_model`.

    Raises:
        RecordError: the record cannot be read, or does not fit the model.
        ModelError: the checkpoint cannot be read, or does not fit the module.
        ConfigError, NotAvailableError: as `create_prune_retrain_model`.
    """
    config = load_retrain_config(config_defination)
    with _in_file(config_defination):
        if _quantizes(config) or not config.prunes:
            raise ConfigError("the configuration is not one that create_prune_retrain_model takes")
    return _restored(model, config, config_defination, record_file, pth_file, state_dict_name, data)


def save_prune_retrain_model(
    model: nn.Module, save_path: str | os.PathLike[str] | None, *, data: CalibrationSource | None = None
) -> PruneResult:
    """Write the trained model and the record of what was taken away.

    BatchNormalization behind convolutions is folded, and masked weights are zero.

    Args:
        model: from `create_prune_retrain_model` or `restore_prune_retrain_model`, also inside of
            DistributedDataParallel; it stays as it is.
        save_path: directory and prefix of the files to write; None keeps the results in memory.
        data: inputs whose first batch the result is run on; None for random numbers in the shapes of the inputs.

    Raises:
        ModelError: the module is no such one, or the model does not run.
        DataError, OutputError: each names what was found, and what is allowed. No file is left behind.
    """
    module = _compressed(model)
    if module.plan.layers:
        raise ModelError("the module is quantized too; save_compressed_retrain_model writes such modules")
    source = module.trained_model()
    target = None if save_path is None else Target.of(save_path, {}, _FILES)
    state, session = prepare(source)
    run_passes(FUSE, state)
    feed, expected = run_once(session, source, data)
    require_same(state, expected, feed)
    saved, record = state.graph.to_light(), format_prune_record(module.prune_record())
    if target is None:
        return PruneResult(deploy_model=saved.whole(), fake_quant_model=saved.whole(), record=record)
    deploy, fake_quant, text = (target.path(ending) for ending in _FILES)
    write_files({deploy: saved, fake_quant: saved, text: record})
    return PruneResult(deploy_model=deploy, fake_quant_model=fake_quant, record=text)


def create_compressed_retrain_model(
    model: Model,
    config_defination: RetrainSource,
    record_file: str | os.PathLike[str] | None = None,
    *,
    data: CalibrationSource | None = None,
) -> CompressedModule:
    """An ONNX model as a torch module that is sparse and trained quantized, as far as the configuration asks for each.

    Channels are taken away first; weights are masked, then quantized.

    Args:
        model: an .onnx file, or a model in memory, which stays untouched.
        config_defination: a .cfg file, a dict with its fields, or a configuration.
        record_file: the file to write down in what was taken away; None for none.
        data: inputs whose first batch the smaller model is proven on; None for random numbers.

    Raises:
        ConfigError, ModelError, NotAvailableError, OutputError: each names what was found, where, and what is allowed.
    """
    config = load_retrain_config(config_defination)
    with _in_file(config_defination):
        _require_anything(config)
        return _created(model, config, record_file, data)


def restore_compressed_retrain_model(
    model: Model,
    config_defination: RetrainSource,
    record_file: str | os.PathLike[str],
    pth_file: str | os.PathLike[str],
    state_dict_name: str | None = None,
    *,
    data: CalibrationSource | None = None,
) -> CompressedModule:
    """The module of `create_compressed_retrain_model` with the channels of a record taken away, and a checkpoint.

    Arguments and errors are those of `restore_prune_retrain_model`; note AMCT's own order of the arguments.
    """
    config = load_retrain_config(config_defination)
    with _in_file(config_defination):
        _require_anything(config)
    return _restored(model, config, config_defination, record_file, pth_file, state_dict_name, data)


def save_compressed_retrain_model(
    model: nn.Module, save_path: str | os.PathLike[str] | None, *, data: CalibrationSource | None = None
) -> QuantizeResult | PruneResult:
    """Write the deploy model, the fake-quant model and the record of a trained module.

    Args:
        model: from `create_compressed_retrain_model` or `restore_compressed_retrain_model`, also inside of
            DistributedDataParallel; it stays as it is.
        save_path: directory and prefix of the files to write; None keeps the results in memory.
        data: inputs whose first batch both are run on; None for random numbers in the shapes of the model's inputs.

    Returns:
        As `save_quant_retrain_model` where layers are quantized, else as `save_prune_retrain_model`.

    Raises:
        ModelError: the module is no such one, has seen no batch yet, or holds NaN.
        DataError, OutputError: each names what was found, and what is allowed. No file is left behind.
    """
    module = _compressed(model)
    if not module.plan.layers:
        return save_prune_retrain_model(model, save_path, data=data)
    return save_quantized(module, save_path, data, format_prune_record(module.prune_record()))


def pruned_state(
    model: Model,
    config: RetrainConfig,
    groups: Iterable[PrunedGroup] | None = None,
    data: CalibrationSource | None = None,
) -> tuple[QuantState, Pruning]:
    """A prepared graph without the channels that the configuration, or a record, takes away; proven.

    Args:
        model: stays untouched.
        config: what is asked for.
        groups: of a record; None lets the norms decide.
        data: inputs whose first batch the proof runs on; None for random numbers.
    """
    source = read_model(model)
    warn_of_copies(source.proto.graph)
    state, _ = prepare(source)
    if not config.prunes:
        return state, Pruning()
    plan = plan_pruning(state, config)
    channels = channel_map(state.graph, plan.filters, whole=shared_layers(state))
    removed = chosen_by_norm(channels, plan.filters) if groups is None else chosen_by_record(channels, groups)
    nodes = {node.name: node for node in state.graph.nodes}
    pruning = Pruning(
        plan=_with_reasons(plan, channels.stays),
        groups=described(channels, removed),
        rows=rows(channels, plan.filters, removed),
        input_axes={name: input_axis(nodes[name]) for name in plan.selective},
    )
    take_away(channels, removed, data)
    return state, pruning


def _with_reasons(plan: PrunePlan, stays: Mapping[str, str]) -> PrunePlan:
    return replace(plan, skipped={**plan.skipped, **{name: f"its channels stay: {why}" for name, why in stays.items()}})


def _created(
    model: Model,
    config: RetrainConfig,
    record_file: str | os.PathLike[str] | None,
    data: CalibrationSource | None,
) -> CompressedModule:
    module = _module(*pruned_state(model, config, None, data), config)
    if record_file is not None:
        write_files({Path(record_file): format_prune_record(module.prune_record())})
    return module


def _restored(
    model: Model,
    config: RetrainConfig,
    source: RetrainSource,
    record_file: str | os.PathLike[str],
    pth_file: str | os.PathLike[str],
    state_dict_name: str | None,
    data: CalibrationSource | None,
) -> CompressedModule:
    record = parse_prune_record(read_text(record_file, RecordError), str(record_file))
    with _in_file(source), located(str(record_file)):
        module = _module(*pruned_state(model, config, record.groups, data), config)
    load_checkpoint(module, pth_file, state_dict_name)
    return module


def _module(state: QuantState, pruning: Pruning, config: RetrainConfig) -> CompressedModule:
    plan = _plan_quantization(state, config) if _quantizes(config) else RetrainPlan()
    return CompressedModule(state.graph.to_light(), plan, pruning, ties_of(state))


def _plan_quantization(state: QuantState, config: RetrainConfig) -> RetrainPlan:
    """Where only overrides ask for quantization, the other layers stay float."""
    plan = plan_quantization(state, _without_pruning(config))
    if config.everywhere.quantizes:
        return plan
    nodes = {node.name: node for node in state.graph.nodes}
    named = [name for name, block in config.override_layer_configs.items() if block.quantizes]
    types = [name for name, block in config.override_layer_types.items() if block.quantizes]
    kept = {n: la for n, la in plan.layers.items() if n in named or any(is_of(t, nodes[n]) for t in types)}
    left = {name: "the configuration does not ask for it" for name in plan.layers if name not in kept}
    return replace(plan, layers=kept, skipped={**plan.skipped, **left})


def _without_pruning(config: RetrainConfig) -> RetrainConfig:
    def bare(block: RetrainLayerConfig) -> RetrainLayerConfig:
        return replace(block, prune=None)

    return replace(
        config,
        everywhere=bare(config.everywhere),
        override_layer_configs={
            n: bare(block) for n, block in config.override_layer_configs.items() if block.quantizes
        },
        override_layer_types={n: bare(block) for n, block in config.override_layer_types.items() if block.quantizes},
    )


def _quantizes(config: RetrainConfig) -> bool:
    blocks = (config.everywhere, *config.override_layer_configs.values(), *config.override_layer_types.values())
    return any(block.quantizes for block in blocks)


def _require_anything(config: RetrainConfig) -> None:
    if not config.prunes and not _quantizes(config):
        raise ConfigError("the configuration asks neither for sparsity (prune_config) nor for quantization")


def _compressed(model: nn.Module) -> CompressedModule:
    module = onnx_module(model)
    if not isinstance(module, CompressedModule):
        raise ModelError("the module is not sparse; create_prune_retrain_model makes one that is")
    return module


def _in_file(source: RetrainSource) -> AbstractContextManager[None]:
    return located(str(source)) if isinstance(source, (str, os.PathLike)) else nullcontext()
