"""balance: a Mul in front of every layer that the plan balances, or none where it can be folded away."""

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import naive
import numpy as np
import pytest
from graphs import assert_close, assert_same_numbers, initializers, model, nodes_as_text, rewritten, run, sqnr

from amct_onnx import DataError, Dmq, Ifmr, LayerConfig, ModelError, QuantConfig, quantize_onnx
from amct_onnx.formats.record import parse_record
from amct_onnx.passes.balance import balance, balance_by
from amct_onnx.passes.calibration import CalibrationRun
from amct_onnx.passes.manager import run_passes
from amct_onnx.passes.pipelines import PREPARE
from amct_onnx.planning import make_plan

RNG = np.random.default_rng(3)
DMQ = LayerConfig(balancer=Dmq())
FOLD = QuantConfig(common_config=DMQ, fold_balancers=True)


def normal(*shape):
    """Channels of very different size along axis 1, so that there is something to balance."""
    size = np.exp(RNG.normal(size=shape[1:2] or shape)).reshape(-1, *([1] * max(len(shape) - 2, 0)))
    return (RNG.normal(size=shape) * size).astype(np.float32)


def graph(nodes, weights, inputs="float[2, 4, 6, 6] x", outputs="float y", *, opset=13):
    used = {name: values for name, values in weights.items() if re.search(rf"[( ]{name}[,)]", nodes)}
    source = model(f"g ({inputs}) => ({outputs}) {{ {nodes} }}", used, opset=opset)
    for value in source.graph.output:
        value.type.tensor_type.ClearField("shape")
    return source


def balanced(source, config=None, feeds=None):
    shape = [d.dim_value for d in source.graph.input[0].type.tensor_type.shape.dim]
    dtype = np.float16 if source.graph.input[0].type.tensor_type.elem_type == 10 else np.float32
    feeds = feeds or [{"x": normal(*shape).astype(dtype)} for _ in range(3)]
    state, prepared = rewritten(source, *PREPARE)
    state = replace(state, plan=make_plan(state, config or QuantConfig(common_config=DMQ)))
    run_passes([balance(CalibrationRun(feeds=feeds, first=feeds[0]))], state)
    return state, prepared, state.graph.to_model(), feeds


def maxima(values, axis):
    return np.abs(np.moveaxis(values, axis, 0)).reshape(values.shape[axis], -1).max(1).tolist()


# With a Mul, as AMCT does it

LAYERS = [
    ("Conv(x, w)", (5, 4, 3, 3), "float[2, 4, 6, 6]", [1, 4, 1, 1], lambda w: maxima(w, 1)),
    ("Conv(x, w)", (5, 4, 3), "float[2, 4, 6]", [1, 4, 1], lambda w: maxima(w, 1)),
    ("Conv(x, w)", (5, 4, 3, 3, 3), "float[2, 4, 6, 6, 6]", [1, 4, 1, 1, 1], lambda w: maxima(w, 1)),
    (
        "Conv<group = 2>(x, w)",
        (6, 2, 3, 3),
        "float[2, 4, 6, 6]",
        [1, 4, 1, 1],
        lambda w: maxima(w[:3], 1) + maxima(w[3:], 1),
    ),
    ("Conv<group = 4>(x, w)", (4, 1, 3, 3), "float[2, 4, 6, 6]", [1, 4, 1, 1], lambda w: maxima(w, 0)),
    ("ConvTranspose(x, w)", (4, 5, 3, 3), "float[2, 4, 6, 6]", [1, 4, 1, 1], lambda w: maxima(w, 0)),
    ("ConvTranspose<group = 2>(x, w)", (4, 3, 3, 3), "float[2, 4, 6, 6]", [1, 4, 1, 1], lambda w: maxima(w, 0)),
    ("Gemm(x, w)", (4, 5), "float[3, 4]", [1, 4], lambda w: maxima(w, 0)),
    ("MatMul(x, w)", (4, 5), "float[2, 3, 4]", [1, 4], lambda w: maxima(w, 0)),
    ("MatMul(x, w)", (4, 5), "float[4]", [4], lambda w: maxima(w, 0)),
]


@pytest.mark.parametrize(("call", "shape", "inputs", "operand", "weight_maxima"), LAYERS)
def test_a_layer_is_balanced_as_amct_does(call, shape, inputs, operand, weight_maxima):
    weight = normal(*shape)
    source = graph(f"[layer] y = {call}", {"w": weight}, f"{inputs} x")
    state, prepared, result, feeds = balanced(source)
    attributes = nodes_as_text(prepared)[0].split("= ")[1:]
    assert nodes_as_text(result) == [
        f"[layer.mul] layer.mul.output0 = Mul(x, float{operand})",
        "[layer] y = " + "= ".join(attributes).replace("(x, ", "(layer.mul.output0, "),
    ]
    axis = -1 if "M" in call else 1
    seen = np.concatenate([np.moveaxis(f["x"], axis, 0).reshape(4, -1) for f in feeds], axis=1)
    wanted = naive.balance_factors(maxima(seen, 0), weight_maxima(weight), 0.5)
    np.testing.assert_allclose(state.balances["layer"], wanted, rtol=1e-5)
    factor = initializers(result)["layer.tensor_balance_factor"]
    np.testing.assert_allclose(factor.ravel(), 1 / state.balances["layer"], rtol=1e-6)
    assert_same_numbers(prepared, result, rtol=1e-5)


@pytest.mark.parametrize(("call", "shape", "inputs"), [layer[:3] for layer in LAYERS])
def test_factors_that_are_known_balance_as_those_that_are_found(call, shape, inputs):
    source = graph(f"[layer] y = {call}", {"w": normal(*shape)}, f"{inputs} x")
    found, _, expected, _ = balanced(source)
    state, _ = rewritten(source, *PREPARE)
    state = replace(state, plan=make_plan(state, QuantConfig(common_config=DMQ)))
    run_passes([balance_by(found.balances)], state)
    assert state.graph.to_model() == expected
    np.testing.assert_array_equal(state.balances["layer"], found.balances["layer"])


def test_a_layer_without_a_known_factor_stays_float():
    source = graph("[layer] y = Gemm(x, w)", {"w": normal(4, 5)}, "float[3, 4] x")
    state, prepared = rewritten(source, *PREPARE)
    state = replace(state, plan=make_plan(state, QuantConfig(common_config=DMQ)))
    run_passes([balance_by({})], state)
    assert state.left_float == {"layer": "no factor was found to balance it with"}
    assert nodes_as_text(state.graph.to_model()) == nodes_as_text(prepared)


def test_nothing_happens_where_nothing_is_asked_for():
    source = graph("[layer] y = Gemm(x, w)", {"w": normal(4, 5)}, "float[3, 4] x")
    state, prepared, result, _ = balanced(source, QuantConfig(fold_balancers=True))
    assert nodes_as_text(result) == nodes_as_text(prepared)
    assert state.balances == {}


def test_strength_and_number_of_batches_change_the_factors():
    source = graph("[layer] y = Gemm(x, w)", {"w": normal(4, 5)}, "float[3, 4] x")
    feeds = [{"x": normal(3, 4) * np.float32(10**n)} for n in range(3)]
    found = [
        balanced(source, config, feeds)[0].balances["layer"]
        for config in (
            QuantConfig(common_config=DMQ),
            QuantConfig(common_config=DMQ, balance_batches=1),
            QuantConfig(common_config=DMQ, balance_batches=2),
            QuantConfig(common_config=LayerConfig(balancer=Dmq(migration_strength=0.8))),
        )
    ]
    assert len({tuple(f.tolist()) for f in found}) == 4


def test_half_precision_that_cannot_hold_the_factors_is_left():
    weight = np.full((4, 5), 6e4, np.float16)
    feeds = [{"x": np.full((3, 4), 6e4, np.float16)}]
    source = graph("[layer] y = Gemm(x, w)", {"w": weight}, "float16[3, 4] x", "float16 y")
    config = QuantConfig(common_config=LayerConfig(balancer=Dmq(migration_strength=0.8)))
    state, prepared, result, _ = balanced(source, config, feeds)
    assert state.remarks == {"layer": "not balanced: a factor or a weight would leave float16"}
    assert nodes_as_text(result) == nodes_as_text(prepared)


@pytest.mark.parametrize(("bad", "reason"), [(np.nan, "holds NaN or inf"), (np.inf, "holds NaN or inf")])
def test_an_input_that_is_not_finite_leaves_the_layer_float(bad, reason):
    source = graph("[root] s = Sqrt(x) [layer] y = Gemm(s, w)", {"w": normal(4, 5)}, "float[3, 4] x")
    feeds = [{"x": np.full((3, 4), -1.0 if np.isnan(bad) else np.inf, np.float32)}]
    state, _, result, _ = balanced(source, feeds=feeds)
    assert reason in state.left_float["layer"]
    assert [node.op_type for node in result.graph.node] == ["Sqrt", "Gemm"]


def test_a_weight_that_is_not_finite_is_an_error():
    source = graph("[layer] y = Gemm(x, w)", {"w": np.full((4, 5), np.nan, np.float32)}, "float[3, 4] x")
    with pytest.raises(ModelError, match="layer 'layer' holds NaN"):
        balanced(source)


# Folded

STATISTICS = {"s": normal(4), "t": normal(4), "m": normal(4), "v": np.abs(normal(4)) + np.float32(0.5)}
CONV = STATISTICS | {"w": normal(4, 4, 3, 3), "b": normal(4), "w2": normal(5, 4, 3, 3), "c": normal(4, 1, 1)}
ROW = STATISTICS | {"w": normal(4, 4), "b": normal(4), "w2": normal(4, 5), "c": normal(4), "w3": normal(4, 3)}
PRODUCERS = [
    ("[p] t1 = Conv<pads = [1, 1, 1, 1]>(x, w, b)", "conv"),
    ("[p] t1 = Conv(x, w)", "conv"),
    ("[p] t1 = ConvTranspose(x, w, b)", "conv"),
    ("[p] t0 = Conv(x, w, b) [r] t1 = Relu(t0)", "conv"),
    ("[p] t0 = Conv(x, w, b) [r] t1 = LeakyRelu(t0)", "conv"),
    ("[p] t0 = Conv(x, w, b) [r] t2 = Relu(t0) [q] t1 = MaxPool<kernel_shape = [2, 2]>(t2)", "conv"),
    ("[p] t0 = Conv(x, w, b) [q] t1 = AveragePool<kernel_shape = [2, 2]>(t0)", "conv"),
    ("[a] t0 = Sigmoid(x) [p] t1 = BatchNormalization(t0, s, t, m, v)", "conv"),
    ("[p] t1 = Mul(x, c)", "conv"),
    ("[p] t1 = Mul(c, x)", "conv"),
    ("[p] t1 = Gemm(x, w, b)", "row"),
    ("[p] t1 = MatMul(x, w)", "row"),
    ("[p] t0 = MatMul(x, w) [q] t1 = Add(t0, b)", "row"),
    ("[p] t1 = MatMul(x, w)", "rows"),
    ("[p] t0 = MatMul(x, w) [q] t2 = Add(t0, b) [r] t1 = Relu(t2)", "rows"),
    ("[p] t1 = LayerNormalization(x, s, t)", "rows"),
    ("[p] t1 = LayerNormalization<axis = 2>(x, s)", "rows"),
    ("[p] t1 = Mul(x, c)", "rows"),
]
KINDS = {
    "conv": ("[layer] y = Conv(t1, w2)", CONV, "float[2, 4, 6, 6]"),
    "row": ("[layer] y = Gemm(t1, w2)", ROW, "float[3, 4]"),
    "rows": ("[layer] y = MatMul(t1, w2)", ROW, "float[2, 3, 4]"),
}


def only(*names):
    """Balancing of these layers alone."""
    return QuantConfig(override_layer_configs=dict.fromkeys(names, DMQ), fold_balancers=True)


@pytest.mark.parametrize(("producer", "kind"), PRODUCERS)
def test_the_division_is_folded_into_what_produces_the_input(producer, kind):
    layer, weights, inputs = KINDS[kind]
    source = graph(f"{producer} {layer}", weights, f"{inputs} x", opset=17)
    state, prepared, result, _ = balanced(source, only("layer"))
    before, after = nodes_as_text(prepared), nodes_as_text(result)
    assert [re.sub(r"\b(t\d)\.balanced", r"\1", line) for line in after] == before
    assert "t1.balanced" in after[-1]
    assert (state.balances["layer"] != 1).any()
    assert not np.allclose(initializers(result)["w2"], initializers(prepared)["w2"])
    assert_same_numbers(prepared, result, rtol=1e-5)


UNFOLDED = [
    ("[p] t1 = Conv(x, w, b) [q] z = Sigmoid(t1)", "conv", "float y, float z"),  # another reader
    ("[p] t1 = Conv(x, w, b)", "conv", "float y, float t1"),  # an output of the model
    ("[p] t0 = Conv(x, w, b) [r] t1 = Relu(t0) [q] z = Sigmoid(t0)", "conv", "float y, float z"),
    ("[p] t0 = Conv(x, w, b) [r] t1 = Sigmoid(t0)", "conv", "float y"),  # does not let factors through
    ("[r] t1 = Relu(x)", "conv", "float y"),  # nothing in front
    ("[p] t1 = Mul(x, x)", "conv", "float y"),
    ("[p] t1 = Add(x, c)", "conv", "float y"),
    ("[p] t0 = Reshape(x, k) [q] t1 = LayerNormalization<axis = 1>(t0, n)", "rows", "float y"),  # another axis
]


@pytest.mark.parametrize(("producer", "kind", "outputs"), UNFOLDED)
def test_where_it_cannot_be_folded_there_is_a_mul(producer, kind, outputs):
    layer, weights, inputs = KINDS[kind]
    weights = weights | {"n": normal(3, 4), "k": np.array([2, 3, 4])}
    source = graph(f"{producer} {layer}", weights, f"{inputs} x", outputs, opset=17)
    _, prepared, result, _ = balanced(source, only("layer"))
    assert "[layer.mul]" in nodes_as_text(result)[-2]
    assert len(result.graph.node) == len(prepared.graph.node) + 1
    assert_same_numbers(prepared, result, rtol=1e-5)


TWINS = "[p] t1 = LayerNormalization(x, s, t) [q] y = MatMul(t1, w2) [k] z = MatMul(t1, w3)"


def test_layers_that_read_one_tensor_have_one_factor_where_it_is_folded():
    source = graph(TWINS, ROW, "float[2, 3, 4] x", "float y, float z", opset=17)
    state, prepared, result, _ = balanced(source, FOLD)
    assert [node.op_type for node in result.graph.node] == ["LayerNormalization", "MatMul", "MatMul"]
    np.testing.assert_array_equal(state.balances["q"], state.balances["k"])
    assert_same_numbers(prepared, result, rtol=1e-5)


def test_layers_that_do_not_agree_have_a_mul_each():
    other = LayerConfig(balancer=Dmq(migration_strength=0.7))
    source = graph(TWINS, ROW, "float[2, 3, 4] x", "float y, float z", opset=17)
    for config in (replace(FOLD, override_layer_configs={"k": other}), only("q"), replace(FOLD, fold_balancers=False)):
        state, prepared, result, _ = balanced(source, config)
        muls = [node.name for node in result.graph.node if node.op_type == "Mul"]
        assert muls == [f"{name}.mul" for name in ("q", "k") if name in state.balances]
        assert_same_numbers(prepared, result, rtol=1e-5)


def test_a_chain_of_layers_is_folded_from_the_back():
    source = graph("[a] t0 = Gemm(x, w, b) [r] t1 = Relu(t0) [c] y = Gemm(t1, w2)", ROW, "float[3, 4] x")
    state, prepared, result, _ = balanced(source, FOLD)
    assert [node.op_type for node in result.graph.node] == ["Mul", "Gemm", "Relu", "Gemm"]
    assert set(state.balances) == {"a", "c"}
    weight = initializers(prepared)["w"] / state.balances["c"]
    np.testing.assert_allclose(initializers(result)["w"], weight * state.balances["a"].reshape(-1, 1), rtol=1e-6)
    assert_same_numbers(prepared, result, rtol=1e-5)


# The whole run


def outlier_case():
    """An input whose channel 2 is a hundred times the others."""
    rng = np.random.default_rng(5)
    size = np.ones(8, np.float32)
    size[2] = 100
    weights = {"w": rng.normal(size=(8, 6)).astype(np.float32), "s": size}
    source = graph("[n] t1 = LayerNormalization(x, s) [fc] y = MatMul(t1, w)", weights, "float[4, 8] x", opset=17)
    return source, [{"x": rng.normal(size=(4, 8)).astype(np.float32)} for _ in range(6)]


@pytest.mark.parametrize("fold", [False, True])
def test_balancing_raises_the_accuracy_where_a_channel_stands_out(fold):
    source, feeds = outlier_case()
    wanted = run(source, feeds[0])["y"]
    plain = quantize_onnx(source, calibration=feeds)
    dmq = quantize_onnx(source, calibration=feeds, common_config=DMQ, fold_balancers=fold)
    errors = [sqnr(wanted, run(result.fake_quant_model, feeds[0])["y"]) for result in (plain, dmq)]
    assert errors[1] > errors[0] + 3
    assert ("Mul" in [node.op_type for node in dmq.deploy_model.graph.node]) is not fold
    record = parse_record(dmq.record, "record")["fc"]
    np.testing.assert_array_equal(np.float32(record.tensor_balance_factor), dmq.params["fc"].balance)
    assert plain.params["fc"].balance is None
    assert '"dmq_balancer_param":0.5' in dmq.config


def test_workers_threads_and_memory_change_nothing():
    source, feeds = outlier_case()
    plain = quantize_onnx(source, calibration=feeds, common_config=DMQ)
    with ThreadPoolExecutor(2) as executor:
        elsewhere = quantize_onnx(source, calibration=feeds, common_config=DMQ, executor=executor)
    tight = quantize_onnx(source, calibration=feeds, common_config=DMQ, memory_limit=1)
    assert plain.record == elsewhere.record == tight.record


def test_amct_files_look_at_the_first_batch_and_take_data_that_can_be_read_once(tmp_path):
    source, feeds = outlier_case()
    cfg = tmp_path / "quant.cfg"
    cfg.write_text("batch_num: 6 common_config { dmq_balancer { } }")
    once = quantize_onnx(source, cfg, calibration=iter(feeds))
    everything = quantize_onnx(source, cfg, calibration=feeds, balance_batches=None)
    assert once.record != everything.record
    with pytest.raises(DataError, match="balance_batches=1"):
        quantize_onnx(source, cfg, calibration=iter(feeds), balance_batches=None)


def test_a_later_reason_to_stay_float_leaves_the_numbers_alone():
    weights = {"w": np.full((4, 5), 1e-3, np.float32), "b": np.full(5, 1e9, np.float32), "w2": normal(5, 3)}
    source = graph("[big] t1 = Gemm(x, w, b) [fc] y = Gemm(t1, w2)", weights, "float[3, 4] x")
    feeds = [{"x": normal(3, 4)}]
    result = quantize_onnx(source, calibration=feeds, common_config=LayerConfig(balancer=Dmq(), activation=Ifmr()))
    assert "bias leaves int32" in result.plan.skipped["big"]
    assert_close(run(result.fake_quant_model, feeds[0])["y"], run(source, feeds[0])["y"], rtol=0.02)


def test_a_float16_network_is_balanced_and_checked():
    weights = {"w": normal(5, 4, 3, 3).astype(np.float16)}
    source = graph("[layer] y = Conv(x, w)", weights, "float16[2, 4, 6, 6] x", "float16 y")
    feeds = [{"x": normal(2, 4, 6, 6).astype(np.float16)}]
    result = quantize_onnx(source, calibration=feeds, common_config=DMQ)
    assert initializers(result.deploy_model)["layer.tensor_balance_factor"].dtype == np.float16
    assert result.params["layer"].balance is not None
