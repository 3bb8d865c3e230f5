"""Trial models: any layers float, with the scales that were found once."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import run

from amct_onnx.calibrated import calibrated
from amct_onnx.config import QuantConfig
from amct_onnx.data import input_specs
from amct_onnx.formats.model_file import read_model
from amct_onnx.kernels.ifmr import IfmrObserver
from amct_onnx.progress import Progress
from amct_onnx.quantize import quantize_onnx
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


def widths(state):
    return {name: int(params.num_bits) for name, params in state.activations.items()}


def test_activations_of_16_bits_bring_less_noise(trials):
    wide = trials.int16_layers()
    assert wide == set(trials.layers) - {"pool"}
    assert trials.noise(Mix(int16_layers=wide)) < trials.noise(mix())
    state = trials.state(Mix(int16_layers=wide))
    assert widths(state) == {name: 16 if name in wide else 8 for name in trials.layers}
    assert {name for name, layer in state.plan.layers.items() if layer.activation.num_bits == 16} == wide


@pytest.mark.parametrize("name", ["stem.conv", "depthwise.conv", "classifier"])
def test_one_layer_may_have_16_bits_beside_others_of_8(trials, name):
    state = trials.state(Mix(int16_layers=frozenset({name})))
    assert widths(state) == {layer: 16 if layer == name else 8 for layer in trials.layers}
    wide, narrow = (
        [
            onnx.numpy_helper.to_array(t).item()
            for t in trials.model(chosen).whole().graph.initializer
            if t.name == bound
        ]
        for chosen in (Mix(int16_layers=frozenset({name})), mix())
        for bound in [f"{name}.quant.fakequant.max_val"]
    )
    assert (wide, narrow) == ([32767.0], [127.0])


def test_16_bit_scales_are_those_that_a_16_bit_observer_finds(found, trials):
    planned = replace(found.state.plan.layers["stem.conv"].activation, num_bits=16)
    observer = IfmrObserver(planned, asymmetric=True)
    for feed in found.feeds:
        observer.update(feed["image"])
    params = trials.state(Mix(int16_layers=frozenset({"stem.conv"}))).activations["stem.conv"]
    assert params.num_bits == 16
    assert float(params.scale) == pytest.approx(float(observer.params().scale))
    assert int(params.offset) == int(observer.params().offset)


def test_no_layer_is_float_and_wide():
    with pytest.raises(ValueError, match=r"'a'.*both float and quantized"):
        Mix(float_layers=frozenset("a"), int16_layers=frozenset("ab"))
