"""Trial models: any layers float, with the scales that were found once."""

from pathlib import Path

import numpy as np
import pytest
from graphs import run

from amct_onnx.config import QuantConfig
from amct_onnx.data import input_specs
from amct_onnx.formats.model_file import read_model
from amct_onnx.progress import Progress
from amct_onnx.quantize import calibrated, quantize_onnx
from amct_onnx.report.compare import compare_models
from amct_onnx.results import make_results
from amct_onnx.trials import Mix, Trials

DIGITS = Path(__file__).parents[1] / "models" / "digits"


@pytest.fixture(scope="module")
def found():
    source = read_model(DIGITS / "digits.onnx")
    return calibrated(source, QuantConfig(), DIGITS / "calibration.npz", show=Progress(False))


@pytest.fixture(scope="module")
def trials(found):
    return Trials(found)


@pytest.fixture(scope="module")
def feed():
    return {"image": np.load(DIGITS / "test.npz")["image"][:50]}


def mix(*layers):
    return Mix(float_layers=frozenset(layers))


def test_with_all_layers_quantized_it_is_the_model_that_quantize_onnx_makes(trials, feed):
    result = quantize_onnx(DIGITS / "digits.onnx", QuantConfig(), calibration=DIGITS / "calibration.npz")
    assert trials.model(mix()).whole() == result.fake_quant_model
    assert set(trials.layers) == set(result.plan.layers)


def test_with_all_layers_float_it_computes_what_the_float_model_does(trials, found, feed):
    model = trials.model(mix(*trials.layers)).whole()
    assert not any("fakequant" in node.name for node in model.graph.node)
    errors = compare_models(DIGITS / "digits.onnx", model, [feed], layers=False).outputs
    assert all(error.sqnr > 100 for error in errors.values())
    assert trials.noise(mix(*trials.layers)) == 0


@pytest.mark.parametrize("index", range(6))
def test_a_layer_that_is_float_is_not_quantized_and_all_others_are(trials, feed, index):
    layer = trials.layers[index]
    model = trials.model(mix(layer)).whole()
    quantized = {node.name.removesuffix(".fakedequant.mul") for node in model.graph.node if "fakedequant" in node.name}
    assert quantized == set(trials.layers) - {layer}
    run(model, feed)


def test_noise_is_that_of_the_outputs(trials, found):
    chosen = mix(trials.layers[0])
    errors = compare_models(DIGITS / "digits.onnx", trials.model(chosen), found.feeds, layers=False).outputs
    assert trials.noise(chosen) == pytest.approx(sum(10 ** (-error.sqnr / 10) for error in errors.values()), rel=1e-3)
    assert 0 < trials.noise(chosen) < trials.noise(mix())


def test_trials_do_not_change_what_they_are_made_of(trials):
    before = trials.model(mix()).whole().SerializeToString(deterministic=True)
    trials.model(mix(*trials.layers[:3]))
    trials.noise(mix(trials.layers[2]))
    assert trials.model(mix()).whole().SerializeToString(deterministic=True) == before


def test_the_plan_of_a_trial_says_what_stays_float(trials, found):
    state = trials.state(mix(trials.layers[1]))
    assert list(state.plan.layers) == [name for name in trials.layers if name != trials.layers[1]]
    assert list(state.plan.disabled) == [trials.layers[1]]
    assert "kept float" in state.plan.skipped[trials.layers[1]]
    record = make_results(state).record
    assert f'key: "{trials.layers[1]}"' not in record
    assert f'key: "{trials.layers[2]}"' in record
    assert '"quant_enable":false' in found.text(state.plan)


def test_calibrating_anew_finds_all_but_the_same_scales(trials, found):
    """What the module says of it: scales are kept although other layers became float."""
    off = trials.layers[:2]
    again = quantize_onnx(DIGITS / "digits.onnx", QuantConfig(skip_layers=off), calibration=DIGITS / "calibration.npz")
    for layer, params in again.params.items():
        kept = found.state.activations[layer].scale
        assert float(params.activation.scale) == pytest.approx(float(kept), rel=0.05)


def test_noise_is_measured_on_as_many_batches_as_asked(found):
    short = Trials(found, batches=1)
    assert short.noise(mix()) > 0
    assert len(short._reference) == 1


def test_an_output_that_is_not_finite_is_infinite_noise(trials, monkeypatch):
    trials.noise(mix())
    for _, expected in trials._reference:
        monkeypatch.setitem(expected, next(iter(expected)), np.full(3, np.nan, np.float32))
    assert trials.noise(mix()) == float("inf")


def test_the_inputs_are_those_of_the_model(trials):
    source = input_specs(read_model(DIGITS / "digits.onnx").proto)
    assert [spec.name for spec in input_specs(trials.model(mix()).proto)] == [spec.name for spec in source]
