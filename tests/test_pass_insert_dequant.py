"""insert AscendDequant: one behind every layer, with its scales as words, and the bias as int32 on the same scale."""

import numpy as np
import onnx
import pytest
from graphs import calibrated, initializers, model, nodes_as_text
from hypothesis import given, settings
from hypothesis import strategies as st

from amct_onnx import quantize_onnx
from amct_onnx.config import QuantConfig
from amct_onnx.passes.insert_dequant import INSERT_DEQUANT, terms_of
from amct_onnx.passes.insert_quant import INSERT_QUANT
from amct_onnx.passes.manager import run_passes

RNG = np.random.default_rng(7)


def normal(*shape, dtype=np.float32):
    return RNG.normal(size=shape).astype(dtype)


def inserted(source, scales, config=None):
    state = calibrated(source, scales, config)
    run_passes((INSERT_QUANT, INSERT_DEQUANT), state)
    assert (state.gone, state.remarks, state.left_float) == ({}, {}, {})
    return state, state.graph.to_model()


def words(scale):
    """The bits of a float32 in the low half of an uint64."""
    return np.asarray(scale, np.float32).view(np.uint32).astype(np.uint64)


@pytest.mark.parametrize(
    ("call", "inputs", "shape", "line", "words_shape"),
    [
        (
            "Conv(x, w, b)",
            "float[1, 2, 6, 6] x",
            (3, 2, 3, 3),
            "Conv<kernel_shape=[3, 3]>({}, float[3, 2, 3, 3], int32[3])",
            [3],
        ),
        ("Conv(x, w)", "float[1, 2, 6, 6] x", (3, 2, 3, 3), "Conv<kernel_shape=[3, 3]>({}, float[3, 2, 3, 3])", [3]),
        (
            "ConvTranspose(x, w, b)",
            "float[1, 2, 6, 6] x",
            (2, 3, 3, 3),
            "ConvTranspose<kernel_shape=[3, 3]>({}, float[2, 3, 3, 3], int32[3])",
            [3],
        ),
        (
            "Gemm(x, w, b)",
            "float[2, 4] x",
            (4, 3),
            "Gemm<alpha=1.0, beta=1.0, transB=0>({}, float[4, 3], int32[3])",
            [1],
        ),
        ("MatMul(x, w)", "float[2, 4] x", (4, 3), "MatMul({}, float[4, 3])", [1]),
        (
            "AveragePool<kernel_shape = [2, 2]>(x)",
            "float[1, 2, 6, 6] x",
            None,
            "AveragePool<kernel_shape=[2, 2]>({})",
            [1],
        ),
    ],
)
def test_before_and_after(call, inputs, shape, line, words_shape):
    weights = {} if shape is None else {"w": normal(*shape)} | ({"b": normal(3)} if "b)" in call else {})
    source = model(f"g ({inputs}) => (float y) {{ [layer] t = {call} [relu] y = Relu(t) }}", weights)
    source.graph.output[0].type.tensor_type.ClearField("shape")
    state, result = inserted(source, {"layer": (0.1, 5)})
    assert nodes_as_text(result)[1:] == [
        f"[layer] t = {line.format('layer.quant.output0')}",
        f"[layer.dequant] layer.dequant.output0 = AscendDequant<dtype=0>(t, uint64{words_shape})",
        "[relu] y = Relu(layer.dequant.output0)",
    ]
    scale = np.float32(0.1) * (np.ones(1, np.float32) if shape is None else np.atleast_1d(state.weights["layer"].scale))
    arrays = initializers(result)
    np.testing.assert_array_equal(arrays["layer.dequant.param"], words(scale))
    if "b" in weights:
        np.testing.assert_array_equal(arrays["b"], np.rint(weights["b"] / scale).astype(np.int32))
        assert arrays["b"].dtype == np.int32


def test_the_bias_of_a_product_is_added_before():
    text = "g (float[2, 4] x) => (float[2, 3] y) { [mm] t = MatMul(x, w) [add] u = Add(t, b) [relu] y = Relu(u) }"
    _, result = inserted(model(text, {"w": normal(4, 3), "b": normal(3)}), {"mm": (0.1, 5)})
    assert nodes_as_text(result)[1:] == [
        "[mm] t = MatMul(mm.quant.output0, float[4, 3])",
        "[add] u = Add(t, int32[3])",
        "[mm.dequant] mm.dequant.output0 = AscendDequant<dtype=0>(u, uint64[1])",
        "[relu] y = Relu(mm.dequant.output0)",
    ]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_what_the_model_says_of_the_product_in_front_of_its_bias_is_forgotten(dtype):
    kind = "float16" if dtype is np.float16 else "float"
    text = f"g ({kind}[2, 4] x) => ({kind}[2, 3] y) {{ [mm] t = MatMul(x, w) [add] u = Add(t, b) [r] y = Relu(u) }}"
    source = onnx.shape_inference.infer_shapes(
        model(text, {"w": normal(4, 3, dtype=dtype), "b": normal(3, dtype=dtype)})
    )
    assert {value.name for value in source.graph.value_info} == {"t", "u"}
    _, result = inserted(source, {"mm": (0.1, 5)})
    assert list(result.graph.value_info) == []
    made = quantize_onnx(source, calibration=[{"x": normal(2, 4, dtype=dtype)}], qdq=True)  # runs every form
    assert list(made.plan.layers) == ["mm"]


def test_an_output_of_the_model_keeps_its_name():
    text = "g (float[2, 4] x) => (float[2, 3] y, float[2, 3] z) { [fc] y = Gemm(x, w) [relu] z = Relu(y) }"
    source = model(text, {"w": normal(4, 3)})
    _, result = inserted(source, {"fc": (0.1, 5)})
    assert nodes_as_text(result)[1:] == [
        "[fc] fc_output0 = Gemm<alpha=1.0, beta=1.0, transB=0>(fc.quant.output0, float[4, 3])",
        "[fc.dequant] y = AscendDequant<dtype=0>(fc_output0, uint64[1])",
        "[relu] z = Relu(y)",
    ]
    assert list(result.graph.output) == list(source.graph.output)


def test_bodies_read_the_dequantized_values():
    text = "g (float[2, 4] x, bool c) => (float[2, 3] y) { [fc] t = MatMul(x, w) [if] y = If(c)<"
    text += (
        "then_branch = p () => (float[2, 3] u) { u = Neg(t) }, else_branch = q () => (float[2, 3] v) { v = Abs(t) }> }"
    )
    state, _ = inserted(model(text, {"w": normal(4, 3)}), {"fc": (0.1, 5)})
    assert [t.name for _, node in state.graph.body_nodes() for t in node.inputs] == ["fc.dequant.output0"] * 2


def test_half_precision_comes_out_as_half_precision():
    source = model(
        "g (float16[2, 4] x) => (float16[2, 3] y) { [fc] y = Gemm(x, w, b) }",
        {"w": normal(4, 3, dtype=np.float16), "b": normal(3, dtype=np.float16)},
    )
    _, result = inserted(source, {"fc": (0.1, 5)})
    assert nodes_as_text(result)[-1] == "[fc.dequant] y = AscendDequant<dtype=1>(fc_output0, uint64[1])"
    assert initializers(result)["b"].dtype == np.int32


def test_scales_that_half_precision_shall_hold_are_kept_whole():
    """As in AMCT's own files; the chip cuts them by itself."""
    source = model(
        "g (float[1, 2, 4, 4] x) => (float[1, 3, 4, 4] y) { [conv] y = Conv(x, w, b) }",
        {"w": normal(3, 2, 1, 1), "b": normal(3)},
    )
    state, result = inserted(source, {"conv": (0.1, 5)}, QuantConfig(fakequant_precision_mode="FORCE_FP16_QUANT"))
    whole = np.float32(0.1) * state.weights["conv"].scale
    np.testing.assert_array_equal(initializers(result)["conv.dequant.param"], words(whole))


@given(
    activation=st.floats(-10, 4),
    weights=st.lists(st.floats(-3, 3), min_size=1, max_size=5),
    biases=st.lists(st.floats(-100, 100, width=32), min_size=5, max_size=5),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_the_words_hold_the_scale_and_the_bias_is_a_multiple_of_it(activation, weights, biases):
    weight = (10.0 ** np.array(weights)).astype(np.float32).reshape(-1, 1, 1, 1)
    bias = np.array(biases[: len(weights)], np.float32) * np.float32(10.0**activation) * weight.ravel()
    source = model(
        f"g (float[1, 1, 2, 2] x) => (float[1, {len(weight)}, 2, 2] y) {{ [conv] y = Conv(x, w, b) }}",
        {"w": weight, "b": bias},
    )
    state, result = inserted(source, {"conv": (10.0**activation, 0)})
    arrays = initializers(result)
    conv = next(node for node in state.graph.nodes if node.name == "conv")
    scale = terms_of(state, conv)[0].scale
    assert (arrays["conv.dequant.param"] >> np.uint64(32) == 0).all()
    np.testing.assert_array_equal(arrays["conv.dequant.param"].astype(np.uint32).view(np.float32), scale)
    np.testing.assert_allclose(arrays["b"] * scale.astype(np.float64), bias, rtol=0, atol=float(scale.max()) * 0.51)


def test_layers_left_float_get_none():
    source = model(
        "g (float[2, 4] x) => (float[2, 4] y) { [a] t = MatMul(x, v) [b] y = MatMul(t, w) }",
        {"v": normal(4, 4), "w": normal(4, 4)},
    )
    state = calibrated(source, {"b": (0.5, 0)})
    state.left_float["a"] = "for a reason"
    run_passes((INSERT_QUANT, INSERT_DEQUANT), state)
    assert [node.name for node in state.graph.nodes] == ["a", "b.quant", "b", "b.dequant"]


def test_a_layer_behind_a_layer_reads_what_was_dequantized():
    source = model(
        "g (float[2, 4] x) => (float[2, 4] y) { [a] t = MatMul(x, v) [b] y = MatMul(t, w) }",
        {"v": normal(4, 4), "w": normal(4, 4)},
    )
    _, result = inserted(source, {"a": (0.5, 0), "b": (0.25, 0)})
    assert nodes_as_text(result) == [
        "[a.quant] a.quant.output0 = AscendQuant<dst_type=INT8, offset=0.0, scale=2.0>(x)",
        "[a] t = MatMul(a.quant.output0, float[4, 4])",
        "[a.dequant] a.dequant.output0 = AscendDequant<dtype=0>(t, uint64[1])",
        "[b.quant] b.quant.output0 = AscendQuant<dst_type=INT8, offset=0.0, scale=4.0>(a.dequant.output0)",
        "[b] b_output0 = MatMul(b.quant.output0, float[4, 4])",
        "[b.dequant] y = AscendDequant<dtype=0>(b_output0, uint64[1])",
    ]


def test_names_of_tensors_and_nodes_that_are_taken_are_not_given_again():
    text = "g (float[2, 4] x) => (float[2, 4] y) { [fc] t = MatMul(x, w) [r] u = Relu(t) [n] y = Neg(u) }"
    source = model(text, {"w": normal(4, 4)})
    source.graph.node[1].name = "fc.dequant"
    source.graph.node[1].output[0] = source.graph.node[2].input[0] = "fc.dequant.output0"
    _, result = inserted(source, {"fc": (0.5, 0)})
    names = [node.name for node in result.graph.node]
    outputs = [name for node in result.graph.node for name in node.output]
    assert len(set(outputs)) == len(outputs)
    assert len(set(names)) == len(names), "onnxruntime refuses two nodes of one name"
