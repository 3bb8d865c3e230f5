"""passes/shapes.py: what is known of the tensors, and that nothing is claimed that does not follow from the model."""

import numpy as np
import pytest
from graphs import model
from odd_graphs import ODD_GRAPHS
from odd_graphs.build import Net, odd
from onnx import TensorProto, helper, numpy_helper

from amct_onnx.passes.graph import Graph
from amct_onnx.passes.shapes import TensorType, infer_types

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64


def types_of(text, weights=None, edit=None, **options):
    source = model(text, weights, **options)
    if edit is not None:
        edit(source)
    return infer_types(Graph.of_model(source))


def floats(*shape):
    return TensorType(elem_type=FLOAT, shape=shape)


def test_dimensions_are_numbers_where_known_and_none_where_free():
    text = "g (float[N, 3] x) => (float[M, 4] y) { a = MatMul(x, w) b = Transpose<perm = [1, 0]>(a) y = Relu(a) }"
    types = types_of(text, {"w": np.zeros((3, 4), np.float32)})
    assert types == {"x": floats(None, 3), "a": floats(None, 4), "b": floats(4, None), "y": floats(None, 4)}


def test_large_weights_count_with_their_shape():
    text = "g (float[2, 3] x) => (float[2, 1000] y) { a = MatMul(x, w) y = Relu(a) }"
    types = types_of(text, {"w": np.zeros((3, 1000), np.float32)})
    assert types["a"] == floats(2, 1000)


def test_large_weights_of_types_without_a_numpy_twin_count_with_their_shape():
    def add(m):
        m.graph.initializer.append(helper.make_tensor("w", TensorProto.BFLOAT16, [3, 1000], [0.0] * 3000))

    types = types_of("g (bfloat16[2, 3] x) => (bfloat16[2, 1000] y) { a = MatMul(x, w) y = Relu(a) }", edit=add)
    assert types["a"] == TensorType(elem_type=TensorProto.BFLOAT16, shape=(2, 1000))


def test_shapes_that_depend_on_small_constants_are_known():
    text = "g (float[2, 6] x) => (float[3, 4] y) { a = Reshape(x, s) y = Relu(a) }"
    assert types_of(text, {"s": np.array([3, 4])})["a"] == floats(3, 4)


def test_shapes_that_are_computed_from_known_shapes_are_known():
    text = "g (float[2, 3, 4] x, float[24] z) => (float[m, n, o] y) { s = Shape(x) a = Reshape(z, s) y = Relu(a) }"
    types = types_of(text, opset=15)
    assert types["s"] == TensorType(elem_type=INT64, shape=(3,))
    assert types["a"] == floats(2, 3, 4)


def test_scalars_have_no_dimensions_and_unknown_ranks_no_shape():
    text = "g (float[2] x, int64[r] s) => (float[2] y) { a = ReduceSum<keepdims = 0>(x) b = Reshape(x, s) y = Relu(x) }"
    types = types_of(text)
    assert types["a"] == floats()
    assert types.get("b", floats()).shape in (None, ())
    assert types.get("b") is None or types["b"].shape is None


def test_an_axis_of_size_zero_is_known():
    types = types_of(
        "g (float[2, 3] x) => (float[2, 0] y) { a = MatMul(x, w) y = Relu(a) }", {"w": np.zeros((3, 0), "f")}
    )
    assert types["a"] == floats(2, 0)


def test_sequences_and_what_follows_from_operators_unknown_are_absent():
    text = "g (float[2] x) => (float[2] y) { s = SequenceConstruct(x, x) c = Foo(x) d = Relu(c) y = Relu(x) }"

    def custom(m):
        m.graph.node[1].domain = "custom"
        m.opset_import.append(helper.make_opsetid("custom", 1))

    types = types_of(text, edit=custom)
    assert "s" not in types
    assert "c" not in types
    assert types["y"] == floats(2)
    assert types.get("d") is None or types["d"].shape is None


@pytest.mark.parametrize("place", ["inside", "output"])
def test_what_the_model_says_of_operators_unknown_is_taken(place):
    outputs = "float[2] y, float[7] c" if place == "output" else "float[2] y"
    text = f"g (float[2] x) => ({outputs}) {{ c = Foo(x) d = Neg(c) y = Relu(x) }}"

    def custom(m):
        m.graph.node[0].domain = "custom"
        m.opset_import.append(helper.make_opsetid("custom", 1))
        if place == "inside":
            m.graph.value_info.append(helper.make_tensor_value_info("c", FLOAT, [7]))

    types = types_of(text, edit=custom)
    assert types["c"] == types["d"] == floats(7)


def test_a_model_that_defeats_inference_keeps_what_it_says_of_its_ends():
    text = "g (float[2, 3] x, float[4, 5] z) => (float[2, 5] y) { y = MatMul(x, z) }"
    types = types_of(text)
    assert types["x"] == floats(2, 3)
    assert types["z"] == floats(4, 5)


@pytest.mark.parametrize("place", ["inside", "output"])
def test_a_size_noted_in_the_file_does_not_outweigh_the_one_that_follows_from_the_inputs(place):
    """Exporters write down the batch that they traced with; the batch axis is free all the same."""
    end = "z" if place == "output" else "y"
    text = f"g (float[N, 3] x) => (float[1, 4] {end}) {{ z = MatMul(x, w) y = Relu(z) }}"

    def note(m):
        if place == "inside":
            m.graph.value_info.append(helper.make_tensor_value_info("z", FLOAT, [1, 4]))
            m.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "N"

    assert types_of(text, {"w": np.zeros((3, 4), np.float32)}, note)["z"] == floats(None, 4)


def test_the_graph_is_left_as_it_is():
    text = "g (float[2, 3] x) => (float[2, 1000] y) { a = MatMul(x, w) y = Relu(a) }"
    graph = Graph.of_model(model(text, {"w": np.ones((3, 1000), np.float32)}))
    before = graph.to_model().SerializeToString(deterministic=True)
    infer_types(graph)
    assert graph.to_model().SerializeToString(deterministic=True) == before


def test_bodies_do_not_hinder():
    build = next(build for build in ODD_GRAPHS if build.__name__ == "if_bodies")
    types = infer_types(Graph.of_model(build().model))
    assert types["relu1.out"].shape == (None, 16, 16, 16)


def test_an_odd_net_of_free_sizes_has_known_channels():
    @odd(entries=[])
    def net_of_free_sizes(net: Net) -> None:
        net.head(net.conv(net.image(("N", 3, "H", "W"))))

    types = infer_types(Graph.of_model(net_of_free_sizes().model))
    assert types["conv1.out"].shape == (None, 16, None, None)


def test_a_sequence_among_the_outputs_does_not_hinder():
    source = model(
        "g (float[2, 3] x) => (float[2, 4] y) { [m] a = MatMul(x, w) y = Relu(a) s = SequenceConstruct(a, y) }"
    )
    source.graph.initializer.append(numpy_helper.from_array(np.zeros((3, 4), np.float32), "w"))
    source.graph.output.append(helper.make_tensor_sequence_value_info("s", FLOAT, None))
    types = infer_types(Graph.of_model(source))
    assert types == {"x": floats(2, 3), "a": floats(2, 4), "y": floats(2, 4)}
