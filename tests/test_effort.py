"""The own preset: biases are corrected; more effort tries more, by what batches show that calibration does not see."""

import html
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from graphs import initializers, model, run, sqnr

import amct_onnx
from amct_onnx import AdaRound, ConfigError, DataError, QuantConfig, quantize_onnx
from amct_onnx.effort import _gains_enough, _loss
from amct_onnx.forecast import forecast
from amct_onnx.formats.model_file import read_model

RNG = np.random.default_rng(11)
TEXT = """g (float[N, 4, 6, 6] x) => (float[N, 5] y) {
    [conv] c = Conv(x, w, b)
    p = GlobalAveragePool(c)
    f = Flatten(p)
    [dense] y = MatMul(f, v)
}"""


def network():
    """One whose convolution loses most of its digits, all in one direction."""
    weight = (np.rint(RNG.normal(size=(8, 4, 1, 1)) * 3) + 0.4) * 0.01
    weight[:, 0] = 1
    bias, dense = RNG.normal(size=8), RNG.normal(size=(8, 5))
    return model(TEXT, {name: v.astype(np.float32) for name, v in (("w", weight), ("b", bias), ("v", dense))})


def feeds(count, seed=0):
    rng = np.random.default_rng(seed)
    return [{"x": (rng.normal(size=(2, 4, 6, 6)) + 3).astype(np.float32)} for _ in range(count)]


def distance(float_model, result):
    pairs = [(run(float_model, feed)["y"], run(result.fake_quant_model, feed)["y"]) for feed in feeds(8, 1)]
    return sqnr(*(np.concatenate(part) for part in zip(*pairs, strict=True)))


@pytest.fixture(scope="module")
def float_model():
    return network()


def test_without_a_configuration_biases_are_corrected(float_model):
    plain = quantize_onnx(float_model, calibration=feeds(9), correct_biases=False)
    fast = quantize_onnx(float_model, calibration=feeds(9))
    assert distance(float_model, fast) > distance(float_model, plain) + 1
    named = quantize_onnx(float_model, calibration=feeds(9), effort="fast")
    assert named.fake_quant_model == fast.fake_quant_model
    assert fast.plan.choices == ()


def test_a_configuration_is_followed_to_the_letter(float_model):
    with pytest.raises(ConfigError, match="effort is for the engine's own preset; leave it out beside a config"):
        quantize_onnx(float_model, QuantConfig(), calibration=feeds(2), effort="fast")
    given = quantize_onnx(float_model, QuantConfig(), calibration=feeds(2))
    biases = [values for name, values in initializers(given.fake_quant_model).items() if "corrected" in name]
    assert biases == []


@pytest.mark.parametrize("effort", ["most", 1, ["fast"]])
def test_an_unknown_effort_is_an_error(float_model, effort):
    with pytest.raises(ConfigError, match=r"effort must be one of .*fast.*balanced.*best"):
        quantize_onnx(float_model, calibration=feeds(2), effort=effort)


@pytest.mark.parametrize("effort", ["balanced", "best"])
def test_what_is_tried_is_told_and_never_much_worse(float_model, effort):
    result = quantize_onnx(float_model, calibration=feeds(16), effort=effort)
    fast = quantize_onnx(float_model, calibration=feeds(16))
    assert distance(float_model, result) > distance(float_model, fast) - 1
    told = "\n".join(result.plan.choices)
    assert told.startswith("measured on 4 batches held back\nno bias correction: not taken, ")
    assert ("AdaRound" in told) == (effort == "best")
    assert "DMQ" in told
    again = quantize_onnx(float_model, calibration=feeds(16), effort=effort)
    assert again.fake_quant_model == result.fake_quant_model
    assert again.plan.choices == result.plan.choices


@pytest.mark.parametrize(
    ("before", "after", "taken"),
    [
        ([-30.0], [-30.2], True),
        ([-30.0], [-30.05], False),  # too little
        ([-30.0, -20.0], [-30.2, -20.2], True),
        ([-30.0, -20.0], [-32.0, -18.9], False),  # 0.45 dB in the mean, but one batch gains what the other loses
        ([-30.0, -20.0, -25.0], [-32.0, -20.0, -26.0], True),
        ([-30.0, -20.0], [math.inf, -40.0], False),
        ([math.inf, -20.0], [-30.0, -10.0], True),
        ([math.inf, -20.0], [math.inf, -30.0], False),
    ],
)
def test_a_gain_must_be_larger_than_chance(before, after, taken):
    assert _gains_enough(before, after) == taken


@pytest.mark.parametrize(("noise", "decibels"), [(1e-2, -40), (1e-3, -50), (0, -50), (math.nan, math.inf)])
def test_what_is_nearer_than_8_bits_can_be_is_no_gain(noise, decibels):
    expected = {"y": np.ones(4, np.float32)}
    assert _loss(expected, {"y": expected["y"] + np.float32(noise)}) == pytest.approx(decibels, abs=0.01)


def test_where_nothing_helps_the_result_is_that_of_fast(float_model):
    given = {"fold_balancers": False, "common_config": amct_onnx.LayerConfig(), "equalise_layers": False}
    result = quantize_onnx(float_model, calibration=feeds(16), effort="best", **given)
    fast = quantize_onnx(float_model, calibration=feeds(16), **given)
    assert result.plan.choices[1].startswith("no bias correction: not taken, ")
    assert result.plan.choices[-1] == "calibrated again with all batches"
    assert result.fake_quant_model == fast.fake_quant_model


def test_learned_rounding_and_batches_that_a_target_is_measured_on_are_not_calibrated_again(float_model):
    learned = amct_onnx.LayerConfig(weight=AdaRound(num_iteration=1))
    target = amct_onnx.AccuracyTarget(sqnr=5.0)
    for given in ({"common_config": learned}, {"target": target}, {"batch_num": 9}):
        result = quantize_onnx(float_model, calibration=feeds(16), effort="balanced", **given)
        assert "again" not in "".join(result.plan.choices)


def test_what_it_will_take_is_said_before_and_followed(float_model, caplog):
    with caplog.at_level("INFO", logger="amct_onnx"):
        quantize_onnx(float_model, calibration=feeds(16), effort="best")
    said = [record.getMessage() for record in caplog.records]
    assert said[0].startswith("effort best: up to 7 calibrations, about ")
    assert said[0].endswith(" GB; AdaRound in one of them takes longer, and says while it learns how long")
    steps = [line for line in said if line.startswith("calibration ")]
    assert [line.split(":")[0] for line in steps] == [f"calibration {number} of 7" for number in range(2, 7)]


def test_a_forecast_knows_batches_layers_and_memory(float_model):
    source = read_model(float_model)
    few, many = (forecast(source, QuantConfig(), iter(feeds(count))) for count in (1, 200))
    assert few.op_types == {"Conv", "MatMul"}
    assert few.seconds < many.seconds
    assert 300 << 20 < few.memory < 320 << 20
    assert replace(few, seconds=40.0, memory=2 << 30).describe(5) == "up to 5 calibrations, about 3 min and 2.0 GB"
    assert replace(few, seconds=2.0).describe(5).startswith("up to 5 calibrations, about 10 s and 0.3 GB")


def test_a_layer_that_stays_float_is_told_once(caplog):
    body = "f = Flatten(p) h = Mul(f, huge) [dense] n = MatMul(h, v) [last] y = MatMul(n, u) }"
    text = TEXT[: TEXT.index("f = Flatten")] + body
    weights = initializers(network())
    more = {"huge": np.float32(1e12), "u": np.eye(5, dtype=np.float32) * np.float32(1e-12)}
    quantize_onnx(model(text, {**weights, **more}), calibration=feeds(9), effort="balanced")
    told = [entry.getMessage() for entry in caplog.records if "stays float" in entry.getMessage()]
    assert [line.split(":")[0] for line in told] == ["layer 'dense' stays float", "layer 'last' stays float"]


def test_the_report_tells_it_too(float_model):
    result = quantize_onnx(float_model, calibration=feeds(16), effort="balanced", report=True)
    assert result.report.choices == result.plan.choices
    assert all(f"<li>{html.escape(choice)}</li>" in result.report_html for choice in result.plan.choices)
    plain = quantize_onnx(float_model, calibration=feeds(16), report=True)
    assert plain.report.choices == ()
    assert "tried for the whole network" not in plain.report_html


def test_what_the_user_set_is_not_tried(float_model):
    result = quantize_onnx(
        float_model,
        calibration=feeds(3),
        effort="best",
        correct_biases=False,
        equalise_layers=False,
        override_layer_configs={"conv": amct_onnx.LayerConfig(weight=AdaRound(num_iteration=1))},
    )
    assert result.plan.choices == ("measured on 3 batches of the calibration data: too few to hold any back",)


def test_data_that_can_be_read_once_are_enough_for_fast_alone(float_model):
    quantize_onnx(float_model, calibration=iter(feeds(9)))
    with pytest.raises(DataError, match="read only once, but are needed again, for effort='balanced'"):
        quantize_onnx(float_model, calibration=iter(feeds(9)), effort="balanced")


def test_a_source_that_reuses_its_array_changes_nothing(float_model):
    def reusing():
        array = np.empty((2, 4, 6, 6), np.float32)
        for feed in feeds(9):
            array[:] = feed["x"]
            yield {"x": array}

    reused, plain = (quantize_onnx(float_model, calibration=data, effort="balanced") for data in (reusing, feeds(9)))
    assert reused.plan.choices == plain.plan.choices
    assert reused.fake_quant_model == plain.fake_quant_model


def test_the_number_of_batches_is_what_is_calibrated_with(float_model):
    result = quantize_onnx(float_model, calibration=feeds(20), effort="balanced", batch_num=8)
    assert result.plan.choices[0] == "measured on 12 batches held back"
    assert '"batch_num":8,' in result.config


def test_a_target_is_reached_from_the_best_settings(float_model):
    target = amct_onnx.AccuracyTarget(sqnr=200.0)
    with pytest.raises(ConfigError, match="is reached only with every layer float"):
        quantize_onnx(float_model, calibration=feeds(9), effort="balanced", target=target)
    result = quantize_onnx(
        float_model, calibration=feeds(9), effort="balanced", target=amct_onnx.AccuracyTarget(sqnr=15.0)
    )
    assert result.plan.choices[0] == "measured on " + result.target.measured_on == "measured on 2 batches held back"
    assert result.target.chosen.reached


def test_all_batches_are_calibrated_with_where_a_metric_measures(float_model):
    target = amct_onnx.AccuracyTarget(metric=lambda path: 1.0, drop=0.0)
    choices = []
    for asked in (target, amct_onnx.AccuracyTarget(sqnr=15.0)):
        result = quantize_onnx(float_model, calibration=feeds(9), effort="balanced", target=asked)
        choices.append(result.plan.choices)
        assert f'"batch_num":{9 if asked is target else 7},' in result.config
    assert choices[0] == (*choices[1], "calibrated again with all batches")


def test_the_command_line_takes_it(tmp_path: Path, float_model, capfd):
    import onnx

    from amct_onnx.cli import main

    onnx.save(float_model, tmp_path / "net.onnx")
    np.savez(tmp_path / "data.npz", **{f"x_{i}": feed["x"] for i, feed in enumerate(feeds(9))})
    given = ["calibration", "--model", tmp_path / "net.onnx", "--save_path", tmp_path / "out" / "net"]
    given += ["--data", tmp_path / "data.npz", "--effort", "balanced"]
    assert main([str(argument) for argument in given]) == 0
    result = quantize_onnx(float_model, calibration=feeds(9), effort="balanced")
    assert onnx.load(tmp_path / "out" / "net_fake_quant_model.onnx") == result.fake_quant_model
    assert "no bias correction: not taken" in capfd.readouterr().err
