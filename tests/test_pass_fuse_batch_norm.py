"""fuse BatchNormalization: into the layer in front of it where that computes the same and the plan allows it."""

import re

import numpy as np
import pytest
from graphs import assert_same_numbers, initializers, model, nodes_as_text, rewritten, run
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from amct_onnx.passes.fuse_batch_norm import FUSE_BATCH_NORM
from amct_onnx.passes.name_nodes import NAME_NODES
from amct_onnx.passes.pipelines import PREPARE
from amct_onnx.passes.state import QuantPlan

RNG = np.random.default_rng(7)
WIDE = QuantPlan(wide_fusion=True)
NORM = "BatchNormalization({}, s, t, m, v)"
BEHIND_NORM = "[norm] n = BatchNormalization(c, s, t, m, v)"


def normal(*shape, dtype=np.float32):
    return RNG.normal(size=shape).astype(dtype)


def statistics(channels, dtype=np.float32):
    """Of a trained norm; one scale is negative."""
    scale = RNG.uniform(0.5, 1.5, channels)
    scale[0] *= -1
    parts = {"s": scale, "t": normal(channels), "m": normal(channels), "v": RNG.uniform(0.5, 2, channels)}
    return {name: values.astype(dtype) for name, values in parts.items()}


def graph(nodes, weights, inputs="float[2, 4, 6, 6] x", outputs="float y", *, opset=13):
    """A model over the weights that its nodes name; nothing is said of the shape of its outputs."""
    used = {name: values for name, values in weights.items() if re.search(rf"[( ]{name}[,)]", nodes)}
    source = model(f"g ({inputs}) => ({outputs}) {{ {nodes} }}", used, opset=opset)
    for value in source.graph.output:
        value.type.tensor_type.ClearField("shape")
    return source


def fuse(source, plan=WIDE):
    return rewritten(source, NAME_NODES, FUSE_BATCH_NORM, plan=plan)


def check_fused(source, lines, gone, *, rtol=1e-5, plan=WIDE):
    state, result = fuse(source, plan)
    assert nodes_as_text(result) == lines
    assert state.gone == gone
    assert state.remarks == {}
    assert_same_numbers(source, result, rtol=rtol)
    return result


def check_left_alone(source, reason, plan=WIDE, feed=None):
    """The norm is there, the table says why, and nothing else changed."""
    state, result = fuse(source, plan)
    assert nodes_as_text(result) == nodes_as_text(source)
    assert (state.gone, state.remarks) == ({}, {"norm": f"not folded: {reason}"})
    assert_same_numbers(source, result, feed, rtol=0)


CONV = {"w": normal(3, 4, 3, 3), "b": normal(3)} | statistics(3)


# Behind each layer


@pytest.mark.parametrize("call", ["Conv(x, w, b)", "Conv(x, w)", "Conv(x, w, )"])
def test_a_norm_behind_a_convolution_is_folded(call):
    source = graph(f"[conv] c = {call} [norm] n = {NORM.format('c')} [relu] y = Relu(n)", CONV)
    lines = ["[conv] n = Conv(x, float[3, 4, 3, 3], float[3])", "[relu] y = Relu(n)"]
    result = check_fused(source, lines, {"norm": "folded into 'conv'"}, plan=QuantPlan())
    k = CONV["s"] / np.sqrt(CONV["v"] + np.float32(1e-5))
    arrays = {node.name: initializers(result)[node.input[1]] for node in result.graph.node[:1]}
    np.testing.assert_array_equal(arrays["conv"], CONV["w"] * k.reshape(3, 1, 1, 1))


@pytest.mark.parametrize(
    ("nodes", "weights", "inputs", "line"),
    [
        (
            "[layer] c = ConvTranspose(x, w, b)",
            {"w": normal(4, 3, 3, 3), "b": normal(3)},
            "float[2, 4, 6, 6] x",
            "[layer] y = ConvTranspose(x, float[4, 3, 3, 3], float[3])",
        ),
        (
            "[layer] c = Gemm(x, w, b)",
            {"w": normal(4, 3), "b": normal(3)},
            "float[2, 4] x",
            "[layer] y = Gemm(x, float[4, 3], float[3])",
        ),
        (
            "[layer] c = Gemm(x, w)",
            {"w": normal(4, 3)},
            "float[2, 4] x",
            "[layer] y = Gemm(x, float[4, 3], float[3])",
        ),
    ],
    ids=["ConvTranspose", "Gemm", "Gemm without bias"],
)
def test_wide_fusion_folds_behind_the_other_layers(nodes, weights, inputs, line):
    source = graph(f"{nodes} [norm] y = {NORM.format('c')}", weights | statistics(3), inputs)
    check_fused(source, [line], {"norm": "folded into 'layer'"})
    op = nodes.split("= ")[1].split("(")[0]
    check_left_alone(source, f"fusion behind {op} is not asked for (wide_fusion)", QuantPlan())


def test_wide_fusion_folds_into_a_product_and_its_bias():
    weights = {"w": normal(4, 3), "b": normal(3)} | statistics(3)
    source = graph(f"[mm] d = MatMul(x, w) [add] c = Add(d, b) [norm] y = {NORM.format('c')}", weights, "float[2, 4] x")
    lines = ["[mm] d = MatMul(x, float[4, 3])", "[add] y = Add(d, float[3])"]
    check_fused(source, lines, {"norm": "folded into 'mm'"})
    check_left_alone(source, "fusion behind MatMul is not asked for (wide_fusion)", QuantPlan())


def test_norms_in_a_row_fold_all():
    weights = CONV | {f"{name}2": values for name, values in statistics(3).items()}
    nodes = f"[conv] c = Conv(x, w, b) [one] d = {NORM.format('c')} [two] y = BatchNormalization(d, s2, t2, m2, v2)"
    gone = {"one": "folded into 'conv'", "two": "folded into 'conv'"}
    check_fused(graph(nodes, weights), ["[conv] y = Conv(x, float[3, 4, 3, 3], float[3])"], gone)


def test_a_bias_that_is_added_behind_the_norm_can_be_folded_where_there_was_none():
    source = graph(
        f"[conv] c = Conv(x, w) [norm] n = {NORM.format('c')} [add] y = Add(n, a)", CONV | {"a": normal(3, 1, 1)}
    )
    gone = {"add": "folded into 'norm'", "norm": "folded into 'conv'"}
    check_fused(source, ["[conv] y = Conv(x, float[3, 4, 3, 3], float[3])"], gone)


def test_names_given_to_new_biases_are_free():
    nodes = f"[conv] c = Conv(x, w) [norm] n = {NORM.format('c')} [sub] y = Sub(n, a)"
    source = graph(nodes, CONV | {"a": normal(3, 1, 1)})
    source.graph.node[2].input[1] = "conv.bias"
    next(t for t in source.graph.initializer if t.name == "a").name = "conv.bias"
    check_fused(
        source,
        ["[conv] n = Conv(x, float[3, 4, 3, 3], float[3])", "[sub] y = Sub(n, float[3, 1, 1])"],
        {"norm": "folded into 'conv'"},
    )


def test_half_precision_is_folded_in_half_precision():
    weights = {name: values.astype(np.float16) for name, values in CONV.items()}
    source = graph(
        f"[conv] c = Conv(x, w, b) [norm] y = {NORM.format('c')}", weights, "float16[2, 4, 6, 6] x", "float16 y"
    )
    lines = ["[conv] y = Conv(x, float16[3, 4, 3, 3], float16[3])"]
    check_fused(source, lines, {"norm": "folded into 'conv'"}, rtol=4e-3)


def test_half_precision_with_statistics_in_single_precision():
    weights = CONV | {"w": CONV["w"].astype(np.float16), "b": CONV["b"].astype(np.float16)}
    nodes = f"[conv] c = Conv(x, w, b) [norm] y = {NORM.format('c')}"
    source = graph(nodes, weights, "float16[2, 4, 6, 6] x", "float16 y", opset=15)
    _, result = fuse(source)
    assert nodes_as_text(result) == ["[conv] y = Conv(x, float16[3, 4, 3, 3], float16[3])"]
    single = graph(nodes, CONV)
    x = normal(2, 4, 6, 6)
    found = run(result, {"x": x.astype(np.float16)})["y"].astype(np.float32)
    np.testing.assert_allclose(found, run(single, {"x": x})["y"], rtol=0, atol=0.05)


def shape_text(*sizes):
    return ", ".join(map(str, sizes))


@given(data=st.data(), axes=st.integers(1, 3), transposed=st.booleans(), group=st.integers(1, 3), bias=st.booleans())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_every_convolution_computes_the_same(data, axes, transposed, group, bias):
    """Any groups, rank, strides, pads and epsilon, with and without bias."""
    draw = data.draw
    c_in, c_out = group * draw(st.integers(1, 2)), group * draw(st.integers(1, 3))
    kernel = draw(st.lists(st.integers(1, 3), min_size=axes, max_size=axes))
    attributes = {
        "group": group,
        "strides": draw(st.none() | st.just([2] * axes)),
        "pads": draw(st.none() | st.just([1] + [0] * (2 * axes - 1))),
        "dilations": draw(st.none() | st.just([1] * (axes - 1) + [2])) if not transposed else None,
    }
    call = ", ".join(f"{name} = {value}" for name, value in attributes.items() if value is not None)
    epsilon = draw(st.sampled_from(["", "<epsilon = 0.1>", "<epsilon = 0.0>", "<epsilon = 0.001, momentum = 0.5>"]))
    weights = statistics(c_out) | {"b": normal(c_out)}
    weights["w"] = normal(*((c_in, c_out // group) if transposed else (c_out, c_in // group)), *kernel)
    op = "ConvTranspose" if transposed else "Conv"
    nodes = (
        f"[layer] c = {op}<{call}>(x, w{', b' if bias else ''}) [norm] y = BatchNormalization{epsilon}(c, s, t, m, v)"
    )
    source = graph(nodes, weights, f"float[{shape_text(2, c_in, *[5] * axes)}] x")
    state, result = fuse(source)
    quantizable = not (transposed and axes == 3)
    assert [node.op_type for node in result.graph.node] == [op] if quantizable else [op, "BatchNormalization"]
    assert list(state.gone) == (["norm"] if quantizable else [])
    assert_same_numbers(source, result, rtol=2e-5)


# Mul and Add behind the norm


def operand_shapes(channels, axes):
    """Shapes that numpy may take beside [N, C, ...]: first those that mean one value for all or for each channel."""
    absorbed = [(), (1,), (channels, *[1] * axes), (1, channels, *[1] * axes)]
    kept = [(5,), (channels,), (1, 5), (channels, 5), (1, 1), (2, 1, *[1] * axes), (2, channels, *[1] * axes)]
    kept += [(1, 1, channels, *[1] * axes), (channels, *[1] * (axes - 1), 5), (1,) * (axes + 2)]
    if axes > 1:
        kept += [(1, channels, *[1] * (axes - 1)), (channels, *[1] * (axes - 1))]
    return absorbed, kept


@given(data=st.data(), axes=st.integers(1, 3), channels=st.sampled_from([1, 2, 5]), behind=st.integers(1, 3))
@settings(max_examples=80, deadline=None, derandomize=True)
def test_every_mul_and_add_behind_the_norm_computes_the_same(data, axes, channels, behind):
    """Sizes are chosen alike, so that one value for each column could pass for one value for each channel."""
    absorbed, kept = operand_shapes(channels, axes)
    weights = statistics(channels) | {"w": normal(channels, 2, *[1] * axes)}
    nodes, tensor, expected = "[conv] c = Conv(x, w) [norm] n = BatchNormalization(c, s, t, m, v)", "n", True
    for place in range(behind):
        op = data.draw(st.sampled_from(["Mul", "Add"]))
        shape = data.draw(st.sampled_from(absorbed + kept))
        weights[f"k{place}"] = normal(*shape)
        try:
            np.broadcast_shapes(shape, (2, channels, *[5] * axes))
        except ValueError:
            break
        pair = data.draw(st.permutations([tensor, f"k{place}"]))
        nodes += f" [f{place}] f{place} = {op}({pair[0]}, {pair[1]})"
        tensor = f"f{place}"
        expected = expected and shape in absorbed
    source = graph(f"{nodes} [last] y = Relu({tensor})", weights, f"float[{shape_text(2, 2, *[5] * axes)}] x")
    state, result = fuse(source)
    if expected:
        assert [node.op_type for node in result.graph.node] == ["Conv", "Relu"]
    assert state.gone["norm"] == "folded into 'conv'"
    assert_same_numbers(source, result, rtol=2e-5)


@pytest.mark.parametrize(
    ("shape", "layer"),
    [
        ((1, 3, 1), "conv2d"),
        ((3,), "conv2d"),
        ((3, 1), "conv2d"),
        ((1, 1), "conv2d"),
        ((3, 3, 1, 1), "conv2d"),
        ((1, 1, 3, 1, 1), "conv2d"),
        ((3, 1, 3), "conv2d"),
        ((1, 3, 1, 1), "conv1d"),
        ((3,), "conv1d"),
    ],
)
@pytest.mark.parametrize("op", ["Mul", "Add"])
def test_an_operand_of_another_shape_is_not_absorbed(op, shape, layer):
    """3 samples, 3 channels, 3 by 3 points: numpy would take all of these."""
    axes = 2 if layer == "conv2d" else 1
    weights = statistics(3) | {"w": normal(3, 2, *[1] * axes), "k": normal(*shape)}
    nodes = f"[conv] c = Conv(x, w) [norm] n = {NORM.format('c')} [op] y = {op}(n, k)"
    source = graph(nodes, weights, f"float[{shape_text(3, 2, *[3] * axes)}] x")
    state, result = fuse(source)
    assert [node.name for node in result.graph.node] == ["conv", "op"]
    assert list(state.gone) == ["norm"]
    assert_same_numbers(source, result, rtol=1e-5)


@pytest.mark.parametrize(
    "follower",
    ["Mul(n, n)", "Sub(n, k)", "Div(n, k)", "Mul(n, z)", "Add(z, n)", "Pow(n, k)"],
)
def test_what_is_no_mul_or_add_of_a_constant_is_not_absorbed(follower):
    inputs = "float[2, 4, 6, 6] x, float[3, 1, 1] z"
    source = graph(
        f"[conv] c = Conv(x, w) {BEHIND_NORM} [op] y = {follower}", CONV | {"k": np.full((3, 1, 1), 2, "f")}, inputs
    )
    state, result = fuse(source)
    assert [node.name for node in result.graph.node] == ["conv", "op"]
    assert list(state.gone) == ["norm"]
    assert_same_numbers(source, result, rtol=1e-5)


@pytest.mark.parametrize(
    ("outputs", "rest"),
    [("float y, float z", "[z] z = Neg(n)"), ("float y, float n", "")],
    ids=["another reader", "an output"],
)
def test_a_mul_behind_a_norm_that_is_used_otherwise_too_is_not_absorbed(outputs, rest):
    nodes = f"[conv] c = Conv(x, w) {BEHIND_NORM} [op] y = Mul(n, k) {rest}"
    source = graph(nodes, CONV | {"k": normal(3, 1, 1)}, outputs=outputs)
    state, result = fuse(source)
    assert list(state.gone) == ["norm"]
    assert result.graph.node[1].op_type == "Mul"
    assert_same_numbers(source, result, rtol=1e-5)


def test_a_mul_of_another_domain_is_not_absorbed():
    source = graph(f"[conv] c = Conv(x, w) {BEHIND_NORM} [op] y = Mul(n, k)", CONV | {"k": normal(3, 1, 1)})
    source.graph.node[2].domain = "custom"
    source.opset_import.append(helper.make_opsetid("custom", 1))
    state, _ = fuse(source)
    assert list(state.gone) == ["norm"]


def test_statistics_that_two_norms_share_are_not_spoilt_by_what_is_absorbed():
    nodes = f"[conv] c = Conv(x, w) {BEHIND_NORM} [mul] d = Mul(n, k) [conv2] e = Conv(x, w2) "
    nodes += "[norm2] o = BatchNormalization(e, s, t, m, v) [add] y = Add(d, o)"
    source = graph(nodes, CONV | {"w2": normal(3, 4, 3, 3), "k": normal(3, 1, 1)})
    state, result = fuse(source)
    assert list(state.gone) == ["mul", "norm", "norm2"]
    assert_same_numbers(source, result, rtol=1e-5)


def test_a_tensor_that_keeps_its_name_keeps_its_values():
    """The layer gives what the last absorbed node gave, under that node's name."""
    nodes = f"[conv] c = Conv(x, w) {BEHIND_NORM} [mul] d = Mul(n, k) [add] e = Add(d, a) [relu] y = Relu(e)"
    source = graph(nodes, CONV | {"k": normal(3, 1, 1), "a": normal(1, 3, 1, 1)})
    _, result = fuse(source)
    assert nodes_as_text(result) == ["[conv] e = Conv(x, float[3, 4, 3, 3], float[3])", "[relu] y = Relu(e)"]


def test_what_is_absorbed_right_before_an_output_gives_the_output():
    source = graph(f"[conv] c = Conv(x, w) {BEHIND_NORM} [mul] y = Mul(n, k)", CONV | {"k": normal(3, 1, 1)})
    gone = {"mul": "folded into 'norm'", "norm": "folded into 'conv'"}
    check_fused(source, ["[conv] y = Conv(x, float[3, 4, 3, 3], float[3])"], gone)


# What stays


@pytest.mark.parametrize("lost", ["s", "t", "m", "v"])
def test_a_norm_whose_statistics_are_computed_stays(lost):
    weights = {name: values for name, values in CONV.items() if name != lost}
    source = graph(
        f"[conv] c = Conv(x, w) [norm] y = {NORM.format('c')}", weights, f"float[2, 4, 6, 6] x, float[3] {lost}"
    )
    feed = {"x": normal(2, 4, 6, 6), lost: CONV[lost]}
    check_left_alone(source, "its statistics are not constants", feed=feed)


def test_a_norm_in_training_mode_stays():
    nodes = "[conv] c = Conv(x, w) [norm] y, m2, v2 = BatchNormalization<training_mode = 1>(c, s, t, m, v)"
    source = graph(nodes, CONV, opset=14)
    state, result = fuse(source)
    assert nodes_as_text(result) == nodes_as_text(source)
    assert state.remarks == {"norm": "not folded: it is in training mode"}


def test_a_norm_of_another_domain_stays():
    source = graph(f"[conv] c = Conv(x, w) [norm] y = {NORM.format('c')}", CONV)
    source.graph.node[1].domain = "custom"
    source.opset_import.append(helper.make_opsetid("custom", 1))
    state, result = fuse(source)
    assert nodes_as_text(result) == nodes_as_text(source)
    assert (state.gone, state.remarks) == ({}, {})


def test_a_norm_of_every_position_by_itself_stays():
    source = graph("[conv] c = Conv(x, w) [norm] y = BatchNormalization<spatial = 0>(c, s, t, m, v)", CONV, opset=8)
    state, result = fuse(source)
    assert nodes_as_text(result) == nodes_as_text(source)
    assert state.remarks == {"norm": "not folded: it normalises each position by itself"}


def test_nothing_is_folded_where_the_plan_says_so():
    source = graph(f"[conv] c = Conv(x, w) {BEHIND_NORM} [mul] y = Mul(n, k)", CONV | {"k": normal(3, 1, 1)})
    state, result = fuse(source, QuantPlan(do_fusion=False, wide_fusion=True))
    assert nodes_as_text(result) == nodes_as_text(source)
    assert (state.gone, state.remarks) == ({}, {})


def test_a_norm_behind_a_layer_listed_in_skip_fusion_layers_stays():
    source = graph(f"[conv] c = Conv(x, w) [norm] y = {NORM.format('c')}", CONV)
    check_left_alone(source, "'conv' is listed in skip_fusion_layers", QuantPlan(skip_fusion=frozenset({"conv"})))


@pytest.mark.parametrize(
    ("nodes", "outputs"),
    [
        ("[conv] c = Conv(x, w) [norm] y = {} [other] z = Neg(c)", "float y, float z"),
        ("[conv] c = Conv(x, w) [norm] y = {}", "float y, float c"),
        ("[conv] c = Conv(x, w) [other] z = Neg(c) [norm] y = {}", "float z, float y"),
    ],
    ids=["read", "an output", "read before"],
)
def test_a_norm_behind_a_layer_whose_output_is_used_otherwise_too_stays(nodes, outputs):
    source = graph(nodes.format(NORM.format("c")), CONV, outputs=outputs)
    check_left_alone(source, "the output of 'conv' has other uses")


def test_a_norm_behind_a_layer_that_a_body_reads_stays():
    nodes = f"[conv] c = Conv(x, w) [norm] y = {NORM.format('c')} [if] z = If(q)<"
    nodes += (
        "then_branch = t () => (float u) { [in] u = Neg(c) }, else_branch = e () => (float i) { [in2] i = Abs(x) }>"
    )
    source = graph(nodes, CONV, "float[2, 4, 6, 6] x, bool q", "float y, float z")
    state, result = fuse(source)
    assert [node.name for node in result.graph.node] == ["conv", "norm", "if"]
    assert state.remarks == {"norm": "not folded: the output of 'conv' has other uses"}


def test_a_norm_behind_a_product_whose_raw_result_is_used_stays():
    nodes = f"[mm] d = MatMul(x, w) [add] c = Add(d, b) [norm] y = {NORM.format('c')} [other] z = Neg(d)"
    weights = {"w": normal(4, 3), "b": normal(3)} | statistics(3)
    source = graph(nodes, weights, "float[2, 4] x", "float y, float z")
    check_left_alone(source, "no layer with a constant weight is in front of it")


@pytest.mark.parametrize(
    ("nodes", "inputs"),
    [
        ("[norm] y = {x}", "float[2, 3, 6, 6] x"),
        ("[relu] c = Relu(x) [norm] y = {c}", "float[2, 3, 6, 6] x"),
        ("[conv] d = Conv(x, w) [relu] c = Relu(d) [norm] y = {c}", "float[2, 4, 6, 6] x"),
        ("[pool] c = AveragePool<kernel_shape = [2, 2]>(x) [norm] y = {c}", "float[2, 3, 6, 6] x"),
        ("[add] c = Add(x, b) [norm] y = {c}", "float[2, 3] x"),
    ],
    ids=["input", "Relu", "Relu between", "pooling", "Add alone"],
)
def test_a_norm_without_a_layer_in_front_stays(nodes, inputs):
    text = nodes.format(x=NORM.format("x"), c=NORM.format("c"))
    check_left_alone(graph(text, CONV, inputs), "no layer with a constant weight is in front of it")


@pytest.mark.parametrize(
    ("nodes", "inputs", "layer", "reason"),
    [
        ("[conv] c = Conv(x, z)", "float[2, 4, 6, 6] x, float[3, 4, 1, 1] z", "conv", "its weight is computed"),
        ("[mm] c = MatMul(x, z)", "float[2, 4] x, float[4, 3] z", "mm", "both of its inputs are computed"),
    ],
    ids=["computed weight", "product of two"],
)
def test_a_norm_behind_what_cannot_be_quantized_says_why(nodes, inputs, layer, reason):
    source = graph(f"{nodes} [norm] y = {NORM.format('c')}", CONV, inputs)
    state, result = fuse(source)
    assert nodes_as_text(result) == nodes_as_text(source)
    assert state.remarks["norm"].startswith(f"not folded: {layer!r} in front of it cannot take it in: {reason}")


@pytest.mark.parametrize("shape", ["float[4, 3]", "float[4, N]", "float[r, s]"])
@pytest.mark.parametrize("nodes", ["[mm] d = MatMul(x, z)", "[relu] k = Relu(z) [mm] d = MatMul(x, k)"])
def test_a_norm_behind_a_product_at_run_time_and_an_add_stays(nodes, shape):
    source = graph(f"{nodes} [add] c = Add(d, b) [norm] y = {NORM.format('c')}", CONV, f"float[2, 4] x, {shape} z")
    feed = {"x": normal(2, 4), "z": normal(4, 3)}
    check_left_alone(source, "no layer with a constant weight is in front of it", feed=feed)


def test_a_norm_behind_a_product_with_a_vector_and_an_add_stays():
    nodes = f"[mm] d = MatMul(x, w) [add] c = Add(d, b) [norm] y = {NORM.format('c')}"
    source = graph(nodes, {"w": normal(4), "b": normal(3)} | statistics(3), "float[2, 3, 4] x")
    check_left_alone(source, "no layer with a constant weight is in front of it")


@pytest.mark.parametrize(
    ("inputs", "matmul"),
    [("float[2, 3, 4] x", "MatMul"), ("float[2, 3, 5, 4] x", "MatMul"), ("float[N, C, K] x", "MatMul")],
)
def test_a_norm_whose_channels_are_not_the_last_axis_of_the_product_stays(inputs, matmul):
    """As many channels as outputs: the sizes alone would fit."""
    nodes = f"[mm] d = {matmul}(x, w) [add] c = Add(d, b) [norm] y = {NORM.format('c')}"
    source = graph(nodes, {"w": normal(4, 3), "b": normal(3)} | statistics(3), inputs)
    feed = {"x": normal(2, 3, 4) if "5" not in inputs else normal(2, 3, 5, 4)}
    check_left_alone(source, "only a MatMul of two dimensions with a bias takes it in", feed=feed)


def test_a_norm_behind_a_product_without_a_bias_stays():
    source = graph(
        f"[mm] c = MatMul(x, w) [norm] y = {NORM.format('c')}", {"w": normal(4, 3)} | statistics(3), "float[2, 4] x"
    )
    check_left_alone(source, "only a MatMul of two dimensions with a bias takes it in")


def test_a_norm_over_a_reshaped_layer_stays():
    nodes = f"[conv] d = Conv(x, w) [reshape] c = Reshape(d, r) [norm] y = {NORM.format('c')}"
    source = graph(nodes, CONV | {"r": np.array([0, 3, -1])})
    check_left_alone(source, "no layer with a constant weight is in front of it")


def test_folding_that_would_not_be_finite_is_not_done():
    weights = CONV | {"v": np.array([1, -1, 1], np.float32)}
    source = graph(f"[conv] c = Conv(x, w) [norm] y = {NORM.format('c')}", weights)
    check_left_alone(source, "the weights of 'conv' would not be finite")


def test_folding_that_half_precision_cannot_hold_is_not_done():
    weights = {name: values.astype(np.float16) for name, values in CONV.items()}
    weights |= {"w": np.full((3, 4, 3, 3), 100, np.float16), "s": np.full(3, 1000, np.float16)}
    source = graph(
        f"[conv] c = Conv(x, w) [norm] y = {NORM.format('c')}", weights, "float16[2, 4, 6, 6] x", "float16 y"
    )
    state, result = fuse(source)
    assert nodes_as_text(result) == nodes_as_text(source)
    assert state.remarks == {"norm": "not folded: the weights of 'conv' would not be finite"}


def test_a_weight_of_one_scale_is_not_made_much_coarser():
    """One channel is a hundred times as large as the others behind the norm."""
    weights = {"w": normal(4, 3), "b": normal(3)} | statistics(3)
    weights["s"] = np.array([100, 1, 1], np.float32)
    nodes = f"[fc] c = Gemm(x, w, b) [norm] y = {NORM.format('c')}"
    source = graph(nodes, weights | {"w": weights["w"] * np.array([1, 0.01, 0.01], np.float32)}, "float[2, 4] x")
    check_left_alone(source, "the one weight scale of 'fc' would become too coarse")
    even = graph(nodes, weights | {"w": weights["w"] * np.array([0.01, 1, 1], np.float32)}, "float[2, 4] x")
    check_fused(even, ["[fc] y = Gemm(x, float[4, 3], float[3])"], {"norm": "folded into 'fc'"})


@pytest.mark.parametrize(
    ("call", "weights", "inputs"),
    [
        ("Conv<dilations = [2, 1, 1]>(x, w)", {"w": normal(3, 4, 2, 2, 2)}, "float[2, 4, 6, 6, 6] x"),
        ("ConvTranspose(x, w)", {"w": normal(4, 3, 2, 2, 2)}, "float[2, 4, 4, 4, 4] x"),
        ("ConvTranspose<dilations = [2, 2]>(x, w)", {"w": normal(4, 3, 2, 2)}, "float[2, 4, 6, 6] x"),
        ("Gemm<transA = 1>(x, w)", {"w": normal(4, 3)}, "float[4, 2] x"),
    ],
)
def test_a_norm_behind_a_layer_that_stays_float_stays(call, weights, inputs):
    source = graph(f"[layer] c = {call} [norm] y = {NORM.format('c')}", weights | statistics(3), inputs)
    state, result = fuse(source)
    assert nodes_as_text(result) == nodes_as_text(source)
    assert list(state.remarks) == ["norm"]
    assert state.gone == {}


@pytest.mark.parametrize("name", ["w", "b"])
def test_a_weight_or_bias_that_the_model_outputs_stays_for_the_output(name):
    source = graph(f"[conv] c = Conv(x, w, b) [norm] y = {NORM.format('c')}", CONV, outputs=f"float y, float {name}")
    _, result = rewritten(source, *PREPARE, FUSE_BATCH_NORM)
    assert_same_numbers(source, result, rtol=1e-5)


def test_a_weight_that_two_convolutions_share_is_folded_for_one_of_them_only():
    nodes = f"[conv] c = Conv(x, w, b) [norm] n = {NORM.format('c')} [other] d = Conv(x, w, b) [add] y = Add(n, d)"
    source = graph(nodes, CONV)
    state, result = rewritten(source, *PREPARE, FUSE_BATCH_NORM)
    assert state.gone == {"norm": "folded into 'conv'"}
    assert_same_numbers(source, result, rtol=1e-5)
