"""normalise Gemm: weights [K, N], alpha = beta = 1, bias [N], and the same numbers."""

import numpy as np
import pytest
from graphs import assert_same_numbers, initializers, model, nodes_as_text, rewritten
from hypothesis import given, settings
from hypothesis import strategies as st

from amct_onnx.passes.name_nodes import NAME_NODES
from amct_onnx.passes.normalise_gemm import NORMALISE_GEMM
from amct_onnx.passes.pipelines import PREPARE

PLAIN = "alpha=1.0, beta=1.0, transB=0"
RNG = np.random.default_rng(7)


def normal(*shape, dtype=np.float32):
    return RNG.normal(size=shape).astype(dtype)


def gemm(call, weights, inputs="float[2, 3] x", outputs="float[2, 4] y", **options):
    return model(f"g ({inputs}) => ({outputs}) {{ [fc] y = Gemm{call} }}", weights, **options)


def test_a_turned_and_scaled_gemm_becomes_plain():
    weights = {"w": normal(4, 3), "b": normal(1, 4)}
    source = gemm("<transB = 1, alpha = 0.5, beta = 2.0>(x, w, b)", weights)
    state, result = rewritten(source, NAME_NODES, NORMALISE_GEMM)
    assert nodes_as_text(source) == ["[fc] y = Gemm<alpha=0.5, beta=2.0, transB=1>(x, float[4, 3], float[1, 4])"]
    assert nodes_as_text(result) == [f"[fc] y = Gemm<{PLAIN}>(x, float[3, 4], float[4])"]
    np.testing.assert_equal(initializers(result), {"w": weights["w"].T * 0.5, "b": weights["b"][0] * 2})
    assert (state.gone, state.remarks) == ({}, {})
    assert_same_numbers(source, result, rtol=1e-6)


@given(
    alpha=st.sampled_from([None, 1.0, 0.5, -2.0, 0.0]),
    beta=st.sampled_from([None, 1.0, 0.25, -1.5, 0.0]),
    trans_a=st.booleans(),
    trans_b=st.sampled_from([None, 0, 1]),
    bias_shape=st.sampled_from([None, "left out", (), (1,), "N", "1N", "11", "M1", "MN"]),
    sizes=st.tuples(*[st.integers(1, 4)] * 3),
    half=st.booleans(),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_every_gemm_computes_the_same(alpha, beta, trans_a, trans_b, bias_shape, sizes, half):
    m, k, n = sizes
    shapes = {"N": (n,), "1N": (1, n), "11": (1, 1), "M1": (m, 1), "MN": (m, n)}
    dtype = np.float16 if half else np.float32
    weights = {"w": normal(*((n, k) if trans_b else (k, n)), dtype=dtype)}
    if bias_shape not in (None, "left out"):
        weights["b"] = normal(*shapes.get(bias_shape, bias_shape), dtype=dtype)
    attributes = {"alpha": alpha, "beta": beta, "transA": int(trans_a), "transB": trans_b}
    text = ", ".join(f"{name} = {value}" for name, value in attributes.items() if value is not None)
    bias = {None: "", "left out": ", "}.get(bias_shape, ", b")
    kind = "float16" if half else "float"
    x = f"{kind}[{k}, {m}] x" if trans_a else f"{kind}[{m}, {k}] x"
    source = gemm(f"<{text}>(x, w{bias})", weights, x, f"{kind}[{m}, {n}] y")
    _, result = rewritten(source, NAME_NODES, NORMALISE_GEMM)
    node = result.graph.node[0]
    found = {a.name: a for a in node.attribute}
    assert (found["alpha"].f, found["beta"].f, found["transB"].i) == (1.0, 1.0, 0)
    arrays = initializers(result)
    assert arrays["w"].shape == (k, n)
    if "b" in weights:
        per_row = bias_shape in ("M1", "MN") and m > 1
        assert arrays["b"].shape == (weights["b"].shape if per_row else (n,))
    assert_same_numbers(source, result, rtol=4e-3 if half else 1e-5)


def test_a_plain_gemm_keeps_its_weights():
    weights = {"w": normal(3, 4), "b": normal(4)}
    source = gemm("(x, w, b)", weights)
    _, result = rewritten(source, NAME_NODES, NORMALISE_GEMM)
    assert nodes_as_text(result) == [f"[fc] y = Gemm<{PLAIN}>(x, float[3, 4], float[4])"]
    np.testing.assert_equal(initializers(result), weights)
    assert_same_numbers(source, result, rtol=0)


def test_a_weight_of_two_layouts_is_given_to_each():
    weights = {"w": normal(3, 3)}
    text = "g (float[2, 3] x) => (float[2, 3] y) { [a] t = Gemm(x, w) [b] u = Gemm<transB = 1>(t, w) "
    text += "[c] v = Gemm<transB = 1, alpha = 2.0>(u, w) [d] y = MatMul(v, w) }"
    source = model(text, weights)
    _, result = rewritten(source, NAME_NODES, NORMALISE_GEMM)
    arrays = initializers(result)
    used = {node.name: arrays[node.input[1]] for node in result.graph.node}
    for name, expected in (("a", weights["w"]), ("b", weights["w"].T), ("c", 2 * weights["w"].T), ("d", weights["w"])):
        np.testing.assert_array_equal(used[name], expected)
    assert_same_numbers(source, result, rtol=1e-6)


def test_a_bias_of_two_gemms_is_given_to_each():
    text = "g (float[2, 3] x) => (float[2, 3] y) { [a] t = Gemm(x, v, b) [b] y = Gemm<beta = 2.0>(t, w, b) }"
    weights = {"v": normal(3, 3), "w": normal(3, 3), "b": normal(3)}
    source = model(text, weights)
    _, result = rewritten(source, NAME_NODES, NORMALISE_GEMM)
    arrays = initializers(result)
    first, second = (arrays[node.input[2]] for node in result.graph.node)
    np.testing.assert_array_equal(first, weights["b"])
    np.testing.assert_array_equal(second, 2 * weights["b"])
    assert_same_numbers(source, result, rtol=1e-6)


def test_a_weight_that_a_body_reads_too_stays_for_the_body():
    text = "g (float[2, 3] x, bool c) => (float[2, 3] y) { [fc] t = Gemm<transB = 1>(x, w) [if] y = If(c)<"
    text += "then_branch = p () => (float[2, 3] u) { u = MatMul(t, w) }, "
    text += "else_branch = q () => (float[2, 3] v) { v = Neg(t) }> }"
    source = model(text, {"w": normal(3, 3)})
    _, result = rewritten(source, NAME_NODES, NORMALISE_GEMM)
    assert_same_numbers(source, result, {"x": normal(2, 3), "c": np.array(True)}, rtol=0)


@pytest.mark.parametrize("sizes", [(3, 3), (4, 3)], ids=["square", "not square"])
def test_a_weight_that_the_model_outputs_too_stays_for_the_output(sizes):
    n, k = sizes
    outputs = f"float[2, {n}] y, float[{n}, {k}] w"
    source = gemm("<transB = 1>(x, w)", {"w": normal(n, k)}, f"float[2, {k}] x", outputs)
    _, result = rewritten(source, *PREPARE)
    assert_same_numbers(source, result, rtol=1e-6)


def test_a_bias_that_the_model_outputs_too_stays_for_the_output():
    weights = {"w": normal(3, 4), "b": normal(4)}
    source = gemm("<beta = 2.0>(x, w, b)", weights, outputs="float[2, 4] y, float[4] b")
    _, result = rewritten(source, *PREPARE)
    assert_same_numbers(source, result, rtol=1e-6)


def test_a_bias_at_run_time_stays_and_the_weight_becomes_plain():
    source = gemm("<transB = 1, alpha = 0.5>(x, w, c)", {"w": normal(4, 3)}, "float[2, 3] x, float[4] c")
    _, result = rewritten(source, NAME_NODES, NORMALISE_GEMM)
    assert nodes_as_text(result) == [f"[fc] y = Gemm<{PLAIN}>(x, float[3, 4], c)"]
    assert_same_numbers(source, result, rtol=1e-6)


@pytest.mark.parametrize("trans_b", [0, 1])
def test_a_bias_at_run_time_that_is_scaled_keeps_its_factor(trans_b):
    weights = {"w": normal(*((4, 3) if trans_b else (3, 4)))}
    source = gemm(f"<transB = {trans_b}, beta = 0.5>(x, w, c)", weights, "float[2, 3] x, float[4] c")
    _, result = rewritten(source, NAME_NODES, NORMALISE_GEMM)
    assert {a.name: a.f for a in result.graph.node[0].attribute}["beta"] == 0.5
    assert_same_numbers(source, result, rtol=1e-6)


@pytest.mark.parametrize(("kind", "dtype"), [("double", np.float64), ("int32", np.int32)])
def test_a_gemm_of_another_number_type_stays(kind, dtype):
    weights = {"w": (10 * normal(4, 3)).astype(dtype)}
    source = gemm("<transB = 1>(x, w)", weights, f"{kind}[2, 3] x", f"{kind}[2, 4] y")
    _, result = rewritten(source, NAME_NODES, NORMALISE_GEMM)
    assert nodes_as_text(result) == nodes_as_text(source)
    if kind == "double":
        assert_same_numbers(source, result, rtol=0)


def test_a_gemm_with_a_computed_weight_stays():
    source = gemm("<transB = 1, alpha = 0.5>(x, w, b)", {"b": normal(1, 4)}, "float[2, 3] x, float[4, 3] w")
    _, result = rewritten(source, NAME_NODES, NORMALISE_GEMM)
    assert nodes_as_text(result) == nodes_as_text(source)
    assert_same_numbers(source, result, rtol=0)


def test_a_bias_that_counts_for_nothing_may_hold_anything():
    """onnxruntime does not look at the bias where beta is 0."""
    weights = {"w": normal(3, 4), "b": np.array([np.inf, np.nan, 1, -np.inf], np.float32)}
    source = gemm("<beta = 0.0>(x, w, b)", weights)
    _, result = rewritten(source, NAME_NODES, NORMALISE_GEMM)
    assert_same_numbers(source, result, rtol=0)


def test_a_factor_that_half_precision_cannot_hold_together_with_the_weight_stays():
    source = gemm("<alpha = 8.0>(x, w)", {"w": np.full((3, 4), 3e4, np.float16)}, "float16[2, 3] x", "float16[2, 4] y")
    _, result = rewritten(source, NAME_NODES, NORMALISE_GEMM)
    feed = {"x": np.array([[0.01, 0, 0], [0.005, 0.005, 0]], np.float16)}
    assert_same_numbers(source, result, feed, rtol=4e-3)
