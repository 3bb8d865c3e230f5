"""fold constants: whatever depends on constants or known shapes alone becomes an initializer, and nothing else does."""

import numpy as np
import pytest
from graphs import assert_same_numbers, initializers, model, nodes_as_text, rewritten, run
from odd_graphs import ODD_GRAPHS
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from amct_onnx.passes.fold_constants import FOLD_CONSTANTS
from amct_onnx.passes.name_nodes import NAME_NODES
from amct_onnx.passes.pipelines import PREPARE

FROM_CONSTANTS = "computed from constants once and for all"
FROM_SHAPES = "computed from known shapes once and for all"
LIFTED = "a constant, which is an initializer now"
X = {"x": np.array([[1, -2, 3], [0.5, 0, -1]], np.float32)}


def ramp(*shape, dtype=np.float32):
    return np.arange(np.prod(shape), dtype=dtype).reshape(shape)


def check(text, after, gone, weights=None, *, feed=None, edit=None, opset=13, ir=8):
    """The nodes after the pass, what is gone, and equal numbers; gives the initializers."""
    source = model(text, weights, opset=opset, ir=ir)
    if edit is not None:
        edit(source)
    state, result = rewritten(source, NAME_NODES, FOLD_CONSTANTS)
    assert nodes_as_text(result) == after
    assert state.gone == gone
    assert_same_numbers(source, result, feed, rtol=0)
    return initializers(result)


# Constant nodes


@pytest.mark.parametrize(
    ("attribute", "values"),
    [
        ("value: tensor = float[3] {1, 2, 3}", ramp(3) + 1),
        ("value_float = 0.5", np.float32(0.5)),
        ("value_floats = [0.5, 1.5, 2.5]", ramp(3) + np.float32(0.5)),
    ],
)
def test_constant_nodes_become_initializers_of_the_same_name(attribute, values):
    text = f"g (float[2, 3] x) => (float[2, 3] y) {{ [c] c = Constant<{attribute}>() [n] y = Add(x, c) }}"
    shape = list(np.shape(values))
    found = check(text, [f"[n] y = Add(x, float{shape})"], {"c": LIFTED})
    np.testing.assert_equal(found, {"c": values})


@pytest.mark.parametrize(("attribute", "values"), [("value_int = 1", np.int64(1)), ("value_ints = [0, 1]", ramp(2))])
def test_constant_nodes_of_whole_numbers_become_initializers(attribute, values):
    text = f"g (float[2, 3] x) => (float[m, n] y) {{ [c] c = Constant<{attribute}>() [n] y = Gather<axis = 1>(x, c) }}"
    found = check(text, [f"[n] y = Gather<axis=1>(x, int64{list(np.shape(values))})"], {"c": LIFTED})
    assert found["c"].dtype == np.int64
    np.testing.assert_equal(found["c"], values)


def test_a_constant_node_that_is_an_output_stays():
    text = "g (float[2, 3] x) => (float[3] c, float[2, 3] y) { [c] c = Constant<value_floats = [0.5, 1.5, 2.5]>() "
    text += "[n] y = Add(x, c) }"
    check(text, nodes_as_text(model(text)), {})


def test_labels_in_a_constant_node_stay_usable():
    """As classifiers look up the name of the class."""

    def labels(m):
        tensor = helper.make_tensor("", TensorProto.STRING, [3], [b"cat", b"dog", "öx".encode()])
        m.graph.node[0].attribute.append(helper.make_attribute("value", tensor))

    source = model("g (int64[2] i) => (string[2] y) { [c] c = Constant() [n] y = Gather(c, i) }")
    labels(source)
    _, result = rewritten(source, NAME_NODES, FOLD_CONSTANTS)
    assert_same_numbers(source, result, {"i": np.array([2, 0])}, rtol=0)


@pytest.mark.parametrize("attribute", ['value_string = "cat"', 'value_strings = ["cat", "dog"]'])
def test_constant_nodes_of_strings_stay(attribute):
    text = f"g (int64[1] i) => (string[m] y) {{ [c] c = Constant<{attribute}>() [n] y = Expand(c, i) }}"
    check(text, nodes_as_text(model(text)), {}, feed={"i": np.array([2])})


def test_constant_nodes_in_bodies_stay():
    text = "g (float[2] x, bool c) => (float[2] y) { [if] y = If(c)<"
    text += "then_branch = t () => (float[2] p) { k = Constant<value_float = 2.0>() [in] p = Mul(x, k) }, "
    text += "else_branch = e () => (float[2] q) { q = Abs(x) }> }"
    source = model(text)
    state, result = rewritten(source, NAME_NODES, FOLD_CONSTANTS)
    assert [node.op for _, node in state.graph.body_nodes()] == ["Constant", "Mul", "Abs"]
    assert_same_numbers(source, result, {"x": np.ones(2, np.float32), "c": np.array(True)}, rtol=0)


# What is computed from constants


def test_a_chain_over_constants_becomes_one_initializer():
    found = check(
        "g (float[2, 3] x) => (float[2, 4] y) "
        "{ [c] a = Cast<to = 1>(w) [t] b = Transpose<perm = [1, 0]>(a) [n] y = MatMul(x, b) }",
        ["[n] y = MatMul(x, float[3, 4])"],
        {"c": FROM_CONSTANTS, "t": FROM_CONSTANTS},
        {"w": ramp(4, 3, dtype=np.float16)},
    )
    np.testing.assert_equal(found, {"b": ramp(4, 3).T})


def test_a_result_that_other_constants_are_computed_from_too_is_kept_once():
    found = check(
        "g (float[2, 3] x) => (float[2, 3] y) { [a] a = Neg(w) [b] b = Abs(a) [n] c = Add(x, a) [m] y = Mul(c, b) }",
        ["[n] c = Add(x, float[3])", "[m] y = Mul(c, float[3])"],
        {"a": FROM_CONSTANTS, "b": FROM_CONSTANTS},
        {"w": ramp(3)},
    )
    np.testing.assert_equal(found, {"a": -ramp(3), "b": ramp(3)})


def test_a_result_that_only_a_body_reads_is_computed():
    text = "g (float[2] x, bool c) => (float[2] y) { [neg] k = Neg(w) [if] y = If(c)<"
    text += "then_branch = t () => (float[2] p) { [in] p = Mul(x, k) }, "
    text += "else_branch = e () => (float[2] q) { q = Abs(x) }> }"
    source = model(text, {"w": ramp(2)})
    state, result = rewritten(source, NAME_NODES, FOLD_CONSTANTS)
    assert [node.name for node in result.graph.node] == ["if"]
    assert state.gone == {"neg": FROM_CONSTANTS}
    assert_same_numbers(source, result, {"x": np.ones(2, np.float32), "c": np.array(True)}, rtol=0)


def test_a_result_that_is_an_output_stays_computed():
    text = "g (float[2, 3] x) => (float[3] a, float[2, 3] y) { [a] a = Neg(w) [n] y = Add(x, a) }"
    check(text, ["[a] a = Neg(float[3])", "[n] y = Add(x, a)"], {}, {"w": ramp(3)})


def test_a_node_that_stays_for_one_of_its_outputs_is_not_said_to_be_gone():
    text = "g (float[2, 3] x) => (float[2, 3] y, float[3] b) { [split] a, b = Split<axis = 0>(w) [n] y = Add(x, a) }"
    source = model(text, {"w": ramp(6)})
    state, result = rewritten(source, NAME_NODES, FOLD_CONSTANTS)
    assert [node.name for node in result.graph.node] == ["split", "n"]
    assert state.gone == {}
    assert_same_numbers(source, result, rtol=0)


def test_names_stay_unique_whatever_they_look_like():
    """`a` is folded, but its producer stays; a tensor called `a.computed` is there already."""
    source = model(
        "g (float[2, 3] x) => (float[2, 3] y, float[3] b, float[2, 3] z) "
        "{ [split] a, b = Split<axis = 0>(w) [n] y = Add(x, a) [m] k = Neg(x) [o] z = Abs(k) }",
        {"w": ramp(6)},
    )
    source.graph.node[2].output[0] = source.graph.node[3].input[0] = "a.computed"
    _, result = rewritten(source, NAME_NODES, FOLD_CONSTANTS)
    outputs = [name for node in result.graph.node for name in node.output]
    assert len(set(outputs)) == len(outputs)
    assert_same_numbers(source, result, rtol=0)


@pytest.mark.parametrize(
    "call",
    [
        "RandomNormalLike(w)",
        "RandomUniformLike(w)",
        "Bernoulli(half)",
        "Multinomial<sample_size = 3>(row)",
        "Dropout(w)",
        "DequantizeLinear(q, s)",
        "QuantizeLinear(w, s)",
    ],
)
def test_what_is_random_or_about_quantization_stays(call):
    text = f"g (float[2, 3] x) => (float y, float[2, 3] z) {{ [c] c = {call} [s] y = Shape(c) [n] z = Neg(x) }}"
    weights = {"w": ramp(3), "half": ramp(3) / 3, "row": ramp(1, 3), "q": ramp(3, dtype=np.int8), "s": np.float32(0.5)}
    source = model(text, weights, opset=15)
    state, result = rewritten(source, NAME_NODES, FOLD_CONSTANTS)
    kept = [node.op_type for node in result.graph.node if node.name == "c"]
    shape_is_known = "s" in state.gone
    assert kept == [call.split("(")[0].split("<")[0]] or shape_is_known


def test_quantization_of_a_weight_stays():
    text = "g (float[2, 3] x) => (float[2, 4] y) { [d] w = DequantizeLinear(q, s) [n] y = MatMul(x, w) }"
    weights = {"q": ramp(3, 4, dtype=np.int8), "s": np.float32(0.5)}
    source = model(text, weights)
    state, result = rewritten(source, NAME_NODES, FOLD_CONSTANTS)
    assert nodes_as_text(result) == nodes_as_text(source)
    assert state.gone == {}


def test_operators_of_other_domains_stay():
    source = model("g (float[2, 3] x) => (float[2, 3] y) { [c] c = Relu(w) [n] y = Add(x, c) }", {"w": ramp(3)})
    source.graph.node[0].domain = "custom"
    source.opset_import.append(helper.make_opsetid("custom", 1))
    state, result = rewritten(source, NAME_NODES, FOLD_CONSTANTS)
    assert [node.name for node in result.graph.node] == ["c", "n"]
    assert state.gone == {}


def test_control_flow_over_constants_stays():
    text = "g (float[2] x) => (float[2] y) { [if] k = If(c)<then_branch = t () => (float[2] p) { p = Neg(w) }, "
    text += "else_branch = e () => (float[2] q) { q = Abs(w) }> [n] y = Add(x, k) }"
    source = model(text, {"c": np.array(True), "w": ramp(2)})
    state, result = rewritten(source, NAME_NODES, FOLD_CONSTANTS)
    assert [node.name for node in result.graph.node] == ["if", "n"]
    assert state.gone == {}
    assert_same_numbers(source, result, rtol=0)


def test_what_would_grow_large_stays():
    text = "g (float[1, 600] x) => (float[600, 600] y) { [e] a = Expand(w, s) [n] y = Add(x, a) }"
    check(
        text,
        ["[e] a = Expand(float[600], int64[2])", "[n] y = Add(x, a)"],
        {},
        {"w": ramp(600), "s": np.array([600, 600])},
    )


@pytest.mark.parametrize(
    ("nodes", "dtype"),
    [
        ("[b] b = Transpose<perm = [1, 0]>(w)", np.float32),
        ("[a] a = Cast<to = 1>(w) [b] b = Transpose<perm = [1, 0]>(a)", np.float16),
        ("[a] a = Reshape(w, s) [c] c = Reshape(a, t) [b] b = Transpose<perm = [1, 0]>(c)", np.float32),
    ],
    ids=["one node", "Cast and Transpose", "three nodes"],
)
def test_large_weights_fold_however_long_the_chain_in_front_of_them(nodes, dtype):
    """2 MB, which is nothing: what counts is how much larger the result is than the constants it comes from."""
    text = f"g (float[1, 600] x) => (float[1, 1000] y) {{ {nodes} [n] y = MatMul(x, b) }}"
    weights = {"w": ramp(1000, 600, dtype=dtype), "s": np.array([-1]), "t": np.array([1000, 600])}
    source = model(
        text,
        {
            name: values
            for name, values in weights.items()
            if f"({name})" in text or f"({name}," in text or f", {name})" in text
        },
    )
    _, result = rewritten(source, NAME_NODES, FOLD_CONSTANTS)
    assert nodes_as_text(result) == ["[n] y = MatMul(x, float[600, 1000])"]


def test_sequences_of_constants_stay_usable():
    text = "g (float[2, 3] x, int64 i) => (float[2, 3] y) { [q] q = SequenceConstruct(v, w) [at] k = SequenceAt(q, i) "
    text += "[n] y = Add(x, k) }"
    source = model(text, {"v": ramp(3), "w": -ramp(3)})
    _, result = rewritten(source, NAME_NODES, FOLD_CONSTANTS)
    assert_same_numbers(source, result, X | {"i": np.array(1)}, rtol=0)


def test_strings_computed_from_constants_stay_usable():
    source = model("g (int64[2] i) => (string[2] y) { [c] c = Concat<axis = 0>(k, k) [n] y = Gather(c, i) }")
    source.graph.initializer.append(helper.make_tensor("k", TensorProto.STRING, [2], [b"cat", b"dog"]))
    _, result = rewritten(source, NAME_NODES, FOLD_CONSTANTS)
    assert_same_numbers(source, result, {"i": np.array([3, 0])}, rtol=0)


@pytest.mark.parametrize(
    "other",
    ["[k] k = Cast<to = 16>(v) [u] z = Cast<to = 16>(x) [s] t = Add(z, k)", "[k] k = Gather(v, far) [s] t = Add(x, k)"],
    ids=["a type that numpy lacks", "an index out of range"],
)
def test_one_constant_that_cannot_be_computed_does_not_keep_the_others_from_folding(other):
    text = "g (float[2, 3] x) => (float[2, 4] y, float t) "
    text += f"{{ [tr] b = Transpose<perm = [1, 0]>(w) [n] y = MatMul(x, b) {other} }}"
    source = model(text, {"w": ramp(4, 3), "v": ramp(3), "far": np.array(7)})
    state, result = rewritten(source, NAME_NODES, FOLD_CONSTANTS)
    assert nodes_as_text(result)[0] == "[n] y = MatMul(x, float[3, 4])"
    assert state.gone["tr"] == FROM_CONSTANTS


def test_half_precision_is_computed_in_half_precision():
    found = check(
        "g (float16[3] x) => (float16[3] y) { [m] a = Mul(w, w) [n] y = Add(x, a) }",
        ["[n] y = Add(x, float16[3])"],
        {"m": FROM_CONSTANTS},
        {"w": np.array([1.001, 3.3, 1e-4], np.float16)},
    )
    assert found["a"].dtype == np.float16


def test_weights_given_as_inputs_with_values_count_as_constants():
    text = "g (float[2, 3] x, float[4, 3] w) => (float[2, 4] y) "
    text += "{ [t] b = Transpose<perm = [1, 0]>(w) [n] y = MatMul(x, b) }"
    source = model(text, {"w": ramp(4, 3)}, ir=3, opset=9)
    _, result = rewritten(source, NAME_NODES, FOLD_CONSTANTS)
    assert nodes_as_text(result) == ["[n] y = MatMul(x, float[3, 4])"]
    assert_same_numbers(source, result, X, rtol=0)


# What is computed from known shapes


@pytest.mark.parametrize(
    ("nodes", "values"),
    [
        ("[s] k = Shape(x)", [2, 3, 4]),
        ("[s] k = Shape<start = 1>(x)", [3, 4]),
        ("[s] k = Shape<start = -2, end = -1>(x)", [3]),
        ("[s] k = Shape<start = -9, end = 9>(x)", [2, 3, 4]),
        ("[s] k = Shape<start = 2, end = 1>(x)", []),
        ("[s] k = Size(x)", 24),
        ("[s] t = Shape(x) [g] k = Gather(t, one)", 3),
        ("[s] t = Shape(x) [g] k = Gather(t, last)", [4]),
        ("[s] t = Shape<start = 1>(x) [g] k = Gather<axis = -1>(t, one)", 4),
        ("[s] t = Shape(x) [g] k = Gather(t, table)", [[2, 4], [3, 3]]),
        ("[s] t = Shape(x) [c] k = Slice(t, b1, b9)", [3, 4]),
        ("[s] t = Shape(x) [c] k = Slice(t, b1, huge, b0)", [3, 4]),
        ("[s] t = Shape(x) [c] k = Slice(t, bm1, tiny, b0, bm1)", [4, 3, 2]),
        ("[s] t = Shape(x) [c] k = Slice(t, bm1, b0, b0, bm1)", [4, 3]),
        ("[s] t = Shape(x) [c] k = Slice(t, b0, bm1, bm1, b2)", [2]),
        ("[s] t = Shape(x) [c] k = Slice(t, b0, b9, , b2)", [2, 4]),
        ("[s] t = Shape(x) [c] k = Slice(t, b2, b1)", []),
        ("[s] t = Shape(x) [c] k = Slice(t, b0, tiny)", []),
        ("[s] t = Shape(x) [g] u = Gather(t, last) [a] v = Add(u, u) [m] k = Concat<axis = 0>(v, b9)", [8, 9]),
    ],
)
def test_known_shapes_are_constants(nodes, values):
    constants = {"one": np.array(1), "last": np.array([-1]), "table": np.array([[0, 2], [1, -2]])}
    constants |= {f"b{name}": np.array([value]) for name, value in (("0", 0), ("1", 1), ("2", 2), ("9", 9), ("m1", -1))}
    constants |= {"huge": np.array([2**63 - 1]), "tiny": np.array([-(2**63) + 1])}
    source = model(f"g (float[2, 3, 4] x, int64 z) => (int64 y) {{ {nodes} [n] y = Add(k, z) }}", constants, opset=15)
    state, result = rewritten(source, NAME_NODES, FOLD_CONSTANTS)
    assert [node.name for node in result.graph.node] == ["n"]
    assert set(state.gone.values()) <= {FROM_SHAPES, FROM_CONSTANTS}
    feed = {"x": np.zeros((2, 3, 4), np.float32), "z": np.array(0)}
    for optimize in (False, True):
        for m in (source, result):
            np.testing.assert_array_equal(run(m, feed, optimize=optimize)["y"], np.array(values))


@pytest.mark.parametrize(
    ("call", "values"),
    [
        ("Gather(s, one)", 3),
        ("Gather<axis = 0>(s, b2)", [4]),
        ("Gather(s, bm2)", [3]),
        ("Gather(s, table)", [[3, 4], [4, 3]]),
        ("Slice(s, b1, b3)", [3, 4]),
        ("Slice(s, b1, huge)", [3, 4]),
        ("Slice(s, b1, bm1, b0)", [3]),
        ("Slice(s, bm2, b9, b0, b1)", [3, 4]),
        ("Slice(s, bm1, b0, b0, bm1)", [4, 3]),
        ("Slice(s, huge, b0, , bm1)", [4, 3]),
        ("Slice(s, b1, b9, , b2)", [3]),
        ("Slice(s, b2, b1)", []),
        ("Slice(s, b1, tiny)", []),
    ],
)
def test_what_is_taken_out_of_the_known_axes_of_a_shape_is_a_constant(call, values):
    constants = {"one": np.array(1), "table": np.array([[1, 2], [-1, -2]])}
    constants |= {f"b{i}": np.array([i]) for i in (0, 1, 2, 3, 9)} | {"bm1": np.array([-1]), "bm2": np.array([-2])}
    constants |= {"huge": np.array([2**63 - 1]), "tiny": np.array([-(2**63) + 1])}
    source = model(
        f"g (float[N, 3, 4] x, int64 z) => (int64 y) {{ s = Shape(x) k = {call} [n] y = Add(k, z) }}", constants
    )
    _, result = rewritten(source, NAME_NODES, FOLD_CONSTANTS)
    assert [node.name for node in result.graph.node] == ["n"]
    feed = {"x": np.zeros((2, 3, 4), np.float32), "z": np.array(0)}
    for m in (source, result):
        np.testing.assert_array_equal(run(m, feed, optimize=False)["y"], np.array(values))


def test_known_axes_of_a_shape_with_free_ones_are_constants():
    found = check(
        "g (float[N, 3, 4] x, int64 v) => (int64[1] y, int64[1] z) "
        "{ [s] s = Shape(x) [g] a = Gather(s, two) [h] b = Gather(s, zero) [n] y = Add(a, v) [m] z = Add(b, v) }",
        ["[s] s = Shape(x)", "[h] b = Gather(s, int64[1])", "[n] y = Add(int64[1], v)", "[m] z = Add(b, v)"],
        {"g": FROM_SHAPES},
        {"two": np.array([2]), "zero": np.array([0])},
        feed={"x": np.zeros((5, 3, 4), np.float32), "v": np.array(1)},
    )
    assert found["a"] == [4]


@pytest.mark.parametrize(
    "nodes",
    [
        "[s] k = Shape(x)",
        "[s] k = Size(x)",
        "[s] s = Shape(x) [g] k = Gather(s, i)",
        "[s] s = Shape(x) [g] k = Gather(s, zero)",
        "[s] s = Shape(x) [g] k = Slice(s, zero, two)",
        "[s] s = Shape(x) [g] k = Slice(s, i, two)",
        "[s] s = Shape(x) [g] k = Slice(s, one, i)",
        "[s] s = Shape(x) [g] k = Slice(s, one, two, zero, i)",
        "[g] k = Gather(i, zero)",
    ],
)
def test_free_axes_and_free_indices_stay(nodes):
    text = f"g (float[N, 3, 4] x, int64[1] i) => (int64 y) {{ {nodes} [n] y = Neg(k) }}"
    constants = {"zero": np.array([0]), "one": np.array([1]), "two": np.array([2])}
    source = model(text, {name: values for name, values in constants.items() if name in nodes}, opset=15)
    state, result = rewritten(source, NAME_NODES, FOLD_CONSTANTS)
    assert nodes_as_text(result) == nodes_as_text(source)
    assert state.gone == {}


def test_a_shape_that_is_an_output_stays():
    text = "g (float[2, 3] x) => (int64[2] s, int64[2] y) { [s] s = Shape(x) [n] y = Neg(s) }"
    check(text, nodes_as_text(model(text)), {})


@pytest.mark.parametrize("place", ["inside", "output"])
def test_sizes_noted_in_the_file_are_not_believed_where_the_inputs_say_otherwise(place):
    """Exporters write down the batch that they traced with; the batch axis is free all the same."""
    end = "z" if place == "output" else "r"
    text = f"g (float[N, 3] x) => (float[1, 4] {end}, int64[2] y) {{ [mm] z = MatMul(x, w) [r] r = Relu(z) "
    source = model(text + "[s] s = Shape(z) [n] y = Neg(s) }", {"w": ramp(3, 4)})
    if place == "inside":
        source.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "N"
        source.graph.value_info.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 4]))
    _, result = rewritten(source, NAME_NODES, FOLD_CONSTANTS)
    assert_same_numbers(source, result, X, rtol=0)


def test_shapes_behind_what_a_folded_shape_decides_are_constants_too():
    text = "g (float[2, 3, 4] x, int64 v) => (float[m, n] y, int64[2] z) { [s] s = Shape(x) [g] i = Gather(s, two) "
    text += (
        "[c] c = Concat<axis = 0>(minus, i) [r] a = Reshape(x, c) [t] t = Shape(a) [n] z = Add(t, v) [l] y = Relu(a) }"
    )
    source = model(text, {"two": np.array([2]), "minus": np.array([-1])})
    _, result = rewritten(source, NAME_NODES, FOLD_CONSTANTS)
    assert nodes_as_text(result) == ["[r] a = Reshape(x, int64[2])", "[n] z = Add(int64[2], v)", "[l] y = Relu(a)"]
    assert_same_numbers(source, result, {"x": np.ones((2, 3, 4), np.float32), "v": np.array(1)}, rtol=0)


def test_paddings_that_follow_from_known_shapes_fold_in_every_layer():
    build = next(build for build in ODD_GRAPHS if build.__name__ == "pad_from_known_shape")
    _, result = rewritten(build().model, *PREPARE)
    operators = {node.op_type for node in result.graph.node}
    assert operators == {"Conv", "Relu", "GlobalAveragePool", "Flatten", "Gemm"}


def test_a_cast_to_a_type_that_is_known_is_a_constant():
    found = check(
        "g (float16[N] x) => (float16[N] y) { [r] r = Relu(x) [c] k = CastLike(w, r) [n] y = Add(r, k) }",
        ["[r] r = Relu(x)", "[n] y = Add(r, float16[])"],
        {"c": FROM_SHAPES},
        {"w": np.float32(0.1)},
        feed={"x": np.ones(2, np.float16)},
        opset=15,
    )
    assert found["k"].dtype == np.float16


def test_a_cast_to_a_type_that_is_not_known_stays():
    source = model(
        "g (float[2] x) => (float[2] y) { [f] f = Foo(x) [c] k = CastLike(w, f) [n] y = Add(f, k) }",
        {"w": np.float32(1)},
    )
    source.graph.node[0].domain = "custom"
    source.opset_import.append(helper.make_opsetid("custom", 1))
    source.opset_import[0].version = 15
    state, result = rewritten(source, NAME_NODES, FOLD_CONSTANTS)
    assert [node.name for node in result.graph.node] == ["f", "c", "n"]
    assert state.gone == {}


def test_nothing_to_fold_leaves_everything():
    text = "g (float[2, 3] x) => (float[2, 3] y) { [n] a = Add(x, w) [m] y = Relu(a) }"
    source = model(text, {"w": ramp(3)})
    state, result = rewritten(source, NAME_NODES, FOLD_CONSTANTS)
    assert nodes_as_text(result) == nodes_as_text(source)
    assert (state.gone, state.remarks) == ({}, {})
    np.testing.assert_equal(initializers(result), {"w": numpy_helper.to_array(source.graph.initializer[0])})


def test_documented_nodes_fold_like_others():
    """As exporters write down where in the source each node comes from."""
    source = model(
        "g (float[2, 3] x) => (float[2, 4] y) { [t] b = Transpose<perm = [1, 0]>(w) [n] y = MatMul(x, b) }",
        {"w": ramp(4, 3)},
    )
    source.graph.node[0].doc_string = "line 7"
    entry = source.graph.node[0].metadata_props.add()
    entry.key, entry.value = "module", "head"
    state, result = rewritten(source, NAME_NODES, FOLD_CONSTANTS)
    assert nodes_as_text(result) == ["[n] y = MatMul(x, float[3, 4])"]
    assert state.gone == {"t": FROM_CONSTANTS}


def test_nodes_with_an_empty_list_fold_like_others():
    source = model(
        "g (float[2, 3] x) => (float[2, 3] y) { [s] k = Squeeze(w) [n] y = Add(x, k) }", {"w": ramp(1, 3)}, opset=11
    )
    source.graph.node[0].attribute.append(AttributeProto(name="axes", type=AttributeProto.INTS))
    _, result = rewritten(source, NAME_NODES, FOLD_CONSTANTS)
    assert nodes_as_text(result) == ["[n] y = Add(x, float[3])"]
    assert_same_numbers(source, result, rtol=0)


def test_a_documented_constant_node_is_lifted():
    source = model("g (float[2, 3] x) => (float[2, 3] y) { [c] k = Constant<value_float = 2.0>() [n] y = Add(x, k) }")
    source.graph.node[0].doc_string = "line 7"
    _, result = rewritten(source, NAME_NODES, FOLD_CONSTANTS)
    assert nodes_as_text(result) == ["[n] y = Add(x, float[])"]


def test_what_would_grow_large_stays_beside_large_weights_too():
    """What one tensor is worth says nothing of another."""
    text = "g (float[1, 600] x) => (float[600, 600] y, float[1, 1000] z) { [e] a = Expand(v, s) [n] y = Add(x, a) "
    text += "[t] b = Transpose<perm = [1, 0]>(w) [m] z = MatMul(x, b) }"
    source = model(text, {"v": ramp(600), "s": np.array([600, 600]), "w": ramp(1000, 600)})
    _, result = rewritten(source, NAME_NODES, FOLD_CONSTANTS)
    assert [node.name for node in result.graph.node] == ["e", "n", "m"]


def test_what_leads_nowhere_is_not_said_to_be_computed():
    text = "g (float[2, 3] x) => (float[2, 4] y) { [t] b = Transpose<perm = [1, 0]>(w) [n] y = MatMul(x, b) "
    text += "[dead] d = MatMul(x, b) [shape] s = Shape(d) }"
    state, _ = rewritten(model(text, {"w": ramp(4, 3)}), *PREPARE)
    assert state.gone == {
        "t": FROM_CONSTANTS,
        "dead": "leads to no output of the model",
        "shape": "leads to no output of the model",
    }
