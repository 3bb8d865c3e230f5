"""MatMul of two activations: quantized where it is asked for by name, symmetrically on both sides."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from graphs import initializers, model, nodes_as_text, run, sqnr

from amct_onnx import (
    Arq,
    ConfigError,
    Dmq,
    Hfmg,
    Ifmr,
    LayerConfig,
    ModelError,
    Nuq,
    RecordError,
    cli,
    convert_model,
    import_qdq,
    quantize_onnx,
    verify_deploy_model,
)
from amct_onnx.formats.record import parse_record

RNG = np.random.default_rng(21)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


NETWORK = model(
    """
    g (float[2, 3, 5, 8] q, float[2, 3, 8, 5] k) => (float[2, 3, 5, 4] y) {
      [scores] s = MatMul (q, k)
      [shares] p = Softmax <axis = -1> (s)
      [mix] m = MatMul (p, s)
      [out] y = MatMul (m, w)
    }
    """,
    {"w": normal(5, 4)},
)
FEEDS = [{"q": normal(2, 3, 5, 8), "k": normal(2, 3, 8, 5) * np.float32(9)} for _ in range(3)]
BOTH = {"scores": LayerConfig(), "mix": LayerConfig()}


def quantized(source=NETWORK, feeds=FEEDS, **options):
    return quantize_onnx(source, calibration=feeds, **options)


@pytest.fixture(scope="module")
def made():
    return quantized(override_layer_configs=BOTH, qdq=True)


def test_only_what_is_named_is_quantized(made):
    plain = quantized()
    assert list(plain.plan.layers) == ["out"]
    assert "only where override_layer_configs names it" in plain.plan.skipped["scores"]
    assert '"scores"' not in plain.config
    assert list(made.plan.layers) == ["scores", "mix", "out"]
    assert list(quantized(override_layer_configs={"mix": LayerConfig()}).plan.layers) == ["mix", "out"]
    by_type = quantized(override_layer_types={"MatMul": LayerConfig(activation=Hfmg())})
    assert list(by_type.plan.layers) == ["out"]


def test_both_inputs_go_through_integers(made):
    lines = [line for line in nodes_as_text(made.deploy_model) if line.startswith("[scores")]
    params = made.params["scores"]
    first, second = (float(np.float32(1) / p.scale) for p in (params.activation, params.weight))
    assert lines == [
        f"[scores.quant] scores.quant.output0 = AscendQuant<dst_type=INT8, offset=0.0, scale={first}>(q)",
        "[scores.input1.quant] scores.input1.quant.output0 = "
        f"AscendQuant<dst_type=INT8, offset=0.0, scale={second}>(k)",
        "[scores] s = MatMul(scores.quant.output0, scores.input1.quant.output0)",
        "[scores.dequant] scores.dequant.output0 = AscendDequant<dtype=0>(s, uint64[1])",
    ]
    (word,) = initializers(made.deploy_model)["scores.dequant.param"]
    assert np.uint32(word).view(np.float32) == params.activation.scale * params.weight.scale
    record = parse_record(made.record, "record")["scores"]
    assert (record.scale_d, record.scale_w) == (float(params.activation.scale), (float(params.weight.scale),))
    assert (record.offset_d, record.offset_w, record.act_type, record.wts_type) == (0, (0,), "INT8", "INT8")
    assert sqnr(run(NETWORK, FEEDS[1])["y"], run(made.fake_quant_model, FEEDS[1])["y"]) > 25


def test_the_scales_are_those_that_the_search_finds_for_either_input():
    search = Ifmr(search_range=(0.9999, 1.0), search_step=0.0001)
    params = quantized(override_layer_configs={"scores": LayerConfig(activation=search)}).params["scores"]
    for name, found in (("q", params.activation), ("k", params.weight)):
        largest = max(np.abs(feed[name]).max() for feed in FEEDS)
        assert float(found.scale) == pytest.approx(largest / 127, rel=0.01)
        assert (int(found.offset), found.num_bits) == (0, 8)


@pytest.mark.parametrize(
    ("block", "options"),
    [
        (LayerConfig(activation=Hfmg(num_of_bins=1024)), {}),
        (LayerConfig(activation=Ifmr(search_range=(0.4, 0.5))), {}),
        (LayerConfig(), {"fakequant_precision_mode": "FORCE_FP16_QUANT"}),
    ],
)
def test_the_block_and_the_precision_count_for_both_inputs(made, block, options):
    found = quantized(override_layer_configs={"scores": block}, **options).params["scores"]
    for mine, before in zip((found.activation, found.weight), (made.params["scores"].activation,) * 2, strict=True):
        assert mine.scale != before.scale
    assert found.weight.scale != made.params["scores"].weight.scale
    if options:
        assert float(np.float16(found.weight.scale)) == float(found.weight.scale)


def test_one_operator_serves_who_reads_a_tensor_alike():
    source = model("g (float[2, 4, 4] x) => (float[2, 4, 4] y) { [square] y = MatMul (x, x) }")
    result = quantized(source, [{"x": normal(2, 4, 4)}], override_layer_configs={"square": LayerConfig()})
    assert [node.op_type for node in result.deploy_model.graph.node] == ["AscendQuant", "MatMul", "AscendDequant"]
    run(result.fake_quant_model, {"x": normal(2, 4, 4)})


def test_json_switches_it_on_and_off(made, tmp_path):
    (tmp_path / "on.json").write_text(made.config)
    assert quantized(cfg=tmp_path / "on.json").record == made.record
    scores = made.config.index('"scores":{')
    off = made.config[:scores] + made.config[scores:].replace("true", "false", 1)
    (tmp_path / "off.json").write_text(off)
    result = quantized(cfg=tmp_path / "off.json")
    assert list(result.plan.layers) == ["mix", "out"]
    assert "quant_enable" in result.plan.skipped["scores"]


def test_a_cfg_file_switches_it_on(tmp_path):
    (tmp_path / "quant.cfg").write_text(
        'batch_num: 3 override_layer_configs { layer_name: "scores" calibration_config { ifmr_quantize { } } }'
    )
    assert list(quantized(cfg=tmp_path / "quant.cfg").plan.layers) == ["scores", "out"]


def test_the_plan_shows_it(tmp_path, capsys):
    onnx.save(NETWORK, tmp_path / "net.onnx")
    (tmp_path / "quant.cfg").write_text('override_layer_configs { layer_name: "mix" calibration_config { } }')
    cli.main(["plan", str(tmp_path / "net.onnx"), "--config", str(tmp_path / "quant.cfg")])
    shown = " ".join(capsys.readouterr().out.replace("│", "").split())
    assert "mix MatMul int8 symmetric ifmr" in shown
    assert "quantized only where" in shown


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (LayerConfig(activation=Ifmr(asymmetric=True)), "asymmetric: true is not possible for MatMul"),
        (LayerConfig(activation=Ifmr(num_bits=16)), "dst_type INT16 is not possible for MatMul"),
        (LayerConfig(weight=Arq(num_bits=4)), "quant_bits: 4 is not possible for MatMul; it has no weight"),
        (LayerConfig(weight=Arq(channel_wise=True)), "channel_wise: true is not possible for MatMul"),
        (LayerConfig(weight=Nuq()), "nuq_quantize is not possible for MatMul"),
        (LayerConfig(balancer=Dmq()), "dmq_balancer is not possible for MatMul; it has no weight"),
    ],
)
def test_what_a_product_cannot_have_is_an_error(block, message):
    with pytest.raises(ConfigError, match=f"layer 'scores': {message}"):
        quantized(override_layer_configs={"scores": block})


def test_only_matrices_of_float32_are_multiplied():
    half = model("g (float16[2, 4, 4] x) => (float16[2, 4, 4] y) { [square] y = MatMul (x, x) }")
    with pytest.raises(ConfigError, match="its input is float16; only float32 products of two activations are"):
        quantized(half, [{"x": np.ones((2, 4, 4), np.float16)}], override_layer_configs={"square": LayerConfig()})
    vector = model("g (float[4, 4] x, float[4] v) => (float[4] y) { [times] y = MatMul (x, v) }")
    with pytest.raises(ConfigError, match="one of its inputs has less than 2 axes"):
        quantized(vector, [{"x": normal(4, 4), "v": normal(4)}], override_layer_configs={"times": LayerConfig()})


def test_a_second_input_that_is_not_finite_leaves_it_float():
    source = model(
        "g (float[4, 4] x) => (float[4, 4] y, float[4, 2] z) "
        "{ [root] r = Sqrt (x) [times] y = MatMul (x, r) [fc] z = Gemm (x, w) }",
        {"w": normal(4, 2)},
    )
    result = quantized(source, [{"x": -np.ones((4, 4), np.float32)}], override_layer_configs={"times": LayerConfig()})
    assert "its input 'r' holds NaN or inf" in result.plan.skipped["times"]
    assert list(parse_record(result.record, "record")) == ["fc"]


def test_nothing_else_to_quantize_is_an_error_that_tells_how_to_ask():
    source = model("g (float[2, 4, 4] x) => (float[2, 4, 4] y) { [square] y = MatMul (x, x) }")
    with pytest.raises(ModelError, match="'square': both of its inputs are computed at run time; such a MatMul"):
        quantized(source, [{"x": normal(2, 4, 4)}])


def test_a_record_of_another_second_scale_is_told_of(made):
    records = parse_record(made.record, "record")
    records["scores"] = replace(records["scores"], scale_w=(records["scores"].scale_w[0] * 1.01,))
    found = [f for f in verify_deploy_model(made.deploy_model, record=records).errors if f.rule == 23]
    assert {finding.node for finding in found} == {"scores", "scores.input1.quant"}


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("scale_d: 0.1 offset_d: 3 scale_w: 0.1 offset_w: 0", "offset_d must be 0 for a product of two activations"),
        (
            "scale_d: 0.1 offset_d: 0 scale_w: 0.1 scale_w: 0.2 offset_w: 0 offset_w: 0",
            "the number of scale_w and offset_w must be 1 for MatMul, found 2",
        ),
        ('scale_d: 0.1 offset_d: 0 scale_w: 0.1 offset_w: 0 wts_type: "INT4"', "wts_type INT4 is not possible for Mat"),
        ('scale_d: 0.1 offset_d: 0 scale_w: 0.1 offset_w: 0 op_data_type: "FLOAT16"', "but the layer is float32"),
    ],
)
def test_a_record_that_does_not_fit_is_an_error(tmp_path, entry, message):
    (tmp_path / "record.txt").write_text(f'record {{ key: "scores" value {{ {entry} }} }}')
    with pytest.raises(RecordError, match=rf"record of 'scores': .*{message}"):
        convert_model(NETWORK, tmp_path / "record.txt")


def test_pairs_with_zero_points_stay_float(made):
    changed = onnx.ModelProto()
    changed.CopyFrom(made.qdq_model)
    for tensor in changed.graph.initializer:
        if tensor.name == "scores.input1.zero_point":
            tensor.raw_data = np.int8(3).tobytes()
    result = import_qdq(changed, data=FEEDS)
    assert list(result.plan.layers) == ["mix", "out"]
    assert result.plan.skipped["scores"] == (
        "one of its inputs has a zero point; a product of two activations takes 8 bits and symmetric scales"
    )


@pytest.mark.parametrize("asked", [{}, BOTH])
def test_balancing_a_layer_behind_a_product_leaves_the_product_alone(asked):
    common = LayerConfig(balancer=Dmq())
    result = quantized(common_config=common, fold_balancers=True, override_layer_configs=asked)
    assert result.params["out"].balance is not None
    assert any(line.startswith("[out.mul]") for line in nodes_as_text(result.deploy_model))
    assert sqnr(run(NETWORK, FEEDS[0])["y"], run(result.fake_quant_model, FEEDS[0])["y"]) > 25
