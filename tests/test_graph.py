"""passes/graph.py: models go in and out unchanged, and the edits keep the links between nodes and tensors whole."""

import numpy as np
import onnx
import pytest
from graphs import assert_same_numbers, initializers, model, nodes_as_text, run
from odd_graphs import NOT_IN_ORT, ODD_GRAPHS, REFUSED
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from amct_onnx.errors import ModelError
from amct_onnx.passes.graph import (
    Graph,
    constant,
    constant_input,
    dense_value,
    has_body,
    has_input,
    is_constant,
    is_standard,
    nodes_of,
    producer,
    reads,
    set_constant,
    set_input,
    sole_consumer,
    take_over_output,
    unique_name,
)

EVERY = [*ODD_GRAPHS, *REFUSED, *NOT_IN_ORT]
COPIED = pytest.mark.parametrize("copied", [False, True], ids=["exported", "copied and exported"])

CHAIN = "g (float[2, 3] x) => (float[2, 3] y) { [first] a = Relu(x) [second] b = Neg(a) [third] y = Abs(b) }"
BRANCHES = """
    g (float[2, 3] x, bool c) => (float[2, 3] y) {
        [before] a = Relu(x)
        [choice] y = If(c)<
            then_branch = then_body () => (float[2, 3] t) { [inner] s = Neg(a) [scaled] t = Mul(s, w) },
            else_branch = else_body () => (float[2, 3] e) { [other] e = Abs(x) }
        >
    }
"""


def round_trip(m, copied=False):
    graph = Graph.of_model(m)
    return (graph.copy() if copied else graph).to_model()


def same(one, other):
    return one.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True)


def assert_same_nodes(found, expected):
    """Operators, names, domains, links and attributes; the nodes of bodies likewise."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert (one.op_type, one.name, one.domain) == (other.op_type, other.name, other.domain)
        assert (list(one.input), list(one.output)) == (list(other.input), list(other.output))
        assert [a.name for a in one.attribute] == [a.name for a in other.attribute]
        for left, right in zip(one.attribute, other.attribute, strict=True):
            if left.type == AttributeProto.GRAPH:
                assert_same_nodes(left.g.node, right.g.node)
                assert [v.name for v in left.g.input] == [v.name for v in right.g.input]
                assert [v.name for v in left.g.output] == [v.name for v in right.g.output]
            elif left.type == AttributeProto.TENSOR:
                np.testing.assert_equal(numpy_helper.to_array(left.t), numpy_helper.to_array(right.t))
            else:
                assert same(left, right), left.name


def all_initializers(graph):
    """Those of the bodies included: the library moves what only bodies read."""
    found = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    for sparse in graph.sparse_initializer:
        values, indices = (numpy_helper.to_array(part) for part in (sparse.values, sparse.indices))
        dense = np.zeros(tuple(sparse.dims), values.dtype)
        dense[np.unravel_index(indices, dense.shape) if indices.ndim == 1 else tuple(indices.T)] = values
        found[sparse.values.name] = dense
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                found |= all_initializers(attribute.g)
    return found


def read_names(graph):
    names = {value.name for value in graph.output}
    for node in graph.node:
        names.update(node.input)
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                names |= read_names(attribute.g)
    return names


# Round trips


@COPIED
@pytest.mark.parametrize("build", EVERY, ids=lambda build: build.__name__)
def test_a_model_comes_out_as_it_went_in(build, copied):
    source = build().model
    untouched = source.SerializeToString(deterministic=True)
    result = round_trip(source, copied)
    assert source.SerializeToString(deterministic=True) == untouched, "the caller's model was changed"
    for field in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
        assert getattr(result, field) == getattr(source, field)
    for field in ("metadata_props", "opset_import", "functions"):
        assert list(getattr(result, field)) == list(getattr(source, field))
    assert result.ir_version == max(source.ir_version, 4)  # since 4, weights need not be inputs
    assert (result.graph.name, result.graph.doc_string) == (source.graph.name, source.graph.doc_string)
    weights = all_initializers(source.graph)
    assert list(result.graph.input) == [value for value in source.graph.input if value.name not in weights]
    assert list(result.graph.output) == list(source.graph.output)
    assert_same_nodes(result.graph.node, source.graph.node)
    np.testing.assert_equal(
        all_initializers(result.graph), {n: v for n, v in weights.items() if n in read_names(source.graph)}
    )


@pytest.mark.parametrize("build", EVERY, ids=lambda build: build.__name__)
def test_what_comes_out_is_legal(build):
    onnx.checker.check_model(round_trip(build().model), full_check=True)


def test_an_import_twice_gives_the_same_model():
    source = model(BRANCHES, {"w": np.float32(2)})
    first = round_trip(source)
    assert same(round_trip(source), first)
    assert same(round_trip(first), first)


@COPIED
def test_attributes_of_every_type_survive(copied):
    source = model("g (float[2] x) => (float[2] y) { [n] y = Foo(x) }")
    source.graph.node[0].domain = "custom"
    source.opset_import.append(helper.make_opsetid("custom", 3))
    tensor = helper.make_tensor("t", TensorProto.FLOAT, [2], [1, 2])
    body = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["z"])],
        "body",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
    )
    sparse = helper.make_sparse_tensor(tensor, helper.make_tensor("i", TensorProto.INT64, [2], [0, 3]), [4])
    values = {
        "float": 1.1,
        "int": -(2**62),
        "string": "text",
        "nothing": "",
        "raw": b"\xff\xfe\x00",
        "tensor": tensor,
        "graph": body,
        "floats": [0.1, float("inf")],
        "ints": [1, 2],
        "strings": ["a", ""],
        "raws": [b"\xff", b"a"],
        "tensors": [tensor, tensor],
        "type": helper.make_tensor_type_proto(TensorProto.FLOAT, [2]),
        "types": [helper.make_tensor_type_proto(TensorProto.FLOAT, [2])],
        "sparse": sparse,
        "sparses": [sparse],
    }
    source.graph.node[0].attribute.extend(helper.make_attribute(name, value) for name, value in values.items())
    for name, kind in (
        ("no_floats", "FLOATS"),
        ("no_ints", "INTS"),
        ("no_strings", "STRINGS"),
        ("no_tensors", "TENSORS"),
    ):
        source.graph.node[0].attribute.append(AttributeProto(name=name, type=getattr(AttributeProto, kind)))
    assert_same_nodes(round_trip(source, copied).graph.node, source.graph.node)


def sequence_model():
    """A sequence goes in, is held inside, and comes out."""
    sequence = [helper.make_tensor_sequence_value_info(name, TensorProto.FLOAT, [2, 3]) for name in ("s", "t", "u")]
    nodes = [helper.make_node("SequenceInsert", ["s", "x"], ["t"]), helper.make_node("Identity", ["t"], ["u"])]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])
    graph = helper.make_graph(nodes, "g", [sequence[0], x], [sequence[2]], value_info=[sequence[1]])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)


@COPIED
def test_sequences_keep_their_type(copied):
    source = sequence_model()
    result = round_trip(source, copied)
    onnx.checker.check_model(result, full_check=True)
    assert list(result.graph.input) == list(source.graph.input)
    assert list(result.graph.output) == list(source.graph.output)
    x = np.ones((2, 3), np.float32)
    np.testing.assert_equal(run(result, {"s": [x], "x": x})["u"], [x, x])


@COPIED
def test_sequences_that_bodies_give_keep_their_type(copied):
    outputs = [helper.make_tensor_sequence_value_info(name, TensorProto.FLOAT, None) for name in ("one", "two")]
    bodies = [
        helper.make_graph([helper.make_node("SequenceConstruct", ["x"] * count, [out.name])], out.name, [], [out])
        for count, out in enumerate(outputs, 1)
    ]
    nodes = [
        helper.make_node("If", ["c"], ["s"], then_branch=bodies[0], else_branch=bodies[1]),
        helper.make_node("SequenceLength", ["s"], ["y"]),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3]),
        helper.make_tensor_value_info("c", TensorProto.BOOL, []),
    ]
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("y", TensorProto.INT64, [])])
    source = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(round_trip(source, copied), full_check=True)
    for choice in (True, False):
        feed = {"x": np.ones((2, 3), np.float32), "c": np.array(choice)}
        assert_same_numbers(source, round_trip(source, copied), feed, rtol=0)


@COPIED
@pytest.mark.parametrize("kind", ["input", "output", "inside"])
def test_optionals_keep_their_type(kind, copied):
    plain = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])
    optional = helper.make_value_info("o", helper.make_optional_type_proto(plain.type))
    wrap = helper.make_node("Optional", ["x"], ["o"])
    unwrap = helper.make_node("OptionalGetElement", ["o"], ["y"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])
    graph = {
        "input": helper.make_graph([unwrap], "g", [optional], [y]),
        "output": helper.make_graph([wrap], "g", [plain], [optional]),
        "inside": helper.make_graph([wrap, unwrap], "g", [plain], [y], value_info=[optional]),
    }[kind]
    source = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=8)
    result = round_trip(source, copied)
    onnx.checker.check_model(result, full_check=True)
    assert list(result.graph.input) == list(source.graph.input)
    assert list(result.graph.output) == list(source.graph.output)


@COPIED
def test_maps_keep_their_type(copied):
    """As classifiers of other toolkits give them: a list of maps from class to probability."""
    probabilities = onnx.TypeProto()
    probabilities.sequence_type.elem_type.map_type.key_type = TensorProto.INT64
    probabilities.sequence_type.elem_type.map_type.value_type.CopyFrom(
        helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    )
    node = helper.make_node("ZipMap", ["x"], ["z"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2])
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3])
    graph = helper.make_graph([node], "g", [x], [helper.make_value_info("z", probabilities)])
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("ai.onnx.ml", 2)]
    source = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    result = round_trip(source, copied)
    assert list(result.graph.output) == list(source.graph.output)
    feed = {"x": np.eye(2, 3, dtype=np.float32)}
    assert run(result, feed) == run(source, feed)


@COPIED
def test_functions_survive(copied):
    """With attributes that refer to the caller's, and with a list without an entry."""
    nodes = [helper.make_node("LeakyRelu", ["x"], ["a"]), helper.make_node("ReduceMean", ["a"], ["y"])]
    nodes[0].attribute.append(AttributeProto(name="alpha", type=AttributeProto.FLOAT, ref_attr_name="slope"))
    nodes[1].attribute.append(AttributeProto(name="axes", type=AttributeProto.INTS))
    function = helper.make_function("local", "F", ["x"], ["y"], nodes, [helper.make_opsetid("", 13)], ["slope"])
    function.doc_string = "what it does"
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in "xy")
    graph = helper.make_graph([helper.make_node("F", ["x"], ["y"], domain="local", slope=0.5)], "g", [x], [y])
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("local", 1)]
    source = helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=8)
    result = round_trip(source, copied)
    assert_same_nodes(result.functions[0].node, source.functions[0].node)
    assert result.functions[0].doc_string == "what it does"
    assert list(result.functions[0].attribute) == ["slope"]


@COPIED
def test_number_types_without_a_numpy_twin_survive(copied):
    source = model("g (float[3] x) => (float[3] y) { a = Cast<to=1>(b) c = Cast<to=1>(f) s = Add(a, c) y = Add(x, s) }")
    for name, kind in (("b", TensorProto.BFLOAT16), ("f", TensorProto.FLOAT8E4M3FN)):
        source.graph.initializer.append(helper.make_tensor(name, kind, [3], [1.0, -2.0, 0.5]))
    result = round_trip(source, copied)
    kinds = {t.name: t.data_type for t in result.graph.initializer}
    assert kinds == {"b": TensorProto.BFLOAT16, "f": TensorProto.FLOAT8E4M3FN}
    np.testing.assert_equal(initializers(result), initializers(source))


@COPIED
def test_strings_survive(copied):
    source = model("g (int64[2] i) => (string[2] y) { y = Gather(labels, i) }")
    source.graph.initializer.append(helper.make_tensor("labels", TensorProto.STRING, [3], [b"a", b"bb", "ä".encode()]))
    assert_same_numbers(source, round_trip(source, copied), {"i": np.array([2, 0])}, rtol=0)


def test_the_weights_of_an_old_file_stop_being_inputs_and_the_version_says_so():
    source = model("g (float[2] x, float[2] w) => (float[2] y) { y = Add(x, w) }", {"w": np.ones(2, np.float32)}, ir=3)
    result = round_trip(source)
    assert [value.name for value in result.graph.input] == ["x"]
    assert result.ir_version == 4
    onnx.checker.check_model(result, full_check=True)


def test_sparse_weights_are_written_out():
    source = model("g (float[2, 3] x) => (float[2, 3] y) { [add] y = Add(x, w) }")
    values = helper.make_tensor("w", TensorProto.FLOAT, [2], [5.0, -7.0])
    indices = helper.make_tensor("i", TensorProto.INT64, [2, 2], [0, 1, 1, 2])
    source.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [2, 3]))
    np.testing.assert_equal(initializers(round_trip(source)), {"w": np.array([[0, 5, 0], [0, 0, -7]], np.float32)})


def documented():
    source = model(CHAIN)
    source.graph.node[0].doc_string = "of the node"
    for props in (source.metadata_props, source.graph.metadata_props, source.graph.node[0].metadata_props):
        entry = props.add()
        entry.key, entry.value = "where", "from"
    return source


@pytest.mark.parametrize(
    "part",
    [
        lambda m: m.metadata_props,
        lambda m: m.graph.metadata_props,
        lambda m: m.graph.node[0].metadata_props,
        lambda m: m.graph.node[0].doc_string,
    ],
    ids=["model", "graph", "node", "text of node"],
)
def test_documentation_survives(part):
    source = documented()
    found, expected = part(round_trip(source)), part(source)
    assert found == expected if isinstance(expected, str) else list(found) == list(expected)


# What is refused


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{ [n] y = Add(x, lost) }", r"node 'n' \(Add\) reads tensor 'lost', which nothing before it produces"),
        ("{ [n] y = Neg(a) [m] a = Abs(x) }", r"node 'n' \(Neg\) reads tensor 'a', which nothing before it produces"),
        ("{ [n] a = Neg(x) }", r"output 'y' of the model is produced by no node"),
        ("{ [n] y = Neg(x) [m] y = Abs(x) }", r"tensor 'y' is produced twice, the second time by node 'm' \(Abs\)"),
        ("{ [n] x = Neg(x) [m] y = Abs(x) }", r"tensor 'x' is produced twice, the second time by node 'n' \(Neg\)"),
        ("{ [n] w = Neg(x) [m] y = Abs(w) }", r"tensor 'w' is produced twice, the second time by node 'n' \(Neg\)"),
        ("{ [n] y, y = Split(x) }", r"tensor 'y' is produced twice, the second time by node 'n' \(Split\)"),
    ],
)
def test_broken_links_are_refused(text, sentence):
    with pytest.raises(ModelError, match=f"^{sentence}$"):
        Graph.of_model(model(f"g (float[2] x) => (float[2] y) {text}", {"w": np.ones(2, np.float32)}))


def test_inputs_left_out_are_no_broken_links():
    source = model("g (float[2] x) => (float[2] y) { [n] y = Clip(x, , w) }", {"w": np.float32(1)})
    graph = Graph.of_model(source)
    clip = graph.nodes[0]
    assert [has_input(clip, index) for index in range(4)] == [True, False, True, False]
    assert same(graph.to_model().graph.node[0], source.graph.node[0])


# Looking


def test_constants_inputs_and_computed_tensors_are_told_apart():
    graph = Graph.of_model(
        model("g (float[2] x) => (float[2] y) { [n] a = Add(x, w) y = Neg(a) }", {"w": np.float32(2)})
    )
    add = graph.nodes[0]
    assert [is_constant(t) for t in (*add.inputs, *add.outputs)] == [False, True, False]
    assert constant_input(add, 0) is None
    assert constant_input(add, 1) == 2
    assert constant_input(add, 2) is None
    assert constant(add.outputs[0]) is None
    assert producer(add.inputs[0]) is None
    assert producer(add.inputs[1]) is None
    assert producer(add.outputs[0]) is add
    assert [n.name for n in nodes_of(graph, "Add", "Relu")] == ["n"]
    assert (graph.opset, [t.name for t in graph.inputs], [t.name for t in graph.outputs]) == (13, ["x"], ["y"])


@pytest.mark.parametrize(
    ("attribute", "value"),
    [
        ("value: tensor = float[2] {1, 2}", np.array([1, 2], np.float32)),
        ("value_float = 0.5", np.float32(0.5)),
        ("value_floats = [0.5, 1.5]", np.array([0.5, 1.5], np.float32)),
        ("value_int = 3", np.int64(3)),
        ("value_ints = [3, 4]", np.array([3, 4])),
        ('value_string = "a"', None),
        ('value_strings = ["a", "b"]', None),
    ],
)
def test_the_values_of_a_constant_node(attribute, value):
    graph = Graph.of_model(model(f"g () => (float y) {{ y = Constant<{attribute}>() }}"))
    found = dense_value(graph.nodes[0])
    if value is None:
        assert found is None
    else:
        assert found.dtype == value.dtype
        np.testing.assert_array_equal(found, value)


@pytest.mark.parametrize(("name", "dtype"), [("value_floats", np.float32), ("value_ints", np.int64)])
def test_the_values_of_a_constant_node_whose_list_is_empty(name, dtype):
    source = model("g () => (float y) { y = Constant() }")
    source.graph.node[0].attribute.append(
        AttributeProto(name=name, type=AttributeProto.INTS if dtype is np.int64 else AttributeProto.FLOATS)
    )
    found = dense_value(Graph.of_model(source).nodes[0])
    assert (found.shape, found.dtype) == ((0,), dtype)


def test_operators_of_other_domains_are_not_standard():
    source = model("g (float[2] x) => (float[2] y) { [n] a = Relu(x) [m] y = Relu(a) }")
    source.graph.node[0].domain, source.graph.node[1].domain = "custom", "ai.onnx"
    source.opset_import.append(helper.make_opsetid("custom", 1))
    graph = Graph.of_model(source)
    assert [is_standard(node) for node in graph.nodes] == [False, True]
    assert [node.name for node in nodes_of(graph, "Relu")] == ["m"]


@pytest.mark.parametrize(
    ("text", "consumer"),
    [
        ("=> (float[2] y) { a = Relu(x) [n] y = Neg(a) }", "n"),
        ("=> (float[2] y) { a = Relu(x) b = Neg(a) c = Abs(a) y = Add(b, c) }", None),
        ("=> (float[2] y) { a = Relu(x) y = Add(a, a) }", None),
        ("=> (float[2] y, float[2] a) { a = Relu(x) y = Neg(a) }", None),
        ("=> (float[2] y) { a = Relu(x) y = Neg(x) }", None),
    ],
    ids=["one", "two", "one twice", "an output of the model too", "none"],
)
def test_the_sole_consumer_of_a_tensor(text, consumer):
    graph = Graph.of_model(model(f"g (float[2] x) {text}"))
    found = sole_consumer(graph, graph.nodes[0].outputs[0])
    assert (None if found is None else found.name) == consumer


def test_a_reader_inside_a_body_is_no_sole_consumer():
    graph = Graph.of_model(model(BRANCHES, {"w": np.float32(2)}))
    before, choice = graph.nodes
    assert [node.name for node in before.outputs[0].outputs] == ["inner"]
    assert sole_consumer(graph, before.outputs[0]) is None
    assert has_body(choice)
    assert not has_body(before)
    assert {"c", "a", "w", "x"} <= {tensor.name for tensor in reads(choice)}
    assert [(holder.name, node.name) for holder, node in graph.body_nodes()] == [
        ("choice", "inner"),
        ("choice", "scaled"),
        ("choice", "other"),
    ]
    assert graph.tensor_names() == {"x", "c", "a", "y", "s", "t", "w", "e"}


def test_names_of_tensors_that_no_node_touches_count_as_taken():
    source = model("g (float[2] x, float[2] idle) => (float[2] y, float[2] x, float[1] w) { y = Neg(x) }")
    source.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), "w"))
    assert Graph.of_model(source).tensor_names() == {"x", "idle", "y", "w"}


def test_a_name_that_is_taken_gets_the_first_free_number():
    taken = {"a", "a_1", "b"}
    assert [unique_name(name, taken) for name in ("a", "a", "b", "c")] == ["a_2", "a_3", "b_1", "c"]
    assert taken == {"a", "a_1", "a_2", "a_3", "b", "b_1", "c"}


# Editing


def test_a_node_is_inserted_where_it_is_asked_for():
    graph = Graph.of_model(model(CHAIN))
    first, second, third = graph.nodes
    first_out, second_out = first.outputs[0], second.outputs[0]
    for name, source, anchor in (
        ("early", graph.inputs[0], {}),
        ("before", first_out, {"before": third}),
        ("after", second_out, {"after": second}),
    ):
        graph.insert("Sin", name, [source], graph.new_tensor(f"{name}.out"), {}, **anchor)
    assert nodes_as_text(graph.to_model()) == [
        "[early] early.out = Sin(x)",
        "[first] a = Relu(x)",
        "[second] b = Neg(a)",
        "[after] after.out = Sin(b)",
        "[before] before.out = Sin(a)",
        "[third] y = Abs(b)",
    ]


def test_a_removed_node_leaves_no_link_behind():
    graph = Graph.of_model(model(CHAIN))
    first, second, _ = graph.nodes
    graph.replace_uses(second.outputs[0], first.outputs[0])
    graph.remove([second])
    assert nodes_as_text(graph.to_model()) == ["[first] a = Relu(x)", "[third] y = Abs(a)"]
    assert [node.name for node in first.outputs[0].outputs] == ["third"]
    assert len(second.inputs) == len(second.outputs) == 0


def test_nodes_with_equal_contents_are_not_mixed_up():
    graph = Graph.of_model(model("g (float[2] x) => (float[2] y, float[2] z) { y = Relu(x) z = Relu(x) }"))
    first, second = graph.nodes
    second.outputs[0].name = "y"  # now the two nodes are equal to onnx-graphsurgeon
    graph.outputs.pop()
    graph.remove([second])
    assert len(graph.nodes) == 1
    assert graph.nodes[0] is first


def test_uses_are_replaced_everywhere_but_where_they_are_kept():
    text = "g (float[2] x, bool c) => (float[2] a, float[2] y) { [relu] a = Relu(x) [twice] b = Add(a, a) "
    text += "[keep] d = Neg(a) [if] y = If(c)<then_branch = t () => (float[2] p) { [in] p = Add(a, b) }, "
    text += "else_branch = e () => (float[2] q) { q = Neg(d) }> }"
    graph = Graph.of_model(model(text))
    relu, twice, keep, choice = graph.nodes
    old, new = relu.outputs[0], graph.inputs[0]
    graph.replace_uses(old, new, keep=keep)
    assert [t.name for t in twice.inputs] == ["x", "x"]
    assert [t.name for t in keep.inputs] == ["a"]
    assert [t.name for t in graph.outputs] == ["x", "y"]
    assert [node.name for node in old.outputs] == ["keep"]
    assert "a" not in {t.name for t in reads(choice)}


def test_what_leads_to_no_output_is_dropped_and_told():
    text = "g (float[2] x, bool c) => (float[2] y) { [used] a = Relu(x) [dead] b = Neg(a) [deader] d = Abs(b) "
    text += "[if] y, z = If(c)<then_branch = t () => (float[2] p, float[2] p2) { p = Neg(a) p2 = Neg(p) }, "
    text += "else_branch = e () => (float[2] q, float[2] q2) { q = Neg(x) q2 = Neg(q) }> [unread] n = Neg(z) }"
    graph = Graph.of_model(model(text))
    assert {node.name for node in graph.drop_unreached()} == {"dead", "deader", "unread"}
    assert [node.name for node in graph.nodes] == ["used", "if"]
    assert graph.drop_unreached() == []


def test_an_input_is_set_or_appended():
    graph = Graph.of_model(model("g (float[2] x) => (float[2] y) { [n] y = Clip(x) }"))
    clip = graph.nodes[0]
    set_input(clip, 1, graph.new_constant("low", np.float32(0)))
    set_input(clip, 2, graph.new_constant("high", np.float32(1)))
    set_input(clip, 1, graph.new_constant("lower", np.float32(-1)))
    assert [t.name for t in clip.inputs] == ["x", "lower", "high"]
    assert initializers(graph.to_model()) == {"lower": -1, "high": 1}


def test_new_values_of_a_constant_reach_every_reader():
    graph = Graph.of_model(
        model("g (float[3] x) => (float[3] y) { a = Add(x, w) y = Mul(a, w) }", {"w": np.float32(1)})
    )
    set_constant(graph.nodes[0].inputs[1], np.arange(6, dtype=np.float32).reshape(2, 3).T[:, 1])
    np.testing.assert_equal(initializers(graph.to_model()), {"w": np.array([3, 4, 5], np.float32)})


def test_edits_of_a_copy_leave_the_graph_alone():
    graph = Graph.of_model(model(BRANCHES, {"w": np.float32(2)}))
    before = graph.to_model()
    copy = graph.copy()
    for _, node in copy.body_nodes():
        node.name = f"{node.name}_new"
    body_scale = next(t for t in reads(copy.nodes[1]) if t.name == "w")
    set_constant(body_scale, np.float32(3))
    copy.insert("Sin", "sin", [copy.inputs[0]], copy.new_tensor("sin.out"))
    copy.nodes[1].attrs["extra"] = 1
    copy.outputs.append(copy.nodes[0].outputs[0])
    copy.inputs[0].name = "renamed"
    assert same(graph.to_model(), before)
    assert not same(copy.to_model(), before)


def test_a_copy_links_bodies_to_its_own_tensors():
    graph = Graph.of_model(model(BRANCHES, {"w": np.float32(2)}))
    copy = graph.copy()
    copy.replace_uses(copy.nodes[0].outputs[0], copy.inputs[0])
    assert "a" in {t.name for t in reads(graph.nodes[1])}
    assert "a" not in {t.name for t in reads(copy.nodes[1])}


# take_over_output


def doubled(graph, node, name="double"):
    """A node that takes over the output of another."""
    result = graph.new_tensor(f"{name}.out")
    return graph.insert("Add", name, [node.outputs[0], node.outputs[0]], result, after=node)


def test_a_node_takes_over_an_inner_tensor():
    graph = Graph.of_model(model(CHAIN))
    first = graph.nodes[0]
    take_over_output(graph, first, doubled(graph, first), own_name="unused")
    assert nodes_as_text(graph.to_model()) == [
        "[first] a = Relu(x)",
        "[double] double.out = Add(a, a)",
        "[second] b = Neg(double.out)",
        "[third] y = Abs(b)",
    ]


def test_a_node_that_takes_over_an_output_takes_its_name_and_type():
    graph = Graph.of_model(model(CHAIN))
    third = graph.nodes[2]
    take_over_output(graph, third, doubled(graph, third), own_name="raw")
    result = graph.to_model()
    assert nodes_as_text(result)[2:] == ["[third] raw = Abs(b)", "[double] y = Add(raw, raw)"]
    assert list(result.graph.output) == list(model(CHAIN).graph.output)
    assert "raw" not in {value.name for value in result.graph.value_info}
    x = np.array([[1, -2, 0], [3, 0, 4]], np.float32)
    np.testing.assert_array_equal(run(result, {"x": x})["y"], 2 * np.maximum(x, 0))


def test_a_tensor_that_is_output_and_goes_on_is_taken_over_for_both():
    text = "g (float[2] x) => (float[2] a, float[2] y) { [first] a = Relu(x) [second] y = Neg(a) }"
    graph = Graph.of_model(model(text))
    first = graph.nodes[0]
    take_over_output(graph, first, doubled(graph, first), own_name="raw")
    assert nodes_as_text(graph.to_model()) == [
        "[first] raw = Relu(x)",
        "[double] a = Add(raw, raw)",
        "[second] y = Neg(a)",
    ]


def test_readers_inside_bodies_read_what_took_over():
    graph = Graph.of_model(model(BRANCHES, {"w": np.float32(2)}))
    before = graph.nodes[0]
    take_over_output(graph, before, doubled(graph, before), own_name="unused")
    result = graph.to_model()
    assert nodes_as_text(result)[1] == "[double] double.out = Add(a, a)"
    x = np.array([[1, -2, 0], [3, 0, 4]], np.float32)
    found = run(result, {"x": x, "c": np.array(True)})["y"]
    np.testing.assert_array_equal(found, -4 * np.maximum(x, 0))


# Parts


def test_a_part_that_depends_on_constants_is_cut_out():
    text = "g (float[2] x) => (float[2] y) { a = Neg(w) b = Abs(a) c = Add(b, v) y = Add(x, c) }"
    graph = Graph.of_model(model(text, {"w": np.array([1, -2], np.float32), "v": np.float32(1)}))
    part = graph.nodes[:3]
    cut = graph.cut_out(part, [part[1].outputs[0], part[2].outputs[0]]).whole()
    assert nodes_as_text(cut) == ["[] a = Neg(float[2])", "[] b = Abs(a)", "[] c = Add(b, float[])"]
    np.testing.assert_equal(run(cut, {}), {"b": np.array([1, 2], np.float32), "c": np.array([2, 3], np.float32)})
    assert len(graph.nodes) == 4


def test_a_part_is_legal_also_where_its_nodes_are_documented_or_hold_empty_lists():
    source = model(
        "g (float[3] x) => (float[3] y) { a = Squeeze(w) y = Add(x, a) }", {"w": np.ones((1, 3), np.float32)}, opset=11
    )
    source.graph.node[0].doc_string = "of the node"
    source.graph.node[0].attribute.append(AttributeProto(name="axes", type=AttributeProto.INTS))
    graph = Graph.of_model(source)
    cut = graph.cut_out(graph.nodes[:1], [graph.nodes[0].outputs[0]]).whole()
    assert cut.graph.node[0] == source.graph.node[0]
    np.testing.assert_equal(run(cut, {}), {"a": np.ones(3, np.float32)})


def test_a_skeleton_has_no_large_weights_and_the_graph_keeps_them():
    text = "g (float[1, 8] x) => (float[1, 400] y, float[2, 2] z) { a = MatMul(x, w) y = Add(a, w2) z = Reshape(v, s) }"
    weights = {"w": np.ones((8, 400), np.float32), "w2": np.ones(400, np.float32)}
    graph = Graph.of_model(model(text, weights | {"v": np.ones(4, np.float32), "s": np.array([2, 2])}))
    skeleton = graph.to_skeleton(1024)
    assert set(initializers(skeleton)) == {"v", "s"}
    assert [value.name for value in skeleton.graph.input] == ["x", "w", "w2"]
    assert set(initializers(graph.to_model())) == {"w", "w2", "v", "s"}
    assert [value.name for value in graph.to_model().graph.input] == ["x"]


def test_operator_sets_that_no_node_uses_are_dropped():
    text = "g (float[2] x, bool c) => (float[2] y) { a = Relu(x) [if] y = If(c)<"
    text += "then_branch = t () => (float[2] p) { p = Neg(a) }, else_branch = e () => (float[2] q) { q = Gelu(a) }> }"
    source = model(text)
    source.graph.node[1].attribute[1].g.node[0].domain = "com.microsoft"
    source.opset_import.extend(helper.make_opsetid(*entry) for entry in (("com.microsoft", 1), ("ai.onnx.ml", 3)))
    result = Graph.of_model(source).to_model()
    assert [(entry.domain, entry.version) for entry in result.opset_import] == [("", 13), ("com.microsoft", 1)]
    assert len(source.opset_import) == 3
