"""quantize_onnx: from a float model, a configuration and calibration data to everything that is written."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any

import onnx

from amct_onnx.config import QuantConfig, with_options
from amct_onnx.data import CalibrationSource, Feed, Feeds, input_specs
from amct_onnx.errors import ModelError
from amct_onnx.formats.amct_json import format_json
from amct_onnx.formats.config_source import load_config
from amct_onnx.formats.model_file import read_model
from amct_onnx.passes.calibration import CalibrationRun
from amct_onnx.passes.convert_opset import with_accepted_opset
from amct_onnx.passes.graph import Array, Graph
from amct_onnx.passes.manager import run_passes
from amct_onnx.passes.observe import warm_up_beside
from amct_onnx.passes.pipelines import FUSE, PREPARE, calibrate
from amct_onnx.passes.session import Session, open_session
from amct_onnx.passes.state import QuantPlan, QuantState
from amct_onnx.passes.weights import LightModel
from amct_onnx.planning import make_plan
from amct_onnx.progress import Progress
from amct_onnx.report.compare import compare_outputs
from amct_onnx.results import QuantizeResult, Target, finish, json_layers, make_results

_log = logging.getLogger("amct_onnx")

_ASCEND = ("AscendQuant", "AscendDequant", "AscendAntiQuant")

_SAME, _SAME_IN_HALF = 60.0, 40.0
"""SQNR in dB above which a model that was only rewritten counts as computing the same; the second for float16."""


def quantize_onnx(
    model: str | os.PathLike[str] | onnx.ModelProto,
    cfg: str | os.PathLike[str] | Mapping[str, Any] | QuantConfig | None = None,
    *,
    calibration: CalibrationSource | None = None,
    save_path: str | os.PathLike[str] | None = None,
    measure_layers: bool = False,
    memory_limit: int | None = None,
    executor: Executor | None = None,
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
        memory_limit: bytes that the observed tensors may take at a time; where all of them take more, the data are gone
            through several times, with the same result. None for half of the memory that is free.
        executor: computes shards of the calibration data in its workers, one thread each: any of concurrent.futures, or
            Dask's `Client(...).get_executor()`. The result is the same for any number of workers.
        progress: draw a progress bar; None does so on a terminal.
        options: fields of QuantConfig that replace what `cfg` says.

    Raises:
        ConfigError, ModelError, DataError, OutputError, NotAvailableError: each names what was found, where, and what
            is allowed. No file is left behind.
    """
    show = Progress(progress)
    source = read_model(model)
    config = with_options(load_config(cfg), options)
    target = None if save_path is None else Target.of(save_path, model)
    with show.phase("prepare"):
        state, session = prepare(source)
        state = replace(state, plan=make_plan(state, config))
        warm_up_beside(state.plan)
        format_json(config, json_layers(state.plan))  # a layer that cannot be written down is found out now
        run_passes(FUSE, state)
    feeds = Feeds(calibration, input_specs(source.proto), state.plan.batch_num)
    expected = session.run(feeds.first, "calibration batch 0")
    del session
    _require_same(state, expected, feeds.first)
    shown = _Shown(feeds, show)
    run = CalibrationRun(feeds=shown, first=feeds.first, memory_limit=memory_limit, executor=executor)
    run_passes(calibrate(run), state)
    state = replace(state, plan=final_plan(state))
    with show.phase("write and verify"):
        results = make_results(state, config, batch_num=shown.count)
        return finish(state, results, target, expected, feeds.first, measure_layers)


def prepare(source: LightModel) -> tuple[QuantState, Session]:
    """The model as a graph in the engine's normal form, computing the same; and ready to run as it is.

    Raises:
        ModelError: onnxruntime does not accept the model, it is quantized already, or its opset cannot be converted.
    """
    nodes = source.proto.graph.node
    for node in nodes:
        is_ours = node.op_type == "Round" and node.name.endswith(".quant.fakequant.round")
        if (node.op_type in _ASCEND and node.domain in ("", "ai.onnx")) or is_ours:
            raise ModelError(f"the model is quantized already: node {node.name!r} ({node.op_type})")
    input_specs(source.proto)
    state = QuantState(graph=Graph.of_model(with_accepted_opset(source)))
    session = open_session(_runnable(source), "the model")
    kept = state.graph.node_names()
    for node in nodes:
        if node.name and node.name not in kept:
            state.gone[node.name] = f"{node.op_type} was written out in operators that ATC reads"
    run_passes(PREPARE, state)
    return state, session


def _runnable(source: LightModel) -> LightModel:
    """The model itself, or one without node names where two are the same, which onnxruntime does not accept."""
    names = [node.name for node in source.proto.graph.node if node.name]
    if len(names) == len(set(names)):
        return source
    copy = onnx.ModelProto()
    copy.CopyFrom(source.proto)
    for node in copy.graph.node:
        node.name = ""
    return replace(source, proto=copy)


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


class _Shown:
    """The batches, with progress drawn for each time that they are gone through.

    Attributes:
        count: how many there are, once they were gone through.
    """

    def __init__(self, feeds: Feeds, show: Progress) -> None:
        self._feeds, self._show = feeds, show
        self.count = 0

    def __iter__(self) -> Iterator[Feed]:
        self.count = 0
        for feed in self._show.track(self._feeds, "calibrate", self._feeds.total):
            self.count += 1
            yield feed


def _require_same(state: QuantState, expected: Mapping[str, Array], feed: Feed) -> None:
    """The rewritten float graph must still compute what the model does."""
    model = state.graph.to_light()
    is_half = any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.proto.graph.initializer)
    for name, error in compare_outputs(expected, model, feed, "the prepared model").items():
        if expected[name].dtype.kind != "f":
            continue  # an index may flip where two values are all but equal
        if error.sqnr < (_SAME_IN_HALF if is_half else _SAME) and error.largest > 1e-4:
            raise ModelError(
                f"preparing the model changed output {name!r} ({error.sqnr:.1f} dB); "
                "an operator was converted or folded wrongly, please report the model"
            )
