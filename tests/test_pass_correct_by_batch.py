"""Biases corrected while the data go through: a plain calibration of a small network, and where biases can stand."""

import json

import numpy as np
import pytest
from graphs import initializers, model, run, sqnr
from test_strategy import CPU, net_a

from amct_onnx import quantize_onnx
from amct_onnx.kernels.bias_correction import StepwiseCorrection

CORRECTED = {**CPU, "include_bias_corr": True}
RNG = np.random.default_rng(11)


def on_grid(values, scale):
    amp = np.float32(1 / scale)
    return np.clip(np.rint(values * amp), -128, 127).astype(np.float32) * (np.float32(1) / amp)


def convolved(x, weight, bias):
    return (np.einsum("oi,nihw->nohw", weight[:, :, 0, 0], x) + bias.reshape(1, -1, 1, 1)).astype(np.float32)


def calibrated_plainly(weights, batches):
    """Scales of x, k and y by max, and the biases after all batches, in the order of the real tool."""
    largest = dict.fromkeys("xky", 0.0)
    parameters = {name: on_grid(values, float(np.abs(values).max()) / 127) for name, values in weights.items()}
    corrections = {name: StepwiseCorrection(bias=parameters[name], axis=1) for name in ("b1", "b2")}

    def seen(name, values):
        largest[name] = max(largest[name], float(np.abs(values).max()))
        return on_grid(values, largest[name] / 127)

    for batch in batches:
        x = seen("x", batch["x"])
        h = convolved(x, parameters["w1"], corrections["b1"].bias)
        corrections["b1"].update(h, convolved(x, weights["w1"], weights["b1"]))
        k = seen("k", np.maximum(h, 0))
        y = seen("y", convolved(k, parameters["w2"], corrections["b2"].bias))
        corrections["b2"].update(y, convolved(k, weights["w2"], weights["b2"]))
    return {name: value / 127 for name, value in largest.items()}, {n: c.bias for n, c in corrections.items()}


def test_a_calibration_is_that_of_the_plain_one(caplog):
    caplog.set_level("INFO")
    source, batches = net_a()
    weights = initializers(source)
    scales, biases = calibrated_plainly(weights, batches)
    result = quantize_onnx(source, CORRECTED, calibration=batches)
    info = json.loads(result.quant_info)
    for name, scale in scales.items():
        assert info["output"][name][0][1] == pytest.approx(scale, rel=1e-6)
    stored = initializers(result.fake_quant_model)
    for layer, name in (("c1", "b1"), ("c2", "b2")):
        scale = float(np.abs(weights[name]).max()) / 127
        np.testing.assert_allclose(stored[f"{layer}.bias.quantized"], on_grid(biases[name], scale), rtol=1e-6)
        assert not np.array_equal(biases[name], on_grid(weights[name], scale))
    assert "biases of 2 of 2 layers had not settled" in caplog.text


FORMS = {
    "Conv": ("float[4, 3, 5, 5] x", "[l] y = Conv(x, w, b)", (6, 3, 3, 3)),
    "Conv1d": ("float[4, 3, 9] x", "[l] y = Conv(x, w, b)", (6, 3, 3)),
    "ConvTranspose": ("float[4, 3, 5, 5] x", "[l] y = ConvTranspose(x, w, b)", (3, 6, 3, 3)),
    "Gemm": ("float[20, 3] x", "[l] y = Gemm(x, w, b)", (3, 6)),
    "MatMul": ("float[4, 5, 3] x", "[l] h = MatMul(x, w) [a] y = Add(h, b)", (3, 6)),
}


@pytest.mark.parametrize("name", FORMS)
def test_the_whole_mean_error_leaves_every_kind_of_layer(name):
    inputs, nodes, shape = FORMS[name]
    rng = np.random.default_rng(5)
    weights = {"w": rng.normal(size=shape).astype(np.float32), "b": rng.normal(size=6).astype(np.float32)}
    source = model(f"g ({inputs}) => (float y) {{ {nodes} }}", weights)
    source.graph.output[0].type.tensor_type.ClearField("shape")
    size = [int(d) for d in inputs.split("[")[1].split("]")[0].split(",")]
    data = [{"x": (rng.normal(size=size) + 1).astype(np.float32)} for _ in range(3)]
    bits = {"weights": {"bit_width": 3}, "bias": {"bit_width": 16}, "activation": {"bit_width": 12}}
    strategy = {**CORRECTED, "tensor_quantize_config": bits}
    axis = 1 if name.startswith("Conv") else -1
    errors = {}
    for whole in (None, False, True):
        asked = strategy if whole is not None else {**strategy, "include_bias_corr": False}
        result = quantize_onnx(source, asked, calibration=data, correct_biases=bool(whole))
        lost = [run(result.fake_quant_model, feed)["y"] - run(source, feed)["y"] for feed in data]
        errors[whole] = np.abs(np.moveaxis(lost, axis if axis < 0 else axis + 1, 0).reshape(6, -1).mean(axis=1)).max()
    assert errors[True] < 0.1 * errors[None]
    assert errors[True] < errors[False] < errors[None]


def test_layers_that_share_a_bias_go_their_own_ways_and_the_float_model_stays():
    weights = {n: RNG.normal(size=(3, 3, 1, 1)).astype(np.float32) for n in "wv"}
    weights["b"] = RNG.normal(size=3).astype(np.float32)
    source = model(
        "g (float[4, 3, 5, 5] x) => (float[4, 3, 5, 5] y) { [c] h = Conv(x, w, b) [d] y = Conv(h, v, b) }", weights
    )
    data = [{"x": RNG.normal(size=(4, 3, 5, 5)).astype(np.float32) + 1} for _ in range(3)]
    before = source.SerializeToString()
    strategy = {**CORRECTED, "tensor_quantize_config": {"weights": {"bit_width": 4}, "bias": {"bit_width": 16}}}
    result = quantize_onnx(source, strategy, calibration=data, correct_biases=True)
    stored = initializers(result.fake_quant_model)
    assert not np.array_equal(stored["c.bias.quantized"], stored["d.bias.quantized"])
    assert source.SerializeToString() == before
    reference = np.concatenate([run(source, feed)["y"] for feed in data])
    assert sqnr(reference, np.concatenate([run(result.fake_quant_model, feed)["y"] for feed in data])) > 15


def test_a_bias_that_is_no_vector_of_channels_is_left():
    weights = {"w": RNG.normal(size=(3, 4)).astype(np.float32), "b": np.array([0.5], np.float32)}
    source = model("g (float[5, 3] x) => (float[5, 4] y) { [l] y = Gemm(x, w, b) }", weights)
    data = [{"x": RNG.normal(size=(5, 3)).astype(np.float32)} for _ in range(2)]
    for whole in (False, True):
        result = quantize_onnx(source, CORRECTED, calibration=data, correct_biases=whole)
        assert min(error.sqnr for error in result.output_errors.values()) > 25
