"""Targets: what may be asked, what is measured on, and that as few layers as will do stay float."""

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from graphs import model

from amct_onnx import (
    AccuracyTarget,
    ConfigError,
    DataError,
    EvaluatorError,
    quantize_onnx,
)
from amct_onnx.report.compare import compare_models

RNG = np.random.default_rng(7)
TEXT = """g (float[1, 4, 6, 6] x) => (float[1, 4, 6, 6] y) {
    [a] h = Conv(x, wa) [ar] hr = Relu(h) [b] i = Conv(hr, wb) [br] ir = Relu(i) [c] y = Conv(ir, wc) }"""


def network():
    """Three layers; the weights of the first two have a channel that is far from the others; the first costs most."""
    weights = {name: RNG_WEIGHTS[name].copy() for name in ("wa", "wb", "wc")}
    weights["wa"][0] *= 4
    weights["wb"][:, 0] /= 4
    return model(TEXT, weights)


RNG_WEIGHTS = {name: RNG.normal(size=(4, 4, 1, 1)).astype(np.float32) for name in ("wa", "wb", "wc")}


def batches(count, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(1, 4, 6, 6)).astype(np.float32) for _ in range(count)]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "one of sqnr, cosine and metric, found none"),
        ({"sqnr": 20.0, "cosine": 0.9}, "found sqnr and cosine"),
        ({"sqnr": 0.0}, r"must lie in \(0, inf\), found 0"),
        ({"sqnr": "30"}, "sqnr of the target must be a finite number"),
        ({"cosine": 1.0}, r"must lie in \(0, 1\)"),
        ({"cosine": float("nan")}, "finite number"),
        ({"metric": len}, "metric and drop of a target go together"),
        ({"sqnr": 20.0, "drop": 0.1}, "metric and drop of a target go together"),
        ({"metric": 3, "drop": 0.1}, "must be a function, found 3"),
        ({"metric": len, "drop": -1.0}, r"drop of the target must lie in \[0, inf\)"),
        ({"sqnr": 20.0, "int16": 1}, "int16 of the target must be true or false"),
    ],
)
def test_what_is_no_target_is_an_error(given, said):
    with pytest.raises(ConfigError, match=said):
        AccuracyTarget(**given)


def test_targets_as_text():
    assert AccuracyTarget.parse("sqnr:30") == AccuracyTarget(sqnr=30.0)
    assert AccuracyTarget.parse("cosine:0.99", int16=True) == AccuracyTarget(cosine=0.99, int16=True)
    for text in ("30", "sqnr", "sqnr:", "sqnr:x", "sqnr:nan", "psnr:30", ""):
        with pytest.raises(ConfigError, match=r"is written sqnr:30 \(in dB\) or cosine:0\.99, found"):
            AccuracyTarget.parse(text)
    with pytest.raises(ConfigError, match="AccuracyTarget"):
        quantize_onnx(network(), calibration=batches(2), target=30)


def test_a_target_that_holds_changes_nothing():
    plain = quantize_onnx(network(), calibration=batches(3))
    found = quantize_onnx(network(), calibration=batches(3), target=AccuracyTarget(sqnr=15.0))
    assert found.deploy_model == plain.deploy_model
    assert (found.record, found.config) == (plain.record, plain.config)
    assert len(found.target.steps) == 1
    assert found.target.chosen.reached
    assert plain.target is None


@pytest.fixture(scope="module")
def reached():
    return quantize_onnx(network(), calibration=batches(3), target=AccuracyTarget(sqnr=28.0), correct_biases=False)


def test_the_layer_that_costs_most_stays_float_and_the_plan_says_why(reached):
    assert list(reached.plan.layers) == ["b", "c"]
    chosen, first = reached.target.chosen, reached.target.steps[0]
    assert chosen.float_layers == ("a",)
    assert reached.plan.skipped["a"] == (
        f"kept float: the target, SQNR of at least 28 dB, needs it: {chosen.shown} so, {first.shown} with this layer "
        "quantized"
    )
    assert first.value < 28 <= chosen.value
    assert 'key: "a"' not in reached.record
    assert '"a":{"quant_enable":false' in reached.config.replace(" ", "").replace("\n", "")


def test_the_figures_are_those_of_the_model_that_is_given(reached):
    errors = compare_models(network(), reached.fake_quant_model, [{"x": b} for b in batches(3)], layers=False).outputs
    assert errors["y"].sqnr == pytest.approx(reached.target.chosen.value, abs=1e-6)


def test_every_step_is_logged(caplog):
    with caplog.at_level(logging.INFO, logger="amct_onnx"):
        found = quantize_onnx(network(), calibration=batches(3), target=AccuracyTarget(sqnr=28.0), correct_biases=False)
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("target, step")]
    assert len(lines) == len(found.target.steps)
    assert lines[0].endswith(f"0 float,    0 with 16-bit activations: {found.target.steps[0].shown}, not reached")


def test_16_bits_come_before_float():
    found = quantize_onnx(
        network(), calibration=batches(3), target=AccuracyTarget(sqnr=28.0, int16=True), correct_biases=False
    )
    assert found.target.chosen.int16_layers == ("a",)
    assert list(found.plan.layers) == ["a", "b", "c"]
    assert found.params["a"].activation.num_bits == 16
    assert found.plan.notes["a"][-1].startswith("16-bit activations: the target, SQNR of at least 28 dB, needs them: ")


def test_single_tensors_stay_quantized_whatever_is_float():
    text = """g (float[1, 4, 6, 6] x) => (float[1, 4, 6, 6] y) {
        [a] h = Conv(x, wa) [b] i = Conv(h, wb) [add] y = Add(h, i) }"""
    made = model(text, {name: RNG_WEIGHTS[name] for name in ("wa", "wb")})
    with pytest.raises(ConfigError, match="every layer float, if at all beside 2 single tensors to quantize: all"):
        quantize_onnx(made, calibration=batches(3), joint_quant=True, target=AccuracyTarget(sqnr=80.0))


class Counting(ThreadPoolExecutor):
    shards = 0

    def submit(self, *arguments, **named):
        self.shards += 1
        return super().submit(*arguments, **named)


def test_16_bits_are_observed_where_the_call_says():
    counts = []
    for int16 in (False, True):
        with Counting(2) as executor:
            target = AccuracyTarget(sqnr=28.0, int16=int16)
            quantize_onnx(network(), calibration=batches(3), target=target, executor=executor, correct_biases=False)
            counts.append(executor.shards)
    assert counts[1] == 2 * counts[0]


def test_what_only_a_float_model_reaches_is_an_error_and_leaves_no_file(tmp_path):
    with pytest.raises(ConfigError, match=r"SQNR of at least 200 dB, is reached only with every layer float: all q"):
        quantize_onnx(network(), calibration=batches(2), save_path=tmp_path / "net", target=AccuracyTarget(sqnr=200.0))
    assert list(tmp_path.iterdir()) == []


def test_a_metric_of_the_users_own_may_drop_so_far():
    feeds, seen = batches(4, seed=5), []
    wanted = [onnxruntime.InferenceSession(network().SerializeToString()).run(None, {"x": feed})[0] for feed in feeds]

    def closeness(path):
        seen.append(Path(path))
        onnx.checker.check_model(path)
        session = onnxruntime.InferenceSession(path)
        given = [session.run(None, {"x": feed})[0] for feed in feeds]
        return -max(float(np.abs(y - z).max() / np.abs(y).max()) for y, z in zip(wanted, given, strict=True))

    found = quantize_onnx(network(), calibration=batches(3), target=AccuracyTarget(metric=closeness, drop=0.2))
    assert found.target.steps[0].value < -0.2 <= found.target.chosen.value
    assert len(found.target.chosen.float_layers) == 1
    assert found.target.measured_on == "the data of the metric"
    assert len(seen) == len(found.target.steps) + 1
    assert not any(path.exists() for path in seen)


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        (lambda path: 1 / 0, "metric of the target failed for the float model: ZeroDivisionError"),
        (lambda path: "good", "must give a number, found 'good'"),
        (lambda path: None, "must give a number, found None"),
        (lambda path: float("nan"), "gave nan for the float model"),
    ],
)
def test_a_metric_that_fails_is_named(metric, said):
    with pytest.raises(EvaluatorError, match=said):
        quantize_onnx(network(), calibration=batches(1), target=AccuracyTarget(metric=metric, drop=0.0))


def test_what_is_held_back_is_not_calibrated_with():
    held = quantize_onnx(network(), calibration=batches(8), target=AccuracyTarget(sqnr=15.0))
    plain = quantize_onnx(network(), calibration=[batches(8)[index] for index in (0, 1, 2, 4, 5, 6)])
    assert (held.record, held.config) == (plain.record, plain.config)


@pytest.mark.parametrize("asked", [{"sqnr": 20.0}, {"metric": len, "drop": 0.0}])
def test_data_that_can_be_read_only_once_are_refused_before_the_run(asked):
    data = iter(batches(3))
    with pytest.raises(DataError, match="read only once, but are needed again, to reach the target"):
        quantize_onnx(network(), calibration=data, target=AccuracyTarget(**asked))
    assert len(list(data)) >= 2


def test_what_gives_nan_in_float_has_no_sqnr():
    text = "g (float[1, 4] x) => (float[1, 4] y, float[1, 4] z) { [a] y = MatMul(x, w) [b] z = Log(y) }"
    made, data = model(text, {"w": -np.eye(4, dtype=np.float32)}), [np.ones((1, 4), np.float32)]
    with pytest.raises(ConfigError, match=r"output 'z' of the float model holds NaN .* give the target a metric"):
        quantize_onnx(made, calibration=data, target=AccuracyTarget(cosine=0.9))
