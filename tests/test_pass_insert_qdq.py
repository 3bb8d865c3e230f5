"""insert QuantizeLinear and DequantizeLinear: the form of every kind of layer, and the numbers it gives."""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from graphs import assert_same_numbers, calibrated, initializers, model, nodes_as_text, random_feed, run
from hypothesis import given, settings
from hypothesis import strategies as st

from amct_onnx import TensorConfig, import_qdq, quantize_onnx
from amct_onnx.config import QuantConfig
from amct_onnx.kernels.arq import Arq
from amct_onnx.passes.convert_opset import with_qdq_opset
from amct_onnx.passes.graph import Graph
from amct_onnx.passes.insert_qdq import INSERT_QDQ
from amct_onnx.passes.manager import run_passes
from amct_onnx.passes.pipelines import FAKE_QUANT
from amct_onnx.passes.weights import detached

RNG = np.random.default_rng(7)

CONV = "g (float[N, 4, 6, 6] x) => (float[N, 2, 6, 6] y) { [conv] y = Conv<pads = [1, 1, 1, 1]>(x, w, b) }"


def normal(*shape, dtype=np.float32):
    return RNG.normal(size=shape).astype(dtype)


def both(source, scales, config=None):
    """The QDQ model and the fake-quant model of the same decisions."""
    state = calibrated(source, scales, config)
    other = replace(state, graph=state.graph.copy())
    run_passes((INSERT_QDQ,), state)
    run_passes(FAKE_QUANT, other)
    qdq = state.graph.to_model()
    onnx.checker.check_model(qdq, full_check=True)
    return qdq, other.graph.to_model()


def text_of(source, scales, config=None):
    qdq, fake = both(source, scales, config)
    assert_same_numbers(fake, qdq, rtol=1e-5)
    return nodes_as_text(qdq)


def test_a_convolution_has_scales_along_the_output_channels():
    qdq, fake = both(model(CONV, {"w": normal(2, 4, 3, 3), "b": normal(2)}), {"conv": (0.05, -3)})
    assert_same_numbers(fake, qdq, rtol=1e-5)
    assert nodes_as_text(qdq) == [
        "[conv.input.quantize] conv.input.quantize.output0 = QuantizeLinear(x, float[], int8[])",
        "[conv.input.dequantize] conv.input.dequantize.output0 = "
        "DequantizeLinear(conv.input.quantize.output0, float[], int8[])",
        "[conv.bias.dequantize] conv.bias.dequantize.output0 = DequantizeLinear<axis=0>(int32[2], float[2])",
        "[conv.weight.dequantize] conv.weight.dequantize.output0 = "
        "DequantizeLinear<axis=0>(int8[2, 4, 3, 3], float[2], int8[2])",
        "[conv] y = Conv<kernel_shape=[3, 3], pads=[1, 1, 1, 1]>"
        "(conv.input.dequantize.output0, conv.weight.dequantize.output0, conv.bias.dequantize.output0)",
    ]
    values = initializers(qdq)
    assert values["conv.input.scale"] == np.float32(0.05)
    assert values["conv.input.zero_point"] == -3
    assert not values["conv.weight.zero_point"].any()
    found = initializers(fake)
    np.testing.assert_array_equal(values["w"], found["w"])
    np.testing.assert_array_equal(values["b"], found["b"])
    np.testing.assert_array_equal(values["conv.bias.scale"], found["conv.fakedequant.dqscale"].ravel())


def test_one_scale_for_all_weights_is_a_scalar():
    config = QuantConfig(common_config=replace(QuantConfig().common_config, weight=Arq(channel_wise=False)))
    lines = text_of(model(CONV, {"w": normal(2, 4, 3, 3), "b": normal(2)}), {"conv": (0.05, -3)}, config)
    assert "DequantizeLinear(int32[2], float[])" in lines[2]
    assert "DequantizeLinear(int8[2, 4, 3, 3], float[], int8[])" in lines[3]


def test_a_transposed_convolution_has_them_along_axis_1():
    text = "g (float[N, 4, 5, 5] x) => (float[N, 3, 6, 6] y) { [up] y = ConvTranspose(x, w) }"
    lines = text_of(model(text, {"w": normal(4, 3, 2, 2)}), {"up": (0.04, 7)})
    assert lines[2] == (
        "[up.weight.dequantize] up.weight.dequantize.output0 = "
        "DequantizeLinear<axis=1>(int8[4, 3, 2, 2], float[3], int8[3])"
    )


def test_a_grouped_transposed_convolution_is_stored_with_its_channels_first():
    text = "g (float[N, 4, 5, 5] x) => (float[N, 6, 6, 6] y) { [up] y = ConvTranspose<group = 2>(x, w, b) }"
    weight = normal(4, 3, 2, 2) * np.array([1, 2, 4], np.float32).reshape(1, 3, 1, 1)
    weight[2:] *= 10
    lines = text_of(model(text, {"w": weight, "b": normal(6)}), {"up": (0.04, 7)})
    assert lines[3:7] == [
        "[up.weight.dequantize] up.weight.dequantize.output0 = "
        "DequantizeLinear<axis=0>(int8[6, 2, 2, 2], float[6], int8[6])",
        "[up.weight.split] up.weight.split.output0 = Reshape(up.weight.dequantize.output0, int64[5])",
        "[up.weight.transpose] up.weight.transpose.output0 = Transpose<perm=[0, 2, 1, 3, 4]>(up.weight.split.output0)",
        "[up.weight.join] up.weight.join.output0 = Reshape(up.weight.transpose.output0, int64[4])",
    ]


def test_a_product_with_the_bias_behind_it():
    text = "g (float[N, 4] x) => (float[N, 3] y) { [fc] t = MatMul(x, w) [add] y = Add(t, b) }"
    lines = text_of(model(text, {"w": normal(4, 3), "b": normal(3)}), {"fc": (0.05, 9)})
    assert lines[2:] == [
        "[fc.bias.dequantize] fc.bias.dequantize.output0 = DequantizeLinear(int32[3], float[])",
        "[fc.weight.dequantize] fc.weight.dequantize.output0 = DequantizeLinear(int8[4, 3], float[], int8[])",
        "[fc] t = MatMul(fc.input.dequantize.output0, fc.weight.dequantize.output0)",
        "[add] y = Add(t, fc.bias.dequantize.output0)",
    ]


def test_a_pooling_has_its_input_quantized():
    text = "g (float[N, 2, 6, 6] x) => (float[N, 2, 5, 5] y) { [pool] y = AveragePool<kernel_shape = [2, 2]>(x) }"
    assert text_of(model(text), {"pool": (0.05, 9)})[2:] == [
        "[pool] y = AveragePool<kernel_shape=[2, 2]>(pool.input.dequantize.output0)"
    ]


def test_layers_that_read_one_tensor_alike_share_a_pair():
    text = "g (float[2, 4] x) => (float[2, 4] y) { [a] t = MatMul(x, u) [b] s = MatMul(x, v) [c] r = MatMul(x, w) "
    text += "[d] q = Add(t, s) [e] y = Add(q, r) }"
    source = model(text, {"u": normal(4, 4), "v": normal(4, 4), "w": normal(4, 4)})
    lines = text_of(source, {"a": (0.05, 1), "b": (0.05, 1), "c": (0.05, 2)})
    assert [line.split("]")[0] for line in lines if " QuantizeLinear" in line] == [
        "[a.input.quantize",
        "[c.input.quantize",
    ]
    assert sum("MatMul(a.input.dequantize.output0" in line for line in lines) == 2


@pytest.mark.parametrize("op", ["Conv", "MatMul"])
def test_float16_layers_work_in_float32_between_casts(op):
    if op == "Conv":
        text = CONV.replace("float[", "float16[")
        weights = {"w": normal(2, 4, 3, 3, dtype=np.float16), "b": normal(2, dtype=np.float16)}
    else:
        text = "g (float16[N, 4] x) => (float16[N, 3] y) { [conv] t = MatMul(x, w) [add] y = Add(t, b) }"
        weights = {"w": normal(4, 3, dtype=np.float16), "b": normal(3, dtype=np.float16)}
    qdq, fake = both(model(text, weights), {"conv": (0.05, -3)})
    assert_same_numbers(fake, qdq, rtol=1e-3)
    lines = nodes_as_text(qdq)
    assert lines[0] == "[conv.cast] conv.cast.output0 = Cast<to=1>(x)"
    assert lines[-1] == "[conv.half] y = Cast<to=10>(conv_output0)"


def test_layers_left_float_stay_as_they_are():
    source = model("g (float[2, 4] x) => (float[2, 4] y) { [fc] y = MatMul(x, w) }", {"w": normal(4, 4)})
    state = calibrated(source, {})
    state.left_float["fc"] = "for a reason"
    run_passes((INSERT_QDQ,), state)
    assert nodes_as_text(state.graph.to_model()) == nodes_as_text(source)


def test_names_that_are_taken_are_not_given_again():
    text = "g (float[2, 4] x) => (float[2, 4] y) { [a] t = Relu(x) [fc] u = MatMul(t, w) [b] y = Neg(u) }"
    source = model(text, {"w": normal(4, 4)})
    source.graph.node[0].name = "fc.input.quantize"
    source.graph.node[0].output[0] = source.graph.node[1].input[0] = "fc.input.quantize.output0"
    lines = text_of(source, {"fc": (0.05, 0)})
    assert lines[1].startswith("[fc.input.quantize_1] fc.input.quantize.output0_1 = QuantizeLinear(")
    names = [line.split("]")[0] for line in lines]
    assert len(set(names)) == len(names)


def optimized_ops(qdq, path):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(qdq.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return {node.op_type for node in onnx.load(path).graph.node}


def test_onnxruntime_makes_integer_kernels_of_it(tmp_path):
    text = "g (float[N, 4, 6, 6] x) => (float[N, 2, 6, 6] y) { [a] t = Conv<pads = [1, 1, 1, 1]>(x, w, b) "
    text += "[r] u = Relu(t) [c] y = Conv<pads = [1, 1, 1, 1]>(u, v, b) }"
    weights = {"w": normal(2, 4, 3, 3), "v": normal(2, 2, 3, 3), "b": normal(2)}
    qdq, _ = both(model(text, weights), {"a": (0.05, -3), "c": (0.05, -128)})
    assert "QLinearConv" in optimized_ops(qdq, tmp_path / "conv.onnx")
    text = "g (float[N, 5, 4] x) => (float[N, 5, 3] y) { [fc] y = MatMul(x, w) }"
    qdq, _ = both(model(text, {"w": normal(4, 3)}), {"fc": (0.05, 9)})
    assert "MatMulIntegerToFloat" in optimized_ops(qdq, tmp_path / "matmul.onnx")
    text = "g (float[N, 4] x) => (float[N, 3] y) { [fc] y = Gemm(x, w, b) }"
    qdq, _ = both(model(text, {"w": normal(4, 3), "b": normal(3)}), {"fc": (0.05, 9)})
    assert "QGemm" in optimized_ops(qdq, tmp_path / "gemm.onnx")


@pytest.mark.parametrize("first", ["add", "fc"])
def test_a_pair_that_a_layer_and_a_tensor_share_stands_in_front_of_both(first):
    nodes = {"add": "[add] y = Add(x, x)", "fc": "[fc] z = MatMul(x, w)"}
    text = " ".join(nodes[name] for name in sorted(nodes, reverse=first == "fc"))
    source = model(f"g (float[2, 4] x) => (float[2, 4] y, float[2, 3] z) {{ {text} }}", {"w": normal(4, 3)})
    tensors = (TensorConfig(layer_name="add", input_index=0),)
    result = quantize_onnx(source, calibration=[random_feed(source, 1)], tensor_quantize=tensors, qdq=True)
    onnx.checker.check_model(result.qdq_model, full_check=True)
    assert sum(node.op_type == "QuantizeLinear" for node in result.qdq_model.graph.node) == 1
    assert list(import_qdq(result.qdq_model).plan.layers) == ["fc"]


@settings(max_examples=25, deadline=None)
@given(
    scale=st.floats(2**-10, 2**10, width=32),
    offset=st.integers(-128, 127),
    kind=st.sampled_from(["Conv", "ConvTranspose", "Gemm"]),
    group=st.sampled_from([1, 2]),
    seed=st.integers(0, 1000),
)
def test_any_scale_and_offset_gives_the_numbers_of_the_fake_quant_model(scale, offset, kind, group, seed):
    rng = np.random.default_rng(seed)
    if kind == "Gemm":
        text = "g (float[3, 4] x) => (float[3, 6] y) { [layer] y = Gemm(x, w, b) }"
        shape = (4, 6)
    else:
        text = f"g (float[1, 4, 5, 5] x) => (float[1, 6, P, Q] y) {{ [layer] y = {kind}<group = {group}>(x, w, b) }}"
        shape = (6, 4 // group, 2, 2) if kind == "Conv" else (4, 6 // group, 2, 2)
    weight, bias = rng.normal(size=shape).astype(np.float32), rng.normal(size=6).astype(np.float32)
    qdq, fake = both(model(text, {"w": weight, "b": bias}), {"layer": (scale, offset)})
    feed = {"x": (random_feed(qdq, seed)["x"] * np.float32(scale * 60)).astype(np.float32)}
    # x / scale and x * (1 / scale) may fall on different sides of a half: then one integer differs by one
    flipped = scale * float(np.abs(weight).max())
    for optimize in (False, True):
        found, wanted = (run(m, feed, optimize=optimize)["y"] for m in (qdq, fake))
        differences = np.abs(found - wanted)
        assert differences.max() <= 1e-4 * np.abs(wanted).max() + 2 * flipped
        assert np.median(differences) <= 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("opset", [11, 12])
def test_older_opsets_are_raised_and_newer_ones_are_kept(opset):
    text = "g (float[2, 4] x) => (float[2, 4] y) { [fc] t = MatMul(x, w) [s] y = Softmax<axis = 1>(t) }"
    source = detached(model(text, {"w": normal(4, 4)}, opset=opset))
    raised = with_qdq_opset(source)
    assert raised.proto.opset_import[0].version == 13
    assert_same_numbers(source.whole(), raised.whole(), rtol=1e-6)
    assert [node.name for node in Graph.of_model(raised).nodes if node.op == "MatMul"] == ["fc"]
    newer = detached(model(text, {"w": normal(4, 4)}, opset=14))
    assert with_qdq_opset(newer) is newer
