"""quantize_onnx: from a float model, a configuration and calibration data to everything that is written."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any

from amct_onnx.by_strategy import quantize_by_strategy
from amct_onnx.calibrated import Calibrated
from amct_onnx.config import QuantConfig, with_options
from amct_onnx.data import CalibrationSource, Feed, Feeds, input_specs
from amct_onnx.effort import quantize_with_effort
from amct_onnx.errors import ConfigError
from amct_onnx.formats.amct_json import format_json
from amct_onnx.formats.config_source import load_any_config
from amct_onnx.formats.model_file import ModelSource, read_model
from amct_onnx.kernels.adaround import AdaRound
from amct_onnx.kernels.checks import require_int
from amct_onnx.passes.calibration import CalibrationRun
from amct_onnx.passes.manager import run_passes
from amct_onnx.passes.observe import warm_up_beside
from amct_onnx.passes.pipelines import FUSE, calibrate
from amct_onnx.passes.weights import LightModel
from amct_onnx.planning import make_plan
from amct_onnx.prepare import final_plan, prepare, require_same
from amct_onnx.progress import Progress
from amct_onnx.results import FILES, QDQ_FILE, QuantizeResult, Target, finish, json_layers, make_results
from amct_onnx.strategy_config import StrategyConfig


def quantize_onnx(
    model: ModelSource,
    cfg: str | os.PathLike[str] | Mapping[str, Any] | QuantConfig | StrategyConfig | None = None,
    *,
    calibration: CalibrationSource | None = None,
    save_path: str | os.PathLike[str] | None = None,
    measure_layers: bool = False,
    qdq: bool = False,
    deploy: bool | None = None,
    effort: str | None = None,
    memory_limit: int | None = None,
    executor: Executor | None = None,
    progress: bool | None = None,
    **options: Any,
) -> QuantizeResult:
    """Quantize a float ONNX model after training.

    Args:
        model: an .onnx file, a Caffe model as (prototxt, caffemodel), or a model in memory, which stays untouched.
        cfg: a .cfg or JSON file of AMCT, a strategy file of Vitis AI (vai_q_pytorch), a dict in the shape of one of
            them, a QuantConfig or StrategyConfig, or None for the engine's own preset.
        calibration: representative inputs; `amct_onnx.data` lists the forms that are taken.
        save_path: directory and prefix of the files to write (`out/net` gives out/net_deploy_model.onnx, ...); None
            keeps the results in memory.
        measure_layers: also compare every layer of the fake-quant model with the float one.
        qdq: also make a model of the same decisions with QuantizeLinear and DequantizeLinear (`_qdq_model.onnx`).
        deploy: for a Vitis AI strategy: True raises an error unless Ascend's operators compute every layer as it says,
            False makes no deploy model; None makes one of the layers that fit.
        effort: how much is tried where `cfg` is None: "fast" (the default) corrects biases; "balanced" also tries, on
            batches held back, what helps some networks, at the price of up to six calibrations; "best" adds AdaRound.
        memory_limit: bytes that the observed tensors may take at a time; where all of them take more, the data are gone
            through several times, with the same result. None for half of the memory that is free.
        executor: computes shards of the calibration data in its workers, one thread each: any of concurrent.futures, or
            Dask's `Client(...).get_executor()`. The result is the same for any number of workers.
        progress: draw a progress bar; None does so on a terminal.
        options: fields of QuantConfig, or of StrategyConfig, that replace what `cfg` says.

    Raises:
        ConfigError, ModelError, DataError, OutputError, NotAvailableError: each names what was found, where, and what
            is allowed. No file is left behind.
    """
    _check_run(memory_limit, executor)
    show = Progress(progress)
    source = read_model(model)
    if effort is not None and cfg is not None:
        raise ConfigError("effort is for the engine's own preset; leave it out beside a configuration")
    loaded = load_any_config(cfg)
    if isinstance(loaded, StrategyConfig):
        if executor is not None:
            raise ConfigError("a Vitis AI strategy looks at the batches one after the other; leave the executor out")
        strategy = with_options(loaded, options)
        files = None if save_path is None else (save_path, model)
        return quantize_by_strategy(
            source, strategy, calibration, files, show, qdq=qdq, deploy=deploy, measure_layers=measure_layers
        )
    if deploy is not None:
        raise ConfigError("deploy belongs to Vitis AI strategies; AMCT's configurations always give a deploy model")
    config = with_options(loaded, options)
    target = None if save_path is None else Target.of(save_path, {"model": model}, (*FILES, QDQ_FILE) if qdq else FILES)

    def calibrate_with(config: QuantConfig, data: CalibrationSource | None) -> Calibrated:
        return calibrated(source, config, data, memory_limit=memory_limit, executor=executor, show=show)

    if cfg is None:
        specs, given = input_specs(source.proto), frozenset(options)
        found = quantize_with_effort(calibrate_with, config, calibration, specs, effort or "fast", given)
    else:
        found = calibrate_with(config, calibration)
    with show.phase("write and verify"):
        results = make_results(found.state, found.text(), qdq=qdq)
        return finish(found.state, results, target, found.expected, found.feeds.first, measure_layers)


def calibrated(
    source: LightModel,
    config: QuantConfig,
    calibration: CalibrationSource | None,
    *,
    memory_limit: int | None = None,
    executor: Executor | None = None,
    show: Progress,
) -> Calibrated:
    """Prepare a model and find its scales; the arguments are those of `quantize_onnx`.

    Raises:
        ConfigError, ModelError, DataError, NotAvailableError: as `quantize_onnx`.
    """
    with show.phase("prepare"):
        state, session = prepare(source)
        state = replace(state, plan=make_plan(state, config))
        if executor is None:  # else its processes may be forked off while the thread holds locks
            warm_up_beside(state.plan)
        format_json(config, json_layers(state.plan))  # a layer that cannot be written down is found out now
        run_passes(FUSE, state)
    feeds = Feeds(calibration, input_specs(source.proto), state.plan.batch_num)
    if any(isinstance(layer.weight, AdaRound) for layer in state.plan.layers.values()):
        feeds.require_again("to learn the rounding of weights (ada_quantize)")
    expected = session.run(feeds.first, "calibration batch 0")
    del session
    require_same(state, expected, feeds.first)
    shown = _Shown(feeds, show)
    run = CalibrationRun(
        feeds=shown,
        first=feeds.first,
        silent=feeds,
        track=show.track,
        memory_limit=memory_limit,
        executor=executor,
    )
    run_passes(calibrate(run), state)
    state = replace(state, plan=final_plan(state))
    return Calibrated(state=state, config=config, feeds=feeds, batch_num=shown.count, expected=expected)


def _check_run(memory_limit: object, executor: object) -> None:
    if memory_limit is not None:
        require_int("memory_limit", memory_limit, low=1)
    if executor is not None and (isinstance(executor, type) or not callable(getattr(executor, "submit", None))):
        found = f"the class {executor.__name__}" if isinstance(executor, type) else repr(executor)
        raise ConfigError(f"executor must be an Executor of concurrent.futures, or alike; found {found}")


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
