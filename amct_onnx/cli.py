"""The command line: `amct_onnx COMMAND`, see `_parser` for the commands."""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from amct_onnx import __version__, cli_commands
from amct_onnx.auto_calibration.protocol import STRATEGIES
from amct_onnx.cli_data import DTYPES
from amct_onnx.cli_help import EXAMPLES
from amct_onnx.config import EFFORTS
from amct_onnx.errors import AmctError, OutputError

_VERIFY_HELP = """\
Check a deploy model, of this engine or of any other tool, against what ATC takes and understands.
Needs neither ATC nor a chip. Exit status: 0 no error, 1 errors, 2 a file could not be read or wrong usage."""

_SIMULATE_HELP = """\
Run a deploy model on the CPU by exact integers, rounded as a kind of chip does, over data of the usual forms."""

_AGREEMENT_HELP = """\
Run float, fake-quant and deploy model, the latter on every kind of chip, and say layer by layer how far they are apart,
where they part first, and what it is that parts them."""

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
    return 2 if command is cli_commands.verify else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="amct_onnx", description="Quantize ONNX models for Huawei Ascend NPUs.", epilog="amct_onnx COMMAND --help"
    )
    parser.add_argument("--version", action="version", version=f"amct_onnx {__version__}")
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
    parser.set_defaults(command=cli_commands.calibration)


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
    parser.set_defaults(command=cli_commands.convert, batch_num=None)


def _add_convert_caffe(parser: argparse.ArgumentParser) -> None:
    parser.description = "Turn a Caffe model, as it is at test phase, into an ONNX model of the same names and numbers."
    parser.add_argument("prototxt", help="the network as it is deployed")
    parser.add_argument("caffemodel", help="its weights")
    parser.add_argument("--output", required=True, metavar="FILE", help="the .onnx file to write")
    parser.set_defaults(command=cli_commands.convert_caffe)


def _add_weights(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", metavar="CAFFEMODEL", help="the weights, where the float model is a .prototxt")


def _add_data(parser: argparse.ArgumentParser) -> None:
    data = parser.add_argument_group("calibration data", "either --data, or the other three together")
    data.add_argument("--data", help="a .npz or .npy file, or a directory of .npz, .npy or raw files")
    data.add_argument("--data_dir", help="directories of raw files, one per input: 'dir1;dir2'")
    data.add_argument("--data_types", help=f"element types, one per input: 'float32;int64' ({', '.join(DTYPES)})")
    data.add_argument("--input_shape", help="names and shapes of the inputs: 'name1:n,c,h,w;name2:n,k'")


def _add_plan(parser: argparse.ArgumentParser) -> None:
    parser.description = "Show for every layer how it would be quantized, or why not. Needs no data and writes nothing."
    parser.add_argument("model", help="the float model, an .onnx file; or a .prototxt")
    _add_weights(parser)
    parser.add_argument("--config", help="a .cfg or JSON file; without it the engine's own preset is used")
    parser.add_argument("--all", action="store_true", help="list also the nodes whose operator is never quantized")
    parser.set_defaults(command=cli_commands.plan)


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.description = "Run the float and the fake-quant model over data and show the differences."
    parser.add_argument("model", help="the float model")
    parser.add_argument("quantized", help="the fake-quant model")
    _add_weights(parser)
    parser.add_argument("--batch_num", type=int, help="batches to use; all without it")
    _add_data(parser)
    parser.set_defaults(command=cli_commands.compare)


def _add_verify(parser: argparse.ArgumentParser) -> None:
    parser.description = _VERIFY_HELP
    parser.add_argument("model", help="the deploy model, an .onnx file")
    parser.add_argument("--record", help="the record file that belongs to it; lets the scales be checked")
    parser.add_argument("--float-model", help="the model before quantization; lets the biases be checked")
    _add_weights(parser)
    parser.add_argument("--json", metavar="FILE", help="write the report as JSON too; - for standard output alone")
    parser.add_argument("--strict", action="store_true", help="exit with 1 for warnings too")
    parser.set_defaults(command=cli_commands.verify)


def _add_simulate(parser: argparse.ArgumentParser) -> None:
    parser.description = _SIMULATE_HELP
    parser.add_argument("model", help="the deploy model, an .onnx file")
    parser.add_argument("--profile", default="ideal", help="ideal, fixpipe, v200 or v100; ideal without it")
    parser.add_argument("--reference", help="a float or fake-quant model to compare the outputs with")
    _add_weights(parser)
    parser.add_argument("--save", metavar="FILE", help="an .npz file for the outputs, as <output>_<batch>")
    parser.add_argument("--batch_num", type=int, help="batches to use; all without it")
    _add_data(parser)
    parser.set_defaults(command=cli_commands.simulate)


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
    parser.set_defaults(command=cli_commands.agreement)


def _add_completion(parser: argparse.ArgumentParser, commands: Any) -> None:
    from amct_onnx.completion import SHELLS, completion

    parser.description = "Print a script that lets a shell complete commands, options and files."
    parser.add_argument("shell", choices=SHELLS)
    parser.set_defaults(command=lambda options: print(completion(options.shell, commands.choices), end=""))


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


def _set_up_log(verbose: bool, quiet: bool) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s" if verbose else "%(message)s"))
    log = logging.getLogger("amct_onnx")
    log.handlers[:] = [handler]
    log.setLevel(logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO)
    log.propagate = False
