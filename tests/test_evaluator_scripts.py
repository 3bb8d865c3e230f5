"""Evaluators in scripts, as `amct_onnx calibration --evaluator` takes them."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from amct_onnx.auto_calibration.protocol import AutoCalibrationEvaluatorBase
from amct_onnx.auto_calibration.script import judges, load_evaluator
from amct_onnx.cli import main
from amct_onnx.common.cmd_line_utils.data_handler import load_data
from amct_onnx.errors import DataError, EvaluatorError
from amct_onnx.quantize import quantize_onnx

DIGITS = Path(__file__).parents[1] / "models" / "digits"

# As AMCT's sample has it, but for names and shapes.
AMCT_SAMPLE = """
import amct_onnx.common.cmd_line_utils.data_handler as data_handler
import onnxruntime as ort
import amct_onnx as amct
class Evaluator():
    def calibration(self, modified_model):
        ort_session = ort.InferenceSession(modified_model, amct.AMCT_SO)
        for data_map in data_handler.load_data({'image': [32, 1, 8, 8]}, [r'FOLDER'], ['float32'], 2):
            _ = ort_session.run(None, data_map)

customize_evaluator = Evaluator()
"""

JUDGE = """
import numpy as np, onnxruntime, amct_onnx as amct
from amct_onnx.common.auto_calibration import AutoCalibrationEvaluatorBase
from beside import TARGET
class MyEvaluator(AutoCalibrationEvaluatorBase):
    def calibration(self, model_file):
        with amct.calibration_session(model_file) as session:
            session.run(None, {"image": np.load(r"DIGITS/calibration.npz")["image"]})
    def evaluate(self, model_file):
        session = onnxruntime.InferenceSession(model_file, providers=["CPUExecutionProvider"])
        return session.run(None, {"image": np.load(r"DIGITS/test.npz")["image"][:50]})[0]
    def metric_eval(self, original_metric, new_metric):
        loss = float(np.square(original_metric - new_metric).sum() / np.square(original_metric).sum())
        return loss < TARGET, loss
"""


@pytest.fixture
def script(tmp_path):
    def write(text, name="evaluator.py"):
        path = tmp_path / name
        path.write_text(text.replace("DIGITS", str(DIGITS)).replace("FOLDER", str(tmp_path / "bin")))
        return path

    return write


@pytest.fixture
def raw(tmp_path):
    """The calibration data as two raw files."""
    (tmp_path / "bin").mkdir()
    batches = np.split(np.load(DIGITS / "calibration.npz")["image"], 2)
    for number, batch in enumerate(batches):
        batch.tofile(tmp_path / "bin" / f"{number}.bin")
    return [{"image": batch} for batch in batches]


def calibration(tmp_path, script, *options):
    arguments = ["--model", str(DIGITS / "digits.onnx"), "--save_path", str(tmp_path / "out" / "net")]
    return main(["calibration", *arguments, f"--evaluator={script}", *options])


def test_amcts_sample_brings_the_data(tmp_path, script, raw, capsys):
    pytest.importorskip("onnxruntime_extensions", reason="AMCT_SO needs the extra [stepwise]")
    assert calibration(tmp_path, script(AMCT_SAMPLE), "--batch_num", "2") == 0
    same = quantize_onnx(DIGITS / "digits.onnx", batch_num=2, calibration=raw, correct_biases=False)
    assert onnx.load(tmp_path / "out" / "net_deploy_model.onnx") == same.deploy_model
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "net_config.json",
        "net_deploy_model.onnx",
        "net_fake_quant_model.onnx",
        "net_quant.json",
        "net_record.txt",
    ]
    assert "net_record.txt" in capsys.readouterr().out


@pytest.mark.parametrize("strategy", [[], ["--strategy", "BinarySearch"]])
def test_an_evaluator_that_judges_decides(tmp_path, script, capsys, strategy):
    (tmp_path / "beside.py").write_text("TARGET = 2e-4")
    assert calibration(tmp_path, script(JUDGE), *strategy) == 0
    said = capsys.readouterr().out
    assert "float: " in said
    assert "yes" in said
    assert "no" in said
    assert "net_record.txt" in said
    assert (tmp_path / "out" / "net_record.txt").exists()
    assert (tmp_path / "out" / "net_quant.json").exists()


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        ("x = 1", [], ["evaluator.py", "one class that derives", "customize_evaluator", "found none"]),
        ("import sys\nsys.exit(3)", [], ["ends itself (exit status 3)", "__name__ == '__main__'"]),
        ("x = 1\nx.no", [], ["line 2", "the script fails", "AttributeError"]),
        ("def (", [], ["line 1", "SyntaxError"]),
        ("customize_evaluator = 3", [], ["must be an object with a method calibration", "found 3"]),
        ("class customize_evaluator:\n  def calibration(self, m): pass", [], ["found the class customize_evaluator"]),
        (AMCT_SAMPLE, ["--strategy", "Greedy"], ["--strategy", "has no evaluate and metric_eval"]),
        (AMCT_SAMPLE, ["--data", "x"], ["--evaluator excludes --data"]),
        (AMCT_SAMPLE, [], ["no such directory", "bin"]),
        (
            "from amct_onnx.common.auto_calibration import AutoCalibrationEvaluatorBase as B\n"
            "class A(B): pass\nclass C(B): pass",
            [],
            ["found 2: A, C"],
        ),
        (
            "from amct_onnx.common.auto_calibration import AutoCalibrationEvaluatorBase as B\n"
            "class A(B):\n  def __init__(self, data): pass",
            [],
            ["A is made without arguments", "'data'", "customize_evaluator"],
        ),
        (
            "from amct_onnx.common.auto_calibration import AutoCalibrationEvaluatorBase as B\n"
            "class A(B):\n  def __init__(self): raise OSError('no data')",
            [],
            ["A() failed: OSError: no data"],
        ),
    ],
)
def test_what_is_wrong_with_a_script_is_said(tmp_path, script, capsys, text, options, said):
    pytest.importorskip("onnxruntime_extensions", reason="AMCT_SO needs the extra [stepwise]")
    assert calibration(tmp_path, script(text), *options) == 1
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    assert all(part in errors for part in said), errors
    assert not list(tmp_path.glob("out/net*"))


def test_there_must_be_a_script(tmp_path, script, capsys):
    assert calibration(tmp_path, tmp_path / "missing.py") == 1
    assert "missing.py: no such file" in capsys.readouterr().err
    with pytest.raises(EvaluatorError, match=r"its name must end in \.py"):
        load_evaluator(script("x = 1", "evaluator.txt"))


@pytest.mark.parametrize(
    ("option", "said"),
    [("--batch_num=0", "--batch_num must be at least 1, found 0"), ("--weights=net.caffemodel", "convert-caffe")],
)
def test_options_that_make_no_sense_beside_a_script(tmp_path, script, capsys, option, said):
    assert calibration(tmp_path, script(AMCT_SAMPLE), option) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("text", [JUDGE, AMCT_SAMPLE])
def test_a_script_may_change_the_directory(tmp_path, script, raw, monkeypatch, text):
    if "AMCT_SO" in text:
        pytest.importorskip("onnxruntime_extensions", reason="AMCT_SO needs the extra [stepwise]")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "beside.py").write_text("TARGET = 1")
    shutil.copy(DIGITS / "digits.onnx", tmp_path / "digits.onnx")
    script(f"import os\nos.chdir('elsewhere')\n{text}")
    monkeypatch.chdir(tmp_path)
    arguments = ["--model", "digits.onnx", "--save_path", "out/net", "--evaluator", "evaluator.py"]
    assert main(["calibration", *arguments]) == 0
    assert not list((tmp_path / "elsewhere").iterdir())
    assert (tmp_path / "out" / "net_quant.json").exists()
    assert (tmp_path / "out" / "net_record.txt").exists()


def test_an_interruption_is_no_traceback(tmp_path, script, capsys):
    assert calibration(tmp_path, script("raise KeyboardInterrupt")) == 130
    assert capsys.readouterr().err.startswith("amct_onnx: interrupted")
    assert not list(tmp_path.glob("out/*"))


def test_a_strategy_needs_an_evaluator(tmp_path, capsys):
    arguments = ["--model", str(DIGITS / "digits.onnx"), "--save_path", str(tmp_path / "net"), "--strategy", "Greedy"]
    assert main(["calibration", *arguments, "--data", str(DIGITS / "calibration.npz")]) == 1
    assert "--strategy goes with --evaluator" in capsys.readouterr().err


def test_only_who_overrides_both_methods_judges():
    class Half(AutoCalibrationEvaluatorBase):
        def evaluate(self, model_file):
            return 1.0

    class Whole(Half):
        def metric_eval(self, original_metric, new_metric):
            return True, 0.0

    assert not judges(AutoCalibrationEvaluatorBase())
    assert not judges(Half())
    assert judges(Whole())


def test_raw_files_are_read_as_amct_reads_them(tmp_path, raw):
    batches = list(load_data({"image": [32, 1, 8, 8]}, [str(tmp_path / "bin")], ["float32"], 1))
    assert len(batches) == 1
    assert np.array_equal(batches[0]["image"], raw[0]["image"])
    with pytest.raises(DataError, match="files for 2 batches only"):
        list(load_data({"image": [32, 1, 8, 8]}, [str(tmp_path / "bin")], ["float32"], 3))
    with pytest.raises(DataError, match="1 inputs, 0 directories, 1 types"):
        list(load_data({"image": [32, 1, 8, 8]}, [], ["float32"], 3))
    with pytest.raises(DataError, match="'floaty' is no element type"):
        list(load_data({"image": [32, 1, 8, 8]}, [str(tmp_path / "bin")], ["floaty"], 1))
