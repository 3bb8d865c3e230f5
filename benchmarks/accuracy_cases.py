"""The networks of accuracy.py: their data, up to 100 samples to calibrate with, and what is measured on others.

All of it is that of tests/real (its `networks.py` says where networks and data come from).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

sys.path[:0] = [str(Path(__file__).resolve().parents[1] / part) for part in ("tests", ".")]

from real import inputs, minilm, test_classifiers, test_detectors_ocr, test_speech_files  # noqa: E402
from real.efficientnet import efficientnet  # noqa: E402
from real.networks import Feed, cosine, first_output, network, sqnr  # noqa: E402

Model = Path | onnx.ModelProto
Figures = Mapping[str, float]

RIGHT, SQNR, COSINE = "right (%)", "SQNR (dB)", "cosine"


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is quantized and measured.

    paths: the network, or several that work together.
    calibration: batches for each of them.
    measure: the figures of as many models, by what they are called.
    """

    paths: tuple[Path, ...]
    calibration: tuple[Sequence[Feed], ...]
    measure: Callable[..., Figures]


def _lite0() -> Case:
    feeds = {p: test_classifiers.efficientnet_feeds(inputs.crops(p, 256, 224)) for p in ("calib", "eval")}
    return _classifier(efficientnet(), feeds["calib"], feeds["eval"], inputs.classes("eval"))


def _squeezenet() -> Case:
    feeds = [test_classifiers.squeezenet_feeds(part) for part in ("calib", "eval")]
    return _classifier(network("squeezenet1.1"), *feeds, inputs.classes("eval"))


def _resnet20() -> Case:
    calibration, images, labels = test_classifiers.cifar10()

    def feeds(pictures: Any, size: int) -> list[Feed]:
        scaled = (pictures / 255 - inputs.IMAGENET_MEAN) / inputs.IMAGENET_STD
        return [{"input": batch} for batch in inputs.batches(inputs.channels_first(scaled), size)]

    return _classifier(network("resnet20-cifar10"), feeds(calibration[:100], 4), feeds(images, 100), labels)


def _resnet8() -> Case:
    calibration, images, labels = test_classifiers.cifar10()

    def feeds(pictures: Any) -> list[Feed]:
        return [{"input_1": batch} for batch in inputs.batches(inputs.channels_first(pictures), 1)]

    return _classifier(network("resnet8-cifar10"), feeds(calibration[:100]), feeds(images), labels)


def _u2netp() -> Case:
    return _near(network("u2netp"), *(test_detectors_ocr.u2netp_feeds(part) for part in ("calib", "eval")))


def _minilm() -> Case:
    sentences = [sentence for first, second, _ in minilm.pairs("dev") for sentence in (first, second)]
    # one sentence a batch: what masks the padding of shorter ones spoils the ranges of onnxruntime's quantizer
    feeds, rated = minilm.feeds_of(sentences[::30], 1), minilm.pairs("test")

    def measure(model: Model) -> Figures:
        return {"STS-B, Spearman (%)": minilm.score(model, rated)}

    return Case(paths=(minilm.exported(),), calibration=(feeds,), measure=measure)


def _ppocr_det() -> Case:
    path, (evaluation, boxes) = network("ppocrv4-det"), test_detectors_ocr.page_feeds(range(8))
    wanted = first_output(path, evaluation)

    def measure(model: Model) -> Figures:
        found = first_output(model, evaluation)
        lines = 100 * test_detectors_ocr.found_lines(found, boxes)
        return {"lines found (%)": lines, COSINE: cosine(wanted, found)}

    return Case(paths=(path,), calibration=(test_detectors_ocr.page_feeds(range(100, 108))[0],), measure=measure)


def _ppocr_cls() -> Case:
    calibration, _ = test_detectors_ocr.line_feeds(range(1000, 1064))
    return _classifier(network("ppocr-cls"), calibration, *test_detectors_ocr.line_feeds(range(300)))


def _deeplab() -> Case:
    feeds = [test_detectors_ocr.deeplab_feeds(part) for part in ("calib", "eval")]
    return _near(network("deeplabv3-mnv2"), *feeds, alike="pixels alike (%)")


def _dtln() -> Case:
    paths = network("dtln"), network("dtln", "model2.onnx")
    clean, noisy = test_speech_files.noisy_speech()
    wanted, *fed = test_speech_files.denoised(*paths, noisy)
    first = test_speech_files.DTLN_CALIBRATION
    part = slice(first * 128, wanted.size)

    def measure(masks: Model, waves: Model) -> Figures:
        found = test_speech_files.denoised(masks, waves, noisy)[0]
        return {"speech over noise (dB)": sqnr(clean[part], found[part]), SQNR: sqnr(wanted[part], found[part])}

    return Case(paths=paths, calibration=tuple(feeds[: first : first // 100] for feeds in fed), measure=measure)


def _magika() -> Case:
    calibration, evaluation = test_speech_files.file_feeds()
    return _near(network("magika-v3"), calibration, evaluation, alike="answers alike (%)")


def _silero() -> Case:
    path, first = network("silero-vad"), test_speech_files.SILERO_CALIBRATION
    wanted, feeds = test_speech_files.voice(path, {})
    speaks = inputs.speech()[1]

    def measure(model: Model) -> Figures:
        found = test_speech_files.voice(model, {})[0]
        right = 100 * float(((found > 0.5) == speaks)[first:].mean())
        return {"frames right (%)": right, SQNR: sqnr(wanted[first:], found[first:])}

    return Case(paths=(path,), calibration=(feeds[: first : first // 100],), measure=measure)


def _classifier(path: Path, calibration: list[Feed], evaluation: list[Feed], labels: Any) -> Case:
    wanted = first_output(path, evaluation)

    def measure(model: Model) -> Figures:
        scores = first_output(model, evaluation)
        return {RIGHT: test_classifiers.share_right(scores, labels), SQNR: sqnr(wanted, scores)}

    return Case(paths=(path,), calibration=(calibration,), measure=measure)


def _near(path: Path, calibration: list[Feed], evaluation: list[Feed], alike: str | None = None) -> Case:
    """Where no answers are known: how near the first output is, and how many of its largest scores are the same."""
    wanted = first_output(path, evaluation)

    def measure(model: Model) -> Figures:
        found = first_output(model, evaluation)
        same = {alike: 100 * float((found.argmax(1) == wanted.argmax(1)).mean())} if alike else {}
        return {**same, COSINE: cosine(wanted, found), SQNR: sqnr(wanted, found)}

    return Case(paths=(path,), calibration=(calibration,), measure=measure)


CASES: Mapping[str, Callable[[], Case]] = {
    "efficientnet-lite0": _lite0,
    "squeezenet1.1": _squeezenet,
    "resnet20-cifar10": _resnet20,
    "resnet8-cifar10": _resnet8,
    "u2netp": _u2netp,
    "minilm-l6-v2": _minilm,
    "ppocrv4-det": _ppocr_det,
    "ppocr-cls": _ppocr_cls,
    "deeplabv3-mnv2": _deeplab,
    "dtln": _dtln,
    "magika-v3": _magika,
    "silero-vad": _silero,
}
