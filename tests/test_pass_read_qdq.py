"""read QDQ: what is taken out of a graph, what stands in its place, and what it says of the layers."""

import re

import numpy as np
import pytest
from graphs import initializers, model, nodes_as_text
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from amct_onnx.errors import ModelError
from amct_onnx.kernels.dequant import quantize_bias, restore_bias
from amct_onnx.passes.graph import Graph
from amct_onnx.passes.manager import run_passes
from amct_onnx.passes.pipelines import BEFORE_READING
from amct_onnx.passes.read_qdq import read_qdq
from amct_onnx.passes.state import QuantState

RNG = np.random.default_rng(3)
F, S, U = np.float32, np.int8, np.uint8


def ints(*shape, dtype=np.int8):
    return RNG.integers(-127, 128, shape).astype(dtype)


def read(text, weights, opset=13):
    """What was found, and the float model that is left."""
    state = QuantState(graph=Graph.of_model(model(text, weights, opset=opset)))
    run_passes(BEFORE_READING, state)
    reading = read_qdq(state.graph)
    return reading, state.graph.to_model()


CONV = """
g (float[N, 4, 6, 6] x) => (float[N, 3, 6, 6] y) {
  [q] xq = QuantizeLinear(x, s, z)
  [d] xd = DequantizeLinear(xq, s, z)
  [dw] wd = DequantizeLinear<axis = 0>(w, sw, zw)
  [db] bd = DequantizeLinear<axis = 0>(b, sb)
  [conv] y = Conv<pads = [1, 1, 1, 1]>(xd, wd, bd)
}
"""


def conv_weights(**changed):
    weights = {"s": F(0.05), "z": S(-7), "w": ints(3, 4, 3, 3), "sw": np.array([0.01, 0.02, 0.04], F)}
    weights |= {"zw": np.zeros(3, S), "b": np.array([1, -2, 300], np.int32)}
    weights |= {"sb": weights["sw"] * F(0.05)} | changed
    return {name: values for name, values in weights.items() if values is not None}


def test_a_pair_in_front_of_a_layer_is_its_scale_and_a_clip_takes_its_place():
    weights = conv_weights()
    reading, left = read(CONV, weights)
    assert nodes_as_text(left) == [
        "[d.clip] d.clip.output0 = Clip(x, float[], float[])",
        "[conv] y = Conv<pads=[1, 1, 1, 1]>(d.clip.output0, float[3, 4, 3, 3], float[3])",
    ]
    found = reading.activations["conv"]
    assert (found.scale, found.offset, found.num_bits) == (F(0.05), -7, 8)
    np.testing.assert_array_equal(reading.weights["conv"].scale, weights["sw"])
    assert reading.weights["conv"].axis == 0
    values = initializers(left)
    np.testing.assert_array_equal(values["w"], weights["w"] * weights["sw"].reshape(-1, 1, 1, 1))
    np.testing.assert_array_equal(values["b"], (weights["b"] * weights["sb"]).astype(F))
    np.testing.assert_allclose(
        [values["d.clip.min"], values["d.clip.max"]], [(-128 + 7) * 0.05, (127 + 7) * 0.05], 1e-6
    )
    assert reading.reasons == {}
    (pair,) = reading.pairs
    assert (pair.quantize, pair.dequantize, pair.source, pair.layers, pair.others) == ("q", "d", None, ("conv",), ())
    assert not pair.is_narrow
    assert reading.gone == {"dw": "computed once and for all, for 'w'", "db": "computed once and for all, for 'b'"}


@pytest.mark.parametrize("zero", [0, 3, 128, 255])
def test_uint8_becomes_int8(zero):
    assert read(CONV, conv_weights(z=U(zero)))[0].activations["conv"].offset == zero - 128


def test_zero_points_may_be_missing():
    text = CONV.replace("(x, s, z)", "(x, s)").replace("(xq, s, z)", "(xq, s)").replace("(w, sw, zw)", "(w, sw)")
    reading, _ = read(text, conv_weights(z=None, zw=None))
    assert reading.activations["conv"].offset == -128, "without one the integers are uint8"
    assert list(reading.weights) == ["conv"]


def test_parameters_may_be_constant_nodes_and_arrays_of_one():
    text = CONV.replace(
        "{", "{ [k] s = Constant<value = float[1] {0.05}>() [l] z = Constant<value = int8[1] {-7}>()", 1
    )
    reading, _ = read(text, conv_weights(s=None, z=None))
    assert reading.activations["conv"].scale.shape == ()
    assert reading.activations["conv"].offset == -7


def test_uint8_weights_around_128_are_symmetric():
    weights = conv_weights()
    shifted = (weights["w"].astype(int) + 128).astype(U)
    reading, left = read(CONV, weights | {"w": shifted, "zw": np.full(3, 128, U)})
    assert list(reading.weights) == ["conv"]
    np.testing.assert_array_equal(initializers(left)["w"], weights["w"] * weights["sw"].reshape(-1, 1, 1, 1))


def test_float_weights_are_rounded_to_their_grid():
    text = CONV.replace(
        "[dw] wd = DequantizeLinear<axis = 0>(w,",
        "[qw] wq = QuantizeLinear<axis = 0>(w, sw, zw) [dw] wd = DequantizeLinear<axis = 0>(wq,",
    )
    weights = conv_weights(w=RNG.normal(size=(3, 4, 3, 3)).astype(F))
    reading, left = read(text, weights)
    scale = weights["sw"].reshape(-1, 1, 1, 1)
    wanted = np.clip(np.rint(weights["w"] / scale), -128, 127) * scale
    np.testing.assert_array_equal(initializers(left)["w"], wanted.astype(F))
    assert sorted(reading.gone) == ["db", "dw", "qw"]


def test_weights_may_be_turned_behind_their_grid():
    text = CONV.replace("[conv]", "[turn] wt = Transpose<perm = [1, 0, 2, 3]>(wd) [conv]").replace("xd, wd", "xd, wt")
    weights = conv_weights(w=ints(4, 3, 3, 3))
    reading, _ = read(text.replace("DequantizeLinear<axis = 0>(w,", "DequantizeLinear(w,"), weights)
    np.testing.assert_array_equal(reading.weights["conv"].scale, weights["sw"])


def test_one_scale_for_all_weights_stays_one():
    weights = conv_weights(sw=F(0.01), zw=S(0), sb=F(0.0005))
    text = CONV.replace("<axis = 0>", "")
    assert read(text, weights)[0].weights["conv"].axis is None


def gemm(between="", source="xd", **changed):
    text = (
        "g (float[N, 4] x) => (float[N, 3] y) { [q] xq = QuantizeLinear(x, s, z) [d] xd = DequantizeLinear(xq, s, z) "
    )
    text += f"{between} [dw] wd = DequantizeLinear(w, sw, zw) [fc] y = Gemm<transB = 1>({source}, wd) }}"
    weights = {"s": F(0.05), "z": S(-7), "w": ints(3, 4), "sw": F(0.01), "zw": S(0)} | changed
    return text, weights


@pytest.mark.parametrize(
    "between",
    [
        "[r] m = Relu(xd)",
        "[r] m = Identity(xd)",
        "[r] a = Unsqueeze(xd, k) [t] m = Squeeze(a, k)",
        "[r] a = Transpose<perm = [1, 0]>(xd) [t] m = Transpose<perm = [1, 0]>(a)",
        "[r] m = Pad(xd, p)",
    ],
)
def test_what_moves_values_may_stand_between_pair_and_layer(between):
    text, weights = gemm(between, "m", k=np.array([0]), p=np.array([0, 0, 0, 0]))
    used = {
        name: values for name, values in weights.items() if f"{name})" in text or f" {name}," in text or name in "wz"
    }
    reading, _ = read(text, used)
    assert list(reading.activations) == ["fc"]
    assert reading.pairs[0].others == ()


def test_what_computes_may_not():
    text, weights = gemm("[r] m = Sigmoid(xd)", "m")
    reading, _ = read(text, weights)
    assert reading.activations == {}
    assert reading.reasons == {"fc": "no QuantizeLinear is in front of its input"}
    assert reading.pairs[0].others == ("r",)


def test_integers_may_be_moved_inside_of_a_pair():
    text = "g (float[N, 4] x) => (float[N, 3] y) { [q] xq = QuantizeLinear(x, s, z) [m] xm = Reshape(xq, k) "
    text += (
        "[d] xd = DequantizeLinear(xm, s, z) [dw] wd = DequantizeLinear(w, sw, zw) [fc] y = Gemm<transB = 1>(xd, wd) }"
    )
    reading, left = read(text, gemm()[1] | {"k": np.array([-1, 4])})
    assert list(reading.activations) == ["fc"]
    assert nodes_as_text(left)[0] == "[m] xm = Reshape(x, int64[2])"


@pytest.mark.parametrize("moved", [False, True])
def test_a_cast_to_the_type_that_the_integers_have_is_none(moved):
    """PyTorch writes one in front of every DequantizeLinear of a network that it converted to integers."""
    text, weights = gemm(z=U(121))
    inner = "[m] xm = Identity(xq) [c] xc = Cast<to = 2>(xm)" if moved else "[c] xc = Cast<to = 2>(xq)"
    text = text.replace("[d] xd = DequantizeLinear(xq,", f"{inner} [d] xd = DequantizeLinear(xc,")
    reading, left = read(text, weights)
    assert reading.activations["fc"].offset == -7
    assert reading.gone["c"] == "casts integers to the type that they have"
    assert "Cast" not in [node.op_type for node in left.graph.node]


def test_integers_that_are_cut_off_further_keep_their_limits():
    text, weights = gemm()
    text = text.replace("[d] xd = DequantizeLinear(xq,", "[c] xc = Clip(xq, , high) [d] xd = DequantizeLinear(xc,")
    reading, left = read(text, weights | {"high": S(60)})
    assert reading.pairs[0].is_narrow
    np.testing.assert_allclose(initializers(left)["d.clip.max"], (60 + 7) * 0.05, 1e-6)
    assert [line.split("]")[0] for line in nodes_as_text(left)] == ["[d.clip", "[fc"]


def test_a_pair_that_others_read_too_is_said():
    text = CONV.replace("y) {", "y, float[N, 4, 6, 6] o) {").replace("[conv]", "[neg] o = Neg(xd) [conv]")
    reading, left = read(text, conv_weights())
    assert reading.pairs[0].others == ("neg",)
    assert "[neg] o = Neg(d.clip.output0)" in nodes_as_text(left)


def test_one_quantizer_may_have_several_dequantizers_and_pairs_may_follow_each_other():
    text = CONV.replace("[conv]", "[d2] xe = DequantizeLinear(xq, s, z) [q3] xr = QuantizeLinear(xe, s, z) [conv]")
    text = text.replace("[conv]", "[d3] xs = DequantizeLinear(xr, s, z) [conv]")
    text = text.replace("(xd, wd, bd)", "(xs, wd, bd)").replace("y) {", "y, float[N, 4, 6, 6] o) { ", 1)
    text = text.replace("[conv]", "[neg] o = Neg(xd) [conv]")
    reading, left = read(text, conv_weights())
    assert [(p.quantize, p.dequantize, p.layers, p.others) for p in reading.pairs] == [
        ("q", "d", (), ("neg",)),
        ("q", "d2", (), ("q3",)),
        ("q3", "d3", ("conv",), ()),
    ]
    assert [line.split("]")[0] for line in nodes_as_text(left)] == ["[d.clip", "[d2.clip", "[d3.clip", "[neg", "[conv"]


def test_onnxruntimes_own_operators_are_read():
    source = model(CONV, conv_weights())
    for node in source.graph.node[:3]:
        node.domain = "com.microsoft"
    state = QuantState(graph=Graph.of_model(source))
    run_passes(BEFORE_READING, state)
    assert list(read_qdq(state.graph).activations) == ["conv"]


def test_limits_are_attributes_in_opset_10():
    text = CONV.replace("<axis = 0>", "")
    weights = conv_weights(sw=F(0.01), zw=S(0), sb=F(0.0005))
    line = nodes_as_text(read(text, weights, opset=10)[1])[0]
    assert line.startswith("[d.clip] d.clip.output0 = Clip<max=6.7")


def test_pairs_inside_of_bodies_are_refused():
    text = """
    g (float[4] x, bool c) => (float[4] y) {
      [if] y = If(c) <then_branch = t () => (float[4] a) {
        [inner] i = QuantizeLinear(x, s, z) [other] a = DequantizeLinear(i, s, z)
      }, else_branch = e () => (float[4] b) { [same] b = Identity(x) }>
    }
    """
    with pytest.raises(ModelError, match="QuantizeLinear 'inner' is inside the body of If 'if'"):
        read(text, {"s": F(0.1), "z": S(0)})


def test_an_output_keeps_its_name():
    text = (
        "g (float[N, 4] x) => (float[N, 4] y) { [q] xq = QuantizeLinear(x, s, z) [d] y = DequantizeLinear(xq, s, z) }"
    )
    reading, left = read(text, {"s": F(0.05), "z": S(-7)})
    assert reading.pairs[0].others == ("",)
    assert nodes_as_text(left)[-1] == "[d.identity] y = Identity(d.clip.output0)"


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"zw": np.array([0, 1, 0], S)}, "its weight has a zero point; Ascend takes symmetric weights only"),
        (
            {"w": ints(3, 4, 3, 3).view(U), "zw": np.zeros(3, U)},
            "its weight has a zero point; .* symmetric weights only",
        ),
        ({"sw": np.array([0.1, 0, 0.1], F)}, "a scale of its weight is not above 0"),
        ({"w": np.ones((3, 4, 3, 3), F)}, None),
    ],
)
def test_weights_that_the_chip_does_not_take_are_said(changed, reason):
    if reason is None:
        text, weights = CONV.replace("wd, bd", "w, bd"), conv_weights(**changed)
        reason = "its weight is not quantized: no DequantizeLinear is in front of it"
    else:
        text, weights = CONV, conv_weights(**changed)
    reading, _ = read(text, weights)
    assert reading.activations == reading.weights == {}
    (said,) = reading.reasons.values()
    assert re.fullmatch(reason, said)


def test_scales_along_another_axis_than_the_output_channels_are_said():
    text = CONV.replace("DequantizeLinear<axis = 0>(w,", "DequantizeLinear<axis = 1>(w,")
    reading, _ = read(text, conv_weights(sw=np.array([1, 2, 3, 4], F) / 99, zw=np.zeros(4, S), sb=F(1)))
    assert reading.reasons == {"conv": "its weight has scales that do not run along the output channels"}


def test_a_product_has_one_scale_for_its_weight():
    text, weights = gemm(sw=np.array([0.01, 0.02, 0.03], F), zw=np.zeros(3, S))
    reading, _ = read(text.replace("DequantizeLinear(w,", "DequantizeLinear<axis = 0>(w,"), weights)
    assert reading.reasons == {"fc": "its weight has a scale for each channel; Ascend takes one for Gemm"}
    text, weights = gemm(sw=np.full(3, 0.01, F), zw=np.zeros(3, S))
    reading, _ = read(text.replace("DequantizeLinear(w,", "DequantizeLinear<axis = 0>(w,"), weights)
    assert reading.weights["fc"].scale.shape == ()


@pytest.mark.parametrize(("zero", "offset"), [(np.int16(-300), -300), (np.uint16(300), 300 - 32768)])
def test_16_bits_are_read(zero, offset):
    text, weights = gemm(z=zero)
    reading, _ = read(text, weights, opset=21)
    found = reading.activations["fc"]
    assert (found.num_bits, int(found.offset)) == (16, offset)


def test_32_bits_and_scales_per_channel_of_activations_are_said():
    text, weights = gemm(z=np.int32(0))
    reading, _ = read(text, weights)
    assert reading.reasons == {"fc": "its input is quantized to int32; integers of 8 and 16 bits are taken"}
    text, weights = gemm(s=np.full(4, 0.1, F) * [1, 2, 3, 4], z=np.zeros(4, S))
    reading, left = read(text, weights | {"s": np.array([1, 2, 3, 4], F)})
    assert reading.reasons == {"fc": "its input has a scale for each channel; Ascend takes one"}
    assert reading.pairs[0].clip is None
    assert len(left.graph.node) == 1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("(xq, s, z)", "(xq, sw, z)", r"'q' and 'd' behind it have different scales or zero points"),
        ("(x, s, z)", "(x, r, z)", r"the scale of QuantizeLinear 'q' is computed at run time"),
        ("[q] xq = QuantizeLinear(x, s, z)", "[q] xq = Cast<to = 3>(x)", r"'d' reads integers of 'q' \(Cast\)"),
        (
            "xd = DequantizeLinear(xq,",
            "xc = Cast<to = 2>(xq) [e] xd = DequantizeLinear(xc,",
            r"'e' reads integers of 'd'",
        ),
        ("[fc]", "[c] o = Cast<to = 1>(xq) [fc]", r"'c' \(Cast\) takes the integers of 'q'; only those that Deq"),
        ("[fc]", "[m] o = MatMulInteger(xq, xq) [fc]", r"node 'm' \(MatMulInteger\) works on integers; export"),
    ],
)
def test_what_cannot_be_converted_is_refused(old, new, message):
    text, weights = gemm()
    text = text.replace("{ ", "{ [run] r = ReduceMax<keepdims = 0>(x) ", 1) if "r, z" in new else text
    text = text.replace("float[N, 3] y)", "float[N, 3] y, float[N, 4] o)") if " o = " in new else text
    with pytest.raises(ModelError, match=message):
        read(text.replace(old, new), weights)


def test_a_model_without_any_is_refused():
    with pytest.raises(ModelError, match="has no QuantizeLinear and DequantizeLinear"):
        read("g (float[N, 4] x) => (float[N, 4] y) { [r] y = Relu(x) }", {})


def test_numbers_of_scales_that_do_not_fit_are_refused():
    with pytest.raises(ModelError, match=r"'dw' has 2 scales along axis 0 of a constant of shape \[3, 4, 3, 3\]"):
        read(CONV, conv_weights(sw=np.ones(2, F), zw=np.zeros(2, S)))
    with pytest.raises(ModelError, match=r"'dw' has 3 scales and 2 zero points"):
        read(CONV, conv_weights(zw=np.zeros(2, S)))


@given(
    levels=hnp.arrays(np.float32, 8, elements=st.floats(-(2.0**31), 2.0**31 - 256, width=32)),
    scale=st.floats(2.0**-60, 2.0**20, width=32),
)
def test_a_bias_comes_back_to_the_levels_that_it_was_quantized_to(levels, scale):
    scale = np.float32(scale)
    quantized = quantize_bias((levels * scale).astype(np.float32).clip(-(2.0**30) * scale, 2.0**30 * scale), scale)
    np.testing.assert_array_equal(quantize_bias(restore_bias(quantized, scale), scale), quantized)
