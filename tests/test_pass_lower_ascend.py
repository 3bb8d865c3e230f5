"""lower Ascend operators: standard ones that compute the integer arithmetic of the chip, to the last bit."""

import numpy as np
import pytest
from graphs import assert_close, calibrated, initializers, model, nodes_as_text, run
from hypothesis import given, settings
from hypothesis import strategies as st

from amct_onnx.kernels.quant_params import quantize
from amct_onnx.passes.layers import bias_input, channels_first, has_weight, layout_of, weight_of
from amct_onnx.passes.lower_ascend import LOWER_ASCEND
from amct_onnx.passes.manager import run_passes
from amct_onnx.passes.pipelines import DEPLOY

RNG = np.random.default_rng(7)


def normal(*shape, dtype=np.float32):
    return RNG.normal(size=shape).astype(dtype)


def lowered(source, scales):
    state = calibrated(source, scales)
    run_passes((*DEPLOY, LOWER_ASCEND), state)
    assert (state.gone, state.remarks, state.left_float) == ({}, {}, {})
    return state.graph.to_model()


def naive(source, name, scale, offset, x):
    """One layer by hand: x to integers, the layer over integers in float64, bias and scale behind it."""
    state = calibrated(source, {name: (scale, offset)})
    node = next(n for n in state.graph.nodes if n.name == name)
    inverse = np.float32(1) / np.float32(scale)
    levels = np.rint(x.astype(np.float32) * inverse) + np.float32(offset)
    q = np.clip(levels, -128, 127) - np.float32(offset)
    factor, weights = np.float32(scale), {}
    if has_weight(node):
        params = state.weights[name]
        factor = factor * params.scale
        weight = layout_of(node).restored(quantize(channels_first(node, weight_of(node)), params))
        weights["w"] = weight.astype(np.float64)
        if bias_input(state.graph, node) is not None:
            bias = initializers(source)["b"].astype(np.float32)
            weights["b"] = np.rint(np.broadcast_to(bias.reshape(-1), np.shape(bias)) / factor).astype(np.float64)
    return q, weights, factor


# Before and after

QUANT_LINES = [
    "[{0}.quant.fakequant.mul] {0}.quant.fakequant.mul.output0 = Mul({1}, float[])",
    "[{0}.quant.fakequant.round] {0}.quant.fakequant.round.output0 = Round({0}.quant.fakequant.mul.output0)",
    "[{0}.quant.fakequant.add] {0}.quant.fakequant.add.output0 = Add({0}.quant.fakequant.round.output0, float[])",
    "[{0}.quant.fakequant.clip] {0}.quant.fakequant.clip.output0 = "
    "Clip({0}.quant.fakequant.add.output0, float[], float[])",
    "[{0}.quant.fakequant.sub] {0}.quant.fakequant.sub.output0 = Sub({0}.quant.fakequant.clip.output0, float[])",
]


def quant_lines(name, tensor):
    return [line.format(name, tensor) for line in QUANT_LINES]


@pytest.mark.parametrize(
    ("call", "inputs", "weights", "line", "scale_shape"),
    [
        (
            "Conv(x, w, b)",
            "float[1, 2, 6, 6] x",
            {"w": normal(3, 2, 3, 3), "b": normal(3)},
            "Conv<kernel_shape=[3, 3]>({}, float[3, 2, 3, 3], float[3])",
            [1, 3, 1, 1],
        ),
        (
            "Conv(x, w)",
            "float[1, 2, 6] x",
            {"w": normal(3, 2, 3)},
            "Conv<kernel_shape=[3]>({}, float[3, 2, 3])",
            [1, 3, 1],
        ),
        (
            "Conv(x, w)",
            "float[1, 2, 4, 4, 4] x",
            {"w": normal(3, 2, 3, 3, 3)},
            "Conv<kernel_shape=[3, 3, 3]>({}, float[3, 2, 3, 3, 3])",
            [1, 3, 1, 1, 1],
        ),
        (
            "ConvTranspose(x, w)",
            "float[1, 2, 6, 6] x",
            {"w": normal(2, 3, 3, 3)},
            "ConvTranspose<kernel_shape=[3, 3]>({}, float[2, 3, 3, 3])",
            [1, 3, 1, 1],
        ),
        (
            "Gemm(x, w, b)",
            "float[2, 4] x",
            {"w": normal(4, 3), "b": normal(3)},
            "Gemm<alpha=1.0, beta=1.0, transB=0>({}, float[4, 3], float[3])",
            [1],
        ),
        ("MatMul(x, w)", "float[2, 5, 4] x", {"w": normal(4, 3)}, "MatMul({}, float[4, 3])", [1]),
        (
            "AveragePool<kernel_shape = [2, 2]>(x)",
            "float[1, 2, 6, 6] x",
            {},
            "AveragePool<kernel_shape=[2, 2]>({})",
            [1, 1, 1, 1],
        ),
    ],
)
def test_before_and_after(call, inputs, weights, line, scale_shape):
    source = model(f"g ({inputs}) => (float y) {{ [layer] y = {call} }}", weights)
    source.graph.output[0].type.tensor_type.ClearField("shape")
    result = lowered(source, {"layer": (0.05, -7)})
    assert nodes_as_text(result) == [
        *quant_lines("layer", "x"),
        f"[layer] layer_output0 = {line.format('layer.quant.fakequant.sub.output0')}",
        f"[layer.fakedequant.mul] y = Mul(layer_output0, float{scale_shape})",
    ]
    assert list(result.graph.output) == list(source.graph.output)
    arrays = initializers(result)
    prefix = "layer.quant.fakequant."
    found = {name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)}
    assert found == {"scale": np.float32(1) / np.float32(0.05), "offset": -7, "min_val": -128, "max_val": 127}
    for name in weights:
        np.testing.assert_array_equal(arrays[name], np.rint(arrays[name]))


def test_the_bias_of_a_product_is_added_on_the_scale_of_the_integers():
    text = "g (float[2, 4] x) => (float[2, 3] y) { [mm] t = MatMul(x, w) [add] u = Add(t, b) [relu] y = Relu(u) }"
    result = lowered(model(text, {"w": normal(4, 3), "b": normal(3)}), {"mm": (0.05, 5)})
    assert nodes_as_text(result) == [
        *quant_lines("mm", "x"),
        "[mm] t = MatMul(mm.quant.fakequant.sub.output0, float[4, 3])",
        "[add] u = Add(t, float[3])",
        "[mm.fakedequant.mul] mm.dequant.output0 = Mul(u, float[1])",
        "[relu] y = Relu(mm.dequant.output0)",
    ]


def test_half_precision_is_computed_in_single_precision_between_two_casts():
    weights = {"w": normal(4, 3, dtype=np.float16), "b": normal(3, dtype=np.float16)}
    result = lowered(
        model("g (float16[2, 4] x) => (float16[2, 3] y) { [fc] y = Gemm(x, w, b) }", weights), {"fc": (0.05, 5)}
    )
    assert nodes_as_text(result) == [
        "[fc.quant.fakequant.cast] fc.quant.fakequant.cast.output0 = Cast<to=1>(x)",
        *quant_lines("fc", "fc.quant.fakequant.cast.output0"),
        "[fc] fc_output0 = Gemm<alpha=1.0, beta=1.0, transB=0>(fc.quant.fakequant.sub.output0, float[4, 3], float[3])",
        "[fc.fakedequant.mul] fc.fakedequant.mul.output0 = Mul(fc_output0, float[1])",
        "[fc.fakedequant.cast] y = Cast<to=10>(fc.fakedequant.mul.output0)",
    ]
    assert {values.dtype for values in initializers(result).values()} == {np.dtype(np.float32)}


def test_two_layers_over_one_quant_in_half_precision_read_one_cast():
    text = "g (float16[2, 4] x) => (float16[2, 4] y) { [a] t = MatMul(x, v) [b] u = MatMul(x, w) [c] y = Add(t, u) }"
    source = model(text, {"v": normal(4, 4, dtype=np.float16), "w": normal(4, 4, dtype=np.float16)})
    result = lowered(source, {"a": (0.05, 5), "b": (0.05, 5)})
    assert sum(node.op_type == "Cast" for node in result.graph.node) == 3
    assert np.isfinite(run(result, {"x": normal(2, 4, dtype=np.float16)})["y"]).all()


# Numbers


@pytest.mark.parametrize("optimize", [False, True])
@given(
    x=st.lists(
        st.floats(-40, 40, width=32) | st.sampled_from([0.0, -0.0, 0.25, -0.25, 0.75, 1e-45, 3e38, -3e38]),
        min_size=8,
        max_size=8,
    ),
    size=st.floats(-3, 1),
    offset=st.integers(-128, 127),
)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_a_product_computes_what_the_integers_give(optimize, x, size, offset):
    """Rounding of halves to even, clipping at both ends, and the bias on the scale of the product."""
    scale = 10.0**size
    weights = {"w": np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3), "b": np.array([1, -20, 0.1], np.float32)}
    source = model("g (float[2, 4] x) => (float[2, 3] y) { [fc] y = Gemm(x, w, b) }", weights)
    x = np.array(x, np.float32).reshape(2, 4)
    with np.errstate(over="ignore"):
        q, integers, factor = naive(source, "fc", scale, offset, x)
        found = run(lowered(source, {"fc": (scale, offset)}), {"x": x}, optimize=optimize)["y"]
    expected = (q.astype(np.float64) @ integers["w"] + integers["b"]).astype(np.float32) * factor
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize(
    ("call", "weights"),
    [
        ("Conv<pads = [1, 0, 2, 1], strides = [2, 1]>(x, w, b)", {"w": normal(6, 4, 3, 3), "b": normal(6)}),
        ("Conv<group = 4, pads = [1, 1, 1, 1]>(x, w)", {"w": normal(8, 1, 3, 3)}),
        ("Conv<dilations = [2, 2]>(x, w)", {"w": normal(3, 4, 3, 3)}),
        ("ConvTranspose<strides = [2, 2]>(x, w, b)", {"w": normal(4, 3, 3, 3), "b": normal(3)}),
        ("ConvTranspose<group = 2>(x, w, b)", {"w": normal(4, 3, 3, 3), "b": normal(6)}),
        ("AveragePool<kernel_shape = [3, 3], pads = [1, 1, 1, 1], count_include_pad = 1>(x)", {}),
        ("AveragePool<kernel_shape = [2, 2], ceil_mode = 1, strides = [2, 2]>(x)", {}),
    ],
)
def test_a_layer_over_images_computes_what_the_integers_give(call, weights, optimize):
    scale, offset = 0.03, 11
    source = model(f"g (float[2, 4, 7, 7] x) => (float y) {{ [layer] y = {call} }}", weights)
    source.graph.output[0].type.tensor_type.ClearField("shape")
    x = normal(2, 4, 7, 7)
    q, integers, factor = naive(source, "layer", scale, offset, x)
    alone = model(
        f"g (float[2, 4, 7, 7] x) => (float y) {{ [layer] y = {call} }}",
        {name: values.astype(np.float32) for name, values in integers.items()},
    )
    alone.graph.output[0].type.tensor_type.ClearField("shape")
    raw = run(alone, {"x": q}, optimize=False)["y"]
    found = run(lowered(source, {"layer": (scale, offset)}), {"x": x}, optimize=optimize)["y"]
    expected = raw * np.reshape(factor, (1, -1, 1, 1))
    # onnxruntime's optimizer multiplies the scales into the weights of a Conv, and orders the sums of a pooling anew.
    assert_close(found, expected, rtol=1e-6 if optimize else 0)


def test_a_chain_of_layers_computes_what_its_parts_give():
    text = "g (float[2, 4] x) => (float[2, 3] y) { [a] t = MatMul(x, v) [add] s = Add(t, b) [r] r = Relu(s) "
    text += "[c] y = Gemm(r, w) }"
    source = model(text, {"v": normal(4, 5), "b": normal(5), "w": normal(5, 3)})
    scales = {"a": (0.04, 3), "c": (0.05, -128)}
    x = normal(2, 4)
    first = model(
        "g (float[2, 4] x) => (float[2, 5] r) { [a] t = MatMul(x, v) [add] s = Add(t, b) [r] r = Relu(s) }",
        {name: values for name, values in initializers(source).items() if name in "vb"},
    )
    second = model("g (float[2, 5] r) => (float[2, 3] y) { [c] y = Gemm(r, w) }", {"w": initializers(source)["w"]})
    middle = run(lowered(first, {"a": scales["a"]}), {"x": x}, optimize=False)["r"]
    expected = run(lowered(second, {"c": scales["c"]}), {"r": middle}, optimize=False)["y"]
    np.testing.assert_array_equal(run(lowered(source, scales), {"x": x}, optimize=False)["y"], expected)


def test_layers_left_float_stay_as_they_are():
    text = "g (float[2, 4] x) => (float[2, 4] y) { [a] t = MatMul(x, v) [b] y = MatMul(t, w) }"
    source = model(text, {"v": normal(4, 4), "w": normal(4, 4)})
    state = calibrated(source, {"b": (0.05, 0)})
    state.left_float["a"] = "for a reason"
    run_passes((*DEPLOY, LOWER_ASCEND), state)
    result = state.graph.to_model()
    assert nodes_as_text(result)[0] == "[a] t = MatMul(x, float[4, 4])"
    np.testing.assert_array_equal(initializers(result)["v"], initializers(source)["v"])


def test_a_model_that_went_through_once_goes_through_again():
    """Its nodes are named as those that will be inserted."""
    source = model("g (float[2, 4] x) => (float[2, 4] y) { [fc] y = MatMul(x, w) }", {"w": normal(4, 4)})
    once = lowered(source, {"fc": (0.05, 0)})
    twice = lowered(once, {"fc": (1.0, 0)})
    names = [node.name for node in twice.graph.node]
    assert len(set(names)) == len(names), "onnxruntime refuses two nodes of one name"
    feed = {"x": normal(2, 4)}
    np.testing.assert_allclose(run(twice, feed)["y"], run(once, feed)["y"], rtol=1e-6)
