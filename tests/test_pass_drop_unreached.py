"""drop what leads to no output: with the reason told, and nothing else touched."""

import numpy as np
from graphs import assert_same_numbers, initializers, model, nodes_as_text, rewritten
from odd_graphs import ODD_GRAPHS

from amct_onnx.passes.drop_unreached import DROP_UNREACHED
from amct_onnx.passes.name_nodes import NAME_NODES
from amct_onnx.passes.pipelines import PREPARE

REASON = "leads to no output of the model"


def test_what_leads_to_no_output_goes():
    text = "g (float[2] x) => (float[2] y) { [a] a = Relu(x) [dead] b = Neg(a) [deader] c = Mul(b, w) [n] y = Neg(a) }"
    source = model(text, {"w": np.ones(2, np.float32)})
    state, result = rewritten(source, NAME_NODES, DROP_UNREACHED)
    assert nodes_as_text(result) == ["[a] a = Relu(x)", "[n] y = Neg(a)"]
    assert state.gone == {"dead": REASON, "deader": REASON}
    assert state.remarks == {}
    assert initializers(result) == {}
    assert_same_numbers(source, result, rtol=0)


def test_what_leads_to_an_output_stays():
    text = "g (float[2] x) => (float[2] y, float[2] z) { [split] a, b = Split(x) [n] z = Identity(x) "
    text += "[m] y = Concat<axis = 0>(a, a) }"
    source = model(text)
    state, result = rewritten(source, NAME_NODES, DROP_UNREACHED)
    assert nodes_as_text(result) == nodes_as_text(source)
    assert state.gone == {}
    assert_same_numbers(source, result, rtol=0)


def test_what_only_a_body_reads_stays():
    text = "g (float[2] x, bool c) => (float[2] y) { [a] a = Neg(x) [dead] d = Abs(x) [if] y = If(c)<"
    text += "then_branch = t () => (float[2] p) { p = Neg(a) }, else_branch = e () => (float[2] q) { q = Abs(x) }> }"
    source = model(text)
    state, result = rewritten(source, NAME_NODES, DROP_UNREACHED)
    assert [node.name for node in result.graph.node] == ["a", "if"]
    assert state.gone == {"dead": REASON}
    assert_same_numbers(source, result, {"x": np.ones(2, np.float32), "c": np.array(True)}, rtol=0)


def test_a_dead_layer_keeps_this_reason_through_the_whole_preparation():
    build = next(build for build in ODD_GRAPHS if build.__name__ == "parts_unused")
    state, result = rewritten(build().model, *PREPARE)
    assert state.gone["dead"] == REASON
    assert "dead" not in {node.name for node in result.graph.node}
