"""A run that is killed leaves no half of a file, and can be repeated."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import model

TEXT = """g (float[2, 8] x) => (float[2, 4] y) {
    [fc] a = MatMul (x, w)
    [relu] r = Relu (a)
    [out] y = MatMul (r, v)
}"""


@pytest.mark.parametrize("trials", [8, pytest.param(50, marks=pytest.mark.network)])
def test_killed_at_any_moment_no_file_is_half_written_and_the_run_can_be_repeated(tmp_path, trials):
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(8, 6)), "v": rng.normal(size=(6, 4))}
    onnx.save(model(TEXT, {name: w.astype(np.float32) for name, w in weights.items()}), tmp_path / "net.onnx")
    script = Path(__file__).with_name("killed_flow.py")
    command = [sys.executable, str(script), str(tmp_path / "flow"), str(tmp_path / "net.onnx"), str(trials)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert int(done.stdout) >= trials // 3
