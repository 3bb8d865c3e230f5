"""What is asked of a deploy model before it is handed out: that ATC takes it, as far as the float model lets it."""

import logging

import numpy as np
import pytest
from graphs import model
from onnx import helper

from amct_onnx import PassError, quantize_onnx, results
from amct_onnx.passes.graph import nodes_of
from amct_onnx.passes.pipelines import DEPLOY
from amct_onnx.passes.state import Pass

TEXT = "g (float[1, 20, 4, 4] x) => (float y) { [conv] a = Conv(x, w) [g] b = Gelu(a) [r] y = Relu(b) }"
FEEDS = [np.random.default_rng(0).normal(size=(1, 20, 4, 4)).astype(np.float32)]


def network(op="Abs"):
    made = model(TEXT, {"w": np.random.default_rng(1).normal(size=(20, 20, 3, 3)).astype(np.float32)})
    made.graph.node[1].op_type = op
    return made


def break_scales(state):
    for node in nodes_of(state.graph, "AscendQuant"):
        node.attrs["scale"] = 0.0


def test_a_rule_that_the_engine_breaks_is_a_fault_of_its_own_and_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "DEPLOY", (*DEPLOY, Pass(name="break", run=break_scales)))
    message = r"breaks the rules of docs/verify\.md 1 times: conv\.quant: scale 0; rule 5: "
    with pytest.raises(PassError, match=message):
        quantize_onnx(network(), calibration=FEEDS, save_path=tmp_path / "net")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(PassError, match=message):
        quantize_onnx(network(), calibration=FEEDS)


def test_what_atc_would_not_take_of_the_float_model_either_is_said(caplog):
    source = network("Gelu")
    source.graph.node[1].domain = "com.microsoft"
    source.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    with caplog.at_level(logging.WARNING, logger="amct_onnx"):
        result = quantize_onnx(source, calibration=FEEDS)
    assert [node.op_type for node in result.deploy_model.graph.node][1] == "Conv"
    assert [record.message.split(":")[0] for record in caplog.records] == ["ATC would not take the model as it is"] * 2
    assert "com.microsoft.Gelu; rule 3" in caplog.text


def test_warnings_are_told_to_who_wants_every_step(caplog):
    source = network()
    thin = model(TEXT.replace("20", "3").replace("Gelu", "Abs"), {"w": np.ones((3, 3, 3, 3), np.float32)})
    with caplog.at_level(logging.INFO, logger="amct_onnx"):
        quantize_onnx(thin, calibration=[FEEDS[0][:, :3]])
    assert "rule 29" not in caplog.text
    with caplog.at_level(logging.DEBUG, logger="amct_onnx"):
        quantize_onnx(thin, calibration=[FEEDS[0][:, :3]])
        quantize_onnx(source, calibration=FEEDS)
    assert caplog.text.count("rule 29") == 1


def test_kernel_shapes_and_operator_sets_are_written_as_atc_wants_them():
    source = network()
    source.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    made = quantize_onnx(source, calibration=FEEDS).deploy_model
    assert [entry.domain for entry in made.opset_import] == [""]
    (conv,) = (node for node in made.graph.node if node.op_type == "Conv")
    assert {attribute.name: list(attribute.ints) for attribute in conv.attribute} == {"kernel_shape": [3, 3]}
