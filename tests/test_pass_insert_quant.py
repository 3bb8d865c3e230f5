"""insert AscendQuant: one in front of every layer, with the reciprocal of the scale."""

import numpy as np
import pytest
from graphs import calibrated, initializers, model, nodes_as_text

from amct_onnx.passes.insert_quant import INSERT_QUANT
from amct_onnx.passes.manager import run_passes

RNG = np.random.default_rng(7)


def normal(*shape, dtype=np.float32):
    return RNG.normal(size=shape).astype(dtype)


def inserted(source, scales):
    state = calibrated(source, scales)
    before = state.graph.to_model()
    run_passes((INSERT_QUANT,), state)
    assert (state.gone, state.remarks, state.left_float) == ({}, {}, {})
    after = state.graph.to_model()
    np.testing.assert_equal(initializers(after), initializers(before))
    return nodes_as_text(after)


def test_every_layer_reads_its_own_quantized_input():
    text = "g (float[1, 2, 6, 6] x) => (float[1, 2, 5, 5] y) { [conv] c = Conv(x, w, b) [relu] r = Relu(c) "
    text += "[pool] y = AveragePool<kernel_shape = [2, 2]>(r) }"
    source = model(text, {"w": normal(2, 2, 1, 1), "b": normal(2)})
    assert inserted(source, {"conv": (0.25, -3), "pool": (0.5, 0)}) == [
        "[conv.quant] conv.quant.output0 = AscendQuant<dst_type=INT8, offset=-3.0, scale=4.0>(x)",
        "[conv] c = Conv<kernel_shape=[1, 1]>(conv.quant.output0, float[2, 2, 1, 1], float[2])",
        "[relu] r = Relu(c)",
        "[pool.quant] pool.quant.output0 = AscendQuant<dst_type=INT8, offset=0.0, scale=2.0>(r)",
        "[pool] y = AveragePool<kernel_shape=[2, 2]>(pool.quant.output0)",
    ]


@pytest.mark.parametrize("scale", [0.1, 1 / 3, 0.0762821, 1e-7, 3e38])
def test_the_scale_is_the_reciprocal_in_float32(scale):
    source = model("g (float[2, 4] x) => (float[2, 4] y) { [fc] y = MatMul(x, w) }", {"w": normal(4, 4)})
    line = inserted(source, {"fc": (scale, -128)})[0]
    expected = float(np.float32(1) / np.float32(scale))
    assert line == f"[fc.quant] fc.quant.output0 = AscendQuant<dst_type=INT8, offset=-128.0, scale={expected}>(x)"


def test_what_else_reads_the_input_keeps_reading_it():
    text = "g (float[2, 4] x) => (float[2, 4] y) { [a] t = MatMul(x, w) [b] u = MatMul(x, v) "
    text += "[c] s = Add(t, u) [d] y = Add(s, x) }"
    source = model(text, {"w": normal(4, 4), "v": normal(4, 4)})
    assert inserted(source, {"a": (0.5, 1), "b": (0.5, 1)}) == [
        "[a.quant] a.quant.output0 = AscendQuant<dst_type=INT8, offset=1.0, scale=2.0>(x)",
        "[a] t = MatMul(a.quant.output0, float[4, 4])",
        "[b.quant] b.quant.output0 = AscendQuant<dst_type=INT8, offset=1.0, scale=2.0>(x)",
        "[b] u = MatMul(b.quant.output0, float[4, 4])",
        "[c] s = Add(t, u)",
        "[d] y = Add(s, x)",
    ]


def test_layers_left_float_get_none():
    source = model("g (float[2, 4] x) => (float[2, 4] y) { [fc] y = MatMul(x, w) }", {"w": normal(4, 4)})
    state = calibrated(source, {})
    state.left_float["fc"] = "for a reason"
    run_passes((INSERT_QUANT,), state)
    assert nodes_as_text(state.graph.to_model()) == nodes_as_text(source)


def test_names_of_tensors_and_nodes_that_are_taken_are_not_given_again():
    text = "g (float[2, 4] x) => (float[2, 4] y) { [a] t = Relu(x) [fc] u = MatMul(t, w) [b] y = Neg(u) }"
    source = model(text, {"w": normal(4, 4)})
    source.graph.node[0].name = "fc.quant"
    source.graph.node[0].output[0] = source.graph.node[1].input[0] = "fc.quant.output0"
    lines = inserted(source, {"fc": (0.5, 0)})
    assert "fc.quant.output0_1 = AscendQuant<dst_type=INT8, offset=0.0, scale=2.0>(fc.quant.output0)" in lines[1]
    names = [line.split("]")[0] for line in lines]
    assert len(set(names)) == len(names), "onnxruntime refuses two nodes of one name"
