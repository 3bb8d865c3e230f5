"""The QDQ form from end to end: what is written, that it computes the same, and the way back."""

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import model, run, sqnr
from odd_graphs import ODD_GRAPHS

import amct_onnx
from amct_onnx import ModelError, quantize_onnx
from amct_onnx.cli import main

DIGITS = Path(amct_onnx.__file__).parents[1] / "models" / "digits"
FILES = ("deploy_model.onnx", "fake_quant_model.onnx", "qdq_model.onnx", "record.txt", "config.json")


@pytest.fixture(scope="module", autouse=True)
def in_one_thread(one_thread):
    """Every test of this file."""


@pytest.fixture(scope="module")
def digits():
    return quantize_onnx(DIGITS / "digits.onnx", calibration=DIGITS / "calibration.npz", qdq=True)


def same_numbers(fake_quant, qdq, feed):
    """Whether both compute the same to 50 dB, with and without optimizations: what rounding of ties leaves."""
    wanted = run(fake_quant, feed, optimize=False)
    for optimize in (False, True):
        for name, values in run(qdq, feed, optimize=optimize).items():
            assert (values.dtype, values.shape) == (wanted[name].dtype, wanted[name].shape)
            if values.dtype.kind == "f":
                assert sqnr(wanted[name], values) > 50, (name, optimize)


# The QDQ model of quantize_onnx


def test_it_is_made_only_where_asked_for(digits, tmp_path):
    assert isinstance(digits.qdq_model, onnx.ModelProto)
    plain = quantize_onnx(DIGITS / "digits.onnx", calibration=DIGITS / "calibration.npz", save_path=tmp_path / "net")
    assert plain.qdq_model is None
    assert sorted(os.listdir(tmp_path)) == sorted(f"net_{name}" for name in FILES if name != "qdq_model.onnx")
    assert plain.record.read_text() == digits.record
    assert plain.deploy_model.read_bytes() == digits.deploy_model.SerializeToString(deterministic=True)


def test_it_is_written_beside_the_others(digits, tmp_path, capfd):
    arguments = ["calibration", "-q", "--model", DIGITS / "digits.onnx", "--data", DIGITS / "calibration.npz"]
    assert main([str(a) for a in (*arguments, "--save_path", tmp_path / "out" / "net", "--format", "qdq")]) == 0
    assert sorted(os.listdir(tmp_path / "out")) == sorted(f"net_{name}" for name in FILES)
    assert onnx.load(tmp_path / "out" / "net_qdq_model.onnx") == digits.qdq_model
    assert capfd.readouterr().out.splitlines()[-5:] == [str(tmp_path / "out" / f"net_{name}") for name in FILES]


def test_digits_are_told_apart_as_by_the_fake_quant_model(digits):
    images = np.load(DIGITS / "test.npz")["image"][:200]
    wanted = run(digits.fake_quant_model, {"image": images}, optimize=False)["logits"]
    for optimize in (False, True):
        found = run(digits.qdq_model, {"image": images}, optimize=optimize)["logits"]
        assert (found.argmax(1) == wanted.argmax(1)).mean() > 0.99


@pytest.mark.parametrize("build", ODD_GRAPHS, ids=lambda build: build.__name__)
def test_an_odd_model_computes_what_its_fake_quant_model_does(build):
    case = build()
    result = quantize_onnx(case.model, calibration=case.feeds[:2], qdq=True)
    onnx.checker.check_model(result.qdq_model, full_check=True)
    (opset,) = (entry.version for entry in result.qdq_model.opset_import if entry.domain in ("", "ai.onnx"))
    assert opset >= 13
    same_numbers(result.fake_quant_model, result.qdq_model, case.feeds[2])


def test_a_model_that_cannot_be_raised_is_refused_and_nothing_is_left(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("no adapter")

    source = model(
        "g (float[2, 4] x) => (float[2, 4] y) { [fc] y = MatMul(x, w) }", {"w": np.eye(4, dtype=np.float32)}, opset=11
    )
    monkeypatch.setattr("amct_onnx.passes.convert_opset.version_converter.convert_version", fail)
    data = np.ones((2, 4), np.float32)
    with pytest.raises(ModelError, match=r"the model has opset 11; .* need 13, .* converted: no adapter\. Export it"):
        quantize_onnx(source, calibration=data, save_path=tmp_path / "out" / "net", qdq=True)
    assert os.listdir(tmp_path) == []


def test_a_qdq_model_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    from amct_onnx.passes import insert_qdq

    right = insert_qdq.quantize_bias
    monkeypatch.setattr(insert_qdq, "quantize_bias", lambda bias, scale: right(bias * 3, scale))
    with pytest.raises(ModelError, match=r"output 'logits' of the QDQ model is .* dB from .*; please report the model"):
        quantize_onnx(
            DIGITS / "digits.onnx",
            calibration=DIGITS / "calibration.npz",
            save_path=tmp_path / "out" / "net",
            qdq=True,
        )
    assert os.listdir(tmp_path) == []
