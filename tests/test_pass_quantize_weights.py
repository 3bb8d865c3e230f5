"""find weight scales and store integer weights: ARQ's scales for each layer, and the integers in the layer's layout."""

import numpy as np
import pytest
from graphs import calibrated, initializers, model, nodes_as_text, rewritten

from amct_onnx.config import LayerConfig, QuantConfig
from amct_onnx.errors import ModelError, PassError
from amct_onnx.kernels.arq import Arq
from amct_onnx.kernels.ifmr import Ifmr
from amct_onnx.passes.manager import run_passes
from amct_onnx.passes.quantize_weights import FIND_WEIGHT_SCALES, STORE_INTEGER_WEIGHTS, integers_of
from amct_onnx.passes.state import LayerPlan, QuantPlan

RNG = np.random.default_rng(7)
SCALE = (0.1, 0)


def normal(*shape, dtype=np.float32):
    return RNG.normal(size=shape).astype(dtype)


def layer(call, weights, inputs="float[1, 4, 6, 6] x", config=None):
    """A state in which the one layer has its weight scales."""
    kind = inputs.split("[")[0]
    source = model(f"g ({inputs}) => ({kind} y) {{ [layer] y = {call} }}", weights)
    source.graph.output[0].type.tensor_type.ClearField("shape")
    return calibrated(source, {"layer": SCALE}, config)


def naive_scale(values):
    """The largest magnitude on 127, or on 128 where it is negative and larger than every positive one."""
    low, high = float(values.min()), float(values.max())
    return np.float32(-low) / np.float32(128) if -low > high else np.float32(high) / np.float32(127)


@pytest.mark.parametrize(
    ("call", "shape", "channels"),
    [
        ("Conv(x, w)", (6, 4, 3, 3), lambda w: list(w)),
        ("Conv<group = 2>(x, w)", (6, 2, 3, 3), lambda w: list(w)),
        ("ConvTranspose(x, w)", (4, 6, 3, 3), lambda w: [w[:, c] for c in range(6)]),
        (
            "ConvTranspose<group = 2>(x, w)",
            (4, 3, 3, 3),
            lambda w: [w[2 * g : 2 * g + 2, c] for g in range(2) for c in range(3)],
        ),
    ],
)
def test_convolutions_have_a_scale_for_every_output_channel(call, shape, channels):
    weight = normal(*shape)
    params = layer(call, {"w": weight}).weights["layer"]
    np.testing.assert_array_equal(params.scale, np.array([naive_scale(c) for c in channels(weight)]))
    np.testing.assert_array_equal(params.offset, np.zeros(6))
    assert (params.axis, params.num_bits, params.scale.dtype) == (0, 8, np.float32)


@pytest.mark.parametrize("call", ["Gemm(x, w)", "MatMul(x, w)"])
def test_products_have_one_scale(call):
    weight = normal(4, 5)
    params = layer(call, {"w": weight}, "float[2, 4] x").weights["layer"]
    assert params.scale == naive_scale(weight)
    assert (params.scale.shape, params.offset.shape, params.axis) == ((), (), None)


def test_a_pooling_has_no_weight_parameters():
    state = layer("AveragePool<kernel_shape = [2, 2]>(x)", {})
    assert state.weights == {}
    before = nodes_as_text(state.graph.to_model())
    run_passes((STORE_INTEGER_WEIGHTS,), state)
    assert nodes_as_text(state.graph.to_model()) == before


def test_a_convolution_can_have_one_scale_for_all_channels():
    weight = normal(6, 4, 3, 3)
    config = QuantConfig(common_config=LayerConfig(weight=Arq(channel_wise=False)))
    params = layer("Conv(x, w)", {"w": weight}, config=config).weights["layer"]
    assert params.scale == naive_scale(weight)
    assert params.axis is None


@pytest.mark.parametrize("bits", [6, 7])
def test_fewer_bits_have_fewer_levels(bits):
    weight = normal(6, 4, 3, 3)
    config = QuantConfig(common_config=LayerConfig(weight=Arq(num_bits=bits)))
    state = layer("Conv(x, w)", {"w": weight}, config=config)
    values = integers_of(state, state.graph.nodes[0]).load()
    assert state.weights["layer"].num_bits == bits
    assert (values.min(), values.max()) >= (-(1 << (bits - 1)), 0)
    assert values.max() <= (1 << (bits - 1)) - 1
    assert values.dtype == np.int8


@pytest.mark.parametrize(
    ("call", "shape"),
    [
        ("Conv(x, w)", (6, 4, 3, 3)),
        ("ConvTranspose<group = 2>(x, w)", (4, 3, 3, 3)),
        ("ConvTranspose(x, w)", (4, 6, 2, 2)),
    ],
)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_integers_are_stored_in_the_layout_of_the_layer(call, shape, dtype):
    weight = normal(*shape, dtype=dtype)
    kind = "float16" if dtype == np.float16 else "float"
    state = layer(call, {"w": weight}, f"{kind}[1, 4, 6, 6] x")
    scale = state.weights["layer"].scale
    run_passes((STORE_INTEGER_WEIGHTS,), state)
    stored = initializers(state.graph.to_model())["w"]
    assert (stored.dtype, stored.shape) == (np.int8, shape)
    per_group = shape[1] if "group" in call else 0
    for index in np.ndindex(shape):
        channel = index[1] + index[0] // 2 * per_group if "Transpose" in call else index[0]
        assert stored[index] == np.clip(np.rint(np.float32(weight[index]) / scale[channel]), -128, 127)


def test_only_the_node_of_the_layer_changes():
    text = "g (float[2, 4] x) => (float[2, 4] y) { [a] t = Gemm(x, w, b) [b] u = Relu(t) [c] y = Mul(u, k) }"
    source = model(text, {"w": normal(4, 4), "b": normal(4), "k": normal(4)})
    state = calibrated(source, {"a": SCALE})
    run_passes((STORE_INTEGER_WEIGHTS,), state)
    result = state.graph.to_model()
    lines = nodes_as_text(result)
    assert lines[0] == "[a] t = Gemm<alpha=1.0, beta=1.0, transB=0>(x, int8[4, 4], float[4])"
    assert lines[1:] == nodes_as_text(source)[1:]
    assert (state.gone, state.remarks, state.left_float) == ({}, {}, {})
    arrays, before = initializers(result), initializers(source)
    assert set(arrays) == set(before)
    np.testing.assert_array_equal(arrays["b"], before["b"])


def test_layers_left_float_keep_their_weights():
    source = model(
        "g (float[2, 4] x) => (float[2, 4] y) { [a] t = MatMul(x, v) [b] y = MatMul(t, w) }",
        {"v": normal(4, 4), "w": normal(4, 4)},
    )
    state = calibrated(source, {})
    state.left_float["a"] = "for a reason"
    run_passes((STORE_INTEGER_WEIGHTS,), state)
    arrays = initializers(state.graph.to_model())
    assert {name: values.dtype.name for name, values in arrays.items()} == {"v": "float32", "w": "int8"}


# Odd weights


def test_channels_without_weights_get_the_largest_scale_of_the_others():
    weight = normal(4, 2, 1, 1)
    weight[1] = 0
    weight[2] = 1e-9
    params = layer("Conv(x, w)", {"w": weight}, "float[1, 2, 4, 4] x").weights["layer"]
    others = [naive_scale(weight[0]), naive_scale(weight[3])]
    np.testing.assert_array_equal(params.scale, [others[0], max(others), max(others), others[1]])


@pytest.mark.parametrize(
    ("call", "shape"), [("Conv(x, w)", (3, 4, 1, 1)), ("Gemm(x, w)", (4, 3)), ("MatMul(x, w)", (4, 3))]
)
def test_layers_without_weights_get_a_small_scale(call, shape):
    state = layer(
        call, {"w": np.zeros(shape, np.float32)}, "float[1, 4, 6, 6] x" if "Conv" in call else "float[2, 4] x"
    )
    params = state.weights["layer"]
    assert (params.scale == 2.0**-10).all()
    assert not integers_of(state, state.graph.nodes[0]).load().any()


def test_a_scale_of_one_that_the_weights_ask_for_stays():
    """127 on 127 levels: the scale is 1, and no sign of a channel without weights."""
    weight = np.array([[127.0, -3], [1.0, 0.5]], np.float32).reshape(2, 2, 1, 1)
    params = layer("Conv(x, w)", {"w": weight}, "float[1, 2, 4, 4] x").weights["layer"]
    np.testing.assert_array_equal(params.scale, np.array([1, 1 / 127], np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("call", "spoilt", "message"),
    [
        ("Conv(x, w, b)", "w", "the weight 'w' of layer 'layer' holds "),
        ("Conv(x, w, b)", "b", "the bias 'b' of layer 'layer' holds "),
        ("Gemm(x, w, b)", "b", "the bias 'b' of layer 'layer' holds "),
    ],
)
def test_weights_and_biases_that_are_not_finite_are_named(call, spoilt, message, value):
    weights = {"w": normal(*((3, 4, 1, 1) if "Conv" in call else (4, 3))), "b": normal(3)}
    weights[spoilt].flat[1] = value
    with pytest.raises(ModelError, match=f"^{message}{'NaN' if np.isnan(value) else 'inf'}$"):
        layer(call, weights, "float[1, 4, 6, 6] x" if "Conv" in call else "float[2, 4] x")


def test_a_bias_behind_a_product_that_is_not_finite_is_named():
    weights = {"w": normal(4, 3), "b": np.array([0, np.nan, 1], np.float32)}
    source = model("g (float[2, 4] x) => (float[2, 3] y) { [mm] t = MatMul(x, w) [add] y = Add(t, b) }", weights)
    with pytest.raises(ModelError, match=r"^the bias 'b' of layer 'mm' holds NaN$"):
        calibrated(source, {})


def test_a_weight_that_two_layers_share_is_refused():
    text = "g (float[2, 4] x) => (float[2, 4] y) { [a] t = MatMul(x, w) [b] y = MatMul(t, w) }"
    plan = QuantPlan(
        layers={"a": LayerPlan(name="a", op_type="MatMul", activation=Ifmr(asymmetric=True), weight=Arq())}
    )
    with pytest.raises(PassError, match="'a' shares its weight 'w'"):
        rewritten(model(text, {"w": normal(4, 4)}), FIND_WEIGHT_SCALES, plan=plan)


def test_the_largest_weights_keep_their_sign_and_the_smallest_float_its_place():
    weight = np.array([3.4e38, -3.4e38, 1e-45, 0], np.float32).reshape(1, 4, 1, 1)
    state = layer("Conv(x, w)", {"w": weight})
    values = integers_of(state, state.graph.nodes[0]).load().ravel()
    assert np.isfinite(state.weights["layer"].scale).all()
    np.testing.assert_array_equal(values, [127, -127, 0, 0])
