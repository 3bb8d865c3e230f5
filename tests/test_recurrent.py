"""LSTM and GRU: which are quantized, and what is made of them in each form."""

import numpy as np
import onnx
import pytest
from graphs import initializers, model, nodes_as_text, run, sqnr
from onnx import helper, numpy_helper

from amct_onnx import (
    AccuracyTarget,
    AdaRound,
    Arq,
    ConfigError,
    Dmq,
    Hfmg,
    Ifmr,
    LayerConfig,
    ModelError,
    NotAvailableError,
    Nuq,
    QuantConfig,
    RecordError,
    SimulatedSession,
    convert_model,
    import_qdq,
    quantize_onnx,
    verify_deploy_model,
)
from amct_onnx.formats.record import parse_record

RNG = np.random.default_rng(5)
HIDDEN, STEPS, BATCH, WIDTH = 8, 4, 2, 6
CONFIG = QuantConfig()
"""Says nothing, but unlike the engine's own preset lets LSTM and GRU be quantized."""


def normal(*shape):
    return (RNG.normal(size=shape) * 0.3).astype(np.float32)


WEIGHTS = {
    "w": normal(1, 4 * HIDDEN, WIDTH),
    "r": normal(1, 4 * HIDDEN, HIDDEN),
    "b": normal(1, 8 * HIDDEN),
    "gw": normal(1, 3 * HIDDEN, HIDDEN),
    "gr": normal(1, 3 * HIDDEN, HIDDEN),
    "axes": np.array([1]),
    "k": normal(HIDDEN, 5),
}
NETWORK = model(
    f"""
    g (float[{STEPS}, {BATCH}, {WIDTH}] x, float[1, {BATCH}, {HIDDEN}] h, float[1, {BATCH}, {HIDDEN}] c)
        => (float[1, {BATCH}, {HIDDEN}] hn, float[1, {BATCH}, {HIDDEN}] u, float[{STEPS}, {BATCH}, 5] z) {{
      [lstm] y, hn = LSTM <hidden_size = {HIDDEN}> (x, w, r, b, , h, c)
      [flat] s = Squeeze (y, axes)
      [gru] , u = GRU <hidden_size = {HIDDEN}, linear_before_reset = 1> (s, gw, gr, , , h)
      [fc] z = MatMul (s, k)
    }}
    """,
    WEIGHTS,
)
FEEDS = [
    {
        "x": normal(STEPS, BATCH, WIDTH) * 3,
        "h": np.tanh(normal(1, BATCH, HIDDEN) * 3),
        "c": normal(1, BATCH, HIDDEN),
    }
    for _ in range(3)
]


def quantized(source=NETWORK, config=CONFIG, feeds=FEEDS, **options):
    return quantize_onnx(source, config, calibration=feeds, **options)


@pytest.fixture(scope="module")
def made():
    return quantized(qdq=True)


def attributes_of(m, name):
    (found,) = [node for node in m.graph.node if node.name == name]
    return {a.name: helper.get_attribute_value(a) for a in found.attribute}


def test_the_deploy_model_has_the_operators_of_the_chip(made):
    deploy = nodes_as_text(made.deploy_model)
    ours = [line for line in deploy if "WindowCache" in line]
    params = {name: made.params[name] for name in ("lstm", "gru")}

    def settings(name, own):
        scales = {
            f"quant_{word}_{letter}": value
            for letter, p in (("x", params[name].activation), ("h", params[name].hidden))
            for word, value in (
                ("offset", float(p.offset)),
                ("scale", float(np.float32(1) / p.scale)),
                ("sqrt_mode", 0),
            )
        }
        fixed = {"activation_alpha": [], "activation_beta": [], "activations": [], "clip": -1.0, "direction": "forward"}
        every = {**fixed, "hidden_size": HIDDEN, **own, "quant_dtype": 2, **scales}
        return ", ".join(f"{key}={value}" for key, value in sorted(every.items()))

    rows = 4 * HIDDEN
    assert ours == [
        f"[lstm] y, hn, lstm.output2 = BasicLSTMInplaceFillWindowCache<{settings('lstm', {'input_forget': 0})}>"
        f"(x, int8[1, {rows}, {WIDTH}], int8[1, {rows}, {HIDDEN}], h, c, int32[1, {2 * rows}], , , uint64[{2 * rows}])",
        f"[gru] gru.output0, u = BasicGRUInplaceFillWindowCache<{settings('gru', {'linear_before_reset': 1})}>"
        f"(s, int8[1, 24, {HIDDEN}], int8[1, 24, {HIDDEN}], h, , , , uint64[48])",
    ]
    assert not any(line.startswith(("[lstm.quant", "[lstm.dequant", "[gru.quant")) for line in deploy)
    types = {a.name: a.type for node in made.deploy_model.graph.node if node.name == "lstm" for a in node.attribute}
    lists = {name: types[name] for name in ("activation_alpha", "activation_beta", "activations")}
    floats, strings = onnx.AttributeProto.FLOATS, onnx.AttributeProto.STRINGS
    assert lists == {"activation_alpha": floats, "activation_beta": floats, "activations": strings}
    assert (
        verify_deploy_model(made.deploy_model, record=parse_record(made.record, "record"), float_model=NETWORK).errors
        == ()
    )


def test_weights_bias_and_scales_are_those_of_both_terms(made):
    stored, params = initializers(made.deploy_model), made.params["lstm"]
    sides = [("w", params.activation, params.weight), ("r", params.hidden, params.recurrent)]
    parts, words = np.split(WEIGHTS["b"].ravel(), 2), []
    biases = np.split(stored["b"].ravel(), 2)
    for (name, activation, weight), part, bias in zip(sides, parts, biases, strict=True):
        largest = np.abs(WEIGHTS[name][0]).max(axis=1)
        sign = WEIGHTS[name][0][np.arange(largest.size), np.abs(WEIGHTS[name][0]).argmax(axis=1)]
        np.testing.assert_allclose(weight.scale, largest / np.where(sign < 0, 128, 127), rtol=1e-6)
        levels = np.clip(np.rint(WEIGHTS[name][0] / weight.scale[:, None]), -128, 127)
        np.testing.assert_array_equal(stored[name][0], levels)
        product = activation.scale * weight.scale
        np.testing.assert_array_equal(bias, np.rint(part / product))
        words.append(product)
    (param,) = [node.input[8] for node in made.deploy_model.graph.node if node.name == "lstm"]
    assert param == "lstm.dequant.param"
    np.testing.assert_array_equal(stored[param], np.concatenate(words).view(np.uint32).astype(np.uint64))


def through(x, params):
    levels = np.clip(np.rint(x / params.scale) + params.offset, params.q_min, params.q_max)
    return ((levels - params.offset) * params.scale).astype(np.float32)


def test_the_fake_quant_model_is_the_float_one_over_rounded_numbers(made):
    params, feed = made.params["lstm"], FEEDS[1]
    one = onnx.ModelProto()
    one.CopyFrom(NETWORK)
    halves = zip(
        np.split(WEIGHTS["b"], 2, axis=1),
        (params.activation.scale * params.weight.scale, params.hidden.scale * params.recurrent.scale),
        strict=True,
    )
    rounded = {
        "w": np.rint(WEIGHTS["w"] / params.weight.scale[:, None]) * params.weight.scale[:, None],
        "r": np.rint(WEIGHTS["r"] / params.recurrent.scale[:, None]) * params.recurrent.scale[:, None],
        "b": np.concatenate([np.rint(half / scale) * scale for half, scale in halves], axis=1),
    }
    for tensor in one.graph.initializer:
        if tensor.name in rounded:
            tensor.CopyFrom(numpy_helper.from_array(rounded[tensor.name].astype(np.float32), tensor.name))
    fed = {**feed, "x": through(feed["x"], params.activation), "h": through(feed["h"], params.hidden)}
    np.testing.assert_allclose(run(made.fake_quant_model, feed)["hn"], run(one, fed)["hn"], atol=1e-6)
    exact = run(NETWORK, feed)
    assert all(30 < sqnr(values, run(made.fake_quant_model, feed)[name]) < 70 for name, values in exact.items())


def test_the_qdq_model_computes_the_same(made):
    assert made.qdq_model is not None
    onnx.checker.check_model(made.qdq_model)
    for optimize in (False, True):
        found = run(made.qdq_model, FEEDS[2], optimize=optimize)
        for name, values in run(made.fake_quant_model, FEEDS[2]).items():
            assert sqnr(values, found[name]) > 45, name
    lines = [line for line in nodes_as_text(made.qdq_model) if line.startswith("[lstm]")]
    assert "lstm.weight.dequantize.output0, lstm.recurrent.dequantize.output0, lstm.bias" in lines[0]


def test_pairs_around_them_are_not_read(made):
    result = import_qdq(made.qdq_model)
    assert list(result.plan.layers) == ["fc"]
    assert "not read" in result.plan.skipped["lstm"]


def test_the_initial_state_is_observed_like_the_input(made):
    states = np.concatenate([feed["h"].ravel() for feed in FEEDS])
    hidden = made.params["lstm"].hidden
    assert hidden.scale * 255 == pytest.approx(float(np.ptp(states)), rel=0.3)
    wider = [{**feed, "h": feed["h"] * np.float32(0.1)} for feed in FEEDS]
    smaller = quantized(feeds=wider).params["lstm"]
    np.testing.assert_allclose(smaller.hidden.scale, hidden.scale * 0.1, rtol=1e-3)
    assert smaller.activation.scale == made.params["lstm"].activation.scale
    symmetric = quantized(config=QuantConfig(common_config=LayerConfig(activation=Hfmg(asymmetric=False))))
    assert int(symmetric.params["lstm"].hidden.offset) == 0


def test_a_state_that_is_always_zero_says_nothing():
    zeros = [{**feed, "h": np.zeros_like(feed["h"])} for feed in FEEDS]
    result = quantized(feeds=zeros)
    assert list(result.plan.layers) == ["fc"]
    assert "its initial_h is zero on all calibration data" in result.plan.skipped["lstm"]
    assert "its initial_h is zero on all calibration data" in result.plan.skipped["gru"]


def test_a_record_gives_the_same_model(made, tmp_path):
    records = parse_record(made.record, "record")
    assert len(records["lstm"].scale_w) == len(records["lstm"].scale_r) == 4 * HIDDEN
    (tmp_path / "record.txt").write_text(made.record)
    again = convert_model(NETWORK, tmp_path / "record.txt", data=FEEDS)
    assert again.deploy_model == made.deploy_model
    assert again.record == made.record


@pytest.mark.parametrize(
    ("layer", "cut", "said"),
    [
        ("lstm", ("scale_h", "offset_h"), "scale_h and offset_h are missing; LSTM has a hidden state"),
        ("gru", ("scale_r", "offset_r"), "scale_r and offset_r are missing; GRU has a hidden state"),
        ("lstm", (), r"scale_r: the number of scale_w and offset_w must be 1 or 32 for LSTM, found 33"),
    ],
)
def test_a_record_that_does_not_fit_is_refused(made, tmp_path, layer, cut, said):
    blocks = made.record.split("record {\n")
    (own,) = [block for block in blocks if f'key: "{layer}"' in block]
    lines = [line for line in own.splitlines(keepends=True) if not line.strip().startswith(tuple(cut) or ("none",))]
    if not cut:
        place = next(i for i, line in enumerate(lines) if "scale_r" in line)
        lines[place:place] = [lines[place], "    offset_r: 0\n"]
    path = tmp_path / "record.txt"
    path.write_text("record {\n" + "".join(lines))
    with pytest.raises(RecordError, match=f"record of '{layer}': {said}"):
        convert_model(NETWORK, path, data=FEEDS)


def test_other_layers_have_no_hidden_state(made, tmp_path):
    (own,) = [block for block in made.record.split("record {\n") if 'key: "fc"' in block]
    path = tmp_path / "record.txt"
    path.write_text("record {\n" + own.replace("    scale_d", "    scale_h: 1 offset_h: 0\n    scale_d"))
    with pytest.raises(RecordError, match="scale_h is for LSTM and GRU; this is MatMul"):
        convert_model(NETWORK, path, data=FEEDS)


def one_layer(call, *, inputs="", weights=None, body="", opset=14):
    given = {name: values for name, values in WEIGHTS.items() if f" {name}," in call or f" {name})" in call}
    return model(
        f"""
        g (float[{STEPS}, {BATCH}, {WIDTH}] x, float[1, {BATCH}, {HIDDEN}] h, float[1, {BATCH}, {HIDDEN}] c{inputs})
            => (float[{STEPS}, {BATCH}, 7] z) {{
          [fc] z = MatMul (x, k)
          {body}
          [layer] {call}
        }}
        """,
        {"k": normal(WIDTH, 7), **given, **(weights or {})},
        opset=opset,
    )


SIZE = f"hidden_size = {HIDDEN}"
RESTRICTED = {
    "no state": (one_layer(f"y, yh, yc = LSTM <{SIZE}> (x, w, r, b)"), "it has no initial_h"),
    "no cell state": (one_layer(f"y, yh, yc = LSTM <{SIZE}> (x, w, r, b, , h)"), "it has no initial_c"),
    "constant state": (
        one_layer(
            f"y, yh, yc = LSTM <{SIZE}> (x, w, r, b, , h0, c)", weights={"h0": np.ones((1, BATCH, HIDDEN), np.float32)}
        ),
        "its initial_h is a constant",
    ),
    "reverse": (one_layer(f'y, yh = LSTM <{SIZE}, direction = "reverse"> (x, w, r, b, , h, c)'), "a reverse LSTM"),
    "clip": (one_layer(f"y, yh = LSTM <{SIZE}, clip = 3.0> (x, w, r, b, , h, c)"), "LSTM with clip"),
    "coupled gates": (one_layer(f"y, yh = LSTM <{SIZE}, input_forget = 1> (x, w, r, b, , h, c)"), "input_forget"),
    "other activations": (
        one_layer(f'y, yh = LSTM <{SIZE}, activations = ["Sigmoid", "Relu", "Tanh"]> (x, w, r, b, , h, c)'),
        "LSTM with activations Sigmoid, Relu, Tanh",
    ),
    "peepholes": (
        one_layer(
            f"y, yh = LSTM <{SIZE}> (x, w, r, b, , h, c, p)", weights={"p": np.zeros((1, 3 * HIDDEN), np.float32)}
        ),
        "peepholes",
    ),
    "lengths": (
        one_layer(f"y, yh = LSTM <{SIZE}> (x, w, r, b, lens, h, c)", inputs=f", int32[{BATCH}] lens"),
        "it has sequence_lens",
    ),
    "reset first": (
        one_layer(f"y, yh = GRU <{SIZE}> (x, v, u, , , h)", weights={"v": normal(1, 24, 6), "u": normal(1, 24, 8)}),
        "GRU with linear_before_reset 0",
    ),
    "weight computed": (
        one_layer(
            f"y, yh = LSTM <{SIZE}> (x, w2, r, b, , h, c)",
            inputs=f", float[1, {4 * HIDDEN}, {WIDTH}] w1",
            body="[double] w2 = Add (w1, w1)",
        ),
        "its weight W is computed at run time",
    ),
    "bias computed": (
        one_layer(f"y, yh = LSTM <{SIZE}> (x, w, r, b2, , h, c)", inputs=f", float[1, {8 * HIDDEN}] b2"),
        "its bias is computed at run time",
    ),
}


def planned(source, **options):
    """The plan for a model whose last layer's first output is an output of the model."""
    kept = onnx.ModelProto()
    kept.CopyFrom(source)
    kept.graph.output.append(onnx.ValueInfoProto(name=kept.graph.node[-1].output[0]))
    rng = np.random.default_rng(1)
    feed = {
        value.name: rng.normal(size=[d.dim_value for d in value.type.tensor_type.shape.dim]).astype(np.float32)
        for value in kept.graph.input
    }
    if "lens" in feed:
        feed["lens"] = np.full(BATCH, STEPS, np.int32)
    return quantized(kept, feeds=[feed], **options)


@pytest.mark.parametrize("case", RESTRICTED)
def test_what_the_chip_does_not_take_stays_float_with_the_reason(case):
    source, reason = RESTRICTED[case]
    result = planned(source)
    assert list(result.plan.layers) == ["fc"]
    assert reason in result.plan.skipped["layer"]
    with pytest.raises(ConfigError, match="which cannot be quantized"):
        planned(source, override_layer_configs={"layer": LayerConfig()})


def test_the_default_activations_may_be_written_down():
    source = one_layer(f'y, yh = LSTM <{SIZE}, activations = ["sigmoid", "Tanh", "tanh"]> (x, w, r, b, , h, c)')
    result = planned(source)
    assert list(result.plan.layers) == ["fc", "layer"]
    assert attributes_of(result.deploy_model, "layer")["activations"] == []


def test_layers_that_share_weights_get_their_own():
    weights = {"sq": normal(1, 32, 8), "k": normal(8, 3), "axes": np.array([1])}
    source = model(
        """
        g (float[4, 2, 8] x, float[1, 2, 8] h, float[1, 2, 8] c) => (float[4, 2, 3] z) {
          [one] y = LSTM <hidden_size = 8> (x, sq, sq, , , h, c)
          [flat] s = Squeeze (y, axes)
          [two] t = LSTM <hidden_size = 8> (s, sq, sq, , , h, c)
          [again] v = Squeeze (t, axes)
          [fc] z = MatMul (v, k)
        }
        """,
        weights,
    )
    feeds = [{"x": normal(4, 2, 8), "h": normal(1, 2, 8), "c": normal(1, 2, 8)}]
    result = quantized(source, feeds=feeds, qdq=True)
    (one, two) = [[*node.input[1:3]] for node in result.deploy_model.graph.node if "LSTM" in node.op_type]
    assert len({*one, *two}) == 4
    assert verify_deploy_model(result.deploy_model).errors == ()


def test_the_own_preset_leaves_them_float():
    plan = quantize_onnx(NETWORK, calibration=FEEDS).plan
    assert list(plan.layers) == ["fc"]
    assert "recurrent_layers=True" in plan.skipped["lstm"]
    assert list(quantize_onnx(NETWORK, calibration=FEEDS, recurrent_layers=True).plan.layers) == ["lstm", "gru", "fc"]
    named = quantize_onnx(NETWORK, calibration=FEEDS, override_layer_configs={"gru": LayerConfig()})
    assert list(named.plan.layers) == ["gru", "fc"]
    by_type = quantized(skip_layer_types=["LSTM"])
    assert list(by_type.plan.layers) == ["gru", "fc"]


def test_a_cfg_of_amct_quantizes_them_and_its_json_repeats_it(tmp_path):
    (tmp_path / "quant.cfg").write_text(
        "batch_num: 2 override_layer_types { layer_type: 'LSTM' calibration_config { "
        "arq_quantize { channel_wise: false } hfmg_quantize { num_of_bins: 1024 } } }"
    )
    first = quantize_onnx(NETWORK, tmp_path / "quant.cfg", calibration=FEEDS)
    assert first.params["lstm"].weight.scale.shape == first.params["lstm"].recurrent.scale.shape == ()
    assert first.params["gru"].recurrent.scale.shape == (24,)
    (words,) = [node.input[8] for node in first.deploy_model.graph.node if node.name == "lstm"]
    assert initializers(first.deploy_model)[words].shape == (2,)
    assert verify_deploy_model(first.deploy_model).errors == ()
    (tmp_path / "config.json").write_text(first.config)
    again = quantize_onnx(NETWORK, tmp_path / "config.json", calibration=FEEDS)
    assert (again.record, again.deploy_model) == (first.record, first.deploy_model)


def test_activations_of_16_bits():
    config = QuantConfig(common_config=LayerConfig(activation=Ifmr(num_bits=16)))
    result = quantized(config=config, qdq=True)
    assert attributes_of(result.deploy_model, "lstm")["quant_dtype"] == 6
    assert result.params["lstm"].hidden.num_bits == 16
    assert verify_deploy_model(result.deploy_model, record=parse_record(result.record, "record")).errors == ()
    feed = FEEDS[0]
    wide, narrow = (
        sqnr(run(NETWORK, feed)["hn"], run(m, feed)["hn"])
        for m in (result.fake_quant_model, quantized().fake_quant_model)
    )
    assert wide > narrow + 1


def test_a_record_of_16_bits(tmp_path):
    config = QuantConfig(common_config=LayerConfig(activation=Ifmr(num_bits=16)))
    result = quantized(config=config)
    (tmp_path / "record.txt").write_text(result.record)
    assert convert_model(NETWORK, tmp_path / "record.txt", data=FEEDS).deploy_model == result.deploy_model


def test_weights_of_4_bits_are_packed_along_the_columns():
    result = quantized(config=QuantConfig(common_config=LayerConfig(weight=Arq(num_bits=4))))
    stored = initializers(result.deploy_model)
    assert stored["w"].shape == (1, 4 * HIDDEN, WIDTH // 2)
    assert stored["r"].shape == (1, 4 * HIDDEN, HIDDEN // 2)
    levels = np.clip(np.rint(WEIGHTS["r"] / result.params["lstm"].recurrent.scale[:, None]), -8, 7).astype(int)
    low, high = stored["r"] & 15, (stored["r"] >> 4) & 15
    np.testing.assert_array_equal(np.stack([low, high], axis=-1).reshape(levels.shape), levels & 15)


def test_requests_that_they_cannot_honour():
    common = LayerConfig(weight=AdaRound(num_iteration=1), balancer=Dmq())
    notes = quantized(config=QuantConfig(common_config=common)).plan.notes["lstm"]
    assert any("ada_quantize" in note for note in notes)
    assert any("dmq_balancer" in note for note in notes)
    for block, said in (
        (LayerConfig(balancer=Dmq()), "dmq_balancer"),
        (LayerConfig(weight=AdaRound()), "ada_quantize"),
        (LayerConfig(weight=Nuq()), "nuq_quantize"),
        (LayerConfig(weight=Arq(num_bits=6)), "quant_bits: 6"),
    ):
        with pytest.raises(ConfigError, match=f"layer 'lstm': {said} is not possible for LSTM"):
            quantized(override_layer_configs={"lstm": block})


def test_scales_that_fp16_holds():
    result = quantized(fakequant_precision_mode="FORCE_FP16_QUANT")
    for params in (result.params["lstm"].activation, result.params["lstm"].hidden):
        assert params.scale == np.float32(np.float16(params.scale))


def test_a_bias_that_leaves_int32_makes_its_rows_coarser():
    large = onnx.ModelProto()
    large.CopyFrom(NETWORK)
    bias = WEIGHTS["b"].copy()
    bias[0, 3], bias[0, 4 * HIDDEN + 5] = 4e6, -5e6
    for tensor in large.graph.initializer:
        if tensor.name == "b":
            tensor.CopyFrom(numpy_helper.from_array(bias, "b"))
    config = QuantConfig(common_config=LayerConfig(activation=Ifmr(num_bits=16)))
    before, after = quantized(config=config), quantized(large, config)
    for field, row in (("weight", 3), ("recurrent", 5)):
        old, new = (getattr(result.params["lstm"], field).scale for result in (before, after))
        assert list(np.flatnonzero(old != new)) == [row]
    assert verify_deploy_model(after.deploy_model).errors == ()


def test_a_weight_that_is_no_number_is_an_error():
    broken = onnx.ModelProto()
    broken.CopyFrom(NETWORK)
    for tensor in broken.graph.initializer:
        if tensor.name == "r":
            tensor.CopyFrom(numpy_helper.from_array(np.full_like(WEIGHTS["r"], np.nan), "r"))
    with pytest.raises(ModelError, match="the weight 'r' of layer 'lstm' holds NaN"):
        quantized(broken)


def test_their_arithmetic_is_not_simulated(made):
    with pytest.raises(NotAvailableError, match="BasicLSTMInplaceFillWindowCache 'lstm'"):
        SimulatedSession(made.deploy_model)


def broken_model(made, name, values):
    m = onnx.ModelProto()
    m.CopyFrom(made.deploy_model)
    for tensor in m.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(numpy_helper.from_array(values(numpy_helper.to_array(tensor)), name))
    return {finding.rule for finding in verify_deploy_model(m).errors}


def test_the_report_shows_both_their_inputs():
    found = quantized(report=True)
    for layer in found.report.layers:
        params = found.params[layer.name]
        given = [params.activation] if params.hidden is None else [params.activation, params.hidden]
        assert [place.scale for place in layer.inputs] == [float(each.scale) for each in given]
        assert [place.key for place in layer.inputs] == [layer.name, f"{layer.name}:1"][: len(given)]


def test_a_target_widens_one_and_leaves_the_other_as_it_is(made):
    found = quantized(target=AccuracyTarget(sqnr=44.0, int16=True))
    assert found.target.chosen.int16_layers == ("lstm",)
    assert (found.params["lstm"].activation.num_bits, found.params["lstm"].hidden.num_bits) == (16, 16)
    assert repr(found.params["gru"]) == repr(made.params["gru"])
    assert found.target.chosen.value > 44.0 > found.target.steps[0].value


def test_rules_count_scales_and_biases(made):
    assert broken_model(made, "lstm.dequant.param", lambda w: w[:-1]) == {12}
    assert broken_model(made, "b", lambda b: b[:, :-4]) == {20}
    assert broken_model(made, "r", lambda r: r.astype(np.float32)) == {19}
    assert broken_model(made, "lstm.dequant.param", lambda w: w | np.uint64(1 << 40)) == {13}
