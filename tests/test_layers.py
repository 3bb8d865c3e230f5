"""passes/layers.py: where weight and bias of a layer are, and every reason for which a node is no layer."""

import numpy as np
import pytest
from graphs import model
from onnx import TensorProto, helper

from amct_onnx.passes.graph import Graph
from amct_onnx.passes.layers import (
    bias_add,
    bias_input,
    channels_first,
    group_of,
    has_weight,
    last_node,
    layout_of,
    output_channels,
    spatial_axes,
    weight_of,
    why_not,
)

IMAGE = "float[1, 4, 8, 8] x"


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


def graph_of(nodes, weights=None, inputs=IMAGE, outputs="float y"):
    return Graph.of_model(model(f"g ({inputs}) => ({outputs}) {{ {nodes} }}", weights))


def node_of(call, weights=None, inputs=IMAGE):
    return graph_of(f"[n] y = {call}", weights, inputs).nodes[0]


@pytest.mark.parametrize(
    ("call", "weights"),
    [
        ("Conv(x, w)", {"w": zeros(6, 4, 3)}),
        ("Conv(x, w, b)", {"w": zeros(6, 4, 3, 3), "b": zeros(6)}),
        ("Conv(x, w, )", {"w": zeros(6, 4, 3, 3)}),
        ("Conv<dilations = [2, 2]>(x, w)", {"w": zeros(6, 4, 3, 3)}),
        ("Conv<group = 4>(x, w)", {"w": zeros(8, 1, 3, 3)}),
        ("Conv(x, w)", {"w": zeros(6, 4, 3, 3, 3)}),
        ("Conv<dilations = [1, 2, 2]>(x, w)", {"w": zeros(6, 4, 3, 3, 3)}),
        ("Conv(x, w)", {"w": zeros(6, 4, 3, 3, dtype=np.float16)}),
        ("ConvTranspose(x, w)", {"w": zeros(4, 6, 3)}),
        ("ConvTranspose<group = 2, dilations = [1, 1]>(x, w, b)", {"w": zeros(4, 3, 3, 3), "b": zeros(6)}),
        ("Gemm(x, w)", {"w": zeros(4, 6)}),
        ("Gemm<alpha = 1.0, beta = 1.0, transA = 0, transB = 0>(x, w, b)", {"w": zeros(4, 6), "b": zeros(6)}),
        ("MatMul(x, w)", {"w": zeros(4, 6)}),
        ("AveragePool<kernel_shape = [2, 2]>(x)", {}),
        ("AveragePool<kernel_shape = [2, 2], ceil_mode = 1, count_include_pad = 1, pads = [1, 1, 1, 1]>(x)", {}),
    ],
)
def test_these_are_layers(call, weights):
    assert why_not(node_of(call, weights)) is None


@pytest.mark.parametrize(
    ("call", "weights", "sentence"),
    [
        ("Relu(x)", {}, "Relu is not an operator that can be quantized"),
        ("MaxPool<kernel_shape = [2, 2]>(x)", {}, "MaxPool is not an operator that can be quantized"),
        ("Conv(x, z)", {}, "its weight is computed at run time; only constant weights are quantized"),
        (
            "Conv(x, w, z)",
            {"w": zeros(6, 4, 3, 3)},
            "its bias is computed at run time; only a constant bias is quantized",
        ),
        (
            "Conv(x, w, b)",
            {"w": zeros(6, 4, 3, 3), "b": zeros(1)},
            "its bias has shape [1]; Ascend takes one value for each of 6 outputs",
        ),
        (
            "Conv(x, w)",
            {"w": zeros(6, 4, 3, 3, dtype=np.float64)},
            "its weight is float64; only float32 and float16 weights are quantized",
        ),
        ("Conv(x, w)", {"w": zeros(0, 4, 3, 3)}, "its weight is empty"),
        ("Conv(c, w)", {"w": zeros(6, 4, 3, 3), "c": zeros(1, 4, 8, 8)}, "its input is a constant"),
        ("Conv(x, w)", {"w": zeros(6, 4)}, "a 0-D convolution; Ascend takes 1-D, 2-D and 3-D ones"),
        ("Conv(x, w)", {"w": zeros(6, 4, 1, 1, 1, 1)}, "a 4-D convolution; Ascend takes 1-D, 2-D and 3-D ones"),
        (
            "Conv<dilations = [2, 1, 1]>(x, w)",
            {"w": zeros(6, 4, 3, 3, 3)},
            "a 3-D convolution with dilation in depth, which Ascend does not quantize",
        ),
        (
            'Conv<auto_pad = "SAME_LOWER">(x, w)',
            {"w": zeros(6, 4, 3, 3, 3)},
            "a 3-D convolution with auto_pad SAME_LOWER, which Ascend does not take; it takes pads as numbers",
        ),
        (
            "ConvTranspose(x, w)",
            {"w": zeros(4, 6, 3, 3, 3)},
            "a 3-D transposed convolution; Ascend quantizes 1-D and 2-D ones",
        ),
        (
            "ConvTranspose<dilations = [1, 2]>(x, w)",
            {"w": zeros(4, 6, 3, 3)},
            "a transposed convolution with dilation, which Ascend does not quantize",
        ),
        (
            "ConvTranspose(x, z)",
            {},
            "its weight is computed at run time; only constant weights are quantized",
        ),
        (
            "ConvTranspose<group = 2>(x, w, b)",
            {"w": zeros(4, 3, 3, 3), "b": zeros(3)},
            "its bias has shape [3]; Ascend takes one value for each of 6 outputs",
        ),
        ("Gemm(x, z)", {}, "its weight is computed at run time; only constant weights are quantized"),
        ("Gemm<transA = 1>(x, w)", {"w": zeros(4, 6)}, "Gemm with transA=1, which Ascend does not quantize"),
        ("Gemm<transB = 1>(x, w)", {"w": zeros(6, 4)}, "Gemm with transB=1, which Ascend does not quantize"),
        ("Gemm<alpha = 0.5>(x, w)", {"w": zeros(4, 6)}, "Gemm with alpha=0.5, which Ascend does not quantize"),
        ("Gemm<beta = 2.0>(x, w)", {"w": zeros(4, 6)}, "Gemm with beta=2.0, which Ascend does not quantize"),
        (
            "Gemm(x, w, b)",
            {"w": zeros(4, 6), "b": zeros(2, 6)},
            "its bias has shape [2, 6]; Ascend takes one value for each of 6 outputs",
        ),
        ("Gemm(x, w, z)", {"w": zeros(4, 6)}, "its bias is computed at run time; only a constant bias is quantized"),
        (
            "MatMul(w, x)",
            {"w": zeros(6, 4)},
            "its constant is the first input; only a constant second input is a weight",
        ),
        ("MatMul(x, w)", {"w": zeros(4)}, "its weight has 1 dimensions; Ascend takes 2"),
        ("MatMul(x, w)", {"w": zeros(2, 4, 6)}, "its weight has 3 dimensions; Ascend takes 2"),
        (
            "MatMul(x, w)",
            {"w": zeros(4, 6, dtype=np.int32)},
            "its weight is int32; only float32 and float16 weights are quantized",
        ),
        ("MatMul(c, w)", {"w": zeros(4, 6), "c": zeros(2, 4)}, "its input is a constant"),
        ("AveragePool<kernel_shape = [2]>(x)", {}, "a 1-D pooling; Ascend quantizes 2-D ones"),
        ("AveragePool<kernel_shape = [2, 2, 2]>(x)", {}, "a 3-D pooling; Ascend quantizes 2-D ones"),
        (
            "AveragePool<kernel_shape = [2, 2], dilations = [1, 2]>(x)",
            {},
            "a pooling with dilation, which Ascend does not quantize",
        ),
    ],
)
def test_every_reason_is_a_sentence(call, weights, sentence):
    inputs = f"{IMAGE}, float[6] z" if "z)" in call else IMAGE
    assert why_not(node_of(call, weights, inputs)) == sentence


def test_an_operator_of_another_domain_is_no_layer():
    source = model(f"g ({IMAGE}) => (float y) {{ [n] y = Conv(x, w) }}", {"w": zeros(6, 4, 3, 3)})
    source.graph.node[0].domain = "custom"
    source.opset_import.append(helper.make_opsetid("custom", 1))
    node = Graph.of_model(source).nodes[0]
    assert why_not(node) == "custom.Conv is not an operator that can be quantized"


def test_a_convolution_without_a_weight_is_no_layer():
    assert why_not(node_of("Conv(x, )")) == "Conv has no weight"


@pytest.mark.parametrize("name", ["BFLOAT16", "FLOAT8E4M3FN"])
def test_a_weight_of_a_type_without_a_numpy_twin_is_told_by_its_name(name):
    source = model(f"g ({IMAGE}) => (float y) {{ [n] y = MatMul(x, w) }}")
    source.graph.initializer.append(helper.make_tensor("w", getattr(TensorProto, name), [4, 6], [0.0] * 24))
    reason = why_not(Graph.of_model(source).nodes[0])
    assert reason == f"its weight is {name.lower()}; only float32 and float16 weights are quantized"


# Places


def counting(*shape):
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize(
    ("call", "shape", "channels", "group", "axes"),
    [
        ("Conv(x, w)", (6, 4, 3), 6, 1, 1),
        ("Conv<group = 2>(x, w)", (6, 2, 3, 3), 6, 2, 2),
        ("ConvTranspose(x, w)", (4, 6, 3, 3), 6, 1, 2),
        ("ConvTranspose<group = 2>(x, w)", (4, 3, 3, 3), 6, 2, 2),
        ("Gemm(x, w)", (4, 6), 6, 1, None),
        ("MatMul(x, w)", (4, 6), 6, 1, None),
    ],
)
def test_the_parts_of_a_layer(call, shape, channels, group, axes):
    node = node_of(call, {"w": counting(*shape)})
    assert has_weight(node)
    assert (output_channels(node), group_of(node), spatial_axes(node)) == (channels, group, axes)
    weight = weight_of(node)
    first = channels_first(node, weight)
    assert first.shape[0] == channels
    np.testing.assert_array_equal(layout_of(node).restored(first), weight)


def test_the_channels_of_a_grouped_transposed_convolution_run_group_by_group():
    node = node_of("ConvTranspose<group = 2>(x, w)", {"w": counting(4, 3, 1, 1)})
    first = channels_first(node, weight_of(node))[:, :, 0, 0]
    np.testing.assert_array_equal(first, [[0, 3], [1, 4], [2, 5], [6, 9], [7, 10], [8, 11]])


def test_a_pooling_has_no_weight_and_as_many_axes_as_its_kernel():
    node = node_of("AveragePool<kernel_shape = [2, 2, 2]>(x)")
    assert not has_weight(node)
    assert spatial_axes(node) == 3


def test_the_rank_of_a_convolution_with_a_computed_weight_is_not_known():
    assert spatial_axes(node_of("Conv(x, z)", inputs=f"{IMAGE}, float[6, 4, 3, 3] z")) is None


# The bias of a MatMul


def matmul_and(rest, bias=None, outputs="float y", weight=None, **more):
    weights = {"w": zeros(4, 6) if weight is None else weight, "b": counting(6) if bias is None else bias, **more}
    used = {name: values for name, values in weights.items() if name in ("w", "b") or name in rest}
    return graph_of(f"[n] m = MatMul(x, w) {rest}", used, "float[2, 4] x, float[6] z", outputs)


def test_the_add_behind_a_matmul_is_its_bias():
    graph = matmul_and("[bias] y = Add(m, b)")
    matmul, add = graph.nodes
    assert bias_add(graph, matmul) is add
    assert last_node(graph, matmul) is add
    place = bias_input(graph, matmul)
    assert place is not None
    assert place[0] is add
    assert place[1] == 1


@pytest.mark.parametrize(
    "graph",
    [
        pytest.param(lambda: matmul_and("y = Add(b, m)"), id="the constant is the first operand"),
        pytest.param(lambda: matmul_and("y = Sub(m, b)"), id="it is not an Add"),
        pytest.param(lambda: matmul_and("y = Add(m, z)"), id="the operand is computed at run time"),
        pytest.param(lambda: matmul_and("y = Add(m, b)", zeros(1, 6)), id="one row"),
        pytest.param(lambda: matmul_and("y = Add(m, b)", zeros(1)), id="one value"),
        pytest.param(lambda: matmul_and("y = Add(m, b)", zeros()), id="a scalar"),
        pytest.param(lambda: matmul_and("y = Add(m, b)", zeros(2, 6)), id="a row for every sample"),
        pytest.param(lambda: matmul_and("y = Add(m, m)"), id="the product itself"),
        pytest.param(lambda: matmul_and("a = Add(m, b) c = Relu(m) y = Add(a, c)"), id="another reader"),
        pytest.param(lambda: matmul_and("y = Add(m, b)", outputs="float y, float m"), id="an output of the model"),
        pytest.param(lambda: matmul_and("y = Neg(m)", zeros(6)), id="no Add"),
    ],
)
def test_this_is_no_bias_of_a_matmul(graph):
    graph = graph()
    matmul = graph.nodes[0]
    assert bias_add(graph, matmul) is None
    assert bias_input(graph, matmul) is None
    assert last_node(graph, matmul) is matmul


def test_an_add_of_another_domain_is_no_bias():
    source = model(
        "g (float[2, 4] x) => (float y) { m = MatMul(x, w) y = Add(m, b) }", {"w": zeros(4, 6), "b": zeros(6)}
    )
    source.graph.node[1].domain = "custom"
    source.opset_import.append(helper.make_opsetid("custom", 1))
    graph = Graph.of_model(source)
    assert bias_add(graph, graph.nodes[0]) is None


@pytest.mark.parametrize("shape", ["float[4, 6]", "float[4, N]", "float[4]", "float"])
@pytest.mark.parametrize("nodes", ["m = MatMul(x, z)", "c = Relu(z) m = MatMul(x, c)"])
def test_a_matmul_without_a_constant_weight_has_no_bias(shape, nodes):
    graph = graph_of(f"{nodes} y = Add(m, b)", {"b": zeros(6)}, f"float[2, 4] x, {shape} z")
    matmul = graph.nodes[-2]
    assert bias_add(graph, matmul) is None
    assert last_node(graph, matmul) is matmul


def test_a_matmul_with_a_vector_has_no_bias():
    graph = graph_of("m = MatMul(x, w) y = Add(m, b)", {"w": zeros(4), "b": zeros(6)}, "float[2, 6, 4] x")
    assert bias_add(graph, graph.nodes[0]) is None


@pytest.mark.parametrize(
    ("call", "place"),
    [
        ("Conv(x, w, b)", 2),
        ("ConvTranspose(x, w, b)", 2),
        ("Gemm(x, w, b)", 2),
        ("Conv(x, w)", None),
        ("Conv(x, w, )", None),
        ("AveragePool<kernel_shape = [2, 2]>(x)", None),
    ],
)
def test_the_bias_of_the_other_layers_is_their_third_input(call, place):
    graph = graph_of(f"[n] y = {call}", {"w": zeros(4, 4, 1, 1), "b": zeros(4)})
    node = graph.nodes[0]
    found = bias_input(graph, node)
    assert (None if found is None else (found[0].name, found[1])) == (None if place is None else ("n", place))
    assert last_node(graph, node) is node
