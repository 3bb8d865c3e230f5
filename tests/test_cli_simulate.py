"""amct_onnx simulate, and the documentation of the profiles."""

import os
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from test_cli import DIGITS, status

import amct_onnx
from amct_onnx import SimulatedSession, quantize_onnx
from amct_onnx.deploy.profiles import PROFILES

ROOT = Path(amct_onnx.__file__).parents[1]
DOCUMENTATION = (ROOT / "docs" / "simulate.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    images = np.load(DIGITS / "calibration.npz")["image"]
    np.savez(folder / "data.npz", image_0=images[:8], image_1=images[8:24])
    quantize_onnx(DIGITS / "digits.onnx", calibration=folder / "data.npz", save_path=folder / "net")
    return folder


def deploy(made):
    return made / "net_deploy_model.onnx"


@pytest.mark.parametrize("profile", PROFILES)
def test_outputs_are_saved_batch_by_batch(made, tmp_path, profile, capsys):
    target = tmp_path / "new" / "outputs.npz"
    arguments = ["--data", made / "data.npz", "--profile", profile, "--save", target]
    assert status("simulate", deploy(made), *arguments) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[0].startswith(f"{profile}, 2 batches")
    assert said.splitlines()[-1] == str(target)
    assert "[16, 10]" in said
    saved, session = np.load(target), SimulatedSession(deploy(made), profile)
    data = np.load(made / "data.npz")
    assert saved.files == ["logits_0", "logits_1"]
    for batch in range(2):
        (expected,) = session.run(None, {"image": data[f"image_{batch}"]})
        np.testing.assert_array_equal(saved[f"logits_{batch}"], expected)
    assert os.listdir(target.parent) == ["outputs.npz"]


@pytest.mark.parametrize("name", ["digits.onnx", "net_fake_quant_model.onnx"])
def test_outputs_are_compared_with_a_reference(made, name, capsys):
    path = DIGITS / name if name == "digits.onnx" else made / name
    assert status("simulate", deploy(made), "--data", made / "data.npz", "--reference", path, "--batch_num", 1) == 0
    said = capsys.readouterr().out
    assert said.startswith("ideal, 1 batches")
    (row,) = re.findall(r"logits │ +(\S+) │ (\S+) │", said)
    assert float(row[0]) > (30 if name == "digits.onnx" else 60)
    assert float(row[1]) > 0.999


WRONG = {
    "profile": (["--profile", "v300"], "profile must be one of ideal, fixpipe, v200, v100, found 'v300'"),
    "ending": (["--save", "outputs.bin"], "outputs.bin: outputs are written to an .npz file"),
    "reference": (["--reference", "none.onnx"], "none.onnx: no such file"),
    "batches": (["--batch_num", "3"], "batch_num is 3, but the calibration data hold only 2 batches"),
    "data": (["--data", "none.npz"], "no such file or directory: none.npz"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_usage_is_one_line_and_leaves_no_file(made, tmp_path, name, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, message = WRONG[name]
    given = ["--data", str(made / "data.npz"), "--save", "saved.npz", *arguments]
    assert status("simulate", deploy(made), *given) == 1
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_a_float_model_and_a_reference_of_another_network(made, tmp_path, capsys):
    assert status("simulate", DIGITS / "digits.onnx", "--data", made / "data.npz") == 1
    assert "digits.onnx: not a deploy model: it has no AscendDequant" in capsys.readouterr().err


def test_the_table_of_profiles_is_that_of_the_program():
    rows = re.findall(r"(?m)^\| (\w+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", DOCUMENTATION)[1:]
    assert rows == [(p.name, p.summary, p.known, p.unknown) for p in PROFILES.values()]


def test_the_examples_run(made, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "net.onnx").write_bytes((DIGITS / "digits.onnx").read_bytes())
    (tmp_path / "out" / "net_deploy_model.onnx").write_bytes(deploy(made).read_bytes())
    images = np.load(made / "data.npz")["image_0"]
    np.savez(tmp_path / "data" / "first.npz", image=images)
    monkeypatch.chdir(tmp_path)
    for line in re.findall(r"(?m)^amct_onnx (simulate .*)$", DOCUMENTATION):
        assert status(*shlex.split(line)) == 0
    names = {"images": images}
    exec(re.findall(r"(?s)```python\n(.*?)```", DOCUMENTATION)[0], names)
    np.testing.assert_array_equal(names["logits"], np.load("outputs.npz")["logits_0"])
