"""quantize_onnx: from a float model, a configuration and calibration data to everything that is written."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from amct_onnx.config import LayerConfig, QuantConfig, with_options
from amct_onnx.data import CalibrationSource, Feed, checked_feeds, input_specs
from amct_onnx.errors import DataError, ModelError, OutputError
from amct_onnx.formats.amct_json import format_json
from amct_onnx.formats.config_source import load_config
from amct_onnx.formats.model_file import read_model, staged, write_model
from amct_onnx.formats.record import LayerRecord, format_record
from amct_onnx.kernels.quant_params import QuantParams
from amct_onnx.passes.convert_opset import with_accepted_opset
from amct_onnx.passes.graph import Array, Graph
from amct_onnx.passes.layers import has_weight
from amct_onnx.passes.manager import run_passes
from amct_onnx.passes.pipelines import DEPLOY, FAKE_QUANT, FUSE, PREPARE, calibrate
from amct_onnx.passes.session import open_session, run_session
from amct_onnx.passes.state import LayerPlan, Pass, QuantPlan, QuantState
from amct_onnx.planning import make_plan
from amct_onnx.progress import Progress
from amct_onnx.report.compare import Comparison, TensorError, compare_models, compare_outputs

_log = logging.getLogger("amct_onnx")

_ASCEND = ("AscendQuant", "AscendDequant", "AscendAntiQuant")

_SAME, _SAME_IN_HALF = 60.0, 40.0
"""SQNR in dB above which a model that was only rewritten counts as computing the same; the second for float16."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerParams:
    """What was found for one layer.

    activation: scale and offset of its input, per tensor.
    weight: scale of its weight, [] or [Cout]; None for a layer without one.
    """

    activation: QuantParams
    weight: QuantParams | None


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


def quantize_onnx(
    model: str | os.PathLike[str] | onnx.ModelProto,
    cfg: str | os.PathLike[str] | Mapping[str, Any] | QuantConfig | None = None,
    *,
    calibration: CalibrationSource | None = None,
    save_path: str | os.PathLike[str] | None = None,
    measure_layers: bool = False,
    progress: bool | None = None,
    **options: Any,
) -> QuantizeResult:
    """Quantize a float ONNX model after training.

    Args:
        model: an .onnx file, or a model in memory, which stays untouched.
        cfg: a .cfg or JSON file of AMCT, a dict in the shape of either, a QuantConfig, or None for the engine's own
            preset.
        calibration: representative inputs; `amct_onnx.data` lists the forms that are taken.
        save_path: directory and prefix of the files to write (`out/net` gives out/net_deploy_model.onnx, ...); None
            keeps the results in memory.
        measure_layers: also compare every layer of the fake-quant model with the float one.
        progress: draw a progress bar; None does so on a terminal.
        options: fields of QuantConfig that replace what `cfg` says.

    Raises:
        ConfigError, ModelError, DataError, OutputError, NotAvailableError: each names what was found, where, and what
            is allowed. No file is left behind.
    """
    show = Progress(progress)
    source = read_model(model)
    config = with_options(load_config(cfg), options)
    target = None if save_path is None else _Target.of(save_path, model)
    with show.phase("prepare"):
        state = prepare(source)
        state = replace(state, plan=make_plan(state, config))
        format_json(config, _json_layers(state.plan))  # a layer that cannot be written down is found out now
        run_passes(FUSE, state)
    first, feeds = _first_and_all(calibration, source, state.plan.batch_num)
    expected = _outputs(source, first)
    _require_same(state, expected, first)
    counted = _Counted(show.track(feeds, "calibrate", _batch_count(calibration, state.plan.batch_num)))
    run_passes(calibrate(counted), state)
    state = replace(state, plan=final_plan(state))
    with show.phase("write and verify"):
        results = _Results(
            deploy=_rewritten(state, DEPLOY),
            fake_quant=_rewritten(state, FAKE_QUANT),
            record=format_record(_records(state)),
            config=format_json(config, _json_layers(state.plan), batch_num=counted.count),
        )
        return _finish(state, results, target, expected, first, measure_layers)


def prepare(source: onnx.ModelProto) -> QuantState:
    """The model as a graph in the engine's normal form, computing the same.

    Raises:
        ModelError: onnxruntime does not accept the model, it is quantized already, or its opset cannot be converted.
    """
    for node in source.graph.node:
        is_ours = node.op_type == "Round" and node.name.endswith(".quant.fakequant.round")
        if (node.op_type in _ASCEND and node.domain in ("", "ai.onnx")) or is_ours:
            raise ModelError(f"the model is quantized already: node {node.name!r} ({node.op_type})")
    input_specs(source)
    state = QuantState(graph=Graph.of_model(with_accepted_opset(source)))
    open_session(_runnable(source), "the model", optimize=False)
    kept = state.graph.node_names()
    for node in source.graph.node:
        if node.name and node.name not in kept:
            state.gone[node.name] = f"{node.op_type} was written out in operators that ATC reads"
    run_passes(PREPARE, state)
    return state


def _runnable(source: onnx.ModelProto) -> onnx.ModelProto:
    """The model itself, or one without node names where two are the same, which onnxruntime does not accept."""
    names = [node.name for node in source.graph.node if node.name]
    if len(names) == len(set(names)):
        return source
    copy = onnx.ModelProto()
    copy.CopyFrom(source)
    for node in copy.graph.node:
        node.name = ""
    return copy


def _outputs(source: onnx.ModelProto, feed: Feed) -> dict[str, Array]:
    session = open_session(_runnable(source), "the model")
    values = run_session(session, feed, "calibration batch 0")
    return dict(zip([output.name for output in session.get_outputs()], values, strict=True))


def final_plan(state: QuantState) -> QuantPlan:
    """The plan with what the passes found out.

    Raises:
        ModelError: no layer is left to quantize.
    """
    plan = state.plan
    skipped = {**plan.skipped, **state.gone, **state.left_float}
    notes = dict(plan.notes)
    for name, remark in state.remarks.items():
        if name in plan.layers:
            notes[name] = (*notes.get(name, ()), remark)
        elif name not in state.gone:
            skipped[name] = remark
    if all(name in state.left_float for name in plan.layers):
        listed = "; ".join(f"{name!r}: {reason}" for name, reason in list(state.left_float.items())[:5])
        raise ModelError(f"no layer is left to quantize: {listed}")
    for name, reason in state.left_float.items():
        _log.warning("layer %r stays float: %s", name, reason)
    layers = {name: layer for name, layer in plan.layers.items() if name not in state.left_float}
    return replace(plan, layers=layers, skipped=skipped, notes=notes)


class _Counted:
    """Hands batches on and counts them."""

    def __init__(self, feeds: Iterator[Feed]) -> None:
        self._feeds = feeds
        self.count = 0

    def __iter__(self) -> Iterator[Feed]:
        for feed in self._feeds:
            self.count += 1
            yield feed


@dataclass(frozen=True, slots=True, kw_only=True)
class _Target:
    """Where the files go."""

    directory: Path
    prefix: str

    @classmethod
    def of(cls, save_path: str | os.PathLike[str], model: object) -> _Target:
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
class _Results:
    deploy: onnx.ModelProto
    fake_quant: onnx.ModelProto
    record: str
    config: str


def _first_and_all(
    calibration: CalibrationSource | None, source: onnx.ModelProto, batch_num: int | None
) -> tuple[Feed, Iterator[Feed]]:
    if calibration is None:
        raise DataError("calibration data are needed: calibration=... takes arrays, feeds, a data reader or a path")
    feeds = checked_feeds(calibration, input_specs(source), batch_num)
    first = next(feeds)
    kept = {name: array.copy() for name, array in first.items()}  # a source may reuse its arrays
    return kept, itertools.chain([first], feeds)


def _batch_count(calibration: CalibrationSource | None, batch_num: int | None) -> int | None:
    """Number of batches, as far as it can be known beforehand."""
    if batch_num is not None:
        return batch_num
    return len(calibration) if isinstance(calibration, (list, tuple)) else None


def _require_same(state: QuantState, expected: Mapping[str, Array], feed: Feed) -> None:
    """The rewritten float graph must still compute what the model does."""
    model = state.graph.to_model()
    is_half = any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer)
    for name, error in compare_outputs(expected, model, feed, "the prepared model").items():
        if expected[name].dtype.kind != "f":
            continue  # an index may flip where two values are all but equal
        if error.sqnr < (_SAME_IN_HALF if is_half else _SAME) and error.largest > 1e-4:
            raise ModelError(
                f"preparing the model changed output {name!r} ({error.sqnr:.1f} dB); "
                "an operator was converted or folded wrongly, please report the model"
            )


def _rewritten(state: QuantState, passes: tuple[Pass, ...]) -> onnx.ModelProto:
    copy = replace(state, graph=state.graph.copy())
    run_passes(passes, copy)
    return copy.graph.to_model()


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
        act_type=f"INT{activation.num_bits}",
        wts_type=f"INT{state.weights[layer.name].num_bits}" if weighted else None,
    )


def _json_layers(plan: QuantPlan) -> dict[str, tuple[bool, LayerConfig]]:
    """Every layer that can be quantized: whether it is, and how it is or would be."""
    both = [(True, layer) for layer in plan.layers.values()] + [(False, layer) for layer in plan.disabled.values()]
    return {
        layer.name: (
            enabled,
            LayerConfig(activation=layer.activation, weight=layer.weight, balancer=layer.balancer),
        )
        for enabled, layer in both
    }


def _finish(
    state: QuantState,
    results: _Results,
    target: _Target | None,
    expected: Mapping[str, Array],
    feed: Feed,
    measure_layers: bool,
) -> QuantizeResult:
    """Write the files if asked to, load them again, run them, and only then put them into place."""

    def verified(deploy: onnx.ModelProto, fake_quant: onnx.ModelProto) -> Comparison:
        return _verified(state, deploy, fake_quant, expected, feed, measure_layers)

    if target is None:
        found = verified(results.deploy, results.fake_quant)
        return _result(state, found, results.deploy, results.fake_quant, results.record, results.config)
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
    deploy: onnx.ModelProto,
    fake_quant: onnx.ModelProto,
    expected: Mapping[str, Array],
    feed: Feed,
    measure_layers: bool,
) -> Comparison:
    """Run the fake-quant model against the float one, and check that the deploy model has the same ends.

    Raises:
        ModelError: the fake-quant model does not run, or the two models have different inputs or outputs.
    """
    ends = [[value.name for value in (*m.graph.input, *m.graph.output)] for m in (deploy, fake_quant)]
    if ends[0] != ends[1]:
        raise ModelError(f"the deploy model's inputs and outputs are {ends[0]}, the fake-quant model's {ends[1]}")
    outputs = compare_outputs(expected, fake_quant, feed, "the quantized model")
    layers = compare_models(state.graph.to_model(), fake_quant, [feed]).layers if measure_layers else {}
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
            name: LayerParams(activation=state.activations[name], weight=state.weights.get(name))
            for name in plan.layers
        },
        output_errors=found.outputs,
        layer_errors=found.layers,
    )
