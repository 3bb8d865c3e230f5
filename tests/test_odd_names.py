"""Nodes with any name go all the way: configuration, JSON, record, command line, and the files that come out."""

import html
import json
import logging

import numpy as np
import onnx
import pytest
from graphs import model

from amct_onnx import ConfigError, convert_model, quantize_onnx, verify_deploy_model
from amct_onnx.cli import main
from amct_onnx.formats.record import read_record

RNG = np.random.default_rng(17)
NAMES = {
    "conv": "net/conv:0",
    "norm": "net/norm : 1",
    "down": 'a "quoted" name, it\'s\\so',
    "join": "join:0:1",
    "kept": "层 [bold]7[/bold] é #{}",
    "fc": "fc:1",
}
TENSOR = NAMES["join"] + ":1"


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


@pytest.fixture(autouse=True)
def log_as_before():
    """The command line sets up the log of the process."""
    log = logging.getLogger("amct_onnx")
    before = log.handlers[:], log.level, log.propagate
    yield
    log.handlers[:], log.level, log.propagate = before


@pytest.fixture
def network(tmp_path):
    built = model(
        """
        g (float[1, 3, 6, 6] x) => (float[1, 5] y) {
          [conv] a = Conv (x, w)
          [norm] b = BatchNormalization (a, n0, n1, n1, n0)
          [down] c = Conv (b, u)
          [kept] d = Conv (b, v)
          [join] e = Add (c, d)
          [flat] f = Flatten (e)
          [fc] y = Gemm (f, k, q)
        }
        """,
        {
            "w": normal(4, 3, 3, 3),
            "n0": np.abs(normal(4)) + np.float32(1),
            "n1": normal(4),
            "u": normal(2, 4, 1, 1),
            "v": normal(2, 4, 1, 1),
            "k": normal(32, 5),
            "q": normal(5),
        },
    )
    for node in built.graph.node:
        node.name = NAMES.get(node.name, node.name)
    onnx.save(built, tmp_path / "net.onnx")
    np.savez(tmp_path / "data.npz", x=normal(1, 3, 6, 6))
    return built


def written(text):
    """As a string of protobuf's text."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def cfg_of():
    return f"""
    activation_offset: true
    skip_layers: {written(NAMES["kept"])}
    skip_fusion_layers: {written(NAMES["conv"])}
    tensor_quantize {{ layer_name: {written(NAMES["join"])} input_index: 1 ifmr_quantize {{ }} }}
    override_layer_configs {{
      layer_name: {written(NAMES["down"])}
      calibration_config {{ arq_quantize {{ channel_wise: false }} ifmr_quantize {{ asymmetric: false }} }}
    }}
    """


def test_they_survive_every_file(network, tmp_path, capfd):
    (tmp_path / "quant.cfg").write_text(cfg_of(), encoding="utf-8")
    data = ["--data", str(tmp_path / "data.npz")]
    net, first = str(tmp_path / "net.onnx"), tmp_path / "first" / "net"
    asked = ["--calibration_config", str(tmp_path / "quant.cfg")]
    assert main(["plan", net, "--config", str(tmp_path / "quant.cfg"), "--all"]) == 0
    shown = "".join(capfd.readouterr().out.split())
    assert all("".join(name.split())[:12] in shown for name in (NAMES["conv"], NAMES["fc"], NAMES["kept"]))
    assert main(["calibration", "--model", net, "--save_path", str(first), *asked, *data]) == 0

    wanted = {NAMES[name] for name in ("conv", "down", "fc")} | {TENSOR}
    record = read_record(f"{first}_record.txt")
    assert set(record) == wanted
    config = json.loads((tmp_path / "first" / "net_config.json").read_text(encoding="utf-8"))
    assert config[NAMES["down"]]["weight_quant_params"]["channel_wise"] is False
    assert config[NAMES["kept"]]["quant_enable"] is False
    assert config["skip_fusion_layers"] == [NAMES["conv"]]
    assert [entry["layer_name"] for entry in config["tensor_quantize"]] == [NAMES["join"]]

    deploy = onnx.load(f"{first}_deploy_model.onnx")
    names = {node.name for node in deploy.graph.node}
    assert {*(f"{NAMES[name]}.quant" for name in ("conv", "down", "fc")), f"{NAMES['norm']}"} <= names
    assert verify_deploy_model(deploy, record=record, float_model=network).errors == ()

    again = tmp_path / "again" / "net"
    asked = ["--calibration_config", f"{first}_config.json"]
    assert main(["calibration", "--model", net, "--save_path", str(again), *asked, *data]) == 0
    given = tmp_path / "given" / "net"
    arguments = ["convert", "--model", net, "--record", f"{first}_record.txt", "--save_path", str(given)]
    assert main([*arguments, *data]) == 0
    for other, endings in ((again, ("record.txt", "config.json", "deploy_model.onnx")), (given, ("record.txt",))):
        for ending in endings:
            left, right = (path.with_name(f"net_{ending}").read_bytes() for path in (first, other))
            if other is given:
                left, right = (part.replace(b"    skip_fusion: true\n", b"") for part in (left, right))
            assert left == right, (other.parent.name, ending)
    assert main(["verify", f"{first}_deploy_model.onnx", "--record", f"{first}_record.txt"]) == 0
    fake = f"{first}_fake_quant_model.onnx"
    assert main(["compare", net, fake, *data]) == 0
    report = tmp_path / "report.html"
    assert main(["agreement", net, fake, f"{first}_deploy_model.onnx", *data, "--html", str(report)]) in (0, 1)
    assert html.escape(NAMES["down"]) in report.read_text(encoding="utf-8")


def test_a_name_that_is_nearly_right_is_asked_back(network):
    with pytest.raises(ConfigError, match="did you mean 'net/conv:0'"):
        quantize_onnx(network, calibration=[{"x": normal(1, 3, 6, 6)}], skip_layers=["net/conv:1"])


def test_a_node_that_looks_like_the_input_of_another_keeps_its_record(network, tmp_path):
    """`join:0` as a node beside a node `join`: the record's keys say which is meant."""
    for node in network.graph.node:
        node.name = {NAMES["join"]: "fc", NAMES["fc"]: "fc:1"}.get(node.name, node.name)
    result = quantize_onnx(network, calibration=[{"x": normal(1, 3, 6, 6)}], save_path=tmp_path / "net")
    assert "fc:1" in read_record(result.record)
    again = convert_model(network, tmp_path / "net_record.txt", wide_fusion=True)
    assert set(again.plan.layers) == set(result.plan.layers)


def test_names_do_not_steer_the_terminal(tmp_path, capsys):
    text = "g (float[2, 4] x) => (float[2, 3] y) { y = MatMul(x, w) }"
    given = model(text, {"w": np.ones((4, 3), np.float32)})
    given.graph.node[0].name = "red\x1b[31m\x07[bold]"
    onnx.save(given, tmp_path / "net.onnx")
    assert main(["plan", str(tmp_path / "net.onnx")]) == 0
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert r"red\x1b[31m\x07[bold]" in said
