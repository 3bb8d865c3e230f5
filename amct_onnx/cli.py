"""The command line: `amct_onnx COMMAND`, see `_parser` for the commands."""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from amct_onnx.accuracy_target import AccuracyTarget
from amct_onnx.auto_calibration.protocol import STRATEGIES
from amct_onnx.cli_help import EXAMPLES
from amct_onnx.config import EFFORTS
from amct_onnx.data import CalibrationSource, InputSpec, checked_feeds, input_specs, raw_feeds
from amct_onnx.errors import AmctError, ConfigError, DataError, OutputError

if TYPE_CHECKING:
    from amct_onnx.results import QuantizeResult

_log = logging.getLogger("amct_onnx")

_VERIFY_HELP = """\
Check a deploy model, of this engine or of any other tool, against what ATC takes and understands.
Needs neither ATC nor a chip. Exit status: 0 no error, 1 errors, 2 a file could not be read or wrong usage."""

_SIMULATE_HELP = """\
Run a deploy model on the CPU by exact integers, rounded as a kind of chip does, over data of the usual forms."""

_AGREEMENT_HELP = """\
Run float, fake-quant and deploy model, the latter on every kind of chip, and say layer by layer how far they are apart,
where they part first, and what it is that parts them."""

_DTYPES = (
    *("float64", "float32", "float16", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    "bool",
)


_READ = ("model", "weights", "quantized", "deploy", "record", "float_model", "reference", "data")
_WRITTEN = ("json", "html", "save")
"""Options that name files."""


_INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0 done, 1 an error that is explained, 2 wrong usage.

    Of `verify`: 0 nothing wrong, 1 something wrong with the model, 2 an error that is explained, or wrong usage.
    """
    options = _parser().parse_args(arguments)
    _set_up_log(options.verbose, options.quiet)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names may hold what the terminal cannot show
    command: Callable[[argparse.Namespace], int | None] = options.command
    try:
        _require_distinct(options)
        status = command(options) or 0
        if sys.stdout is not None:
            sys.stdout.flush()
        return status
    except AmctError as error:
        print(f"amct_onnx: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("amct_onnx: interrupted; files that were not written yet are not written", file=sys.stderr)
        return _INTERRUPTED
    except OSError as error:  # standard output is full, or nobody reads it any more
        print(f"amct_onnx: the output cannot be written: {error.strerror or error}", file=sys.stderr)
        if isinstance(sys.stdout, io.TextIOWrapper):  # what is left in it is not tried again at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 2 if command is _verify else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="amct_onnx", description="Quantize ONNX models for Huawei Ascend NPUs.", epilog="amct_onnx COMMAND --help"
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_calibration(commands.add_parser("calibration", help="quantize a model with calibration data"))
    _add_convert(commands.add_parser("convert", help="quantize a model with scales that are known already"))
    _add_convert_caffe(commands.add_parser("convert-caffe", help="turn a Caffe model into an ONNX model"))
    _add_plan(commands.add_parser("plan", help="show what would be quantized, and why the rest would not"))
    _add_compare(commands.add_parser("compare", help="compare a quantized model with the float one"))
    _add_verify(commands.add_parser("verify", help="check a deploy model against what ATC takes"))
    _add_simulate(commands.add_parser("simulate", help="run a deploy model as a chip would"))
    _add_agreement(commands.add_parser("agreement", help="say where and why models and chips part"))
    _add_completion(commands.add_parser("completion", help="print what teaches a shell to complete all this"), commands)
    for name, command in commands.choices.items():
        command.epilog, command.formatter_class = EXAMPLES[name], argparse.RawDescriptionHelpFormatter
        command.add_argument("-v", "--verbose", action="store_true", help="tell every step")
        command.add_argument("-q", "--quiet", action="store_true", help="tell warnings and errors only")
    return parser


def _add_calibration(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Quantize a model; writes <save_path>_deploy_model.onnx, _fake_quant_model.onnx, _record.txt, _config.json\n"
        "and _quant.json, which tells tools that compare models what became of each node."
    )
    parser.add_argument("--model", required=True, help="the float model, an .onnx file; or a .prototxt")
    _add_weights(parser)
    parser.add_argument("--save_path", required=True, help="directory and prefix of what is written, e.g. out/net")
    parser.add_argument(
        "--calibration_config",
        help="a .cfg or JSON file of AMCT, or a strategy file of Vitis AI; without it the engine's own preset is used",
    )
    parser.add_argument("--batch_num", type=int, help="batches to use where --calibration_config says no number")
    parser.add_argument(
        "--effort",
        choices=EFFORTS,
        help="without --calibration_config, how much is tried: fast (the default), balanced, best",
    )
    parser.add_argument("--format", choices=["qdq"], help="also write <save_path>_qdq_model.onnx, which others read")
    parser.add_argument(
        "--report",
        action="store_true",
        help="also write <save_path>_report.html, which shows what was decided and why, and the same as _report.json",
    )
    parser.add_argument(
        "--target",
        metavar="TARGET",
        help="sqnr:30 (in dB) or cosine:0.99, which every output must keep: as few layers as will do stay float",
    )
    parser.add_argument("--int16", action="store_true", help="with --target: 16-bit activations before float layers")
    _add_data(parser)
    evaluator = parser.add_argument_group("the user's own loop", "instead of calibration data")
    evaluator.add_argument(
        "--evaluator",
        metavar="SCRIPT",
        help="a Python script with an evaluator; one that judges models too decides which layers stay float",
    )
    evaluator.add_argument(
        "--strategy",
        choices=STRATEGIES,
        help="how these are looked for: Greedy (the default) needs fewer float layers than AMCT's BinarySearch; "
        "GreedyInt16 tries 16-bit activations before it leaves layers float",
    )
    parser.set_defaults(command=_calibration)


def _add_convert(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Turn a model with QuantizeLinear and DequantizeLinear into Ascend's forms, or quantize a float one with the\n"
        "scales of a record file; writes <save_path>_deploy_model.onnx, _fake_quant_model.onnx, _record.txt and\n"
        "_quant.json."
    )
    parser.add_argument("--model", required=True, help="a QDQ model; with --record a float model")
    _add_weights(parser)
    parser.add_argument("--save_path", required=True, help="directory and prefix of what is written, e.g. out/net")
    parser.add_argument("--record", help="a record file of AMCT: scales and offsets of the layers to quantize")
    parser.add_argument(
        "--wide_fusion",
        action="store_true",
        help="with --record: fold BatchNormalization behind ConvTranspose, Gemm and MatMul too, as `calibration` does "
        "without a configuration",
    )
    parser.add_argument(
        "--no_fusion",
        action="store_true",
        help="with --record: fold nothing, as a configuration without do_fusion does",
    )
    _add_data(parser)
    parser.set_defaults(command=_convert, batch_num=None)


def _add_convert_caffe(parser: argparse.ArgumentParser) -> None:
    parser.description = "Turn a Caffe model, as it is at test phase, into an ONNX model of the same names and numbers."
    parser.add_argument("prototxt", help="the network as it is deployed")
    parser.add_argument("caffemodel", help="its weights")
    parser.add_argument("--output", required=True, metavar="FILE", help="the .onnx file to write")
    parser.set_defaults(command=_convert_caffe)


def _add_weights(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", metavar="CAFFEMODEL", help="the weights, where the float model is a .prototxt")


def _add_data(parser: argparse.ArgumentParser) -> None:
    data = parser.add_argument_group("calibration data", "either --data, or the other three together")
    data.add_argument("--data", help="a .npz or .npy file, or a directory of .npz, .npy or raw files")
    data.add_argument("--data_dir", help="directories of raw files, one per input: 'dir1;dir2'")
    data.add_argument("--data_types", help=f"element types, one per input: 'float32;int64' ({', '.join(_DTYPES)})")
    data.add_argument("--input_shape", help="names and shapes of the inputs: 'name1:n,c,h,w;name2:n,k'")


def _add_plan(parser: argparse.ArgumentParser) -> None:
    parser.description = "Show for every layer how it would be quantized, or why not. Needs no data and writes nothing."
    parser.add_argument("model", help="the float model, an .onnx file; or a .prototxt")
    _add_weights(parser)
    parser.add_argument("--config", help="a .cfg or JSON file; without it the engine's own preset is used")
    parser.add_argument("--all", action="store_true", help="list also the nodes whose operator is never quantized")
    parser.set_defaults(command=_plan)


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.description = "Run the float and the fake-quant model over data and show the differences."
    parser.add_argument("model", help="the float model")
    parser.add_argument("quantized", help="the fake-quant model")
    _add_weights(parser)
    parser.add_argument("--batch_num", type=int, help="batches to use; all without it")
    _add_data(parser)
    parser.set_defaults(command=_compare)


def _add_verify(parser: argparse.ArgumentParser) -> None:
    parser.description = _VERIFY_HELP
    parser.add_argument("model", help="the deploy model, an .onnx file")
    parser.add_argument("--record", help="the record file that belongs to it; lets the scales be checked")
    parser.add_argument("--float-model", help="the model before quantization; lets the biases be checked")
    _add_weights(parser)
    parser.add_argument("--json", metavar="FILE", help="write the report as JSON too; - for standard output alone")
    parser.add_argument("--strict", action="store_true", help="exit with 1 for warnings too")
    parser.set_defaults(command=_verify)


def _add_simulate(parser: argparse.ArgumentParser) -> None:
    parser.description = _SIMULATE_HELP
    parser.add_argument("model", help="the deploy model, an .onnx file")
    parser.add_argument("--profile", default="ideal", help="ideal, fixpipe, v200 or v100; ideal without it")
    parser.add_argument("--reference", help="a float or fake-quant model to compare the outputs with")
    _add_weights(parser)
    parser.add_argument("--save", metavar="FILE", help="an .npz file for the outputs, as <output>_<batch>")
    parser.add_argument("--batch_num", type=int, help="batches to use; all without it")
    _add_data(parser)
    parser.set_defaults(command=_simulate)


def _add_agreement(parser: argparse.ArgumentParser) -> None:
    parser.description = _AGREEMENT_HELP
    parser.add_argument("model", help="the float model")
    parser.add_argument("quantized", help="the fake-quant model")
    parser.add_argument("deploy", help="the deploy model")
    _add_weights(parser)
    parser.add_argument("--profiles", nargs="+", metavar="PROFILE", help="kinds of chips; all without it")
    parser.add_argument("--html", metavar="FILE", help="write the report as a page with a picture")
    parser.add_argument("--json", metavar="FILE", help="write the report as JSON")
    parser.add_argument("--batch_num", type=int, help="batches to use; all without it")
    _add_data(parser)
    parser.set_defaults(command=_agreement)


def _add_completion(parser: argparse.ArgumentParser, commands: Any) -> None:
    from amct_onnx.completion import SHELLS, completion

    parser.description = "Print a script that lets a shell complete commands, options and files."
    parser.add_argument("shell", choices=SHELLS)
    parser.set_defaults(command=lambda options: print(completion(options.shell, commands.choices), end=""))


def _calibration(options: argparse.Namespace) -> None:
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
    source, batch_num = _data_source(options)
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
    _require_batch_num(options)
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


def _convert(options: argparse.Namespace) -> None:
    from amct_onnx.convert import convert_model, import_qdq

    _quant_json(options)
    has_data = any((options.data, options.data_dir, options.data_types, options.input_shape))
    data = _data_source(options)[0] if has_data else None
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


def _convert_caffe(options: argparse.Namespace) -> None:
    from amct_onnx.caffe import import_caffe

    import_caffe(options.prototxt, options.caffemodel, options.output)
    print(options.output)


def _with_weights(model: Any, options: argparse.Namespace) -> Any:
    """The float model that an option names: with --weights a Caffe model."""
    if options.weights is not None and model is None:
        raise ConfigError("--weights goes with a float model, a .prototxt; none is given")
    return model if options.weights is None else (model, options.weights)


def _plan(options: argparse.Namespace) -> None:
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


def _compare(options: argparse.Namespace) -> None:
    from amct_onnx.formats.model_file import read_model
    from amct_onnx.report.compare import compare_models
    from amct_onnx.report.tables import error_table

    model = read_model(_with_weights(options.model, options))
    source, batch_num = _data_source(options)
    feeds = checked_feeds(source, input_specs(model.proto), batch_num)
    found = compare_models(model, read_model(options.quantized), feeds)
    _show(error_table(found.layers, "layers, worst first", worst_first=True))
    _show(error_table(found.outputs, "outputs"))


def _verify(options: argparse.Namespace) -> int:
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


def _simulate(options: argparse.Namespace) -> None:
    from amct_onnx.deploy.simulate import SimulatedSession
    from amct_onnx.formats.model_file import read_model
    from amct_onnx.passes.session import open_session
    from amct_onnx.report.simulation import run_simulation
    from amct_onnx.report.tables import error_table, range_table

    model = read_model(options.model)
    session = SimulatedSession(options.model, options.profile)
    given = _with_weights(options.reference, options)
    reference = None if given is None else open_session(read_model(given), options.reference)
    source, batch_num = _data_source(options)
    feeds = checked_feeds(source, input_specs(model.proto), batch_num)
    save = None if options.save is None else Path(options.save)
    found = run_simulation(session, feeds, reference=reference, save=save)
    title = f"{session.profile.name}, {found.batches} batches"
    _show(range_table(found.ranges, title))
    if reference is not None:
        _show(error_table(found.errors, f"against {options.reference}"))
    if save is not None:
        print(save)


def _agreement(options: argparse.Namespace) -> None:
    from amct_onnx.deploy.profiles import PROFILES
    from amct_onnx.formats.model_file import read_model, write_files
    from amct_onnx.report.agreement import agreement
    from amct_onnx.report.agreement_page import agreement_page
    from amct_onnx.report.tables import agreement_tables

    model = read_model(_with_weights(options.model, options))
    source, batch_num = _data_source(options)
    feeds = checked_feeds(source, input_specs(model.proto), batch_num)
    profiles = tuple(options.profiles or PROFILES)
    found = agreement(model, options.quantized, options.deploy, feeds, profiles=profiles)
    files = {options.html: agreement_page(found)} if options.html is not None else {}
    files |= {options.json: found.to_json()} if options.json is not None else {}
    write_files({Path(path): text for path, text in files.items()})
    for table in agreement_tables(found):
        _show(table)


def _require_distinct(options: argparse.Namespace) -> None:
    """No file that the call writes may be one that it reads, or writes twice."""
    given = {name: value for name, value in vars(options).items() if isinstance(value, str) and value}
    taken = {os.path.realpath(value) for name, value in given.items() if name in _READ}
    for name in _WRITTEN:
        if name not in given or given[name] == "-":
            continue
        path = os.path.realpath(given[name])
        if os.path.isfile(path):  # a folder of data is read file by file
            path = next((folder for folder in (path, os.path.dirname(path)) if folder in taken), path)
        if path in taken:
            raise OutputError(
                f"{given[name]}: --{name} would overwrite what is read or written besides; choose another name"
            )
        taken.add(path)


def _require_batch_num(options: argparse.Namespace) -> None:
    if options.batch_num is not None and options.batch_num < 1:
        raise ConfigError(f"--batch_num must be at least 1, found {options.batch_num}")


def _data_source(options: argparse.Namespace) -> tuple[CalibrationSource, int | None]:
    """The data that the options name, and how many batches to take: AMCT's form takes 1 unless told otherwise."""
    _require_batch_num(options)
    three = {"--data_dir": options.data_dir, "--data_types": options.data_types, "--input_shape": options.input_shape}
    if options.data is not None:
        if given := [name for name, value in three.items() if value is not None]:
            raise ConfigError(f"--data excludes {', '.join(given)}")
        return options.data, options.batch_num
    if missing := [name for name, value in three.items() if value is None]:
        raise ConfigError(
            f"give --data, or all of --data_dir, --data_types and --input_shape (missing: {', '.join(missing)})"
        )
    return _raw_source(options), options.batch_num or 1


def _raw_source(options: argparse.Namespace) -> CalibrationSource:
    shapes = [_shape_of(part) for part in options.input_shape.split(";") if part]
    folders = [Path(part) for part in options.data_dir.split(";") if part]
    types = [part.strip() for part in options.data_types.split(";") if part]
    if not len(shapes) == len(folders) == len(types):
        raise ConfigError(
            f"--input_shape names {len(shapes)} inputs, --data_dir {len(folders)} directories, --data_types "
            f"{len(types)} types; give one of each per input"
        )
    for name in types:
        if name not in _DTYPES:
            raise DataError(f"--data_types: {name!r} is not one of {', '.join(_DTYPES)}")
    names = [name for name, _ in shapes]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"--input_shape names the input {twice[0]!r} twice")
    specs = [
        InputSpec(name=name, dtype=np.dtype(dtype), shape=shape)
        for (name, shape), dtype in zip(shapes, types, strict=True)
    ]
    return raw_feeds(folders, specs)


def _shape_of(part: str) -> tuple[str, tuple[int, ...]]:
    """One entry of --input_shape: the last colon separates the dimensions, since names may hold colons."""
    name, colon, dims = part.rpartition(":")
    try:
        shape = tuple(int(d) for d in dims.split(","))
    except ValueError:
        shape = ()
    if not colon or not name or not shape or min(shape) < 1:
        raise ConfigError(f"--input_shape: {part!r} is not of the form name:n,c,h,w with positive numbers")
    return name, shape


def _show(table: object) -> None:
    """Print a table or a text; where the output is no terminal, wide enough that nothing is cut."""
    from rich.console import Console

    console = Console() if sys.stdout is not None and sys.stdout.isatty() else Console(width=160)
    console.print(table)


def _set_up_log(verbose: bool, quiet: bool) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s" if verbose else "%(message)s"))
    log = logging.getLogger("amct_onnx")
    log.handlers[:] = [handler]
    log.setLevel(logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO)
    log.propagate = False
