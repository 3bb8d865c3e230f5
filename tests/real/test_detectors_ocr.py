"""Detectors, segmentation and OCR: old opsets, weights in odd places, dynamic sizes, many outputs."""

from __future__ import annotations

import numpy as np
import pytest

from amct_onnx import AccuracyTarget
from real.inputs import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Part,
    batches,
    channels_first,
    pictures,
    some_words,
    text_line,
    text_page,
)
from real.networks import Array, Feed, cosine, first_output, network, outputs_of, quantized, sqnrs

pytestmark = pytest.mark.network


def face_feeds(part: Part) -> list[Feed]:
    return [{"input": b} for b in batches((channels_first(pictures(part, 240, 320, 50)) - 127) / 128, 1)]


@pytest.mark.parametrize(
    ("file", "boxes"),
    [("model.onnx", 14), ("simplified.onnx", 14), ("with_boxes.onnx", 40)],  # measured 18.7, 18.7, 47.7 dB
)
def test_rfb320_face_of_opset_9(file: str, boxes: float) -> None:
    path = network("rfb320-face", file)
    result = quantized(path, face_feeds("calib"))
    assert len(result.plan.layers) == 52
    found = sqnrs(path, result, face_feeds("eval"))
    assert found["scores"] > 38  # measured 45.0 dB
    assert found["boxes"] > boxes


def deeplab_feeds(part: Part) -> list[Feed]:
    return [{"sub_7": b} for b in batches(channels_first(pictures(part, 257, 257, 32)) / 127.5 - 1, 1)]


def test_deeplabv3_classifies_pixels_alike() -> None:
    path = network("deeplabv3-mnv2")
    result = quantized(path, deeplab_feeds("calib"))
    assert len(result.plan.layers) == 56
    before, after = (first_output(model, deeplab_feeds("eval")).argmax(1) for model in (path, result.fake_quant_model))
    assert (before == after).mean() > 0.93  # measured 0.9495


def u2netp_feeds(part: Part) -> list[Feed]:
    normalized = (pictures(part, 320, 320, 8) / 255 - IMAGENET_MEAN) / IMAGENET_STD
    return [{"input.1": b} for b in batches(channels_first(normalized), 1)]


def test_u2netp_quantizes_and_measuring_shows_its_one_hard_layer() -> None:
    """Conv_787 weighs a constant of 226, far above the signals beside it, with weights far above theirs."""
    path = network("u2netp")
    before = outputs_of(path, u2netp_feeds("eval"))
    whole = quantized(path, u2netp_feeds("calib"), measure_layers=True, correct_biases=False)
    assert len(whole.plan.layers) == 119
    after = outputs_of(whole.fake_quant_model, u2netp_feeds("eval"))
    assert list(before) == list(after)
    assert min(cosine(before[name], after[name]) for name in before) > 0.75  # measured 0.83

    worst = next(name for name, error in whole.layer_errors.items() if error.sqnr < 10)
    assert worst == "Conv_787"
    most = quantized(path, u2netp_feeds("calib"), skip_layers=(worst,), correct_biases=False)
    assert len(most.plan.layers) == 118
    after = outputs_of(most.fake_quant_model, u2netp_feeds("eval"))
    assert min(cosine(before[name], after[name]) for name in before) > 0.985  # measured 0.995
    assert np.abs(before["1959"] - after["1959"]).mean() < 0.02  # measured 0.009


def test_u2netp_reaches_a_target_by_leaving_that_layer_float() -> None:
    path = network("u2netp")
    target = AccuracyTarget(cosine=0.99)
    result = quantized(path, u2netp_feeds("calib"), target=target, report=True, correct_biases=False)
    assert result.target is not None
    assert result.target.measured_on == "2 batches held back"
    assert result.target.steps[0].value < 0.98  # measured 0.957
    assert result.target.chosen.float_layers == ("Conv_787",)
    assert result.plan.skipped["Conv_787"].startswith("kept float: the target, cosine of at least 0.99, needs it")
    assert result.report is not None
    assert [node.name for node in result.report.floats if node.could] == ["Conv_787"]
    before, after = (outputs_of(model, u2netp_feeds("eval")) for model in (path, result.fake_quant_model))
    assert min(cosine(before[name], after[name]) for name in before) > 0.99  # measured 0.997


def test_u2netp_with_corrected_biases_keeps_that_layer() -> None:
    path = network("u2netp")
    result = quantized(path, u2netp_feeds("calib"))
    before, after = (first_output(model, u2netp_feeds("eval")) for model in (path, result.fake_quant_model))
    assert cosine(before, after) > 0.99  # measured 0.998


def line_feeds(seeds: range) -> tuple[list[Feed], Array]:
    """Lines of text, every other one upside down: BGR [1, 3, 48, 192], and which ones are."""
    feeds: list[Feed] = []
    for seed in seeds:
        line = text_line(some_words(seed, 2), height=48, seed=seed)[:, :192, ::-1]
        image = np.zeros((1, 3, 48, 192), np.float32)
        image[:, :, :, : line.shape[1]] = channels_first((line[::-1, ::-1] if seed % 2 else line)[None]) / 127.5 - 1
        feeds.append({"x": image})
    return feeds, np.array([seed % 2 for seed in seeds])


def test_ppocr_cls_tells_upside_down_lines() -> None:
    path = network("ppocr-cls")
    result = quantized(path, line_feeds(range(1000, 1064))[0])
    assert len(result.plan.layers) == 54
    feeds, upside_down = line_feeds(range(300))
    before, after = (
        (first_output(model, feeds).argmax(1) == upside_down).mean() for model in (path, result.fake_quant_model)
    )
    assert before > 0.9  # measured 0.923
    assert after >= before - 0.02  # measured 0.93


def page_feeds(seeds: range) -> tuple[list[Feed], list[tuple[int, int, int, int, int]]]:
    """Pages of text, BGR [1, 3, 480, 640], and where the lines are: page, top, left, bottom, right."""
    pages = [text_page(seed, height=480, width=640) for seed in seeds]
    feeds: list[Feed] = [{"x": channels_first(page[None, ..., ::-1]) / 127.5 - 1} for page, _ in pages]
    return feeds, [(number, *box) for number, (_, boxes) in enumerate(pages) for box in boxes]


def found_lines(probability: Array, boxes: list[tuple[int, int, int, int, int]]) -> float:
    """The share of lines that are marked: the network marks the core of a line, a fifth of its box."""
    marked = probability[:, 0] > 0.3
    shares = [marked[page, top:bottom, left:right].mean() for page, top, left, bottom, right in boxes]
    return float(np.mean(np.array(shares) > 0.15))


def test_ppocrv4_det_finds_the_lines() -> None:
    path = network("ppocrv4-det")
    result = quantized(path, page_feeds(range(100, 108))[0])
    assert len(result.plan.layers) == 64
    feeds, boxes = page_feeds(range(8))
    before, after = (first_output(model, feeds) for model in (path, result.fake_quant_model))
    assert found_lines(before, boxes) == 1
    assert found_lines(after, boxes) == 1  # measured 1
    assert cosine(before, after) > 0.97  # measured 0.990
    wider = {"x": np.ascontiguousarray(np.tile(feeds[0]["x"], (1, 1, 1, 2))[:, :, :320])}
    assert first_output(result.fake_quant_model, [wider]).shape == (1, 1, 320, 1280)
