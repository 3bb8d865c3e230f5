"""Deploy models as chips compute them, against the fake-quant model: where both go apart, ties are why."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import run

from amct_onnx import SimulatedSession
from amct_onnx.deploy.profiles import PROFILES
from amct_onnx.deploy.simulate import simulated
from real.inputs import IMAGENET_MEAN, IMAGENET_STD, batches, channels_first
from real.networks import Array, Feed, first_output, network, quantized
from real.test_classifiers import cifar10

pytestmark = pytest.mark.network

TIE = 2.0**-16
"""Float32 numbers between 128 and 256 are so far from each other: what adding an offset may change."""


def exposing(model: onnx.ModelProto, tensors: list[str]) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    present = {value.name for value in copy.graph.output}
    for name in tensors:
        if name not in present:
            copy.graph.output.add().name = name
    return copy


def test_resnet20_answers_the_same_by_integers_and_on_every_chip() -> None:
    def feeds(images: Array) -> list[Feed]:
        return [{"input": b} for b in batches(channels_first((images / 255 - IMAGENET_MEAN) / IMAGENET_STD), 100)]

    path, (calibration, images, labels) = network("resnet20-cifar10"), cifar10()
    images, labels = images[:1000], labels[:1000]
    result = quantized(path, feeds(calibration))
    deploy, fake = result.deploy_model, result.fake_quant_model
    assert isinstance(deploy, onnx.ModelProto)
    assert isinstance(fake, onnx.ModelProto)
    evaluation = feeds(images)
    answers = first_output(fake, evaluation).argmax(1)
    for profile in PROFILES:
        session = SimulatedSession(deploy, profile)
        found = np.concatenate([session.run(None, feed)[0] for feed in evaluation]).argmax(1)
        assert (found == answers).mean() > (0.99 if profile == "ideal" else 0.98), profile  # measured 99.95 to 99.55 %
        assert abs((found == labels).mean() - (answers == labels).mean()) < 0.005, profile  # measured up to 0.001

    # Quantized values of the first layer that differ stand at a tie before they are rounded, and differ by one step.
    quants = [node for node in deploy.graph.node if node.op_type == "AscendQuant"]
    ours = {node.name: node.output[0] for node in quants}
    theirs = {node.name: f"{node.name}.fakequant.sub.output0" for node in quants}
    scaled = {node.name: f"{node.name}.fakequant.mul.output0" for node in quants}
    feed = evaluation[0]
    found = run(exposing(simulated(deploy).whole(), list(ours.values())), feed, optimize=False)
    expected = run(exposing(fake, [*theirs.values(), *scaled.values()]), feed, optimize=False)
    shares = []
    for name in ours:
        apart = found[ours[name]] - expected[theirs[name]]
        shares.append(float((apart != 0).mean()))
        if shares[-1] and not any(shares[:-1]):
            values = expected[scaled[name]][apart != 0]
            assert np.abs(apart).max() == 1
            assert np.abs(values - np.floor(values) - 0.5).max() <= TIE
            assert shares[-1] < 1e-4  # measured 6e-7
    assert max(shares) < 0.1  # measured 0.037: each step apart reaches every layer behind it
