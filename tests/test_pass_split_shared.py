"""split shared weights: every layer has a weight and a bias of its own."""

import numpy as np
import pytest
from graphs import assert_same_numbers, initializers, model, nodes_as_text, rewritten

from amct_onnx.passes.fold_constants import FOLD_CONSTANTS
from amct_onnx.passes.name_nodes import NAME_NODES
from amct_onnx.passes.split_shared import SPLIT_SHARED

RNG = np.random.default_rng(7)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def split(source):
    return rewritten(source, NAME_NODES, FOLD_CONSTANTS, SPLIT_SHARED)


def names_read(result):
    return {node.name: list(node.input)[1:] for node in result.graph.node}


def test_two_layers_of_one_weight_and_bias_get_their_own():
    text = "g (float[1, 2, 4, 4] x) => (float[1, 2, 4, 4] y) { [a] t = Conv(x, w, b) [b] y = Conv(t, w, b) }"
    weights = {"w": normal(2, 2, 1, 1), "b": normal(2)}
    source = model(text, weights)
    state, result = split(source)
    assert names_read(result) == {"a": ["a.weight", "a.bias"], "b": ["w", "b"]}
    for name, values in initializers(result).items():
        np.testing.assert_array_equal(values, weights[name[-1] if len(name) == 1 else name[2]])
    assert (state.gone, state.remarks) == ({}, {})
    assert_same_numbers(source, result, rtol=0)


def test_the_copies_are_independent():
    text = "g (float[1, 2, 4, 4] x) => (float[1, 2, 4, 4] y) { [a] t = Conv(x, w) [b] y = Conv(t, w) }"
    state, _ = split(model(text, {"w": normal(2, 2, 1, 1)}))
    first, second = (node.inputs[1] for node in state.graph.nodes)
    assert first is not second
    assert [len(tensor.outputs) for tensor in (first, second)] == [1, 1]


def test_a_shared_bias_of_products_is_split():
    text = "g (float[2, 3] x) => (float[2, 3] y) { [a] t = MatMul(x, v) [p] u = Add(t, b) "
    text += "[b] s = MatMul(u, w) [q] y = Add(s, b) }"
    source = model(text, {"v": normal(3, 3), "w": normal(3, 3), "b": normal(3)})
    _, result = split(source)
    assert names_read(result) == {"a": ["v"], "p": ["a.bias"], "b": ["w"], "q": ["b"]}
    assert_same_numbers(source, result, rtol=0)


def test_one_constant_that_is_weight_here_and_bias_there_is_split():
    text = "g (float[2, 3] x) => (float[2, 3] y) { [a] t = Gemm(x, v, b) [b] y = Mul(t, b) }"
    source = model(text, {"v": normal(3, 3), "b": normal(3)})
    _, result = split(source)
    assert names_read(result) == {"a": ["v", "a.bias"], "b": ["b"]}
    assert_same_numbers(source, result, rtol=0)


@pytest.mark.parametrize(
    ("rest", "readers"),
    [
        ("[o] y = Mul(t, w)", {"a": ["a.weight"], "o": ["w"]}),
        ("[o] u = Gemm<transA = 1>(w, t) [p] y = Neg(u)", {"a": ["a.weight"], "o": ["t"], "p": []}),
        ("[o] y = Gemm<transA = 1>(t, w)", {"a": ["a.weight"], "o": ["w"]}),
    ],
    ids=["a Mul", "a Gemm over it", "a Gemm that cannot be quantized"],
)
def test_a_weight_that_something_else_reads_too_is_split(rest, readers):
    source = model(f"g (float[3, 3] x) => (float[3, 3] y) {{ [a] t = Gemm(x, w) {rest} }}", {"w": normal(3, 3)})
    _, result = split(source)
    assert names_read(result) == readers
    assert_same_numbers(source, result, rtol=0)


def test_a_weight_that_a_body_reads_too_is_split():
    text = "g (float[2, 3] x, bool c) => (float[2, 3] y) { [a] t = MatMul(x, w) [if] y = If(c)<"
    text += "then_branch = p () => (float[2, 3] u) { u = MatMul(t, w) }, "
    text += "else_branch = q () => (float[2, 3] v) { v = Neg(t) }> }"
    source = model(text, {"w": normal(3, 3)})
    _, result = split(source)
    assert result.graph.node[0].input[1] == "a.weight"
    assert_same_numbers(source, result, {"x": normal(2, 3), "c": np.array(True)}, rtol=0)


@pytest.mark.parametrize("name", ["w", "b"])
def test_a_weight_or_bias_that_the_model_outputs_is_split(name):
    """Later passes put other numbers in its place."""
    text = f"g (float[2, 3] x) => (float[2, 3] y, float {name}) {{ [a] y = Gemm(x, w, b) }}"
    source = model(text, {"w": normal(3, 3), "b": normal(3)})
    _, result = split(source)
    assert name not in result.graph.node[0].input
    np.testing.assert_array_equal(initializers(result)[name], initializers(source)[name])


def test_weights_of_their_own_stay():
    text = "g (float[2, 3] x) => (float[2, 3] y) { [a] t = Gemm(x, v, b) [b] u = MatMul(t, w) "
    text += "[c] s = Relu(u) [d] y = Add(s, e) }"
    source = model(text, {"v": normal(3, 3), "w": normal(3, 3), "b": normal(3), "e": normal(3)})
    _, result = split(source)
    assert nodes_as_text(result) == nodes_as_text(source)
    np.testing.assert_equal(initializers(result), initializers(source))


def test_what_no_layer_reads_stays_shared():
    source = model("g (float[3] x) => (float[3] y) { [a] t = Mul(x, w) [b] y = Add(t, w) }", {"w": normal(3)})
    _, result = split(source)
    assert names_read(result) == {"a": ["w"], "b": ["w"]}


def test_a_name_that_is_taken_gets_a_number():
    text = "g (float[2, 3] x) => (float[2, 3] y) { [a] t = MatMul(x, w) [b] u = MatMul(t, w) [c] y = Add(u, k) }"
    source = model(text, {"w": normal(3, 3), "k": normal(3)})
    source.graph.node[2].input[1] = source.graph.initializer[1].name = "a.weight"
    _, result = split(source)
    assert names_read(result) == {"a": ["a.weight_1"], "b": ["w"], "c": ["a.weight"]}
    assert_same_numbers(source, result, rtol=0)


def test_the_name_of_an_input_that_nobody_reads_is_taken_too():
    source = model(
        "g (float[2, 3] x, float[1] idle) => (float[2, 3] y) { [a] t = MatMul(x, w) [b] y = MatMul(t, w) }",
        {"w": normal(3, 3)},
    )
    source.graph.input[1].name = "a.weight"
    _, result = split(source)
    assert result.graph.node[0].input[1] == "a.weight_1"
    assert_same_numbers(source, result, rtol=0)


def test_what_became_a_copy_is_told():
    text = "g (float[1, 2, 4, 4] x) => (float[1, 2, 4, 4] y) { [a] t = Conv(x, w, b) [b] y = Conv(t, w, b) }"
    state, _ = split(model(text, {"w": normal(2, 2, 1, 1), "b": normal(2)}))
    assert state.copies == {"a.weight": "w", "a.bias": "b"}
