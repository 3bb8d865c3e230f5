"""remove identities: what does nothing at inference goes, what names an output or trains stays."""

import numpy as np
import pytest
from graphs import assert_same_numbers, model, nodes_as_text, rewritten
from onnx import helper

from amct_onnx.passes.name_nodes import NAME_NODES
from amct_onnx.passes.pipelines import PREPARE
from amct_onnx.passes.remove_identities import REMOVE_IDENTITIES

OFF, ON, HALF = np.array(False), np.array(True), np.float32(0.5)


def check(text, after, gone, weights=None, *, opset=13, feed=None):
    """The nodes after the pass, what is gone, and equal numbers."""
    source = model(text, weights, opset=opset)
    state, result = rewritten(source, NAME_NODES, REMOVE_IDENTITIES)
    assert nodes_as_text(result) == after
    assert state.gone == gone
    assert_same_numbers(source, result, feed, rtol=0)


def test_an_identity_goes():
    check(
        "g (float[2] x) => (float[2] y) { [a] a = Relu(x) [id] b = Identity(a) [c] y = Neg(b) }",
        ["[a] a = Relu(x)", "[c] y = Neg(a)"],
        {"id": "Identity does nothing at inference"},
    )


def test_identities_in_a_row_go_and_all_readers_follow():
    check(
        "g (float[2] x) => (float[2] y) { [i] a = Identity(x) [j] b = Identity(a) [c] c = Neg(b) [d] y = Add(c, b) }",
        ["[c] c = Neg(x)", "[d] y = Add(c, x)"],
        {"i": "Identity does nothing at inference", "j": "Identity does nothing at inference"},
    )


def test_an_identity_over_a_constant_goes():
    check(
        "g (float[2] x) => (float[2] y) { [i] a = Identity(w) [d] y = Add(x, a) }",
        ["[d] y = Add(x, float[2])"],
        {"i": "Identity does nothing at inference"},
        {"w": np.ones(2, np.float32)},
    )


@pytest.mark.parametrize(
    ("text", "after"),
    [
        ("=> (float[2] y) { [i] y = Identity(x) }", ["[i] y = Identity(x)"]),
        (
            "=> (float[2] y, float[2] z) { [i] y = Identity(x) [n] z = Neg(y) }",
            ["[i] y = Identity(x)", "[n] z = Neg(y)"],
        ),
        ("=> (float[2] y) { [i] y = Dropout(x) }", ["[i] y = Dropout(x)"]),
    ],
    ids=["output", "output that goes on", "dropout"],
)
def test_what_names_an_output_stays(text, after):
    check(f"g (float[2] x) {text}", after, {})


def test_an_identity_before_an_output_and_another_output_of_the_same_values():
    check(
        "g (float[2] x) => (float[2] a, float[2] y) { [r] a = Relu(x) [i] b = Identity(a) [j] y = Identity(b) }",
        ["[r] a = Relu(x)", "[j] y = Identity(a)"],
        {"i": "Identity does nothing at inference"},
    )


def test_readers_in_bodies_follow():
    text = "g (float[2] x, bool c) => (float[2] y) { [i] a = Identity(x) [if] y = If(c)<"
    text += (
        "then_branch = t () => (float[2] p) { [in] p = Neg(a) }, else_branch = e () => (float[2] q) { q = Abs(a) }> }"
    )
    source = model(text)
    state, result = rewritten(source, NAME_NODES, REMOVE_IDENTITIES)
    assert [node.name for node in result.graph.node] == ["if"]
    assert list(state.gone) == ["i"]
    for choice in (True, False):
        feed = {"x": np.array([-1, 2], np.float32), "c": np.array(choice)}
        assert_same_numbers(source, result, feed, rtol=0)


@pytest.mark.parametrize(
    ("call", "weights", "opset"),
    [
        ("Dropout(x)", {}, 13),
        ("Dropout(x, r)", {"r": HALF}, 13),
        ("Dropout(x, r, t)", {"r": HALF, "t": OFF}, 13),
        ("Dropout(x, , t)", {"t": OFF}, 13),
        ("Dropout<ratio = 0.5>(x)", {}, 11),
    ],
)
def test_a_dropout_goes(call, weights, opset):
    check(
        f"g (float[2] x) => (float[2] y) {{ [d] a = {call} [n] y = Neg(a) }}",
        ["[n] y = Neg(x)"],
        {"d": "Dropout does nothing at inference"},
        weights,
        opset=opset,
    )


def test_a_dropout_whose_unused_mask_has_a_name_goes():
    check(
        "g (float[2] x) => (float[2] y) { [d] a, mask = Dropout(x) [n] y = Neg(a) }",
        ["[n] y = Neg(x)"],
        {"d": "Dropout does nothing at inference"},
    )


@pytest.mark.parametrize(
    "text",
    [
        "=> (float[2] y, bool[2] mask) { [d] a, mask = Dropout(x) [n] y = Neg(a) }",
        "=> (float[2] y, bool[2] z) { [d] a, mask = Dropout(x) [n] y = Neg(a) [m] z = Not(mask) }",
    ],
    ids=["output", "read"],
)
def test_a_dropout_that_is_asked_for_its_mask_stays(text):
    source = model(f"g (float[2] x) {text}")
    check(f"g (float[2] x) {text}", nodes_as_text(source), {})


@pytest.mark.parametrize("inputs", ["x, r, t", "x, r, on"], ids=["at run time", "on"])
def test_a_dropout_that_may_train_stays(inputs):
    text = f"g (float[2] x, bool t) => (float[2] y) {{ [d] a = Dropout({inputs}) [n] y = Neg(a) }}"
    source = model(text, {"r": np.float32(0.0), "on": ON})
    state, result = rewritten(source, REMOVE_IDENTITIES)
    assert [node.name for node in result.graph.node] == ["d", "n"]
    assert state.gone == {}


def test_a_dropout_goes_whose_parameters_are_constant_nodes():
    """As torch exports it."""
    text = "g (float[2] x) => (float[2] y) { [r] r = Constant<value_float = 0.5>() "
    text += "[t] t = Constant<value: tensor = bool {0}>() [d] a = Dropout(x, r, t) [n] y = Neg(a) }"
    source = model(text)
    state, result = rewritten(source, *PREPARE)
    assert nodes_as_text(result) == ["[n] y = Neg(x)"]
    assert state.gone["d"] == "Dropout does nothing at inference"
    assert_same_numbers(source, result, rtol=0)


def test_an_identity_of_another_domain_stays():
    source = model("g (float[2] x) => (float[2] y) { [i] a = Identity(x) [n] y = Neg(a) }")
    source.graph.node[0].domain = "custom"
    source.opset_import.append(helper.make_opsetid("custom", 1))
    state, result = rewritten(source, REMOVE_IDENTITIES)
    assert nodes_as_text(result) == nodes_as_text(source)
    assert state.gone == {}
