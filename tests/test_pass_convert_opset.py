"""convert opset: models come to an opset that ATC reads with the same numbers, or are refused with a sentence."""

import numpy as np
import onnx
import pytest
from graphs import assert_same_numbers, model, nodes_as_text
from onnx import TensorProto, helper

from amct_onnx.errors import ModelError
from amct_onnx.passes.convert_opset import HIGHEST, LOWEST
from amct_onnx.passes.convert_opset import with_accepted_opset as accepted
from amct_onnx.passes.weights import detached

RNG = np.random.default_rng(7)
NEWEST = min(onnx.defs.onnx_opset_version(), 24)
"""The newest opset that the installed onnx knows, and that onnxruntime runs."""
IMAGE = "float[1, 4, 6, 6] x"


def with_accepted_opset(source):
    """As of a message: the source itself where nothing is to do."""
    light = detached(source)
    result = accepted(light)
    return source if result is light else result.whole()


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def converted(source):
    """The accepted model; the caller's is untouched, the result is legal and says the right opset."""
    untouched = source.SerializeToString(deterministic=True)
    result = with_accepted_opset(source)
    assert source.SerializeToString(deterministic=True) == untouched
    onnx.checker.check_model(result, full_check=True)
    versions = {entry.domain: entry.version for entry in result.opset_import}
    version = versions.get("", versions.get("ai.onnx"))
    assert LOWEST <= version <= HIGHEST
    return result


@pytest.mark.parametrize("opset", range(LOWEST, HIGHEST + 1))
def test_a_model_whose_opset_is_accepted_is_handed_back(opset):
    source = model("g (float[2] x) => (float[2] y) { y = Relu(x) }", opset=opset)
    assert with_accepted_opset(source) is source


@pytest.mark.parametrize("opset", [7, 8, 9, 10, *range(HIGHEST + 1, NEWEST + 1)])
def test_a_network_of_every_other_opset_is_converted(opset):
    text = f"g ({IMAGE}) => (float[1, 5] y) {{ [conv] c = Conv(x, w, b) [bn] n = BatchNormalization(c, s, t, m, v) "
    text += "[relu] r = Relu(n) [pool] p = AveragePool<kernel_shape = [2, 2]>(r) [drop] d = Dropout(p) "
    text += "[flat] f = Flatten(d) [fc] g = Gemm<transB = 1>(f, u, k) [soft] y = Softmax(g) }"
    weights = {name: normal(3) for name in "bstm"} | {"v": np.ones(3, np.float32)}
    weights |= {"w": normal(3, 4, 3, 3), "u": normal(5, 27), "k": normal(5)}
    source = model(text, weights, opset=opset, ir=4 if opset < 11 else 10)
    result = converted(source)
    assert [node.name for node in result.graph.node] == [node.name for node in source.graph.node]
    assert_same_numbers(source, result, rtol=1e-6)


def test_what_stands_beside_the_nodes_survives():
    source = model("g (float[N, 3] x) => (float[N, 3] y) { [n] y = Add(x, w) }", {"w": normal(3)}, opset=9, ir=4)
    source.producer_name, source.producer_version, source.domain, source.model_version = "maker", "1.2", "some.where", 7
    source.doc_string, source.graph.doc_string, source.graph.name = "text", "more text", "net"
    entry = source.metadata_props.add()
    entry.key, entry.value = "author", "somebody"
    result = converted(source)
    for field in ("producer_name", "producer_version", "domain", "model_version", "doc_string", "ir_version"):
        assert getattr(result, field) == getattr(source, field)
    assert list(result.metadata_props) == list(source.metadata_props)
    assert (result.graph.name, result.graph.doc_string) == ("net", "more text")
    assert [value.name for value in result.graph.input] == ["x"]
    assert result.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"


def test_the_default_domain_may_be_written_out():
    source = model("g (float[2] x) => (float[2] y) { y = Clip<min = 0.0, max = 1.0>(x) }", opset=9, ir=4)
    source.opset_import[0].domain = "ai.onnx"
    assert_same_numbers(source, converted(source), rtol=0)


def test_operators_of_other_domains_are_handed_on():
    source = model("g (float[2] x) => (float[2] y) { [g] a = Gelu(x) [n] y = Neg(a) }", opset=9, ir=4)
    source.graph.node[0].domain = "com.microsoft"
    source.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    result = with_accepted_opset(source)
    assert [(node.domain, node.op_type) for node in result.graph.node] == [("com.microsoft", "Gelu"), ("", "Neg")]
    assert {entry.domain: entry.version for entry in result.opset_import} == {"": LOWEST, "com.microsoft": 1}
    assert_same_numbers(source, result, rtol=0)


def test_a_model_that_does_not_say_its_opset_is_refused():
    source = model("g (float[2] x) => (float[2] y) { y = Relu(x) }")
    source.opset_import[0].domain = "custom"
    with pytest.raises(ModelError, match=r"^the model imports no version of the ONNX operators"):
        with_accepted_opset(source)


def converted_or_refused(source):
    """The accepted model or the sentence that refuses it."""
    try:
        return with_accepted_opset(source), ""
    except ModelError as error:
        return None, str(error)


def check_same(text, weights, opset, *, rtol=1e-6, feed=None, ir=None):
    source = model(text, weights, opset=opset, ir=ir or (4 if opset < 11 else 10))
    assert_same_numbers(source, converted(source), feed, rtol=rtol)


# From below: what attributes said is said by inputs, and what an operator meant stays meant


@pytest.mark.parametrize(
    ("call", "opset"),
    [
        ("Clip<min = -0.5, max = 0.5>(x)", 9),
        ("Slice<starts = [1, 1], ends = [3, 3], axes = [2, 3]>(x)", 9),
        ("Pad<pads = [0, 0, 1, 1, 0, 0, 1, 1]>(x)", 10),
        ("Softmax<axis = 1>(x)", 9),
        ("Squeeze<axes = [0]>(x)", 9),
        ("ReduceMean<axes = [2, 3]>(x)", 9),
        ("Upsample(x, twice)", 9),
        ('Upsample<mode = "linear">(x, twice)', 9),
        ("Upsample(x, odd)", 9),
        ("Upsample<scales = [1.0, 1.0, 2.0, 2.0]>(x)", 7),
        ("Resize(x, twice)", 10),
        ("Resize(x, odd)", 10),
        ('Resize<mode = "linear">(x, twice)', 10),
        ('Resize<mode = "linear">(x, less)', 10),
        ("MaxPool<kernel_shape = [2, 2]>(x)", 9),
    ],
)
def test_an_operator_of_an_old_opset_means_the_same(call, opset):
    weights = {"twice": np.array([1, 1, 2, 2]), "odd": np.array([1, 1, 1.5, 1.7]), "less": np.array([1, 1, 0.6, 0.5])}
    used = {name: values.astype(np.float32) for name, values in weights.items() if f" {name})" in call}
    source = model(f"g ({IMAGE}) => (float y) {{ [n] y = {call} }}", used, opset=opset, ir=4)
    source.graph.output[0].type.tensor_type.ClearField("shape")
    assert_same_numbers(source, converted(source), rtol=1e-6)


def test_an_operator_of_an_old_opset_means_the_same_inside_a_body():
    text = f"g ({IMAGE}, bool c) => (float y) {{ [if] y = If(c)<"
    text += 'then_branch = t () => (float p) { p = Resize<mode = "linear">(x, twice) }, '
    text += "else_branch = e () => (float q) { q = Resize(x, twice) }> }"
    source = model(text, {"twice": np.array([1, 1, 2, 1.5], np.float32)}, opset=10, ir=4)
    bodies = [attribute.g for attribute in source.graph.node[0].attribute]
    for value in (source.graph.output[0], *(body.output[0] for body in bodies)):
        value.type.tensor_type.ClearField("shape")
    result = with_accepted_opset(source)
    for choice in (True, False):
        assert_same_numbers(source, result, {"x": normal(1, 4, 6, 6), "c": np.array(choice)}, rtol=1e-6)


def test_an_operator_of_another_domain_that_has_the_same_name_is_left_alone():
    source = model(f"g ({IMAGE}) => (float y) {{ [n] y = Resize(x) }}", opset=10, ir=4)
    source.graph.node[0].domain = "custom"
    source.opset_import.append(helper.make_opsetid("custom", 1))
    assert with_accepted_opset(source).graph.node[0] == source.graph.node[0]


# From above


@pytest.mark.parametrize(
    ("call", "opset", "weights"),
    [
        ("Gelu(x)", 20, {}),
        ('Gelu<approximate = "tanh">(x)', 20, {}),
        ("Swish(x)", 24, {}),
        ("Swish<alpha = 0.5>(x)", 24, {}),
        ("RMSNormalization(x, s)", 23, {"s": normal(6)}),
        ("RMSNormalization<epsilon = 0.1, axis = 2>(x, t)", 23, {"t": normal(6, 6)}),
        ('Pad<mode = "wrap">(x, p)', 19, {"p": np.array([0, 0, 1, 1, 0, 0, 1, 1])}),
        ("AveragePool<kernel_shape = [2, 2]>(x)", 22, {}),
        ("ReduceMax(x, a)", 20, {"a": np.array([2, 3])}),
        ("Cast<to = 7>(x)", 21, {}),
        ('Resize<mode = "linear">(x, , k)', 19, {"k": np.array([1, 1, 2, 1.5], np.float32)}),
        ("QuantizeLinear(x, q, z)", 21, {"q": np.float32(0.1), "z": np.int8(3)}),
        ("Transpose<perm = [0, 2, 3, 1]>(x)", 23, {}),
        ("Conv(x, w)", 22, {"w": normal(2, 4, 3, 3)}),
        ("HardSwish(x)", 22, {}),
        ("Mish(x)", 22, {}),
    ],
)
def test_an_operator_of_a_new_opset_means_the_same(call, opset, weights):
    if opset > NEWEST:
        pytest.skip("the installed onnx does not know this opset")
    kind = {"Cast": "int64", "QuantizeLinear": "int8"}.get(call.split("<")[0].split("(")[0], "float")
    source = model(f"g ({IMAGE}) => ({kind} y) {{ [n] y = {call} }}", weights, opset=opset, ir=10)
    source.graph.output[0].type.tensor_type.ClearField("shape")
    assert_same_numbers(source, converted(source), rtol=1e-6)


def test_an_operator_that_became_too_new_twice_is_written_out_twice():
    text = (
        'g (float[2, 3] x) => (float[2, 3] y, float[2, 3] z) { [a] y = Gelu(x) [b] z = Gelu<approximate = "tanh">(y) }'
    )
    check_same(text, {}, 20)


@pytest.mark.parametrize(
    ("call", "opset", "weights"),
    [
        ("GroupNormalization<num_groups = 2>(x, s, s)", 21, {"s": normal(4)}),
        ('GridSample<mode = "cubic">(x, g)', 20, {"g": normal(1, 3, 3, 2)}),
        ("AveragePool<kernel_shape = [2, 2], dilations = [2, 2]>(x)", 19, {}),
    ],
)
def test_an_operator_that_cannot_be_said_in_old_words_is_refused_or_means_the_same(call, opset, weights):
    source = model(f"g ({IMAGE}) => (float y) {{ [n] y = {call} }}", weights, opset=opset, ir=10)
    source.graph.output[0].type.tensor_type.ClearField("shape")
    result, reason = converted_or_refused(source)
    if result is None:
        assert reason.startswith(f"the model has opset {opset}; ATC reads 11 to 18, and it cannot be converted: ")
        assert reason.endswith(". Export it with an opset from 11 to 18")
        assert "\n" not in reason
    else:
        onnx.checker.check_model(result, full_check=True)
        assert_same_numbers(source, result, rtol=1e-6)


def test_sparse_weights_do_not_hinder():
    source = model("g (float[3] x) => (float[3] y) { [n] y = Add(x, w) }", opset=20, ir=9)
    values = helper.make_tensor("w", TensorProto.FLOAT, [1], [2.0])
    indices = helper.make_tensor("i", TensorProto.INT64, [1], [1])
    source.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [3]))
    assert_same_numbers(source, with_accepted_opset(source), rtol=0)


def test_a_new_operator_inside_a_body_is_written_out_or_refused_with_a_sentence():
    text = (
        "g (float[2] x, bool c) => (float[2] y) { [if] y = If(c)<then_branch = t () => (float[2] p) { p = Gelu(x) }, "
    )
    text += "else_branch = e () => (float[2] q) { q = Relu(x) }> }"
    source = model(text, opset=20, ir=9)
    result, reason = converted_or_refused(source)
    if result is None:
        assert "Gelu" in reason
    else:
        assert_same_numbers(source, result, {"x": normal(2), "c": np.array(True)}, rtol=1e-6)


# Functions of the model


@pytest.mark.parametrize("opset", [17, 20])
def test_functions_of_the_model_are_inlined(opset):
    nodes = [
        helper.make_node("MatMul", ["a", "b"], ["m"], name="inner"),
        helper.make_node("LeakyRelu", ["m"], ["c"], name="act"),
    ]
    nodes[1].attribute.append(onnx.AttributeProto(name="alpha", type=onnx.AttributeProto.FLOAT, ref_attr_name="slope"))
    opsets = [helper.make_opsetid("", opset)]
    function = helper.make_function("local", "F", ["a", "b"], ["c"], nodes, opsets, ["slope"])
    text = "g (float[2, 3] x) => (float[2, 3] y) { [one] t = F(x, v) [two] y = F(t, w) }"
    source = model(text, {"v": normal(3, 3), "w": normal(3, 3)}, opset=opset, ir=8)
    for node in source.graph.node:
        node.domain = "local"
        node.attribute.append(helper.make_attribute("slope", 0.25))
    source.functions.append(function)
    source.opset_import.append(helper.make_opsetid("local", 1))
    result = with_accepted_opset(source)
    assert [node.op_type for node in result.graph.node] == ["MatMul", "LeakyRelu"] * 2
    assert not result.functions
    assert nodes_as_text(result)[0].endswith(" = MatMul(x, float[3, 3])")
    assert_same_numbers(source, result, rtol=0)
