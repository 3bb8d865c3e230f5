"""Classifiers: the share of right answers before and after."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import sqnr

from amct_onnx import AdaRound, Arq, LayerConfig, QuantConfig, quantize_onnx
from real.efficientnet import efficientnet
from real.inputs import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Part,
    batches,
    channels_first,
    classes,
    crops,
    pictures,
)
from real.networks import Array, Feed, data_file, first_output, network, outputs_of, quantized

pytestmark = pytest.mark.network

AMCT_CFG = """
batch_num : 25
activation_offset : true
"""


def right(model: Path | onnx.ModelProto, feeds: list[Feed], labels: Array) -> float:
    """Percentage of inputs whose largest score is that of their class."""
    return share_right(first_output(model, feeds), labels)


def share_right(scores: Array, labels: Array) -> float:
    """Percentage of rows whose largest score is that of their class."""
    return 100 * float((scores.reshape(len(labels), -1).argmax(1) == labels).mean())


def efficientnet_feeds(photographs: Array) -> list[Feed]:
    return [{"input": batch} for batch in batches((channels_first(photographs) - 127) / 128, 4)]


@cache
def efficientnet_float() -> float:
    return right(efficientnet(), efficientnet_feeds(crops("eval", 256, 224)), classes("eval"))


@pytest.mark.parametrize("cfg", [None, AMCT_CFG], ids=["own preset", "AMCT cfg"])
def test_efficientnet_lite0_keeps_its_answers(cfg: str | None, tmp_path: Path) -> None:
    calibration, evaluation = (efficientnet_feeds(crops(part, 256, 224)) for part in ("calib", "eval"))
    file = None
    if cfg is not None:
        file = tmp_path / "quant.cfg"
        file.write_text(cfg)
    result = quantized(efficientnet(), calibration, file)
    assert len(result.plan.layers) == 50
    assert efficientnet_float() == pytest.approx(89.0, abs=0.5)
    # measured 88.75 either way
    assert right(result.fake_quant_model, evaluation, classes("eval")) >= efficientnet_float() - 1


def test_learned_rounding_brings_efficientnet_lite0_nearer_to_the_float_model() -> None:
    calibration, evaluation = (efficientnet_feeds(crops(part, 256, 224))[::8] for part in ("calib", "eval"))
    wanted = first_output(efficientnet(), evaluation)
    found = []
    for weight in (Arq(), AdaRound(num_iteration=100, amct_scales=False)):
        config = QuantConfig(wide_fusion=True, common_config=LayerConfig(weight=weight))
        result = quantize_onnx(efficientnet(), config, calibration=calibration)
        found.append(sqnr(wanted, first_output(result.fake_quant_model, evaluation)))
    assert found[1] > found[0] + 3  # measured 19.2 and 25.2


def test_efficientnet_lite0_is_as_near_with_and_without_optimizations() -> None:
    calibration, evaluation = (efficientnet_feeds(pictures(part, 224, 224, 32)) for part in ("calib", "eval"))
    model = quantized(efficientnet(), calibration).fake_quant_model
    reference = outputs_of(efficientnet(), evaluation)["logits"]
    near = [sqnr(reference, outputs_of(model, evaluation, optimize=flag)["logits"]) for flag in (True, False)]
    assert min(near) > 11  # measured 19.9 dB on photographs, 13.4 on windows of two
    assert abs(near[0] - near[1]) < 1  # measured 0.05


def squeezenet_feeds(part: Part) -> list[Feed]:
    mean = np.array((104, 117, 123), np.float32).reshape(3, 1, 1)
    return [{"data": batch} for batch in batches(channels_first(crops(part, 256, 227)[..., ::-1]) - mean, 4)]


def test_squeezenet_keeps_its_answers() -> None:
    path = network("squeezenet1.1")
    result = quantized(path, squeezenet_feeds("calib"))
    assert len(result.plan.layers) == 26
    before = right(path, squeezenet_feeds("eval"), classes("eval"))
    assert before == pytest.approx(62.5, abs=0.5)
    assert right(result.fake_quant_model, squeezenet_feeds("eval"), classes("eval")) >= before - 1  # measured 62.5


def cifar10() -> tuple[Array, Array, Array]:
    """Pictures to calibrate, to evaluate, and the classes of these."""
    with np.load(data_file("cifar10.npz")) as file:
        return file["calib"], file["x"], file["y"]


def test_resnet20_keeps_its_answers() -> None:
    def feeds(images: Array) -> list[Feed]:
        return [{"input": b} for b in batches(channels_first((images / 255 - IMAGENET_MEAN) / IMAGENET_STD), 100)]

    path, (calibration, images, labels) = network("resnet20-cifar10"), cifar10()
    result = quantized(path, feeds(calibration))
    assert len(result.plan.layers) == 21
    assert sum(reason.startswith("folded into") for reason in result.plan.skipped.values()) == 19
    before = right(path, feeds(images), labels)
    assert before == pytest.approx(91.65, abs=0.5)
    assert right(result.fake_quant_model, feeds(images), labels) >= before - 0.5  # measured 91.65


def test_resnet8_of_opset_11_and_batch_1_keeps_its_answers() -> None:
    def feeds(images: Array) -> list[Feed]:
        return [{"input_1": b} for b in batches(channels_first(images), 1)]

    path, (calibration, images, labels) = network("resnet8-cifar10"), cifar10()
    result = quantized(path, feeds(calibration[:200]))
    assert len(result.plan.layers) == 11
    before = right(path, feeds(images[:2000]), labels[:2000])
    assert before == pytest.approx(87.9, abs=0.8)
    assert right(result.fake_quant_model, feeds(images[:2000]), labels[:2000]) >= before - 0.5  # measured 87.7


def test_lenet_keeps_its_answers() -> None:
    def feeds(images: Array) -> list[Feed]:
        return [{"data": b[:, None].astype(np.float32) / 255} for b in batches(images, 100)]

    path = network("lenet-mnist")
    with np.load(data_file("mnist.npz")) as file:
        calibration, images, labels = file["calib"], file["x"], file["y"]
    result = quantized(path, feeds(calibration))
    assert len(result.plan.layers) == 4
    before = right(path, feeds(images), labels)
    assert before == pytest.approx(99.9, abs=0.2)
    assert right(result.fake_quant_model, feeds(images), labels) >= before - 0.2  # measured 99.9
