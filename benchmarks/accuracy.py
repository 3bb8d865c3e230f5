"""Accuracy of the own preset at every effort, beside onnxruntime's own quantizer, on real networks.

    python benchmarks/accuracy.py    # all of them: takes an hour or two, downloads what it needs
    python benchmarks/accuracy.py --network efficientnet-lite0 --contender fast best ort-percentile
    python benchmarks/accuracy.py --contender ifmr fast --rounds 3 --json figures.json

The networks and data are those of tests/real (its `networks.py` says where they come from). Every row is one figure of
one network: the float model's, and each contender's with the processor seconds (of all threads) that its quantization
took. The contenders take turns in every round, and the smallest of the rounds counts. `ifmr` is the preset without any
correction.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from accuracy_cases import CASES, Case, Feed, Figures, Model

from amct_onnx import quantize_onnx

OURS: Mapping[str, Mapping[str, object]] = {
    "ifmr": {"correct_biases": False},
    **{effort: {"effort": effort} for effort in ("fast", "balanced", "best")},
}
PEERS = {"ort-minmax": "MinMax", "ort-percentile": "Percentile", "ort-entropy": "Entropy"}


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a contender made of a network.

    figures: what was measured; empty where it failed.
    choices: what the preset tried, and the sentence of a failure.
    """

    network: str
    contender: str
    figures: Figures
    cpu_seconds: float = 0.0
    seconds: float = 0.0
    choices: tuple[str, ...] = ()


def rows_of(name: str, case: Case, contenders: Sequence[str], rounds: int) -> list[Row]:
    """The float model's and that of every contender."""
    rows: dict[str, Row] = {}
    for _ in range(rounds):
        for contender in contenders:
            found = _row(name, case, contender, measured=rows.get(contender))
            seconds = min(found.cpu_seconds, rows.get(contender, found).cpu_seconds)
            rows[contender] = replace(found, cpu_seconds=seconds)
            said = f"{name}, {contender}: {_said(found.figures)} in {found.cpu_seconds:.1f} s"
            print(said, *found.choices, sep="\n  ", file=sys.stderr)
    return [Row(network=name, contender="float", figures=case.measure(*case.paths)), *rows.values()]


def _row(name: str, case: Case, contender: str, measured: Row | None) -> Row:
    """measured: that of an earlier round, whose figures hold."""
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        pairs = zip(case.paths, case.calibration, strict=True)
        models, choices = zip(*(_quantized(contender, path, feeds) for path, feeds in pairs), strict=True)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        figures = measured.figures if measured else case.measure(*models)
    except Exception as failure:  # a peer's failure is a figure too
        if contender not in PEERS:
            raise
        said = f"{type(failure).__name__}: {failure}"
        return Row(network=name, contender=contender, figures={}, choices=(said,))
    told = tuple(sentence for sentences in choices for sentence in sentences)
    return Row(network=name, contender=contender, figures=figures, cpu_seconds=cpu, seconds=wall, choices=told)


def _quantized(contender: str, path: Path, calibration: Sequence[Feed]) -> tuple[Model, tuple[str, ...]]:
    """The quantized model, and what was chosen for it."""
    if contender in PEERS:
        return _by_onnxruntime(PEERS[contender], path, calibration), ()
    result = quantize_onnx(path, calibration=calibration, progress=False, **OURS[contender])  # type: ignore[arg-type]
    return result.fake_quant_model, tuple(result.plan.choices)


def _by_onnxruntime(method: str, path: Path, calibration: Sequence[Feed]) -> onnx.ModelProto:
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._feeds = iter(calibration)

        def get_next(self) -> Feed | None:
            return next(self._feeds, None)

    with tempfile.TemporaryDirectory() as folder:
        raised, prepared, result = (str(Path(folder) / f"{name}.onnx") for name in ("raised", "prepared", "result"))
        onnx.save(_at_least_opset_13(onnx.load(path)), raised)
        quant_pre_process(raised, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            result,
            Reader(),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=getattr(CalibrationMethod, method),
        )
        return onnx.load(result)


def _at_least_opset_13(model: onnx.ModelProto) -> onnx.ModelProto:
    """Below it there are no scales per channel, and onnxruntime's quantizer writes models that do not load."""
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    return model if opset >= 13 else onnx.version_converter.convert_version(model, 13)


def _said(figures: Figures) -> str:
    return ", ".join(f"{figure} {value:.4f}" for figure, value in figures.items())


def table(rows: Sequence[Row]) -> list[str]:
    """Lines of one network, one for each figure; the first row is the float model's."""
    return [
        f"| {rows[0].network} | {figure} | " + " | ".join(_cell(row, figure) for row in rows) + " |"
        for figure in rows[0].figures
    ]


def _cell(row: Row, figure: str) -> str:
    if not row.figures:
        return row.choices[0].split(":")[0]
    value = f"{row.figures[figure]:.4g}" if np.isfinite(row.figures[figure]) else "-"
    return value if row.contender == "float" else f"{value} ({row.cpu_seconds:.0f} s)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", nargs="+", choices=CASES, default=list(CASES))
    contenders = (*OURS, *PEERS)
    parser.add_argument("--contender", nargs="+", choices=contenders, default=list(contenders))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures, the seconds and what was chosen here too")
    options = parser.parse_args()
    print("| network | figure | float | " + " | ".join(options.contender) + " |")
    print("|---|---|---|" + "---|" * len(options.contender), flush=True)
    every: list[Row] = []
    for name in options.network:
        try:
            case = CASES[name]()
        except pytest.skip.Exception as missing:
            print(f"{name} left out: {missing}", file=sys.stderr)
            continue
        rows = rows_of(name, case, options.contender, options.rounds)
        print("\n".join(table(rows)), flush=True)
        every += rows
        if options.json:
            options.json.write_text(json.dumps([asdict(row) for row in every], indent=1))


if __name__ == "__main__":
    main()
