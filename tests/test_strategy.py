"""Models quantized by Vitis AI strategies: golden runs, where tensors are quantized, every form."""

import json
import logging
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import initializers, model, run, sqnr
from odd_graphs import ODD_GRAPHS

from amct_onnx import QuantConfig, StrategyConfig, quantize_onnx
from amct_onnx.cli import main
from amct_onnx.errors import ConfigError, ModelError, NotAvailableError

GOLDEN = json.loads((Path(__file__).parent / "golden/vitis.json").read_text(encoding="utf-8"))
NET = GOLDEN["shared_inputs"]["netA"]
RUNS = [case for case in GOLDEN["cases"] if case["kind"] == "e2e_conv_relu_conv"]
DEFECTS = ("e2e_A8_dpu_w4", "e2e_A14_bias32")
"""A second quantizer in front of the first layer alone; a bias of 32 bits whose sign flips."""

RNG = np.random.default_rng(2)
CPU = {
    "target_device": "CPU",
    "include_cle": False,
    "include_bias_corr": False,
    "overall_quantize_config": {
        "method": "maxmin",
        "round_mode": "half_even",
        "scale_type": "float",
        "calib_statistic_method": "max",
    },
}
DPU = {"target_device": "DPU", "include_cle": False, "include_bias_corr": False}


def with_activation(strategy, **values):
    return {**strategy, "tensor_quantize_config": {"activation": values}}


def single(values, *shape):
    return np.array(values, np.float32).reshape(shape)


def net_a():
    weights = {
        name: single(NET["weights"][name], *((2, 2, 1, 1) if name[0] == "w" else (2,))) for name in NET["weights"]
    }
    text = "[c1] h = Conv(x, w1, b1) [r] k = Relu(h) [c2] y = Conv(k, w2, b2)"
    source = model(f"g (float[1, 2, 2, 2] x) => (float[1, 2, 2, 2] y) {{ {text} }}", weights)
    return source, [{"x": single(batch, 1, 2, 2, 2)} for batch in NET["calibration_and_test_batches"]]


def flat(entries):
    return [part for entry in entries for values in entry for part in np.ravel(values)]


@pytest.mark.parametrize("case", RUNS, ids=lambda case: case["id"])
def test_runs_give_what_the_real_tool_gave(case):
    source, batches = net_a()
    result = quantize_onnx(source, case["params"]["config"], calibration=batches)
    wanted = case["expected"]
    if case["id"] in DEFECTS:
        reference = [run(source, batch)["y"] for batch in batches]
        ours = np.concatenate([run(result.fake_quant_model, batch)["y"] for batch in batches])
        theirs = single(wanted["test_output_flat"], *ours.shape)
        assert sqnr(np.concatenate(reference), ours) > sqnr(np.concatenate(reference), theirs)
        return
    for optimize in (False, True):
        outputs = [run(result.fake_quant_model, batch, optimize=optimize)["y"].ravel() for batch in batches]
        np.testing.assert_array_equal(outputs, single(wanted["test_output_flat"], 4, 8))
    info = json.loads(result.quant_info)
    names = {"NetA::c1.weight": "w1", "NetA::c1.bias": "b1", "NetA::c2.weight": "w2", "NetA::c2.bias": "b2"}
    for theirs, ours in names.items():
        assert flat(info["param"][ours]) == pytest.approx(flat(wanted["param"][theirs]), rel=2e-7)
    hidden = "k" if "k" in info["output"] else "k.equalised"
    for theirs, ours in zip(wanted["output"], ("x", hidden, "y"), strict=True):
        assert flat(info["output"][ours]) == pytest.approx(flat(wanted["output"][theirs]), rel=2e-7)


# Where tensors are quantized

W = {
    "w": RNG.normal(size=(4, 4, 3, 3)).astype(np.float32),
    "v": RNG.normal(size=(4, 4, 1, 1)).astype(np.float32),
    "b": RNG.normal(size=4).astype(np.float32),
    "m": RNG.normal(size=(4, 3)).astype(np.float32),
    "n": RNG.normal(size=3).astype(np.float32),
    "shape": np.array([0, -1], np.int64),
    "eps": np.array([1e-5], np.float32),
}


def graph(nodes, outputs="float y", inputs="float[2, 4, 6, 6] x", opset=13):
    used = {name: values for name, values in W.items() if f", {name})" in nodes or f", {name}," in nodes}
    source = model(f"g ({inputs}) => ({outputs}) {{ {nodes} }}", used, opset=opset)
    for value in source.graph.output:
        if not value.type.tensor_type.shape.dim:
            value.type.tensor_type.ClearField("shape")
    return source


def feeds(count=3, shape=(2, 4, 6, 6)):
    return [{"x": RNG.normal(size=shape).astype(np.float32)} for _ in range(count)]


POINTS = {
    "conv and relu": ("[c] h = Conv(x, w, b) [r] y = Relu(h)", "x y"),
    "a pool of its own": ("[c] h = Conv(x, w) [r] k = Relu(h) [p] y = MaxPool<kernel_shape = [2, 2]>(k)", "x k y"),
    "an addition": ("[c] h = Conv(x, v) [a] k = Add(h, x) [r] y = Relu(k)", "x h y"),
    "branches of a concatenation": (
        "[c] h = Conv(x, v) [p] k = AveragePool<kernel_shape = [1, 1]>(h) [cc] y = Concat<axis = 1>(h, k)",
        "x h y",
    ),
    "what only moves": (
        "[c] h = Conv(x, v) [p] g = GlobalAveragePool(h) [f] k = Flatten(g) [l] y = Gemm(k, m, n)",
        "x h g y",
    ),
    "a bias behind MatMul": (
        "[p] g = GlobalAveragePool(x) [f] k = Flatten(g) [l] h = MatMul(k, m) [a] y = Add(h, n)",
        "x g y",
    ),
    "a sigmoid": ("[c] h = Conv(x, v) [s] k = Sigmoid(h) [d] l = Conv(k, v) [t] y = Sigmoid(l)", "x h k l"),
    "a norm in single operators": (
        "[c] h = Conv(x, v) [m] a = ReduceMean<axes = [1]>(h) [s] d = Sub(h, a) [q] e = Mul(d, d) "
        "[n] f = ReduceMean<axes = [1]>(e) [p] i = Add(f, eps) [t] j = Sqrt(i) [z] y = Div(d, j)",
        "x h a d y",
    ),
    "a root that is no denominator": ("[c] h = Conv(x, v) [a] i = Abs(h) [t] y = Sqrt(i)", "x h i y"),
    "a relu with two readers": ("[c] h = Conv(x, v) [r] k = Relu(h) [s] y = Sub(h, k)", "x h k y"),
}  # fmt: skip


@pytest.mark.parametrize("name", POINTS)
def test_tensors_are_quantized_where_vitis_ai_quantizes_them(name):
    nodes, wanted = POINTS[name]
    result = quantize_onnx(graph(nodes), CPU, calibration=feeds())
    assert sorted(result.plan.tensor_strategies) == sorted(wanted.split())
    assert sorted(json.loads(result.quant_info)["output"]) == sorted(wanted.split())


def test_what_a_norm_divides_by_does_not_become_zero():
    source = graph(POINTS["a norm in single operators"][0])
    data = [{"x": feed["x"] * np.float32(1e-3)} for feed in feeds()]
    data[0]["x"][0] *= 1e4  # beside it the variances of all others would be rounded to 0
    result = quantize_onnx(source, {**DPU, "include_bias_corr": True}, calibration=data, qdq=True)
    for form in (result.fake_quant_model, result.qdq_model):
        assert np.isfinite(run(form, data[1])["y"]).all()


def test_batch_normalization_is_folded_and_its_tensor_quantized():
    weights = {**{f"s{i}": np.abs(W["b"]) + 1 for i in range(2)}, "mu": W["b"], "va": np.abs(W["b"]) + 1, "w": W["w"]}
    source = model(
        "g (float[2, 4, 6, 6] x) => (float[2, 4, 4, 4] y) { [c] h = Conv(x, w) "
        "[n] k = BatchNormalization(h, s0, s1, mu, va) [r] y = Relu(k) }",
        weights,
    )
    rule = {
        "layer_type": "Conv2d",
        "quantizable_data_type": ["activation"],
        "overall_quantize_config": {"bit_width": 6},
    }
    result = quantize_onnx(source, {**CPU, "layer_quantize_config": [rule]}, calibration=feeds())
    assert {name: t.bit_width for name, t in result.plan.tensor_strategies.items()} == {"x": 8, "y": 6}


# Rounding and grids in every form


@pytest.mark.parametrize("mode", ["half_even", "half_up", "half_down", "std_round"])
def test_halves_go_where_the_strategy_says(mode):
    from amct_onnx.kernels.rounding import rounded

    source = graph("[c] y = Conv(x, v)", inputs="float[1, 4, 1, 4] x", outputs="float y")
    strategy = with_activation(
        {**CPU, "overall_quantize_config": {"round_mode": "half_even", "method": "maxmin"}}, round_mode=mode
    )
    values = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 0.49999997, -0.49999997, 127, -128, 3, 3.5, -3.5, 0, 7.5, 8.5])
    feed = {"x": single(values, 1, 4, 1, 4)}
    result = quantize_onnx(source, strategy, calibration=[feed])
    assert json.loads(result.quant_info)["output"]["x"][0][:2] == [8, 1.0]
    whole = rounded(feed["x"], mode).astype(np.float32)
    info = json.loads(result.quant_info)
    weight = np.rint(W["v"] / info["param"]["v"][0][1]) * np.float32(info["param"]["v"][0][1])
    product = np.einsum("oi,niwh->nowh", weight[:, :, 0, 0], whole)
    step = info["output"]["y"][0][1]
    wanted = np.clip(rounded((product / step).astype(np.float32), mode), -128, 127) * step
    found = run(result.fake_quant_model, feed, optimize=False)["y"]
    assert np.mean(np.abs(found - wanted) < 1e-6) > 0.9


BLOCK = (
    "[c] h = Conv<pads = [1, 1, 1, 1]>(x, w, b) [r] k = Relu(h) [d] l = Conv(k, v, b) [a] s = Add(l, x) "
    "[p] g = GlobalAveragePool(s) [f] t = Flatten(g) [l] y = Gemm(t, m, n)"
)
STRATEGIES = {
    "DPU": {"target_device": "DPU"},
    "float": CPU,
    "asymmetric": with_activation(CPU, symmetry=False),
    "unsigned weights": {**CPU, "tensor_quantize_config": {"weights": {"symmetry": False}}},
    "per channel": {**CPU, "tensor_quantize_config": {"weights": {"per_channel": True}}},
    "narrow": {**CPU, "overall_quantize_config": {**CPU["overall_quantize_config"], "narrow_range": True}},
    "7 bits": {**CPU, "overall_quantize_config": {**CPU["overall_quantize_config"], "bit_width": 7}},
    "entropy": with_activation(CPU, method="entropy"),
    "mse": with_activation(CPU, method="mse", round_mode="half_up"),
    "percentile": with_activation(CPU, method="percentile", percentage=99.0),
    "mean": with_activation(CPU, calib_statistic_method="mean"),
    "corrected": {**CPU, "include_bias_corr": True, "include_cle": True},
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_form_stays_near_the_float_model(name):
    source, data = graph(BLOCK, outputs="float[2, 3] y"), feeds(4)
    result = quantize_onnx(source, STRATEGIES[name], calibration=data, qdq=True)
    reference = np.concatenate([run(source, feed)["y"] for feed in data])
    # the scale of one batch goes with the zero point of another, and a mean of ranges cuts some of the values off
    least = {"DPU": 14, "7 bits": 16, "asymmetric": 6, "mean": 6}.get(name, 18)
    for form in (result.fake_quant_model, result.qdq_model):
        onnx.checker.check_model(form)
        found = [np.concatenate([run(form, feed, optimize=flag)["y"] for feed in data]) for flag in (False, True)]
        assert sqnr(reference, found[0]) > least
        assert sqnr(found[0], found[1]) > 25


def test_integers_of_weights_and_inputs_are_those_of_the_strategy_in_the_deploy_model():
    source, data = net_a()
    strategy = next(case for case in RUNS if case["id"] == "e2e_A4_cpu_perchannel_percentile")["params"]["config"]
    result = quantize_onnx(source, strategy, calibration=data, deploy=True)
    deploy = initializers(result.deploy_model)
    assert deploy["w1"].dtype == np.int8
    assert deploy["w1"].ravel().tolist() == [127, 33, -91, 127]
    scale = json.loads(result.quant_info)["output"]["x"][0][1]
    (quant,) = (node for node in result.deploy_model.graph.node if node.name == "c1.quant")
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in quant.attribute}
    assert attributes["scale"] == pytest.approx(1 / scale, rel=1e-6)
    assert attributes["offset"] == 0
    assert sorted(result.params) == ["c1", "c2"]


def test_asymmetric_inputs_become_offsets():
    result = quantize_onnx(graph(BLOCK), STRATEGIES["asymmetric"], calibration=feeds(), deploy=True)
    info = json.loads(result.quant_info)["output"]
    assert result.params["c"].activation.offset == info["x"][0][2] - 128
    assert result.params["l"].activation.offset == info["g"][0][2] - 128


def test_layers_that_do_not_fit_say_why(caplog):
    strategy = STRATEGIES["narrow"]
    result = quantize_onnx(graph(BLOCK), strategy, calibration=feeds())
    assert result.deploy_model is None
    assert result.record is None
    assert "Ascend takes -128 to 127" in result.plan.notes["c"][0]
    assert "no deploy model" in caplog.text
    with pytest.raises(NotAvailableError, match="3 layers cannot be deployed as the strategy says: 'c': its input has"):
        quantize_onnx(graph(BLOCK), strategy, calibration=feeds(), deploy=True)
    rule = {"layer_name": "d", "quantizable_data_type": ["weights"], "overall_quantize_config": {"symmetry": False}}
    result = quantize_onnx(graph(BLOCK), {**CPU, "layer_quantize_config": [rule]}, calibration=feeds())
    assert sorted(result.params) == ["c", "l"]
    assert "unsigned or asymmetric" in result.plan.notes["d"][0]


def test_what_qdq_cannot_express_is_said():
    strategy = with_activation(CPU, bit_width=16)
    with pytest.raises(NotAvailableError, match="no QDQ model: tensor 'x' has 16 bits"):
        quantize_onnx(graph(BLOCK), strategy, calibration=feeds(), qdq=True)
    assert quantize_onnx(graph(BLOCK), strategy, calibration=feeds()).deploy_model is None


def test_a_bias_beside_tiny_weights_gets_a_coarser_scale_on_the_chip_alone():
    weight = np.array(W["v"])
    weight[2] *= np.float32(1e-9)
    source = model(
        "g (float[2, 4, 6, 6] x) => (float[2, 4, 6, 6] y) { [c] y = Conv(x, v, b) }", {"v": weight, "b": W["b"] + 3}
    )
    result = quantize_onnx(source, STRATEGIES["per channel"], calibration=feeds(), deploy=True)
    assert result.plan.notes["c"][0].startswith("in the deploy model: coarser weights in channel 2")
    scale = json.loads(result.quant_info)["param"]["v"][0][1][2]
    assert result.params["c"].weight.scale[2] > 100 * scale


# Rewrites


def relu6_net(nodes):
    values = {"low": np.float32(0), "high": np.float32(6), **{name: W[name] for name in "wv"}}
    used = {name: value for name, value in values.items() if f", {name}" in nodes}
    source = model(f"g (float[2, 4, 6, 6] x) => (float y) {{ {nodes} }}", used)
    source.graph.output[0].type.tensor_type.ClearField("shape")
    return source


def test_relu6_becomes_relu_where_asked_for_alone():
    source = relu6_net("[c] h = Conv(x, w) [r] y = Clip(h, low, high)")
    asked, with_cle = {**CPU, "convert_relu6_to_relu": True}, {**CPU, "include_cle": True}
    for strategy, wanted in ((asked, "Relu"), (CPU, "Clip"), (with_cle, "Clip")):
        result = quantize_onnx(source, strategy, calibration=feeds())
        assert {node.op_type for node in result.fake_quant_model.graph.node if node.name == "r"} == {wanted}


def test_equalisation_scales_the_bound_of_relu6_and_quantizes_behind_it():
    source = relu6_net("[c] h = Conv(x, w) [r] k = Clip(h, low, high) [d] y = Conv(k, v)")
    data = [{"x": 4 * feed["x"]} for feed in feeds()]
    for device in (CPU, DPU):
        result = quantize_onnx(source, {**device, "include_cle": True}, calibration=data, qdq=True)
        assert len(result.plan.tensor_strategies) == 3
        assert json.loads(result.quant_info)["output"].keys() >= {"x", "k.equalised"}
        reference = np.concatenate([run(source, feed)["y"] for feed in data])
        for form in (result.fake_quant_model, result.qdq_model):
            assert [n.op_type for n in form.graph.node if n.name in ("r", "r.cap")] == ["Relu", "Min"]
            assert sqnr(reference, np.concatenate([run(form, feed)["y"] for feed in data])) > 25


def test_first_and_last_layer_and_additions_can_be_left():
    kept = {**CPU, "keep_first_last_layer_accuracy": True, "keep_add_layer_accuracy": True}
    result = quantize_onnx(graph(BLOCK), kept, calibration=feeds())
    assert sorted(result.plan.layers) == ["d"]
    assert sorted(result.plan.tensor_strategies) == ["k", "s"]
    assert "keep_first_last_layer_accuracy" in result.plan.skipped["c"]
    assert "keep_add_layer_accuracy" in result.plan.skipped["a"]


def test_concatenations_get_one_grid_and_shifts_stay_within_reach():
    nodes = (
        "[c] h = Conv(x, v) [e] i = Conv(h, v) [p] k = MaxPool<kernel_shape = [1, 1]>(h) "
        "[cc] y = Concat<axis = 1>(h, k)  [z] z = Sub(i, h)"
    )
    source = graph(nodes, outputs="float y, float z")
    strategy = {**DPU, "change_concat_input_fix": True, "change_pool_input_fix": True}
    info = json.loads(quantize_onnx(source, strategy, calibration=feeds()).quant_info)["output"]
    assert info["h"] == info["y"]
    tiny = model(
        "g (float[1, 1] x) => (float[1, 1] y) { [l] y = Gemm(x, w, b) }",
        {"w": single([2.0**-11], 1, 1), "b": single([60], 1)},
    )
    found = json.loads(quantize_onnx(tiny, DPU, calibration=[{"x": single([1e-3], 1, 1)}]).quant_info)
    x, y = found["output"]["x"][0][1], found["output"]["y"][0][1]
    w = found["param"]["w"][0][1]
    assert 0 <= x + w - y <= 16


def test_pooling_and_leaky_relu_compute_as_the_dpu_where_asked_for():
    nodes = (
        "[a] h = AveragePool<kernel_shape = [3, 3]>(x) [b] k = LeakyRelu<alpha = 0.1>(h) "
        "[c] l = Conv(k, v) [g] y = GlobalAveragePool(l)"
    )
    source, data = graph(nodes), feeds()
    models = {}
    for flag in (False, True):
        result = quantize_onnx(source, CPU, calibration=data, dpu_arithmetic=flag)
        assert sorted(result.plan.tensor_strategies) == ["k", "l", "x", "y"]
        models[flag] = result.fake_quant_model
    pool = model("g (float[2, 4, 6, 6] x) => (float y) { [a] y = AveragePool<kernel_shape = [3, 3]>(x) }")
    pool.graph.output[0].type.tensor_type.ClearField("shape")
    assert len({tuple(run(m, data[0])["y"].ravel().tolist()) for m in models.values()}) == 2
    (leaky,) = (node for node in models[True].graph.node if node.op_type == "LeakyRelu")
    assert onnx.helper.get_attribute_value(leaky.attribute[0]) == 26 / 256
    (factor,) = (node for node in models[True].graph.node if node.name == "a.dpu_factor")
    assert initializers(models[True])[factor.input[1]] == np.float32(63 / 64)


def test_inputs_of_pooling_get_its_position_also_behind_the_dpus_factor():
    source = graph("[c] h = Conv(x, v) [p] k = AveragePool<kernel_shape = [3, 3]>(h) [d] y = Conv(k, v)")
    strategy, data = {**DPU, "change_pool_input_fix": True}, feeds()
    for flag, behind in ((False, "k"), (True, "p.dpu_factor.output0")):
        info = json.loads(quantize_onnx(source, strategy, calibration=data, dpu_arithmetic=flag).quant_info)["output"]
        assert info["h"] == info[behind]
    plain = json.loads(quantize_onnx(source, DPU, calibration=data).quant_info)["output"]
    assert plain["h"] != plain["k"]


def test_layers_are_compared_tensor_by_tensor():
    result = quantize_onnx(graph(BLOCK), CPU, calibration=feeds(), measure_layers=True)
    assert sorted(result.layer_errors) == ["a", "d", "l", "p", "r"]
    assert all(error.sqnr > 15 for error in result.layer_errors.values())


# What cannot be, and the doors


def test_tensors_that_hold_nan_stay_float(caplog):
    source = graph("[c] h = Conv(x, v) [l] k = Log(h) [d] y = Conv(k, v)")
    result = quantize_onnx(source, CPU, calibration=feeds())
    assert sorted(json.loads(result.quant_info)["output"]) == ["h", "x"]
    assert "tensor 'k' stays float: it holds NaN or inf" in caplog.text


def test_errors_say_what_is_wrong():
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool, pytest.raises(ConfigError, match="leave the executor out"):
        quantize_onnx(graph(BLOCK), CPU, calibration=feeds(), executor=pool)
    with pytest.raises(ConfigError, match="deploy belongs to Vitis AI strategies"):
        quantize_onnx(graph(BLOCK), QuantConfig(), calibration=feeds(), deploy=True)
    with pytest.raises(ModelError, match="no layer is left to quantize"):
        quantize_onnx(graph("[r] y = Relu(x)"), CPU, calibration=feeds())
    with pytest.raises(ConfigError, match="unknown option 'include_clee'"):
        quantize_onnx(graph(BLOCK), CPU, calibration=feeds(), include_clee=True)


def test_the_same_run_gives_the_same_bytes_and_its_config_repeats_it():
    source, data = graph(BLOCK), feeds(4)
    first = quantize_onnx(source, {"target_device": "DPU"}, calibration=data)
    again = quantize_onnx(source, json.loads(first.config), calibration=data)
    assert first.fake_quant_model.SerializeToString() == again.fake_quant_model.SerializeToString()
    assert first.quant_info == again.quant_info
    assert first.config == again.config


def test_options_replace_fields_of_the_strategy():
    result = quantize_onnx(
        graph(BLOCK), StrategyConfig(target_device="DPU"), calibration=feeds(4), batch_num=2, include_cle=False
    )
    assert result.plan.batch_num == 2


def test_the_command_line_tells_a_strategy_by_its_shape(tmp_path, capsys):
    onnx.save(graph(BLOCK), tmp_path / "net.onnx")
    (tmp_path / "strategy.json").write_text(json.dumps({"target_device": "DPU"}))
    np.savez(tmp_path / "data.npz", **{f"x_{i}": feed["x"] for i, feed in enumerate(feeds())})
    model_path, config = str(tmp_path / "net.onnx"), str(tmp_path / "strategy.json")
    given = ["calibration", "--model", model_path, "--save_path", str(tmp_path / "out" / "net"), "--batch_num", "2"]
    assert main([*given, "--calibration_config", config, "--data", str(tmp_path / "data.npz"), "--format", "qdq"]) == 0
    endings = [
        "config.json",
        "deploy_model.onnx",
        "fake_quant_model.onnx",
        "qdq_model.onnx",
        "quant.json",
        "quant_info.json",
        "record.txt",
    ]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"net_{ending}" for ending in endings]
    assert main(["plan", model_path, "--config", config]) == 0
    shown = capsys.readouterr().out
    assert "diffs" in shown
    assert main([*given[:4], str(tmp_path / "again"), "--calibration_config", str(tmp_path / "out" / "net_config.json"),
                 "--data", str(tmp_path / "data.npz")]) == 0  # fmt: skip
    logging.getLogger("amct_onnx").handlers.clear()


@pytest.mark.parametrize("opset", [9, 11, 18])
def test_every_opset_gets_both_forms(opset):
    nodes = "[c] h = Conv<pads = [1, 1, 1, 1]>(x, w, b) [r] k = Relu(h) [p] y = MaxPool<kernel_shape = [2, 2]>(k)"
    source, data = graph(nodes, opset=opset), feeds()
    result = quantize_onnx(source, with_activation(CPU, round_mode="std_round"), calibration=data, qdq=True)
    reference = run(source, data[0])["y"]
    for form in (result.fake_quant_model, result.qdq_model):
        assert sqnr(reference, run(form, data[0], optimize=False)["y"]) > 25


ODD = ["if_bodies", "loop_body", "if_reads_outer_scope", "output_is_input", "output_of_layer", "pool_ceil", "opset9"]
ODD += ["conv_weight_at_run_time", "input_int64_tokens", "names_duplicate_in_bodies", "up_grouped", "inputs_left_out"]


@pytest.mark.parametrize("build", [b for b in ODD_GRAPHS if b.__name__ in ODD], ids=lambda build: build.__name__)
@pytest.mark.parametrize("strategy", ["DPU", "per channel"])
def test_odd_models_are_quantized_by_strategies_too(build, strategy):
    case = build()
    result = quantize_onnx(case.model, STRATEGIES[strategy], calibration=case.feeds[:2], qdq=True)
    assert min(error.sqnr for error in result.output_errors.values()) > 20
    for form in (result.fake_quant_model, result.qdq_model):
        run(form, case.feeds[2])


def test_halves_are_no_models_that_must_be_reported(caplog):
    build = next(build for build in ODD_GRAPHS if build.__name__ == "pool_ceil")
    case = build()
    result = quantize_onnx(case.model, {"target_device": "DPU"}, calibration=case.feeds[:2], qdq=True)
    assert isinstance(result.qdq_model, onnx.ModelProto)
    assert "halves are rounded otherwise" in caplog.text


def test_half_precision_is_left_with_a_reason():
    case = next(build for build in ODD_GRAPHS if build.__name__ == "float16_model")()
    with pytest.raises(ModelError, match="its weight is float16; a strategy quantizes float32"):
        quantize_onnx(case.model, CPU, calibration=case.feeds[:2])
