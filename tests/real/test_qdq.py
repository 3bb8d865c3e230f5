"""The QDQ form of real networks, and real networks that onnxruntime quantized."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from amct_onnx import import_qdq
from real.inputs import IMAGENET_MEAN, IMAGENET_STD, batches, channels_first
from real.networks import Array, Feed, network, outputs_of, quantized
from real.test_classifiers import cifar10, right

pytestmark = pytest.mark.network


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Feeds as onnxruntime asks for them."""

    def __init__(self, feeds: list[Feed]) -> None:
        self.feeds: Iterator[Feed] = iter(feeds)

    def get_next(self) -> Feed | None:
        return next(self.feeds, None)


def resnet20_feeds(images: Array) -> list[Feed]:
    return [{"input": b} for b in batches(channels_first((images / 255 - IMAGENET_MEAN) / IMAGENET_STD), 100)]


def resnet8_feeds(images: Array) -> list[Feed]:
    return [{"input_1": b} for b in batches(channels_first(images), 1)]


@pytest.mark.parametrize(
    ("name", "feeds"),
    [("resnet20-cifar10", resnet20_feeds), ("resnet8-cifar10", resnet8_feeds)],
    ids=lambda v: str(v)[:8],
)
def test_the_qdq_model_answers_as_the_fake_quant_model_and_comes_back(name, feeds) -> None:  # type: ignore[no-untyped-def]
    calibration, images, labels = cifar10()
    images, labels = images[:500], labels[:500]
    result = quantized(network(name), feeds(calibration[:200]), qdq=True)
    assert isinstance(result.qdq_model, onnx.ModelProto)
    wanted = outputs_of(result.fake_quant_model, feeds(images), optimize=False)
    for optimize in (False, True):
        found = outputs_of(result.qdq_model, feeds(images), optimize=optimize)
        for output, values in wanted.items():
            answers = [scores.reshape(len(labels), -1).argmax(1) for scores in (found[output], values)]
            assert np.mean(answers[0] == answers[1]) > 0.98
    assert import_qdq(result.qdq_model, data=feeds(calibration[:100])[:1]).record == result.record


def test_a_model_of_onnxruntime_keeps_its_answers(tmp_path: Path) -> None:
    calibration, images, labels = cifar10()
    path = tmp_path / "quantized.onnx"
    logging.disable(logging.WARNING)
    quantize_static(
        network("resnet20-cifar10"),
        path,
        Reader(resnet20_feeds(calibration[:200])),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
    )
    logging.disable(logging.NOTSET)
    result = import_qdq(path, data=resnet20_feeds(calibration[:100]))
    assert len(result.plan.layers) == 21
    before = right(path, resnet20_feeds(images), labels)
    assert right(result.fake_quant_model, resnet20_feeds(images), labels) >= before - 0.5  # measured 91.4, both
