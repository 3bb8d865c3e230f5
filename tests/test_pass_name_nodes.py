"""name nodes: every node has a name of its own; names that are unique stay."""

import pytest
from graphs import assert_same_numbers, model, nodes_as_text, rewritten
from hypothesis import given, settings
from hypothesis import strategies as st

from amct_onnx.passes.name_nodes import NAME_NODES


def names_after(names):
    nodes = " ".join(
        f"[{name}] t{i + 1} = Relu(t{i})" if name else f"t{i + 1} = Relu(t{i})" for i, name in enumerate(names)
    )
    source = model(f"g (float[2] t0) => (float[2] t{len(names)}) {{ {nodes} }}")
    state, result = rewritten(source, NAME_NODES)
    assert state.gone == {}
    assert [list(node.output) for node in result.graph.node] == [list(node.output) for node in source.graph.node]
    return [node.name for node in result.graph.node]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (["a", "b"], ["a", "b"]),
        (["", ""], ["Relu_0", "Relu_1"]),
        (["a", "", "b"], ["a", "Relu_1", "b"]),
        (["a", "a", "a"], ["a", "a_1", "a_2"]),
        (["", "Relu_0"], ["Relu_0_1", "Relu_0"]),
        (["Relu_1", ""], ["Relu_1", "Relu_1_1"]),
        (["a", "a", "a_1"], ["a", "a_2", "a_1"]),
        (["a_1", "a", "a"], ["a_1", "a", "a_2"]),
    ],
)
def test_names_before_and_after(before, after):
    assert names_after(before) == after


@given(names=st.lists(st.sampled_from(["", "a", "a_1", "a_2", "Relu_0", "Relu_1", "Relu_1_1"]), min_size=1, max_size=8))
@settings(deadline=None, derandomize=True)
def test_whatever_the_names_they_become_unique_and_unique_ones_stay(names):
    found = names_after(names)
    assert len(set(found)) == len(found)
    assert "" not in found
    for name, given_name in zip(found, names, strict=True):
        assert name == given_name or names.count(given_name) > 1 or not given_name
    for name in set(names) - {""}:
        assert found.index(name) == names.index(name), "the first of that name keeps it"


def test_the_names_do_not_depend_on_the_run():
    assert names_after(["", "a", "a", ""]) == names_after(["", "a", "a", ""])


def test_nodes_in_bodies_keep_their_names():
    text = "g (float[2] x, bool c) => (float[2] y) { [n] a = Relu(x) [n] y = If(c)<"
    text += (
        "then_branch = t () => (float[2] p) { [n] p = Neg(a) }, else_branch = e () => (float[2] q) { q = Abs(a) }> }"
    )
    state, result = rewritten(model(text), NAME_NODES)
    assert [node.name for node in result.graph.node] == ["n", "n_1"]
    assert [node.name for _, node in state.graph.body_nodes()] == ["n", ""]


def test_the_numbers_stay():
    source = model("g (float[2] x) => (float[2] y) { a = Relu(x) [n] b = Neg(a) y = Abs(b) }")
    _, result = rewritten(source, NAME_NODES)
    assert nodes_as_text(result) == ["[Relu_0] a = Relu(x)", "[n] b = Neg(a)", "[Abs_2] y = Abs(b)"]
    assert_same_numbers(source, result, rtol=0)
