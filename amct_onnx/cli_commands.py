"""What each command of the command line does, given its options; heavy modules are imported where they are used."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amct_onnx.accuracy_target import AccuracyTarget
from amct_onnx.cli_data import data_source, require_batch_num
from amct_onnx.data import checked_feeds, input_specs
from amct_onnx.errors import ConfigError

if TYPE_CHECKING:
    from amct_onnx.results import QuantizeResult

_log = logging.getLogger("amct_onnx")


def calibration(options: argparse.Namespace) -> None:
    """Quantize with calibration data, or as an evaluator says."""
    from amct_onnx.formats.config_source import load_any_config
    from amct_onnx.quantize import quantize_onnx
    from amct_onnx.strategy_config import StrategyConfig

    if options.evaluator is not None:
        return _calibration_by_evaluator(options)
    if options.strategy is not None:
        raise ConfigError("--strategy goes with --evaluator: it chooses layers by what an evaluator says of models")
    if options.int16 and options.target is None:
        raise ConfigError("--int16 goes with --target: it says what is done to reach it")
    target = None if options.target is None else AccuracyTarget.parse(options.target, int16=options.int16)
    source, batch_num = data_source(options)
    _quant_json(options)
    config = None if options.calibration_config is None else load_any_config(options.calibration_config)
    says_number = config is not None and not isinstance(config, StrategyConfig)
    if says_number and options.batch_num is not None:
        _log.warning("--batch_num is not used: the number of batches stands in %s", options.calibration_config)
    takes_number = not says_number and batch_num is not None
    given: dict[str, Any] = {"batch_num": batch_num} if takes_number else {}
    result = quantize_onnx(
        _with_weights(options.model, options),
        config,
        calibration=source,
        save_path=options.save_path,
        qdq=options.format == "qdq",
        report=options.report,
        target=target,
        effort=options.effort,
        **given,
    )
    _show_result(result, options, "fake-quant against float, first batch")


def _calibration_by_evaluator(options: argparse.Namespace) -> None:
    from amct_onnx.auto_calibration.command import run_evaluator
    from amct_onnx.auto_calibration.run import AutoCalibrationResult
    from amct_onnx.auto_calibration.trial_table import trial_table

    names = ("data", "data_dir", "data_types", "input_shape", "format", "effort", "report", "target", "int16")
    if given := [f"--{name}" for name in names if getattr(options, name) not in (None, False)]:
        raise ConfigError(f"--evaluator excludes {', '.join(given)}")
    if options.weights is not None:
        raise ConfigError("--evaluator runs an .onnx model; make one of the Caffe model with `amct_onnx convert-caffe`")
    require_batch_num(options)
    if options.calibration_config is not None and options.batch_num is not None:
        _log.warning("--batch_num is not used: the number of batches stands in %s", options.calibration_config)
    found = run_evaluator(
        options.model,
        options.evaluator,
        options.save_path,
        config=options.calibration_config,
        batch_num=options.batch_num if options.batch_num is not None else 1,
        strategy=options.strategy,
    )
    if not isinstance(found, AutoCalibrationResult):
        return _show_result(found, options, "fake-quant against float, first batch")
    _show(trial_table(found))
    for path in found.files:
        print(path)


def _show_result(result: QuantizeResult, options: argparse.Namespace, title: str) -> None:
    """The errors of the outputs, and the files that were written."""
    from amct_onnx.formats.model_file import read_without_data, write_files
    from amct_onnx.report.tables import error_table, report_summary
    from amct_onnx.stepwise.quant_json import format_quant_json

    quant_json = None
    if isinstance(result.deploy_model, Path):  # a strategy may leave nothing for Ascend
        quant_json = result.deploy_model.parent / _quant_json(options).name
        write_files({quant_json: format_quant_json(read_without_data(result.deploy_model), result.plan)})

    _show(error_table(result.output_errors, title))
    for part in () if result.report is None else report_summary(result.report):
        _show(part)
    files = (result.deploy_model, result.fake_quant_model, result.qdq_model, result.record, result.config, quant_json)
    for path in (*files, result.quant_info, result.report_html, result.report_json):
        if path is not None:
            print(path)


def _quant_json(options: argparse.Namespace) -> Path:
    """Where AMCT's third file goes, which is none of those that are read."""
    from amct_onnx.results import Target

    config = getattr(options, "calibration_config", None)
    sources = {"model": options.model, "configuration": config, "record": getattr(options, "record", None)}
    return Target.of(options.save_path, sources, ["quant.json"]).path("quant.json")


def convert(options: argparse.Namespace) -> None:
    """Quantize with scales that are known."""
    from amct_onnx.convert import convert_model, import_qdq

    _quant_json(options)
    has_data = any((options.data, options.data_dir, options.data_types, options.input_shape))
    data = data_source(options)[0] if has_data else None
    on = "first batch" if has_data else "random numbers: says little about accuracy"
    if options.record is None:
        for option, is_given in (("--wide_fusion", options.wide_fusion), ("--no_fusion", options.no_fusion)):
            if is_given:
                raise ConfigError(f"{option} goes with --record: nothing is folded in a model that is quantized")
        if options.weights is not None:
            raise ConfigError("--weights goes with --record: a Caffe model holds no scales")
        result = import_qdq(options.model, save_path=options.save_path, data=data)
        _show_result(result, options, f"fake-quant against the model that was read, {on}")
        return
    result = convert_model(
        _with_weights(options.model, options),
        options.record,
        save_path=options.save_path,
        data=data,
        do_fusion=not options.no_fusion,
        wide_fusion=options.wide_fusion,
    )
    _show_result(result, options, f"fake-quant against float, {on}")


def convert_caffe(options: argparse.Namespace) -> None:
    """Write a Caffe model as ONNX."""
    from amct_onnx.caffe import import_caffe

    import_caffe(options.prototxt, options.caffemodel, options.output)
    print(options.output)


def _with_weights(model: Any, options: argparse.Namespace) -> Any:
    """The float model that an option names: with --weights a Caffe model."""
    if options.weights is not None and model is None:
        raise ConfigError("--weights goes with a float model, a .prototxt; none is given")
    return model if options.weights is None else (model, options.weights)


def plan(options: argparse.Namespace) -> None:
    """Show what would be quantized."""
    from dataclasses import replace

    from amct_onnx.formats.config_source import load_any_config
    from amct_onnx.formats.model_file import read_model
    from amct_onnx.passes.manager import run_passes
    from amct_onnx.passes.pipelines import FUSE
    from amct_onnx.planning import make_plan
    from amct_onnx.prepare import final_plan, prepare
    from amct_onnx.report.tables import plan_table
    from amct_onnx.strategy_config import StrategyConfig
    from amct_onnx.strategy_planning import StrategyRules, plan_strategy

    state, _ = prepare(read_model(_with_weights(options.model, options)))
    config = load_any_config(options.config)
    if isinstance(config, StrategyConfig):
        state = replace(state, plan=plan_strategy(state, config, StrategyRules.of(state.graph, config)))
    else:
        state = replace(state, plan=make_plan(state, config))
    op_types = {node.name: node.op for node in state.graph.nodes}
    run_passes(FUSE, state)
    plan = final_plan(state)
    op_types.update({name: "" for name in plan.skipped if name not in op_types})
    _show(plan_table(plan, op_types, everything=options.all))


def compare(options: argparse.Namespace) -> None:
    """Compare a quantized model with the float one."""
    from amct_onnx.formats.model_file import read_model
    from amct_onnx.report.compare import compare_models
    from amct_onnx.report.tables import error_table

    model = read_model(_with_weights(options.model, options))
    source, batch_num = data_source(options)
    feeds = checked_feeds(source, input_specs(model.proto), batch_num)
    found = compare_models(model, read_model(options.quantized), feeds)
    _show(error_table(found.layers, "layers, worst first", worst_first=True))
    _show(error_table(found.outputs, "outputs"))


def verify(options: argparse.Namespace) -> int:
    """Check a deploy model; returns the exit status."""
    from amct_onnx.deploy.verify import verify_deploy_model
    from amct_onnx.formats.model_file import write_files
    from amct_onnx.report.tables import findings_table

    report = verify_deploy_model(
        options.model, record=options.record, float_model=_with_weights(options.float_model, options)
    )
    if options.json == "-":
        print(report.to_json(), end="")
    else:
        if options.json is not None:
            write_files({Path(options.json): report.to_json()})
        _show(findings_table(report))
    return int(not report.ok or (options.strict and bool(report.findings)))


def simulate(options: argparse.Namespace) -> None:
    """Run a deploy model as a chip does."""
    from amct_onnx.deploy.simulate import SimulatedSession
    from amct_onnx.formats.model_file import read_model
    from amct_onnx.passes.session import open_session
    from amct_onnx.report.simulation import run_simulation
    from amct_onnx.report.tables import error_table, range_table

    model = read_model(options.model)
    session = SimulatedSession(options.model, options.profile)
    given = _with_weights(options.reference, options)
    reference = None if given is None else open_session(read_model(given), options.reference)
    source, batch_num = data_source(options)
    feeds = checked_feeds(source, input_specs(model.proto), batch_num)
    save = None if options.save is None else Path(options.save)
    found = run_simulation(session, feeds, reference=reference, save=save)
    title = f"{session.profile.name}, {found.batches} batches"
    _show(range_table(found.ranges, title))
    if reference is not None:
        _show(error_table(found.errors, f"against {options.reference}"))
    if save is not None:
        print(save)


def agreement(options: argparse.Namespace) -> None:
    """Say where models and chips part."""
    from amct_onnx.deploy.profiles import PROFILES
    from amct_onnx.formats.model_file import read_model, write_files
    from amct_onnx.report.agreement import agreement
    from amct_onnx.report.agreement_page import agreement_page
    from amct_onnx.report.tables import agreement_tables

    model = read_model(_with_weights(options.model, options))
    source, batch_num = data_source(options)
    feeds = checked_feeds(source, input_specs(model.proto), batch_num)
    profiles = tuple(options.profiles or PROFILES)
    found = agreement(model, options.quantized, options.deploy, feeds, profiles=profiles)
    files = {options.html: agreement_page(found)} if options.html is not None else {}
    files |= {options.json: found.to_json()} if options.json is not None else {}
    write_files({Path(path): text for path, text in files.items()})
    for table in agreement_tables(found):
        _show(table)


def _show(table: object) -> None:
    """Print a table or a text; where the output is no terminal, wide enough that nothing is cut."""
    from rich.console import Console

    console = Console() if sys.stdout is not None and sys.stdout.isatty() else Console(width=160)
    console.print(table)
