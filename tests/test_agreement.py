"""How far models and chips are apart, and that the causes named are those that were put in."""

import json
import math
import os
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import model
from onnx import numpy_helper
from test_cli import DIGITS, status

from amct_onnx import ConfigError, DataError, ModelError, SimulatedSession, compare_models, quantize_onnx
from amct_onnx.deploy.profiles import PROFILES
from amct_onnx.report import agreement as module
from amct_onnx.report.agreement import FAKE_QUANT, agreement
from amct_onnx.report.agreement_page import agreement_page

FEEDS = [{"image": images} for images in np.split(np.load(DIGITS / "calibration.npz")["image"], 4)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The digits and what is made of them: three files."""
    folder = tmp_path_factory.mktemp("made")
    quantize_onnx(DIGITS / "digits.onnx", calibration=DIGITS / "calibration.npz", save_path=folder / "net")
    return DIGITS / "digits.onnx", folder / "net_fake_quant_model.onnx", folder / "net_deploy_model.onnx"


@pytest.fixture(scope="module")
def digits(made):
    return agreement(*made, FEEDS)


def test_the_fake_quant_model_is_as_far_from_the_float_one_as_a_comparison_says(made, digits):
    expected = compare_models(made[0], made[1], FEEDS)
    assert digits.batches == 4
    assert {layer.layer: layer.fake_quant for layer in digits.layers} == expected.layers
    assert {name: errors[FAKE_QUANT] for name, errors in digits.outputs.items()} == expected.outputs
    assert digits.skipped == ()


def test_outputs_of_the_chips_are_those_of_a_session(made, digits):
    for profile in PROFILES:
        session = SimulatedSession(made[2], profile)
        found = np.concatenate([session.run(None, feed)[0] for feed in FEEDS])
        reference = onnx_outputs(made[0])
        noise = float(((found - reference).astype(np.float64) ** 2).sum())
        signal = float((reference.astype(np.float64) ** 2).sum())
        assert digits.outputs["logits"][profile].sqnr == pytest.approx(10 * math.log10(signal / noise), rel=1e-6)


def onnx_outputs(path):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, feed)[0] for feed in FEEDS])


def test_exact_integers_do_not_part_from_the_fake_quant_model_of_the_digits(digits):
    assert digits.parting("ideal") is None
    for layer in digits.layers:
        assert layer.chips["ideal"].main_cause == ""
        assert layer.chips["ideal"].inputs_apart == 0


def test_the_first_layer_parts_by_what_the_chip_does_there(digits):
    causes = {p: digits.parting(p).chips[p].main_cause for p in ("fixpipe", "v200", "v100")}
    assert causes == {"fixpipe": "truncated scale", "v200": "float16 results", "v100": "half scale"}
    assert {digits.parting(p).layer for p in causes} == {"stem.conv"}
    last = digits.layers[-1].chips["fixpipe"]
    assert last.main_cause == "inherited"
    assert last.inputs_apart > 0
    assert last.largest_step >= 1


# Networks with one thing wrong each

TEXT = "g (float[8, 4] x) => (float[8, 3] y) { [fc] y = Gemm(x, w, b) }"


def one_layer(edit=lambda deploy: None, *, x=None, **weights):
    """A network of one Gemm, its deploy model edited, on batches of 8 rows."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 4)).astype(np.float32) if x is None else x
    source = model(TEXT, {"w": rng.normal(size=(4, 3)).astype(np.float32), "b": np.zeros(3, np.float32), **weights})
    result = quantize_onnx(source, calibration=[x])
    edit(result.deploy_model)
    (layer,) = agreement(source, result.fake_quant_model, result.deploy_model, [{"x": x}]).layers
    return layer


def set_scale(deploy, change):
    for tensor in deploy.graph.initializer:
        if tensor.name == "fc.dequant.param":
            scale = numpy_helper.to_array(tensor).astype(np.uint32).view(np.float32)
            words = np.float32(change(scale)).view(np.uint32).astype(np.uint64)
            tensor.CopyFrom(numpy_helper.from_array(words, tensor.name))


def test_a_scale_that_loses_much_when_it_is_cut():
    def just_below_a_cut(scale):
        return ((scale.view(np.uint32) & np.uint32(0xFFFFE000)) + np.uint32(0x1FFF)).view(np.float32)

    layer = one_layer(lambda deploy: set_scale(deploy, just_below_a_cut))
    assert layer.chips["fixpipe"].main_cause == "truncated scale"
    assert 58 < layer.chips["fixpipe"].costs["truncated scale"] < 68
    assert "truncated scale" not in layer.chips["v200"].costs


def test_a_scale_that_is_cut_already_loses_nothing():
    layer = one_layer(lambda deploy: set_scale(deploy, lambda s: (s.view(np.uint32) & np.uint32(0xFFFFE000)).view("f")))
    assert "truncated scale" not in layer.chips["fixpipe"].costs


def test_results_that_float16_does_not_hold():
    layer = one_layer(w=np.full((4, 3), 1e6, np.float32))
    assert layer.chips["fixpipe"].saturated > 0.5
    assert layer.chips["fixpipe"].main_cause == "float16 results"
    assert layer.chips["ideal"].saturated == 0


def test_ties_and_clipped_inputs_are_counted():
    def odd_offset(deploy):
        quant = next(node for node in deploy.graph.node if node.op_type == "AscendQuant")
        values = {"scale": 1.0, "offset": 3.0}
        for attribute in quant.attribute:
            attribute.f = values.get(attribute.name, attribute.f)

    x = np.array([[0.5, 1.5, 2.25, 1000.0]] * 8, np.float32)
    layer = one_layer(odd_offset, x=x)
    assert layer.ties == 0.5
    assert layer.clipped == 0.25


def test_a_layer_whose_scale_is_merged_is_not_blamed_for_float16():
    """On v200 AscendDequant, Relu and AscendQuant become one step, in which nothing is float16."""
    text = "g (float[1, 8, 6, 6] x) => (float y) { [a] a = Conv(x, w) r = Relu(a) [b] y = Conv(r, v) }"
    rng = np.random.default_rng(0)
    source = model(text, {name: rng.normal(size=(8, 8, 3, 3)).astype(np.float32) for name in "wv"})
    x = rng.normal(size=(1, 8, 6, 6)).astype(np.float32)
    result = quantize_onnx(source, calibration=[x])
    found = agreement(source, result.fake_quant_model, result.deploy_model, [{"x": x}], profiles=["v200", "v100"])
    first, second = found.layers
    assert "float16 quantization" in first.chips["v200"].costs
    assert "float16 quantization" not in second.chips["v200"].costs
    assert "float16 quantization" in second.chips["v100"].costs
    assert first.chips["v200"].against_fake_quant.sqnr > 40  # compared behind the Relu, in the float model's unit


# What cannot be compared


def test_models_that_do_not_belong_together(made):
    other = model(TEXT, {"w": np.ones((4, 3), np.float32), "b": np.zeros(3, np.float32)})
    with pytest.raises(ModelError, match="do not belong together: they have no layer in common"):
        agreement(other, made[1], made[2], FEEDS)
    with pytest.raises(ModelError, match="not a deploy model"):
        agreement(made[0], made[1], made[0], FEEDS)
    with pytest.raises(ModelError, match="do not belong together"):
        agreement(made[0], made[0], made[2], FEEDS)


def test_layers_of_other_sizes_are_apart_as_a_whole():
    """As where a number of values depends on values, or the models do not quite belong together."""
    text = """agree (float[2, 4, 6, 6] x) => (float[2, 4, 4, 4] y) {
      [a] h = Conv<kernel_shape = [1, 1]>(x, w)
      [b] y = Conv<kernel_shape = [3, 3]>(h, v)
    }"""
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(4, 4, 1, 1)), "v": rng.normal(size=(4, 4, 3, 3))}
    weights = {name: values.astype(np.float32) for name, values in weights.items()}
    feed = {"x": rng.normal(size=(2, 4, 6, 6)).astype(np.float32)}
    result = quantize_onnx(model(text, weights), calibration=[feed])
    deploy = onnx.ModelProto()
    deploy.CopyFrom(result.deploy_model)
    conv = next(node for node in deploy.graph.node if node.name == "a")
    conv.attribute.append(onnx.helper.make_attribute("pads", [1, 1, 1, 1]))
    found = agreement(model(text, weights), result.fake_quant_model, deploy, [feed], profiles=["ideal"])
    first, second = found.layers
    assert first.chips["ideal"].inputs_apart == 0
    assert second.chips["ideal"].inputs_apart == 1
    assert np.isnan(second.chips["ideal"].against_fake_quant.sqnr)
    assert "NaN" not in found.to_json()


def test_no_data_and_unknown_profiles(made):
    with pytest.raises(DataError, match="there is no batch"):
        agreement(*made, [])
    with pytest.raises(ConfigError, match="profile must be one of"):
        agreement(*made, FEEDS, profiles=["v300"])
    with pytest.raises(ModelError, match="batch 0"):
        agreement(*made, [{"image": np.zeros((1, 2), np.float32)}])


# The report


class Checker(HTMLParser):
    """Open tags, what is fetched from elsewhere, and the text."""

    VOID = ("meta", "line", "circle", "polyline")

    def __init__(self):
        super().__init__()
        self.open, self.fetched, self.text, self.tags = [], [], "", []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.fetched += [value for key, value in attrs if key in ("src", "href")]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def parsed(page):
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    return checker


def test_the_page_holds_everything_and_needs_nothing(digits):
    page = parsed(agreement_page(digits))
    assert (page.fetched, "script" in page.tags, page.tags.count("svg")) == ([], False, 1)
    assert page.tags.count("circle") == len(digits.layers) * 5
    for word in (*PROFILES, *(layer.layer for layer in digits.layers), "inherited", "logits"):
        assert word in page.text
    causes = {cause for layer in digits.layers for chip in layer.chips.values() for cause in chip.costs}
    legend = page.text[page.text.index("What the words mean") :]
    assert all(cause in legend for cause in causes)


def test_names_are_no_markup():
    text = TEXT.replace("[fc]", '["<b>&fc"]')
    source = model(text, {"w": np.eye(4, 3, dtype=np.float32), "b": np.zeros(3, np.float32)})
    x = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    result = quantize_onnx(source, calibration=[x])
    page = parsed(agreement_page(agreement(source, result.fake_quant_model, result.deploy_model, [{"x": x}])))
    assert "b" not in page.tags[page.tags.index("table") :]
    assert "<b>&fc" in page.text


def test_the_json_is_strict_and_says_the_same(digits):
    content = json.loads(digits.to_json(), parse_constant=lambda name: pytest.fail(name))
    assert [entry["layer"] for entry in content["layers"]] == [layer.layer for layer in digits.layers]
    assert content["parting"] == {"ideal": None, "fixpipe": "stem.conv", "v200": "stem.conv", "v100": "stem.conv"}
    first = content["layers"][0]["chips"]["fixpipe"]
    assert first["main_cause"] == "truncated scale"
    assert first["alone"] == pytest.approx(digits.layers[0].chips["fixpipe"].alone)


def test_the_same_models_give_the_same_report(made, digits):
    again = agreement(*made, FEEDS)
    assert agreement_page(again) == agreement_page(digits)
    assert again.to_json() == digits.to_json()


# The command line


def call(made, *arguments):
    return status("agreement", *made, "--data", DIGITS / "calibration.npz", *arguments)


def test_the_terminal_shows_one_screen_and_files_hold_the_rest(made, tmp_path, capsys):
    page, data = tmp_path / "a" / "report.html", tmp_path / "b" / "report.json"
    assert call(made, "--html", page, "--json", data) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) < 30
    assert any("stem.conv: truncated scale" in line for line in said)
    parsed(page.read_text(encoding="utf-8"))
    assert json.loads(data.read_text(encoding="utf-8"))["batches"] == 1
    assert (os.listdir(page.parent), os.listdir(data.parent)) == (["report.html"], ["report.json"])


def test_profiles_may_be_chosen(made, tmp_path, capsys):
    assert call(made, "--profiles", "v200", "ideal", "--json", tmp_path / "report.json") == 0
    assert json.loads((tmp_path / "report.json").read_text())["profiles"] == ["v200", "ideal"]
    assert "fixpipe" not in capsys.readouterr().out


def test_where_one_file_cannot_be_written_none_is(made, tmp_path, capsys):
    (tmp_path / "taken").mkdir()
    assert call(made, "--html", tmp_path / "report.html", "--json", tmp_path / "taken", "--profiles", "ideal") == 1
    assert "is a directory" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["taken"]
    assert call(made, "--html", tmp_path / "report", "--json", tmp_path / "report", "--profiles", "ideal") == 1
    assert "--html would overwrite what is read or written besides" in capsys.readouterr().err
    assert call(made, "--profiles", "v300", "--html", tmp_path / "report.html") == 1
    assert os.listdir(tmp_path) == ["taken"]


def test_the_documentation_names_the_command():
    text = (Path(module.__file__).parents[2] / "docs" / "simulate.md").read_text(encoding="utf-8")
    assert "amct_onnx agreement net.onnx out/net_fake_quant_model.onnx out/net_deploy_model.onnx --data data/" in text
    assert all(profile in text for profile in PROFILES)


def test_a_quant_without_a_twin_is_told(made):
    fake = onnx.load(made[1])
    deploy = onnx.load(made[2])
    for node in fake.graph.node:
        node.name = node.name.replace("pool.quant", "pond.quant")
    found = agreement(made[0], fake, deploy, FEEDS[:1], profiles=["ideal"])
    assert found.skipped == ("pool",)
    assert "pool" in agreement_page(found)
