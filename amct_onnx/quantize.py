"""quantize_onnx: from a float model, a configuration and calibration data to everything that is written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any

from amct_onnx.accuracy_target import AccuracyTarget
from amct_onnx.by_strategy import quantize_by_strategy
from amct_onnx.calibrated import Calibrated, calibrated
from amct_onnx.config import EFFORTS, QuantConfig, with_options
from amct_onnx.data import CalibrationSource, input_specs, require_again
from amct_onnx.effort import Calibrate, best_settings, own_preset, with_all_batches
from amct_onnx.errors import ConfigError, NotAvailableError
from amct_onnx.formats.config_source import load_any_config
from amct_onnx.formats.model_file import ModelSource, read_model
from amct_onnx.held_back import Divided
from amct_onnx.kernels.checks import require_bool, require_choice, require_int
from amct_onnx.mixed_precision import reach
from amct_onnx.passes.weights import LightModel
from amct_onnx.prepare import warn_of_floats
from amct_onnx.progress import Progress
from amct_onnx.report.compare import Comparison
from amct_onnx.report.quantization import QuantizationReport, quantization_report
from amct_onnx.results import FILES, QDQ_FILE, REPORT_FILES, QuantizeResult, Target, finish, make_results
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
    report: bool = False,
    effort: str | None = None,
    target: AccuracyTarget | None = None,
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
        report: also tell what was decided and why: `_report.html`, a page with pictures, and `_report.json`.
        effort: how much is tried where `cfg` is None: "fast" (the default) corrects biases; "balanced" also tries, on
            batches held back, what helps some networks, at the price of up to six calibrations; "best" adds AdaRound.
        target: what accuracy the fake-quant model must keep: as few layers as will do stay float, or get 16-bit
            activations. It is measured on batches held back from calibration, see `amct_onnx.held_back.Divided`.
        memory_limit: bytes that the observed tensors may take at a time; where all of them take more, the data are gone
            through several times, with the same result. None for half of the memory that is free.
        executor: computes shards of the calibration data in its workers, one thread each: any of concurrent.futures, or
            Dask's `Client(...).get_executor()`. The result is the same for any number of workers.
        progress: draw a progress bar; None does so on a terminal.
        options: fields of QuantConfig, or of StrategyConfig, that replace what `cfg` says.

    Raises:
        ConfigError, ModelError, DataError, OutputError, NotAvailableError: each names what was found, where, and what
            is allowed. No file is left behind.
        EvaluatorError: the metric of the target failed.
    """
    _check_run(memory_limit, executor, target, report)
    _check_effort(effort, cfg)
    show = Progress(progress)
    source = read_model(model)
    loaded = load_any_config(cfg)
    if isinstance(loaded, StrategyConfig):
        _check_strategy_run(executor, target, report)
        strategy = with_options(loaded, options)
        files = None if save_path is None else (save_path, model)
        return quantize_by_strategy(
            source, strategy, calibration, files, show, qdq=qdq, deploy=deploy, measure_layers=measure_layers
        )
    if deploy is not None:
        raise ConfigError("deploy belongs to Vitis AI strategies; AMCT's configurations always give a deploy model")
    config = with_options(loaded, options)
    if cfg is None:
        config = own_preset(config, frozenset(options))
    endings = (*FILES, *([QDQ_FILE] if qdq else []), *(REPORT_FILES if report else []))
    place = None if save_path is None else Target.of(save_path, {"model": model}, endings)

    def calibrate(config: QuantConfig, data: CalibrationSource | None) -> Calibrated:
        return calibrated(source, config, data, memory_limit=memory_limit, executor=executor, show=show)

    found, held = _with_effort(source, config, calibration, calibrate, effort or "fast", target, frozenset(options))
    warn_of_floats(found.state)
    state, search = found.state, None
    if target is not None:
        with show.phase("reach the target"):
            state, search = reach(found, target, held, show)
    with show.phase("write and verify"):
        results = make_results(state, found.text(state.plan), qdq=qdq)

        def tell(errors: Comparison) -> QuantizationReport:
            sizes, seconds = {"float model": source.nbytes, **results.sizes()}, show.so_far()
            return quantization_report(
                state, errors, batches=found.batch_num, sizes=sizes, seconds=seconds, target=search
            )

        make = tell if report else None
        result = finish(state, results, place, found.expected, found.feeds.first, measure_layers, make)
        return replace(result, target=search)


def _with_effort(
    source: LightModel,
    config: QuantConfig,
    calibration: CalibrationSource | None,
    calibrate: Calibrate,
    effort: str,
    target: AccuracyTarget | None,
    given: frozenset[str],
) -> tuple[Calibrated, Divided | None]:
    """The calibrated model, and the data of which batches were held back, where any had to be."""
    tries, measures = effort != "fast", target is not None and target.metric is None
    why = f"for effort={effort!r}" if tries else "to reach the target"
    if not tries and not measures:
        if target is not None:
            require_again(calibration, why)
        return calibrate(config, calibration), None
    held = Divided(calibration, input_specs(source.proto), config.batch_num, why)
    if not tries:
        return calibrate(config, held.rest), held
    found = best_settings(source, calibrate, config, held, effort, given)
    # a target is measured on what was held back, so calibration is not to see it
    return found if measures else with_all_batches(found, calibrate, held), held


def _check_run(memory_limit: object, executor: object, target: object, report: object) -> None:
    if target is not None and not isinstance(target, AccuracyTarget):
        raise ConfigError(f"target must be an AccuracyTarget, such as AccuracyTarget(sqnr=30), found {target!r:.80}")
    require_bool("report", report)
    if memory_limit is not None:
        require_int("memory_limit", memory_limit, low=1)
    if executor is not None and (isinstance(executor, type) or not callable(getattr(executor, "submit", None))):
        found = f"the class {executor.__name__}" if isinstance(executor, type) else repr(executor)
        raise ConfigError(f"executor must be an Executor of concurrent.futures, or alike; found {found}")


def _check_effort(effort: object, cfg: object) -> None:
    if effort is not None:
        require_choice("effort", effort, EFFORTS)
        if cfg is not None:
            raise ConfigError("effort is for the engine's own preset; leave it out beside a configuration")


def _check_strategy_run(executor: object, target: object, report: object) -> None:
    if executor is not None:
        raise ConfigError("a Vitis AI strategy looks at the batches one after the other; leave the executor out")
    for name, asked in (("target", target is not None), ("report", report)):
        if asked:
            raise NotAvailableError(f"there is no {name} for a Vitis AI strategy; leave it out")
