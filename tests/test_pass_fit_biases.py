"""fit biases: every bias fits into int32 on scale_d * scale_w, by coarser weights, or the layer stays float."""

import numpy as np
import pytest
from graphs import calibrated, initializers, model, nodes_as_text
from hypothesis import given, settings
from hypothesis import strategies as st

from amct_onnx.config import LayerConfig, QuantConfig
from amct_onnx.kernels.arq import Arq
from amct_onnx.kernels.dequant import bias_fits, quantize_bias
from amct_onnx.passes.fit_biases import FIT_BIASES
from amct_onnx.passes.insert_dequant import terms_of
from amct_onnx.passes.manager import run_passes


def conv(weights, biases, *, scale=0.1, config=None):
    """A state with a Conv of one weight for each channel, before the pass and after it."""
    weight = np.array(weights, np.float32).reshape(-1, 1, 1, 1)
    source = model(
        f"g (float[1, 1, 2, 2] x) => (float[1, {len(weight)}, 2, 2] y) {{ [conv] y = Conv(x, w, b) }}",
        {"w": weight, "b": np.array(biases, np.float32)},
    )
    state = calibrated(source, {"conv": (scale, 3)}, config)
    before = state.weights["conv"]
    graph = state.graph.to_model()
    run_passes((FIT_BIASES,), state)
    assert nodes_as_text(state.graph.to_model()) == nodes_as_text(graph)
    np.testing.assert_equal(initializers(state.graph.to_model()), initializers(graph))
    assert state.gone == {}
    return before, state


def product(call, weights, bias, scale):
    source = model(
        f"g (float[2, 2] x) => (float[2, 2] y) {{ {call} }}", {"w": np.array(weights, "f"), "b": np.array(bias, "f")}
    )
    state = calibrated(source, {"layer": (scale, 0)})
    run_passes((FIT_BIASES,), state)
    return state


def test_biases_that_fit_change_nothing():
    before, state = conv([1, -0.5, 2], [3, -4, 0])
    assert state.weights["conv"] is before
    assert (state.remarks, state.left_float) == ({}, {})


def test_the_channel_whose_bias_does_not_fit_gets_coarser_weights():
    before, state = conv([1, 1e-3, 2, 1e-3], [3, 100, 0, -0.001], scale=1e-4)
    after = state.weights["conv"].scale
    np.testing.assert_array_equal(after[[0, 2, 3]], before.scale[[0, 2, 3]])
    assert after[1] > before.scale[1]
    assert (state.weights["conv"].axis, state.weights["conv"].num_bits) == (0, 8)
    assert state.left_float == {}
    assert state.remarks == {"conv": "coarser weights in channel 1: the bias would leave int32 on their own scale"}


def test_many_channels_are_listed_in_short():
    _, state = conv([1e-3] * 7, [1000] * 7, scale=1e-4)
    assert state.remarks["conv"].startswith("coarser weights in channel 0, 1, 2, 3, 4, ...: ")


@given(
    size=st.floats(-6, 3),
    channels=st.lists(st.tuples(st.floats(-10, 2), st.floats(-6, 30), st.booleans()), min_size=1, max_size=4),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_whatever_the_sizes_the_bias_fits_or_the_layer_stays_float(size, channels):
    """Weights of 1e-10 to 100, biases of 1e-6 to 1e30, both signs."""
    scale, weights = 10.0**size, [10.0**w for w, _, _ in channels]
    biases = [10.0**b * (-1 if negative else 1) for _, b, negative in channels]
    before, state = conv(weights, biases, scale=scale)
    after = state.weights["conv"].scale
    assert (after >= before.scale).all()
    if not state.left_float:
        bias = np.array(biases, np.float32)
        product = terms_of(state, state.graph.nodes[0])[0].scale
        assert (np.isfinite(product) & (product > 0)).all()
        assert bias_fits(bias, product)
        levels = quantize_bias(bias, product).astype(np.float64)
        np.testing.assert_allclose(levels * product, bias, rtol=1e-6, atol=float(product.max()))
        assert set(np.flatnonzero(after > before.scale)) <= {
            i
            for i, (b, s) in enumerate(zip(bias, before.scale, strict=True))
            if abs(b) / (s * np.float32(scale)) > 2**30
        }


def test_a_bias_that_no_finite_scale_takes_leaves_the_layer_float():
    _, state = conv([1, 1], [3e38, 0], scale=1e-25)
    assert list(state.left_float) == ["conv"]


@pytest.mark.parametrize(
    "call",
    ["[layer] y = Gemm(x, w, b)", "[layer] t = MatMul(x, w) [add] y = Add(t, b)"],
    ids=["Gemm", "MatMul and Add"],
)
def test_a_layer_of_one_weight_scale_stays_float(call):
    state = product(call, [[1e-4, 1e-5], [0, 0]], [1, 1e6], 1e-5)
    assert list(state.left_float) == ["layer"]
    reason = state.left_float["layer"]
    assert reason.startswith("its bias leaves int32 (channel 1: 1e+06 on a scale of ")
    assert state.remarks == {}
    assert state.layers() == []


def test_a_convolution_of_one_weight_scale_stays_float():
    config = QuantConfig(common_config=LayerConfig(weight=Arq(channel_wise=False)))
    _, state = conv([1e-4, 1e-5], [1, -1e9], scale=1e-4, config=config)
    assert state.left_float["conv"].startswith("its bias leaves int32 (channel 1: -1e+09 on a scale of ")


def test_a_scale_that_is_no_normal_number_leaves_the_layer_float():
    _, state = conv([1e-5], [0], scale=1e-37)
    assert state.left_float == {"conv": "the product of its activation and weight scale is no normal float32"}


def test_a_scale_beyond_float32_leaves_the_layer_float():
    source = model(
        "g (float[2, 2] x) => (float[2, 2] y) { [layer] y = MatMul(x, w) }", {"w": np.full((2, 2), 1e30, "f")}
    )
    state = calibrated(source, {"layer": (1e20, 0)})
    run_passes((FIT_BIASES,), state)
    assert state.left_float == {"layer": "the product of its activation and weight scale is no normal float32"}


def test_layers_without_bias_or_weight_stay():
    text = "g (float[1, 2, 4, 4] x) => (float[1, 2, 3, 3] y) "
    text += "{ [a] t = Conv(x, w) [b] y = AveragePool<kernel_shape = [2, 2]>(t) }"
    state = calibrated(model(text, {"w": np.ones((2, 2, 1, 1), "f")}), {"a": (0.1, 0), "b": (0.1, 0)})
    run_passes((FIT_BIASES,), state)
    assert (state.left_float, state.remarks) == ({}, {})


@pytest.mark.parametrize("bias", [2147483647.0, -2147483648.0, 2147483520.0, 2147483648.0])
def test_the_ends_of_int32(bias):
    """float32 has no 2147483647: it becomes 2147483648, which does not fit."""
    _, state = conv([127.0], [bias], scale=1.0)
    fits = np.float32(bias) in (np.float32(-2147483648.0), np.float32(2147483520.0))
    assert (state.remarks == {}) == fits
    assert state.left_float == {}
    values = quantize_bias(np.array([bias], np.float32), terms_of(state, state.graph.nodes[0])[0].scale)
    assert np.sign(values[0]) == np.sign(bias)
