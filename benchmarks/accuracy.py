"""Accuracy of the own preset at every effort, beside onnxruntime's own quantizer, on real networks.

    python benchmarks/accuracy.py    # all of them: takes an hour, downloads what it needs
    python benchmarks/accuracy.py --network lite0 minilm --contender fast best ort-percentile

The networks and data are those of tests/real (its `networks.py` says where they come from). Every row is one figure of
one network: the float model's, and each contender's with the seconds that its quantization took.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / part) for part in ("tests", ".")]

from real import inputs, minilm, test_classifiers, test_detectors_ocr  # noqa: E402
from real.efficientnet import efficientnet  # noqa: E402
from real.networks import Feed, cosine, first_output, network, sqnr  # noqa: E402

from amct_onnx import quantize_onnx  # noqa: E402

Model = Path | onnx.ModelProto
Metric = Callable[[Model], float]
EFFORTS = ("fast", "balanced", "best")
PEERS = {"ort-minmax": "MinMax", "ort-percentile": "Percentile", "ort-entropy": "Entropy"}


@dataclass(frozen=True)
class Case:
    """A network, up to 100 samples to calibrate with, and what is measured on others."""

    path: Path
    calibration: Sequence[Feed]
    metrics: dict[str, Metric]


def _lite0() -> Case:
    feeds = {p: test_classifiers.efficientnet_feeds(inputs.crops(p, 256, 224)) for p in ("calib", "eval")}
    return _classifier(efficientnet(), feeds, inputs.classes("eval"))


def _squeezenet() -> Case:
    feeds = {p: test_classifiers.squeezenet_feeds(p) for p in ("calib", "eval")}
    return _classifier(network("squeezenet1.1"), feeds, inputs.classes("eval"))


def _resnet20() -> Case:
    calibration, images, labels = test_classifiers.cifar10()

    def feeds(pictures: Any) -> list[Feed]:
        scaled = (pictures / 255 - inputs.IMAGENET_MEAN) / inputs.IMAGENET_STD
        return [{"input": batch} for batch in inputs.batches(inputs.channels_first(scaled), 10)]

    return _classifier(network("resnet20-cifar10"), {"calib": feeds(calibration[:100]), "eval": feeds(images)}, labels)


def _u2netp() -> Case:
    feeds = {p: test_detectors_ocr.u2netp_feeds(p) for p in ("calib", "eval")}
    path = network("u2netp")
    wanted = first_output(path, feeds["eval"])
    return Case(path, feeds["calib"], {"cosine of the mask": lambda m: cosine(wanted, first_output(m, feeds["eval"]))})


def _minilm() -> Case:
    sentences = [sentence for first, second, _ in minilm.pairs("dev") for sentence in (first, second)]
    rated = minilm.pairs("test")
    feeds = minilm.feeds_of(sentences[::24], 8)
    return Case(minilm.exported(), feeds, {"STS-B, Spearman": lambda model: minilm.score(model, rated)})


def _deeplab() -> Case:
    feeds = {p: test_detectors_ocr.deeplab_feeds(p) for p in ("calib", "eval")}
    path = network("deeplabv3-mnv2")
    return Case(path, feeds["calib"][:100], {"SQNR (dB)": _distance(path, feeds["eval"][:64])})


def _classifier(path: Path, feeds: dict[str, list[Feed]], labels: Any) -> Case:
    return Case(
        path,
        feeds["calib"],
        {
            "right (%)": lambda model: test_classifiers.right(model, feeds["eval"], labels),
            "SQNR (dB)": _distance(path, feeds["eval"][:32]),
        },
    )


def _distance(path: Path, feeds: list[Feed]) -> Metric:
    wanted = first_output(path, feeds)
    return lambda model: float(sqnr(wanted, first_output(model, feeds)))


CASES: dict[str, Callable[[], Case]] = {
    "lite0": _lite0,
    "squeezenet": _squeezenet,
    "resnet20": _resnet20,
    "u2netp": _u2netp,
    "minilm": _minilm,
    "deeplab": _deeplab,
}


def _quantized(contender: str, case: Case) -> Model:
    if contender in EFFORTS:
        return quantize_onnx(case.path, calibration=case.calibration, effort=contender).fake_quant_model
    if contender == "ifmr":
        return quantize_onnx(case.path, calibration=case.calibration, correct_biases=False).fake_quant_model
    return _by_onnxruntime(PEERS[contender], case)


def _by_onnxruntime(method: str, case: Case) -> onnx.ModelProto:
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._feeds = iter(case.calibration)

        def get_next(self) -> Feed | None:
            return next(self._feeds, None)

    with tempfile.TemporaryDirectory() as folder:
        prepared, result = str(Path(folder) / "prepared.onnx"), str(Path(folder) / "quantized.onnx")
        quant_pre_process(str(case.path), prepared, skip_symbolic_shape=True)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", nargs="+", choices=CASES, default=list(CASES))
    contenders = ("ifmr", *EFFORTS, *PEERS)
    parser.add_argument("--contender", nargs="+", choices=contenders, default=list(contenders))
    options = parser.parse_args()
    print("| network | figure | float | " + " | ".join(options.contender) + " |")
    print("|---|---|---|" + "---|" * len(options.contender))
    for name in options.network:
        case = CASES[name]()
        cells: dict[str, list[str]] = {
            figure: [f"{value:.4g}" if np.isfinite(value := measure(case.path)) else "-"]
            for figure, measure in case.metrics.items()
        }
        for contender in options.contender:
            started = time.perf_counter()
            try:
                model = _quantized(contender, case)
            except Exception as failure:  # a peer's failure is a figure too
                if contender not in PEERS:
                    raise
                for row in cells.values():
                    row.append(type(failure).__name__)
                continue
            seconds = time.perf_counter() - started
            for figure, measure in case.metrics.items():
                cells[figure].append(f"{measure(model):.4g} ({seconds:.0f} s)")
        for figure, row in cells.items():
            print(f"| {name} | {figure} | " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
