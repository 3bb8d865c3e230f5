"""Bias correction: the mean of every output channel comes back, in all forms of the result."""

import numpy as np
import onnx
import pytest
from graphs import initializers, model, run

from amct_onnx import quantize_onnx
from amct_onnx.config import LayerConfig, QuantConfig
from amct_onnx.deploy.simulate import SimulatedSession
from amct_onnx.deploy.verify import verify_deploy_model
from amct_onnx.kernels.adaround import AdaRound

RNG = np.random.default_rng(5)


def skewed(*shape):
    """Weights that rounding does to in one direction, and most of them."""
    return (np.rint(RNG.normal(size=shape) * 3) + 0.4).astype(np.float32) * np.float32(0.01)


def one_large(weight, axis):
    """The same with a weight so large that the others lose most of their digits."""
    np.moveaxis(weight, axis, 0)[:, 0] = np.float32(1.0)
    return weight


LAYERS = {
    "Conv": ("Conv(x, w)", one_large(skewed(5, 4, 1, 1), 0), (4, 4, 6, 6)),
    "Conv with bias": ("Conv(x, w, b)", one_large(skewed(5, 4, 1, 1), 0), (4, 4, 6, 6)),
    "grouped": ("Conv<group = 2>(x, w, b)", one_large(skewed(6, 2, 1, 1), 0), (4, 4, 6, 6)),
    "1-D": ("Conv(x, w, b)", one_large(skewed(5, 4, 3), 0), (4, 4, 9)),
    "transposed": ("ConvTranspose<strides = [2, 2]>(x, w, b)", one_large(skewed(4, 5, 2, 2), 1), (4, 4, 6, 6)),
    "Gemm": ("Gemm(x, w, b)", one_large(skewed(4, 5), 1), (64, 4)),
    "MatMul": ("MatMul(x, w) y = Add(c, b)", one_large(skewed(4, 5), 1), (64, 4)),
    "MatMul, bias first": ("MatMul(x, w) y = Add(b, c)", one_large(skewed(4, 5), 1), (64, 4)),
    "Gemm without bias": ("Gemm(x, w)", one_large(skewed(4, 5), 1), (64, 4)),
}


def source(call, weight, shape):
    channels = 5 if "group =" not in call else 6
    weights = {"w": weight} | (
        {"b": RNG.normal(size=channels).astype(np.float32)} if "b)" in call or "(b," in call else {}
    )
    result = "c" if "MatMul" in call else "y"
    made = model(f"g (float{list(shape)} x) => (float y) {{ [layer] {result} = {call} }}", weights)
    made.graph.output[0].type.tensor_type.ClearField("shape")
    return made


def feeds_of(shape, count=4):
    return [{"x": (RNG.normal(size=shape) + 3).astype(np.float32)} for _ in range(count)]


def mean_distance(float_model, other, feeds):
    """The largest difference of the mean of an output channel."""
    difference = np.concatenate([run(other, feed)["y"] - run(float_model, feed)["y"] for feed in feeds])
    others = tuple(i for i in range(difference.ndim) if i != 1)
    return np.abs(difference.mean(axis=others)).max()


@pytest.mark.parametrize("name", LAYERS)
def test_the_means_of_the_outputs_come_back_in_every_form(name):
    call, weight, shape = LAYERS[name]
    given, feeds = source(call, weight.copy(), shape), feeds_of(shape)
    config = QuantConfig(correct_biases=True)
    before = quantize_onnx(given, QuantConfig(), calibration=feeds, qdq=True)
    after = quantize_onnx(given, config, calibration=feeds, qdq=True)
    for form in ("fake_quant_model", "qdq_model"):
        lost = mean_distance(given, getattr(before, form), feeds)
        assert mean_distance(given, getattr(after, form), feeds) < 0.2 * lost
    if "MatMul" not in name:  # the Add behind it stays float
        (node,) = (node for node in after.deploy_model.graph.node if node.name == "layer")
        assert initializers(after.deploy_model)[node.input[2]].dtype == np.int32
        return
    found = mean_distance(given, after.fake_quant_model, feeds)
    simulated = SimulatedSession(after.deploy_model)
    difference = np.concatenate([simulated.run(None, feed)[0] - run(given, feed)["y"] for feed in feeds])
    assert np.abs(difference.mean(axis=0)).max() == pytest.approx(found, rel=1e-3)
    assert verify_deploy_model(after.deploy_model, float_model=given).errors == ()


def test_what_is_learned_without_the_add_behind_it_is_not_corrected_there():
    call, weight, shape = LAYERS["MatMul, bias first"]
    config = QuantConfig(correct_biases=True, common_config=LayerConfig(weight=AdaRound(num_iteration=10)))
    given = source(call, weight.copy(), shape)
    result = quantize_onnx(given, config, calibration=feeds_of(shape))
    said = "its bias is not corrected: its rounding is learned without the Add behind it"
    assert said in result.plan.notes["layer"]
    np.testing.assert_array_equal(initializers(result.fake_quant_model)["b"], initializers(given)["b"])


def test_the_bias_of_a_matmul_is_its_add_and_one_without_is_left():
    weight = one_large(skewed(4, 5), 1)
    text = "[layer] h = MatMul(x, w) [add] y = Add(h, b) [other] z = MatMul(y, v)"
    weights = {"w": weight, "b": RNG.normal(size=5).astype(np.float32), "v": skewed(5, 3)}
    given = model(f"g (float[64, 4] x) => (float[64, 5] y, float[64, 3] z) {{ {text} }}", weights)
    feeds = feeds_of((64, 4))
    lost, left = (
        mean_distance(given, quantize_onnx(given, config, calibration=feeds).fake_quant_model, feeds)
        for config in (QuantConfig(), QuantConfig(correct_biases=True))
    )
    assert left < 0.2 * lost
    result = quantize_onnx(given, QuantConfig(correct_biases=True), calibration=feeds)
    assert result.plan.notes["other"] == ("its bias is not corrected: it has no bias",)


def test_no_means_are_taken_for_layers_without_a_bias(monkeypatch):
    def refuse(**_):
        raise AssertionError("means of a layer whose bias cannot be corrected")

    given = model("g (float[8, 4] x) => (float[8, 4] y) { [one] y = MatMul(x, w) }", {"w": skewed(4, 4)})
    monkeypatch.setattr("amct_onnx.passes.observe.MeansObserver", refuse)
    result = quantize_onnx(given, QuantConfig(correct_biases=True), calibration=feeds_of((8, 4)))
    assert result.plan.notes["one"] == ("its bias is not corrected: it has no bias",)


def test_the_float_model_and_a_shared_bias_stay_as_they_are():
    weights = {"w": one_large(skewed(4, 4), 1), "v": one_large(skewed(4, 4), 1), "b": np.zeros(4, np.float32)}
    given = model("g (float[8, 4] x) => (float[8, 4] z) { [one] y = Gemm(x, w, b) [two] z = Gemm(y, v, b) }", weights)
    text = given.SerializeToString()
    result = quantize_onnx(given, QuantConfig(correct_biases=True), calibration=feeds_of((8, 4)), measure_layers=True)
    assert given.SerializeToString() == text
    biases = [initializers(result.deploy_model)[node.input[2]].tolist() for node in result.deploy_model.graph.node
              if node.op_type == "Gemm"]  # fmt: skip
    assert biases[0] != biases[1]
    onnx.checker.check_model(result.fake_quant_model)


def test_halves_stay_halves():
    weights = {"w": one_large(skewed(4, 5), 1).astype(np.float16), "b": np.ones(5, np.float16)}
    given = model("g (float16[8, 4] x) => (float16[8, 5] y) { [layer] y = Gemm(x, w, b) }", weights)
    feeds = [{"x": feed["x"].astype(np.float16)} for feed in feeds_of((8, 4))]
    result = quantize_onnx(given, QuantConfig(correct_biases=True), calibration=feeds)
    assert run(result.fake_quant_model, feeds[0])["y"].dtype == np.float16


def test_nothing_is_corrected_unless_asked_for():
    call, weight, shape = LAYERS["Conv"]
    result = quantize_onnx(source(call, weight, shape), QuantConfig(), calibration=feeds_of(shape))
    (node,) = (node for node in result.deploy_model.graph.node if node.name == "layer")
    assert len(node.input) == 2
