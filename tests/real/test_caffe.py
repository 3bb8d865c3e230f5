"""Networks that are there as Caffe's files and, by another converter, as ONNX: the same numbers, then quantized."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import sqnr

from amct_onnx import import_caffe, quantize_onnx
from real.inputs import batches, channels_first, classes, crops, pictures
from real.networks import Array, Feed, data_file, first_output, network, outputs_of, quantized

pytestmark = pytest.mark.network


@dataclass(frozen=True, kw_only=True)
class CaffeNetwork:
    folder: str
    stem: str
    input: str
    layers: int

    def pair(self) -> tuple[Path, Path]:
        return network(self.folder, f"{self.stem}.prototxt"), network(self.folder, f"{self.stem}.caffemodel")


SQUEEZENET = CaffeNetwork(folder="squeezenet1.1", stem="squeezenet_v1.1", input="data", layers=26)
LENET = CaffeNetwork(folder="lenet-mnist", stem="lenet", input="data", layers=4)
FACE = CaffeNetwork(folder="rfb320-face", stem="rfb320", input="input", layers=52)
MEAN = np.array((104, 117, 123), np.float32).reshape(3, 1, 1)


def inputs(net: CaffeNetwork, part: str, count: int) -> Array:
    """Real inputs, [count, C, H, W]."""
    if net is LENET:
        with np.load(data_file("mnist.npz")) as file:
            return file["calib" if part == "calib" else "x"][:count, None].astype(np.float32) / 255
    if net is SQUEEZENET:
        return channels_first(crops(part, 256, 227)[:count, ..., ::-1]) - MEAN
    return (channels_first(pictures(part, 240, 320, count)) - 127) / 128


def feeds(net: CaffeNetwork, part: str, count: int) -> Sequence[Feed]:
    """In batches as the .prototxt asks for: 10 for SqueezeNet."""
    return [{net.input: batch} for batch in batches(inputs(net, part, count), 10 if net is SQUEEZENET else 1)]


@pytest.mark.parametrize("net", [SQUEEZENET, LENET, FACE], ids=lambda net: net.folder)
def test_the_import_computes_what_the_other_converter_s_model_does(net: CaffeNetwork) -> None:
    model = import_caffe(*net.pair())
    onnx.checker.check_model(model, full_check=True)
    data = feeds(net, "eval", 20)
    expected, found = outputs_of(network(net.folder), data), outputs_of(model, data)
    assert sorted(found) == sorted(expected)
    for name, values in expected.items():
        assert np.abs(found[name] - values).max() <= 1e-4  # measured 7e-6 at most


@pytest.mark.parametrize("net", [SQUEEZENET, LENET, FACE], ids=lambda net: net.folder)
def test_it_quantizes_as_well_as_the_other_converter_s_model(net: CaffeNetwork) -> None:
    calibration, evaluation = feeds(net, "calib", 20), feeds(net, "eval", 20)
    result = quantize_onnx(net.pair(), calibration=calibration)
    assert len(result.plan.layers) == net.layers
    other = quantized(network(net.folder), calibration)
    reference = outputs_of(network(net.folder), evaluation)
    ours, theirs = (outputs_of(r.fake_quant_model, evaluation) for r in (result, other))
    for name, values in reference.items():
        assert sqnr(values, ours[name]) > sqnr(values, theirs[name]) - 1


def test_squeezenet_keeps_its_answers() -> None:
    result = quantize_onnx(SQUEEZENET.pair(), calibration=feeds(SQUEEZENET, "calib", 100))
    assert isinstance(result.fake_quant_model, onnx.ModelProto)
    scores = first_output(result.fake_quant_model, feeds(SQUEEZENET, "eval", 400)).reshape(400, -1)
    assert 100 * float((scores.argmax(1) == classes("eval")).mean()) >= 61.5  # float: 62.5


def test_layer_names_are_those_of_the_prototxt() -> None:
    result = quantize_onnx(LENET.pair(), calibration=feeds(LENET, "calib", 20), skip_layers=["ip2"])
    assert list(result.plan.layers) == ["conv1", "conv2", "ip1"]
