"""Trial models and rankings of networks with everything that a plan can hold besides plain layers."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from caffe_files import layer, net, written
from graphs import model, run, sqnr

from amct_onnx.calibrated import calibrated
from amct_onnx.config import LayerConfig, QuantConfig, TensorConfig
from amct_onnx.formats.model_file import read_model
from amct_onnx.kernels.adaround import AdaRound
from amct_onnx.kernels.dmq import Dmq
from amct_onnx.kernels.nuq import Nuq
from amct_onnx.layer_pairs import layer_pairs
from amct_onnx.passes.weights import detached
from amct_onnx.progress import Progress
from amct_onnx.quantize import quantize_onnx
from amct_onnx.trials import Mix, Trials

RNG = np.random.default_rng(3)


def normal(*shape, scale=1.0):
    return (RNG.normal(size=shape) * scale).astype(np.float32)


# Layers that read each other's results with nothing between, two inputs, a residual, a product of two activations.
NETWORK = model(
    """
    g (float[N, 4, 8, 8] x, float[N, 6] z) => (float[N, 5] y, float[N, 6, 6] p) {
      [c1] a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
      [c2] b = Conv <pads = [1, 1, 1, 1]> (x, w2)
      [add] s = Add (a, b)
      [relu] r = Relu (s)
      [c3] d = Conv <pads = [1, 1, 1, 1], group = 6> (r, w3, b3)
      [pool] e = AveragePool <kernel_shape = [8, 8]> (d)
      [flat] f = Flatten (e)
      [m1] h = MatMul (f, w4)
      [hz] j = Add (h, z)
      [rows] k = Unsqueeze (j, axis)
      [columns] l = Transpose <perm = [0, 2, 1]> (k)
      [mm] p = MatMul (l, k)
      [g1] y = Gemm (j, w5, b5)
    }
    """,
    {
        "w1": normal(6, 4, 3, 3, scale=0.2),
        "b1": normal(6),
        "w2": normal(6, 4, 3, 3, scale=0.2),
        "w3": normal(6, 1, 3, 3, scale=0.3),
        "b3": normal(6),
        "w4": normal(6, 6),
        "w5": normal(6, 5),
        "b5": normal(5),
        "axis": np.array([1]),
    },
)
FEEDS = [{"x": normal(2, 4, 8, 8), "z": normal(2, 6)} for _ in range(3)]
CONFIGS = {
    "plain": {},
    "joint": {"joint_quant": True},
    "tensors": {"tensor_quantize": (TensorConfig(layer_name="hz", input_index=1),)},
    "product": {"override_layer_configs": {"mm": LayerConfig()}},
    "dmq": {"common_config": LayerConfig(balancer=Dmq())},
    "nuq": {"common_config": LayerConfig(weight=Nuq(num_steps=16, num_of_iteration=1))},
    "adaround": {"common_config": LayerConfig(weight=AdaRound(num_iteration=5))},
    "much": {
        "common_config": LayerConfig(weight=Nuq(num_steps=16, num_of_iteration=1), balancer=Dmq()),
        "joint_quant": True,
        "tensor_quantize": (TensorConfig(layer_name="hz", input_index=1),),
        "override_layer_configs": {"mm": LayerConfig(), "m1": LayerConfig(weight=AdaRound(num_iteration=5))},
    },
}


@pytest.fixture(scope="module", params=CONFIGS)
def made(request, one_thread):
    config = QuantConfig(**CONFIGS[request.param])
    found = calibrated(detached(NETWORK), config, FEEDS, show=Progress(False))
    return SimpleNamespace(config=config, found=found, trials=Trials(found))


def outputs(made, **mix):
    return run(made.trials.model(Mix(**mix)).whole(), FEEDS[0])


def test_with_all_layers_quantized_it_is_the_model_that_quantize_onnx_makes(made):
    same = quantize_onnx(NETWORK, made.config, calibration=FEEDS)
    assert made.trials.model(Mix()).whole() == same.fake_quant_model


def test_with_all_layers_float_only_single_tensors_are_quantized(made):
    expected, found = run(NETWORK, FEEDS[0]), outputs(made, float_layers=frozenset(made.trials.layers))
    least = 25 if made.found.state.tensors() else 90
    assert all(sqnr(expected[name], found[name]) > least for name in expected)


def test_any_layer_may_be_float(made):
    expected = run(NETWORK, FEEDS[0])
    for name in made.trials.layers:
        found = outputs(made, float_layers=frozenset([name]))
        assert all(sqnr(expected[output], found[output]) > 15 for output in expected), name


def test_16_bits_bring_no_more_noise(made):
    wide = made.trials.int16_layers()
    assert wide <= {"c1", "c2", "c3", "g1"}
    assert "g1" in wide
    assert made.trials.noise(Mix(int16_layers=wide)) < 1.2 * made.trials.noise(Mix())
    for name in wide:
        assert math.isfinite(made.trials.noise(Mix(int16_layers=frozenset([name])))), name


def test_every_layer_by_itself_is_near_its_float_one(made):
    mix = Mix()
    for pairs in layer_pairs(made.trials.state(mix), made.trials.model(mix), made.found.feeds):
        assert set(pairs) == set(made.trials.layers)
        assert all(sqnr(ours, theirs) > 20 for ours, theirs in pairs.values())


def test_a_caffe_model(tmp_path, one_thread):
    text = net(
        {"data": (2, 3, 8, 8)},
        layer("Convolution", "convolution_param { num_output: 8 kernel_size: 3 pad: 1 }", "data", "c", "conv"),
        layer("BatchNorm", "", "c", "c", "norm"),
        layer("Pooling", "pooling_param { pool: AVE kernel_size: 8 }", "c", "p", "pool"),
        layer("InnerProduct", "inner_product_param { num_output: 5 }", "p", "y", "fc"),
    )
    weights = {
        "conv": [normal(8, 3, 3, 3), normal(8)],
        "norm": [normal(8), normal(8) ** 2 + 1, np.array([2.0], np.float32)],
        "fc": [normal(5, 8), normal(5)],
    }
    pair, feeds = written(tmp_path, text, weights), [{"data": normal(2, 3, 8, 8)} for _ in range(2)]
    trials = Trials(calibrated(read_model(pair), QuantConfig(), feeds, show=Progress(False)))
    same = quantize_onnx(pair, QuantConfig(), calibration=feeds)
    assert trials.model(Mix()).whole() == same.fake_quant_model
    assert trials.layers == ("conv", "pool", "fc")
    expected = run(read_model(pair).whole(), feeds[0])
    for name in trials.layers:
        found = run(trials.model(Mix(float_layers=frozenset([name]))).whole(), feeds[0])
        assert all(sqnr(expected[output], found[output]) > 20 for output in expected), name
    for pairs in layer_pairs(trials.state(Mix()), trials.model(Mix()), feeds):
        assert all(sqnr(ours, theirs) > 20 for ours, theirs in pairs.values())
