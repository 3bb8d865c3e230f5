"""Quantization-aware training: from an ONNX model to a torch module, and from that to what Ascend takes."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from amct_onnx.convert import run_once
from amct_onnx.data import CalibrationSource, Feed
from amct_onnx.errors import ArgumentError, ModelError, located
from amct_onnx.formats.model_file import read_model, write_files
from amct_onnx.formats.retrain_json import RetrainSource, format_retrain_json, load_retrain_config
from amct_onnx.kernels.quant_params import QuantParams
from amct_onnx.passes.graph import Array
from amct_onnx.passes.layers import channels_first, weight_of
from amct_onnx.passes.manager import run_passes
from amct_onnx.passes.pipelines import FUSE, TRAINED
from amct_onnx.passes.quantize_weights import with_usable_scales
from amct_onnx.passes.state import LayerPlan, QuantState
from amct_onnx.planning import GivenLayer, plan_given
from amct_onnx.prepare import final_plan, prepare, require_same, warn_of_floats
from amct_onnx.results import CONVERTED_FILES, QuantizeResult, Target, finish, make_results
from amct_onnx.retrain.module import onnx_module
from amct_onnx.retrain.planning import RetrainPlan, plan_quantization
from amct_onnx.retrain.quantized_module import QuantRetrainModule
from amct_onnx.retrain.trained import ties_of, warn_of_copies

_LARGEST_SCALE = 2.0**23
"""What the chip takes for activations."""

Model = str | os.PathLike[str] | onnx.ModelProto


def create_quant_retrain_config(
    config_file: str | os.PathLike[str], model: Model, *, config_defination: RetrainSource = None
) -> None:
    """Write AMCT's config.json of quantization-aware training, with an entry for every layer that can be quantized.

    Args:
        config_file: the file to write.
        model: an .onnx file, or a model in memory, which stays untouched.
        config_defination: a .cfg file, a dict with its fields, or a configuration; None for the defaults.

    Raises:
        ConfigError, ModelError, NotAvailableError, OutputError: each names what was found and what is allowed.
    """
    config = load_retrain_config(config_defination)
    _, plan = _planned(model, config_defination)
    write_files({Path(config_file): format_retrain_json(config, plan.blocks())})


def create_quant_retrain_model(config_file: RetrainSource, model: Model) -> QuantRetrainModule:
    """An ONNX model as a torch module that is trained with its layers quantized.

    Train it as any other: all parameters, the learned limits among them, go into one optimizer.

    Args:
        config_file: a config.json or a .cfg file, a dict with the fields of the latter, a configuration, or None for
            the defaults.
        model: an .onnx file, or a model in memory, which stays untouched.

    Raises:
        ConfigError, ModelError, NotAvailableError: each names what was found, where, and what is allowed.
    """
    state, plan = _planned(model, config_file)
    return QuantRetrainModule(state.graph.to_light(), plan, ties_of(state))


def restore_quant_retrain_model(
    config_file: RetrainSource, model: Model, pth_file: str | os.PathLike[str], state_dict_name: str | None = None
) -> QuantRetrainModule:
    """The module of `create_quant_retrain_model` with the values of a checkpoint.

    Args:
        config_file: what the module was made with.
        model: what the module was made from.
        pth_file: written by `torch.save`: the `state_dict` of the module, also of DistributedDataParallel around it, or
            a dict that holds it.
        state_dict_name: the key that it has in that dict.

    Raises:
        ModelError: the file cannot be read, or does not fit the module.
        ConfigError, NotAvailableError: as `create_quant_retrain_model`.
    """
    module = create_quant_retrain_model(config_file, model)
    load_checkpoint(module, pth_file, state_dict_name)
    return module


def save_quant_retrain_model(
    model: nn.Module, save_path: str | os.PathLike[str] | None, *, data: CalibrationSource | None = None
) -> QuantizeResult:
    """Write the deploy model, the fake-quant model and the record of a trained module, with its present values.

    BatchNormalization behind convolutions is folded. The fake-quant model is run beside the module in eval mode, from
    which `output_errors` of the result are.

    Args:
        model: from `create_quant_retrain_model` or `restore_quant_retrain_model`, also inside of
            DistributedDataParallel; it stays as it is.
        save_path: directory and prefix of the files to write; None keeps the results in memory.
        data: inputs whose first batch both are run on; `amct_onnx.data` lists the forms that are taken. None for random
            numbers in the shapes of the model's inputs.

    Raises:
        ModelError: the module is no such one, has seen no batch yet, or holds NaN.
        DataError, OutputError: each names what was found, and what is allowed. No file is left behind.
    """
    return save_quantized(_quantized(model), save_path, data)


def retrain_onnx(
    model: Model,
    cfg: RetrainSource = None,
    *,
    train: Callable[[QuantRetrainModule], object],
    save_path: str | os.PathLike[str] | None = None,
    data: CalibrationSource | None = None,
) -> QuantizeResult:
    """Train an ONNX model with its layers quantized, and write what Ascend takes.

    Args:
        model: an .onnx file, or a model in memory, which stays untouched.
        cfg: a config.json or a .cfg file, a dict with the fields of the latter, a configuration, or None for the
            defaults.
        train: called with the torch module; trains it in place, by whatever means.
        save_path: directory and prefix of the files to write; None keeps the results in memory.
        data: inputs whose first batch the result is run on; None for random numbers.

    Raises:
        ConfigError, ModelError, DataError, OutputError, NotAvailableError: each names what was found, where, and what
            is allowed. No file is left behind.
    """
    if not callable(train):
        raise ArgumentError(f"train must be a function that takes the module, found {train!r:.60}")
    module = create_quant_retrain_model(cfg, model)
    train(module)
    return save_quant_retrain_model(module, save_path, data=data)


def _planned(model: Model, config: RetrainSource) -> tuple[QuantState, RetrainPlan]:
    source = read_model(model)
    warn_of_copies(source.proto.graph)
    state, _ = prepare(source)
    asked = load_retrain_config(config)
    with located(str(config)) if isinstance(config, (str, os.PathLike)) else nullcontext():
        return state, plan_quantization(state, asked)


def load_checkpoint(module: nn.Module, pth_file: str | os.PathLike[str], state_dict_name: str | None) -> None:
    """Give a module the values of a checkpoint.

    Raises:
        ModelError: the file cannot be read, or does not fit the module.
    """
    try:
        found = torch.load(pth_file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ModelError(f"{pth_file}: cannot be read as a checkpoint of torch: {error}") from error
    if state_dict_name is not None:
        if not isinstance(found, Mapping) or state_dict_name not in found:
            raise ModelError(f"{pth_file}: holds no {state_dict_name!r}")
        found = found[state_dict_name]
    if not isinstance(found, Mapping):
        raise ModelError(f"{pth_file}: holds a {type(found).__name__}, no state_dict")
    try:
        module.load_state_dict({str(key).removeprefix("module."): value for key, value in found.items()})
    except RuntimeError as error:
        raise ModelError(f"{pth_file}: does not fit the module: {error}") from error


def save_quantized(
    module: QuantRetrainModule,
    save_path: str | os.PathLike[str] | None,
    data: CalibrationSource | None,
    more_record: str = "",
) -> QuantizeResult:
    """`save_quant_retrain_model`; `more_record` goes behind the factors in the record file."""
    target = None if save_path is None else Target.of(save_path, {}, CONVERTED_FILES)
    given = {name: _given(module, name) for name in module.plan.layers}
    source = module.trained_model(module.rounded_weights())
    state, session = prepare(source)
    plan = plan_given(state, given, module.plan.skipped, "it was not quantized in training")
    state = replace(state, plan=plan)
    before = _rows(state)
    run_passes(FUSE, state)
    state = replace(state, plan=replace(plan, layers=_scaled(state, before)))
    feed, expected = run_once(session, source, data)
    require_same(state, expected, feed)
    run_passes(TRAINED, state)
    for name, reason in state.left_float.items():
        raise ModelError(f"layer {name!r} cannot be quantized as it was trained, list it in skip_layers: {reason}")
    state = replace(state, plan=final_plan(state))
    warn_of_floats(state)
    results = make_results(state)
    assert results.record is not None, "only a strategy of Vitis AI leaves none"
    results = replace(results, record=results.record + more_record)
    return finish(state, results, target, _evaluated(module, feed), feed, measure_layers=False)


def _quantized(model: nn.Module) -> QuantRetrainModule:
    module = onnx_module(model)
    if not isinstance(module, QuantRetrainModule):
        raise ModelError("the module is not trained quantized; create_quant_retrain_model makes one that is")
    return module


def _given(module: QuantRetrainModule, name: str) -> GivenLayer:
    quantizer = module.activation_quantizer(name)
    if not quantizer.is_initialized:
        raise ModelError(
            f"layer {name!r} has seen {quantizer.seen} of the {quantizer.batch_num} batches that its limits are found "
            "on; run the module on data first"
        )
    limits = torch.stack([quantizer.clip_max, quantizer.clip_min])
    _require_usable(name, "limits", limits, largest=_LARGEST_SCALE * (1 << quantizer.num_bits))
    _require_usable(name, "weight", module.layer_weight(name))
    weight = module.weight_params(name)
    _require_usable(name, "learned scale", torch.from_numpy(weight.scale))
    return GivenLayer(activation=quantizer.params(), weight=weight)


def _require_usable(layer: str, what: str, values: torch.Tensor, largest: float = math.inf) -> None:
    reached = float(values.detach().abs().max())
    if not reached < largest:
        raise ModelError(f"the {what} of layer {layer!r} reached {reached:g} in training; take a smaller learning rate")


def _rows(state: QuantState) -> dict[str, Array]:
    """Layer -> its weight with the output channels first, one row each."""
    nodes = {node.name: node for node in state.graph.nodes}
    rows = {layer.name: channels_first(nodes[layer.name], weight_of(nodes[layer.name])) for layer in state.layers()}
    return {name: values.reshape(len(values), -1).astype(np.float64) for name, values in rows.items()}


def _scaled(state: QuantState, before: Mapping[str, Array]) -> dict[str, LayerPlan]:
    """The planned layers with the scales of weights that BatchNormalization was folded into, by how it scaled each."""
    layers = {}
    for name, after in _rows(state).items():
        layer, old = state.plan.layers[name], before[name]
        assert isinstance(layer.weight, QuantParams), "the plan gives every scale"
        params = layer.weight
        if not np.array_equal(old, after):
            norms = (old * old).sum(1)
            k = np.abs((old * after).sum(1)) / np.where(norms > 0, norms, 1)
            scale = (params.scale * k).astype(np.float32)
            scale[scale < np.finfo(np.float32).tiny] = 1.0  # nothing is left of the channel
            params = replace(params, scale=scale, offset=np.zeros(scale.shape, np.int32), axis=0)
        layers[name] = replace(layer, weight=with_usable_scales(params, after))
    return layers


def _evaluated(module: QuantRetrainModule, feed: Feed) -> dict[str, Array]:
    """The outputs of the module in eval mode."""
    device = next(module.parameters()).device
    inputs = {name: torch.from_numpy(np.array(values)).to(device) for name, values in feed.items()}
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            outputs = module(**inputs)
    finally:
        module.train(was_training)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return {name: values.cpu().numpy() for name, values in zip(module.output_names, outputs, strict=True)}
