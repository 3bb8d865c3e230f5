"""The report of a quantization: what is in it, that it is safe and the same every time, and where it is written."""

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import model
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from naive import naive_distribution
from rich.console import Console

from amct_onnx import AccuracyTarget, ConfigError, Hfmg, Ifmr, LayerConfig, OutputError, QuantConfig, quantize_onnx
from amct_onnx.cli import main
from amct_onnx.kernels.distribution import BARS, range_of
from amct_onnx.kernels.hfmg import HfmgObserver
from amct_onnx.kernels.ifmr import IfmrObserver
from amct_onnx.report.tables import report_summary

DIGITS = Path(__file__).parents[1] / "models" / "digits"
EVIL = "\"><script>alert(1)</script>&'\u00e9"
TEXT = """g (float[1, 4, 6, 6] x) => (float[1, 4, 6, 6] y, float[1, 4, 6, 6] z) {
    [first] h = Conv(x, w) [r] hr = Relu(h) [second] y = Conv(hr, w) [third] z = Conv(hr, v) }"""


class Page(HTMLParser):
    """What is in a page: its elements, and whether they nest."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.attributes, self.said = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.said.append(data)


def network(name="first"):
    rng = np.random.default_rng(3)
    made = model(TEXT, {key: rng.normal(size=(4, 4, 1, 1)).astype(np.float32) for key in "wv"})
    made.graph.node[0].name = name
    return made


def batches(count=3):
    rng = np.random.default_rng(0)
    return [rng.normal(size=(1, 4, 6, 6)).astype(np.float32) for _ in range(count)]


@pytest.fixture(scope="module")
def found():
    config = QuantConfig(skip_layers=["third"])
    return quantize_onnx(network(), config, calibration=batches(), report=True, qdq=True)


def test_json_says_what_was_decided(found):
    told = json.loads(found.report_json)
    assert told["batches"] == 3
    assert sorted(layer["name"] for layer in told["layers"]) == ["first", "second"]
    for layer in told["layers"]:
        (place,) = layer["inputs"]
        params = found.params[layer["name"]].activation
        assert place["scale"] == float(params.scale)
        assert (place["low"], place["high"]) == pytest.approx(range_of(params))
        assert sum(place["distribution"]["counts"]) == 3 * 4 * 36
        assert [each["name"] for each in place["considered"]] == ["min-max", "IFMR, narrowest", "IFMR, widest"]
        assert layer["error"]["sqnr"] == found.layer_errors[layer["name"]].sqnr
    sqnrs = [layer["error"]["sqnr"] for layer in told["layers"]]
    assert sqnrs == sorted(sqnrs)
    floats = {node["name"]: node for node in told["floats"]}
    assert floats["third"]["could"]
    assert floats["third"]["reason"] == found.plan.skipped["third"]
    assert not floats["r"]["could"]
    assert next(iter(told["floats"]))["name"] == "third"
    assert set(told["outputs"]) == {"y", "z"}
    assert set(told["sizes"]) == {"float model", "deploy_model.onnx", "fake_quant_model.onnx", "qdq_model.onnx"}
    assert told["target"] is None
    assert {"prepare", "calibrate", "all"} <= set(told["seconds"])


def test_the_page_needs_nothing_else(found):
    page = Page(found.report_html)
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert "link" not in page.tags
    assert not [a for a in page.attributes if a[1].startswith("on") or (a[1] in ("src", "href") and a[2][0] != "#")]
    assert not re.search(r"https?:|url\(|@import", found.report_html)
    assert page.tags.count("svg") == 2
    assert page.tags.count("figure") == 2
    links = [value for tag, name, value in page.attributes if name == "href"]
    assert {link[1:] for link in links} <= {value for _, name, value in page.attributes if name == "id"}
    text = "".join(page.said)
    assert found.plan.skipped["third"] in text


def test_names_are_shown_and_never_taken_for_markup():
    result = quantize_onnx(network(EVIL), calibration=batches(), report=True)
    page = Page(result.report_html)
    assert "script" not in page.tags
    assert EVIL in "".join(page.said)
    assert any(name == "aria-label" and value.startswith(EVIL) for _, name, value in page.attributes)
    assert EVIL in [layer["name"] for layer in json.loads(result.report_json)["layers"]]


def test_where_every_layer_is_quantized_no_table_says_so():
    result = quantize_onnx(network(), calibration=batches(), report=True)
    assert '<th class="why">' not in result.report_html
    text = "g (float[1, 4] x) => (float[1, 4] y) { [product] y = MatMul(x, w) }"
    alone = quantize_onnx(
        model(text, {"w": np.eye(4, dtype=np.float32)}), calibration=[np.ones((1, 4), np.float32)], report=True
    )
    assert "<p>Nothing.</p>" in alone.report_html


def test_all_but_the_times_is_the_same_every_time(found, tmp_path):
    again = quantize_onnx(
        network(),
        QuantConfig(skip_layers=["third"]),
        calibration=batches(),
        report=True,
        qdq=True,
        save_path=tmp_path / "net",
    )
    told, html = again.report_json.read_text(encoding="utf-8"), again.report_html.read_text(encoding="utf-8")
    assert told.split('"seconds"')[0] == found.report_json.split('"seconds"')[0]
    assert html.split('<section id="times">')[0] == found.report_html.split('<section id="times">')[0]
    assert html.count('<section id="times">') == 1
    assert list(json.loads(told))[-1] == "seconds"


def test_files_appear_where_the_call_says_and_only_when_asked_for(tmp_path):
    quantize_onnx(network(), calibration=batches(), save_path=tmp_path / "a" / "net")
    assert not list((tmp_path / "a").glob("*report*"))
    result = quantize_onnx(network(), calibration=batches(), save_path=tmp_path / "b" / "net", report=True)
    assert (result.report_html, result.report_json) == tuple(
        tmp_path / "b" / f"net_report.{end}" for end in ("html", "json")
    )
    assert json.loads(result.report_json.read_text(encoding="utf-8")) == json.loads(result.report.to_json())
    plain, reported = (
        {path.name: path.read_bytes() for path in (tmp_path / folder).iterdir() if "report" not in path.name}
        for folder in "ab"
    )
    assert plain == reported


def test_what_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "net_report.json").mkdir()
    with pytest.raises(OutputError, match=r"net_report\.json: is a directory"):
        quantize_onnx(network(), calibration=batches(), save_path=tmp_path / "net", report=True)
    with pytest.raises(OutputError, match=r"net_report\.json: is a directory"):  # before the data are looked at
        quantize_onnx(network(), calibration="no data", save_path=tmp_path / "net", report=True)
    assert [path.name for path in tmp_path.iterdir()] == ["net_report.json"]
    with pytest.raises(ConfigError, match="report must be true or false"):
        quantize_onnx(network(), calibration=batches(), report="net.html")


def test_the_target_is_told(found):
    result = quantize_onnx(network(), calibration=batches(), report=True, target=AccuracyTarget(sqnr=45.0))
    told = json.loads(result.report_json)["target"]
    assert told["target"] == "SQNR of at least 45 dB"
    assert [step["shown"] for step in told["steps"]] == [step.shown for step in result.target.steps]
    assert "(chosen)" in result.report_html
    (kept,) = (name for name in result.target.chosen.float_layers[:1])
    assert result.plan.skipped[kept] in result.report_html


@pytest.mark.parametrize("width", [80, 160])
def test_the_summary_stays_below_a_screen(width, capsys):
    text = "g (float[1, 4, 6, 6] x0) => (float[1, 4, 6, 6] x30) {" + " ".join(
        f"[layer_{i}] x{i + 1} = Conv(x{i}, w)" for i in range(30)
    )
    weights = {"w": np.eye(4, dtype=np.float32)[..., None, None] + np.float32(0.01)}
    config = QuantConfig(skip_layers=[f"layer_{i}" for i in range(5, 15)])
    result = quantize_onnx(model(text + "}", weights), config, calibration=batches(), report=True)
    console = Console(width=width)
    for part in report_summary(result.report):
        console.print(part)
    said = capsys.readouterr().out
    assert len(said.splitlines()) <= 24
    assert "the worst of 20 layers" in said
    assert "10 layers left float" in said


def long_network(count=12):
    """The names of its layers begin alike, and one holds a line break."""
    rng = np.random.default_rng(3)
    text = "g (float[1, 4, 6, 6] x0) => (float[1, 4, 6, 6] y) {" + " ".join(
        f"h{i} = Conv(x{i}, w{i}) x{i + 1} = Relu(h{i})" for i in range(count)
    )
    text += f" y = Identity(x{count}) }}"
    made = model(text, {f"w{i}": rng.normal(size=(4, 4, 1, 1)).astype(np.float32) for i in range(count)})
    for i, node in enumerate(made.graph.node):
        node.name = f"/backbone/stages.0/blocks/a_rather_long_name_of_a_block/branch_of_it/conv\n{i}/Conv"
    return made


def summary_of(report, width):
    console = Console(width=width, file=io.StringIO())
    for part in report_summary(report):
        console.print(part)
    return console.file.getvalue()


def test_the_summary_stays_below_a_screen_with_a_target_and_long_names():
    def metric(path):  # the fewer layers are quantized, the better
        return -sum(node.op_type == "Round" for node in onnx.load(path).graph.node)

    target = AccuracyTarget(metric=metric, drop=6.0)
    result = quantize_onnx(long_network(), calibration=batches(), report=True, qdq=True, target=target)
    assert len(result.target.chosen.float_layers) > 3
    for width in (80, 160):
        said = summary_of(result.report, width)
        assert len(said.splitlines()) <= 24
        worst = result.report.layers[0]
        end = worst.name.split("\n")[1]
        assert f" {end} │ {worst.error.sqnr:.1f} " in said


def test_on_the_command_line(tmp_path, capfd):
    common = ["calibration", "--model", str(DIGITS / "digits.onnx"), "--data", str(DIGITS / "calibration.npz")]
    assert main([*common, "--save_path", str(tmp_path / "net"), "--report", "--target", "sqnr:40"]) == 0
    said = capfd.readouterr()
    assert "net_report.html" in said.out
    assert "net_report.json" in said.out
    assert "sizes: float model" in said.out
    assert "target, step   1" in said.err
    assert Page((tmp_path / "net_report.html").read_text(encoding="utf-8")).tags.count("figure") == 5
    assert main([*common, "--save_path", str(tmp_path / "net2"), "--target", "36"]) == 1
    assert "is written sqnr:30 (in dB) or cosine:0.99, found '36'" in capfd.readouterr().err
    assert main([*common, "--save_path", str(tmp_path / "net2"), "--int16"]) == 1
    assert "--int16 goes with --target" in capfd.readouterr().err
    assert not (tmp_path / "net2_record.txt").exists()


def test_raw_files_are_read_as_often_as_a_target_and_an_effort_need_them(tmp_path, capfd):
    images = np.load(DIGITS / "test.npz")["image"]
    (tmp_path / "raw").mkdir()
    for index in range(4):
        images[index].tofile(tmp_path / "raw" / f"{index}.bin")
    given = [
        "calibration",
        "--model",
        DIGITS / "digits.onnx",
        "--data_dir",
        tmp_path / "raw",
        "--data_types",
        "float32",
    ]
    given += ["--input_shape", "image:1,1,8,8", "--batch_num", "2", "--save_path", tmp_path / "out" / "net"]
    assert main([str(argument) for argument in [*given, "--effort", "balanced", "--target", "sqnr:20"]]) == 0
    assert "target, step   1" in capfd.readouterr().err


def test_products_and_single_tensors_have_pictures_too():
    text = """g (float[1, 4, 6, 6] x) => (float[1, 4, 6, 6] y) {
        [conv] h = Conv(x, w) [product] p = MatMul(h, x) [sum] y = Add(p, x) }"""
    made = model(text, {"w": np.random.default_rng(1).normal(size=(4, 4, 1, 1)).astype(np.float32)})
    config = QuantConfig(
        override_layer_configs={"product": LayerConfig(activation=Ifmr(asymmetric=False))},
        joint_quant=True,
    )
    result = quantize_onnx(made, config, calibration=batches(), report=True)
    told = {layer["name"]: layer for layer in json.loads(result.report_json)["layers"]}
    assert [place["key"] for place in told["product"]["inputs"]] == ["product", "product:1"]
    second = told["product"]["inputs"][1]
    assert second["scale"] == float(result.params["product"].weight.scale)
    page = Page(result.report_html)
    assert page.tags.count("svg") == sum(len(layer["inputs"]) for layer in told.values())
    assert page.said.count("second input") == page.said.count("input") - 1 == 1  # a column of the table is named so too


VALUES = hnp.arrays(
    np.float32,
    st.integers(1, 300),
    elements=st.one_of(st.just(0.0), st.floats(-3, 3, width=32), st.floats(-(2.0**-130), 2.0**-130, width=32)),
)


@given(VALUES)
def test_bars_are_those_of_a_plain_histogram(values):
    observer = IfmrObserver(Ifmr(), asymmetric=True)
    observer.update(values)
    seen = observer.distribution()
    low, high, counts = naive_distribution(values)
    assert (seen.low, seen.high) == (low, high)
    assert int(seen.counts.sum()) == values.size
    # a value at most a bin of the histogram from the edge of a bar may count beside it
    assert np.abs(np.cumsum(seen.counts - counts)).max() <= naive_near_edges(values, low, high)


def naive_near_edges(values, low, high):
    """How many values lie within a bin of the histogram of the edge of a bar."""
    if low == high:
        return 0
    width = 2.0 ** max(np.ceil(np.log2(max(-low, high))), -40) / 2**13
    places = (values.astype(np.float64) - low) / (high - low) * BARS
    return int((np.abs(places - np.rint(places)) <= width / (high - low) * BARS).sum())


@given(VALUES)
def test_nothing_is_lost_between_hfmg_and_its_bars(values):
    observer = HfmgObserver(Hfmg(num_of_bins=1024), asymmetric=True)
    observer.update(values)
    seen = observer.distribution()
    assert (seen.low, seen.high) == (float(values.min()), float(values.max()))
    assert seen.counts.shape == (BARS,)
    assert int(seen.counts.sum()) == values.size


def test_an_observer_that_has_seen_nothing_has_empty_bars():
    assert IfmrObserver(Ifmr(), asymmetric=True).distribution().counts.sum() == 0
    assert IfmrObserver(Ifmr(), asymmetric=True).considered() == ()
    assert HfmgObserver(Hfmg(), asymmetric=True).distribution().counts.sum() == 0
