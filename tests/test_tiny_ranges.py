"""Activations that are all but zero keep their information: their scale is not 1."""

import numpy as np
import pytest
from graphs import model, run, sqnr

from amct_onnx import Hfmg, Ifmr, LayerConfig, QuantConfig, quantize_onnx, verify_deploy_model

RNG = np.random.default_rng(8)
NETWORK = model(
    "g (float[2, 3, 6, 6] x) => (float[2, 4, 4, 4] y) { [conv] y = Conv (x, w) }",
    {"w": RNG.normal(size=(4, 3, 3, 3)).astype(np.float32)},
)


def quantized(x, block, **options):
    config = QuantConfig(common_config=block, **options)
    return quantize_onnx(NETWORK, config, calibration=[{"x": x}])


@pytest.mark.parametrize("asymmetric", [True, False])
@pytest.mark.parametrize("algorithm", [Ifmr, Hfmg])
@pytest.mark.parametrize("mode", ["DEFAULT", "FORCE_FP16_QUANT"])
@pytest.mark.parametrize("size", [1e-5, 3e-6, 2e-8])
def test_a_tiny_range_is_not_rounded_away(asymmetric, algorithm, mode, size):
    x = (RNG.uniform(0.2, 1, size=(2, 3, 6, 6)) * size).astype(np.float32)
    block = LayerConfig(activation=algorithm(asymmetric=asymmetric))
    result = quantized(x, block, fakequant_precision_mode=mode)
    params = result.params["conv"].activation
    assert params.scale == np.float32(2**-22)  # the smallest that every chip takes
    assert int(params.offset) == (-128 if asymmetric else 0)
    assert verify_deploy_model(result.deploy_model).errors == ()
    found = run(result.fake_quant_model, {"x": x})["y"]
    steps = size * 2**22
    if steps > 10:
        assert sqnr(run(NETWORK, {"x": x})["y"], found) > 10


def test_a_tiny_range_below_zero_has_room_there():
    x = -RNG.uniform(0.2, 1, size=(2, 3, 6, 6)).astype(np.float32) * np.float32(1e-5)
    params = quantized(x, LayerConfig()).params["conv"].activation
    assert int(params.offset) == -128 + round(float(-x.min()) * 2**22)


def test_a_range_above_the_guard_is_amcts():
    x = RNG.uniform(0, 1, size=(2, 3, 6, 6)).astype(np.float32) * np.float32(1e-3)
    params = quantized(x, LayerConfig()).params["conv"].activation
    assert params.scale == pytest.approx(float(x.max()) / 255, rel=0.1)


def test_nothing_but_zeros_has_amcts_scale():
    params = quantized(np.zeros((2, 3, 6, 6), np.float32), LayerConfig()).params["conv"].activation
    assert params.scale == 1


def test_a_scale_of_one_that_fits_stays():
    x = RNG.integers(0, 256, size=(2, 3, 6, 6)).astype(np.float32)
    x.flat[:2] = 0, 255
    assert quantized(x, LayerConfig()).params["conv"].activation.scale == pytest.approx(1, rel=0.02)
