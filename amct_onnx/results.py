"""What a run gives: models, record and configuration; written, loaded again and run before they are in place."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from amct_onnx.config import LayerConfig, QuantConfig
from amct_onnx.data import Feed
from amct_onnx.errors import ModelError, OutputError
from amct_onnx.formats.amct_json import format_json
from amct_onnx.formats.model_file import read_model, staged, write_model
from amct_onnx.formats.record import LayerRecord, format_record
from amct_onnx.kernels.quant_params import QuantParams
from amct_onnx.passes.graph import Array
from amct_onnx.passes.layers import has_weight
from amct_onnx.passes.manager import run_passes
from amct_onnx.passes.pipelines import DEPLOY, FAKE_QUANT
from amct_onnx.passes.state import LayerPlan, Pass, QuantPlan, QuantState
from amct_onnx.passes.weights import LightModel
from amct_onnx.report.compare import Comparison, TensorError, compare_models, compare_outputs

_log = logging.getLogger("amct_onnx")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerParams:
    """What was found for one layer.

    activation: scale and offset of its input, per tensor.
    weight: scale of its weight, [] or [Cout]; None for a layer without one.
    balance: what the weight was multiplied by for each input channel, [Cin]; None where it was not balanced.
    """

    activation: QuantParams
    weight: QuantParams | None
    balance: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeResult:
    """What `quantize_onnx` made.

    deploy_model, fake_quant_model: paths where `save_path` was given, else models in memory.
    record, config: paths where `save_path` was given, else the texts.
    plan: the final decisions: `layers` are quantized, `skipped` says of every other node why not.
    params: layer -> scales and offsets.
    output_errors: output -> difference between the float and the fake-quant model, on the first calibration batch.
    layer_errors: layer -> the same, where it was asked for.
    """

    deploy_model: Path | onnx.ModelProto
    fake_quant_model: Path | onnx.ModelProto
    record: Path | str
    config: Path | str
    plan: QuantPlan
    params: Mapping[str, LayerParams]
    output_errors: Mapping[str, TensorError]
    layer_errors: Mapping[str, TensorError] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where the files go."""

    directory: Path
    prefix: str

    @classmethod
    def of(cls, save_path: str | os.PathLike[str], model: object) -> Target:
        """Take `save_path` apart into directory and prefix.

        Raises:
            OutputError: it is no path, or names the very file that `model` is read from.
        """
        if not isinstance(save_path, (str, os.PathLike)):
            raise OutputError(f"save_path is a {type(save_path).__name__}; give a directory and a prefix as a path")
        directory, prefix = os.path.split(os.fspath(save_path))
        if prefix in (".", ".."):
            directory, prefix = os.path.join(directory, prefix), ""
        if not os.fspath(save_path):
            raise OutputError("save_path is empty; give a directory and a prefix, such as out/net")
        if "\0" in os.fspath(save_path):
            raise OutputError(f"save_path {os.fspath(save_path)!r} holds a null character, which no file name can")
        target = cls(directory=Path(directory or "."), prefix=f"{prefix}_" if prefix else "")
        if isinstance(model, (str, os.PathLike)):
            for name in target.names():
                if os.path.realpath(target.directory / name) == os.path.realpath(model):
                    raise OutputError(f"{target.directory / name}: is the model that is read; choose another save_path")
        return target

    def names(self) -> list[str]:
        """Of the deploy model, the fake-quant model, the record and the configuration."""
        endings = ("deploy_model.onnx", "fake_quant_model.onnx", "record.txt", "config.json")
        return [f"{self.prefix}{ending}" for ending in endings]


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """Everything that is written, in memory."""

    deploy: LightModel
    fake_quant: LightModel
    record: str
    config: str


def make_results(state: QuantState, config: QuantConfig, *, batch_num: int) -> Results:
    """Rewrite the calibrated graph into its two forms, and write down record and configuration.

    batch_num: calibration batches that were used.
    """
    return Results(
        deploy=_rewritten(state, DEPLOY),
        fake_quant=_rewritten(state, FAKE_QUANT),
        record=format_record(_records(state)),
        config=format_json(config, json_layers(state.plan), batch_num=batch_num),
    )


def _rewritten(state: QuantState, passes: tuple[Pass, ...]) -> LightModel:
    copy = replace(state, graph=state.graph.copy())
    run_passes(passes, copy)
    return copy.graph.to_light()


def _records(state: QuantState) -> dict[str, LayerRecord]:
    nodes = {node.name: node for node in state.graph.nodes}
    return {layer.name: _record(state, layer, has_weight(nodes[layer.name])) for layer in state.layers()}


def _record(state: QuantState, layer: LayerPlan, weighted: bool) -> LayerRecord:
    activation = state.activations[layer.name]
    scales = state.weights[layer.name].scale.ravel() if weighted else np.ones(1, np.float32)
    return LayerRecord(
        scale_d=float(activation.scale),
        offset_d=int(activation.offset),
        scale_w=tuple(float(s) for s in scales),
        offset_w=(0,) * len(scales),
        tensor_balance_factor=tuple(float(f) for f in state.balances.get(layer.name, ())),
        act_type=f"INT{activation.num_bits}",
        cluster=tuple(int(centre) for centre in state.clusters.get(layer.name, ())),
        wts_type=f"INT{state.weights[layer.name].num_bits}" if weighted else None,
    )


def json_layers(plan: QuantPlan) -> dict[str, tuple[bool, LayerConfig]]:
    """Every layer that can be quantized: whether it is, and how it is or would be."""
    both = [(True, layer) for layer in plan.layers.values()] + [(False, layer) for layer in plan.disabled.values()]
    return {
        layer.name: (
            enabled,
            LayerConfig(activation=layer.activation, weight=layer.weight, balancer=layer.balancer),
        )
        for enabled, layer in both
    }


def finish(
    state: QuantState,
    results: Results,
    target: Target | None,
    expected: Mapping[str, Array],
    feed: Feed,
    measure_layers: bool,
) -> QuantizeResult:
    """Write the files if asked to, load them again, run them, and only then put them into place."""

    def verified(deploy: LightModel, fake_quant: LightModel) -> Comparison:
        return _verified(state, deploy, fake_quant, expected, feed, measure_layers)

    if target is None:
        found = verified(results.deploy, results.fake_quant)
        return _result(state, found, results.deploy.whole(), results.fake_quant.whole(), results.record, results.config)
    names = target.names()
    with staged(target.directory, names) as stage:
        paths = [stage / name for name in names]
        write_model(results.deploy, paths[0])
        write_model(results.fake_quant, paths[1])
        paths[2].write_text(results.record, encoding="utf-8")
        paths[3].write_text(results.config, encoding="utf-8")
        found = verified(read_model(paths[0]), read_model(paths[1]))
    deploy, fake_quant, record, config = (target.directory / name for name in names)
    return _result(state, found, deploy, fake_quant, record, config)


def _verified(
    state: QuantState,
    deploy: LightModel,
    fake_quant: LightModel,
    expected: Mapping[str, Array],
    feed: Feed,
    measure_layers: bool,
) -> Comparison:
    """Run the fake-quant model against the float one, and check that the deploy model has the same ends.

    Raises:
        ModelError: the fake-quant model does not run, or the two models have different inputs or outputs.
    """
    ends = [[value.name for value in (*m.graph.input, *m.graph.output)] for m in (deploy.proto, fake_quant.proto)]
    if ends[0] != ends[1]:
        raise ModelError(f"the deploy model's inputs and outputs are {ends[0]}, the fake-quant model's {ends[1]}")
    outputs = compare_outputs(expected, fake_quant, feed, "the quantized model")
    layers = compare_models(state.graph.to_light(), fake_quant, [feed]).layers if measure_layers else {}
    return Comparison(outputs=outputs, layers=layers)


def _result(
    state: QuantState,
    found: Comparison,
    deploy: Path | onnx.ModelProto,
    fake_quant: Path | onnx.ModelProto,
    record: Path | str,
    config: Path | str,
) -> QuantizeResult:
    plan = state.plan
    for name, error in found.outputs.items():
        _log.info("output %r: %.1f dB, cosine %.6f", name, error.sqnr, error.cosine)
    _log.info("%d layers quantized, %d nodes left as they are", len(plan.layers), len(plan.skipped))
    return QuantizeResult(
        deploy_model=deploy,
        fake_quant_model=fake_quant,
        record=record,
        config=config,
        plan=plan,
        params={
            name: LayerParams(
                activation=state.activations[name],
                weight=state.weights.get(name),
                balance=state.balances.get(name),
            )
            for name in plan.layers
        },
        output_errors=found.outputs,
        layer_errors=found.layers,
    )
