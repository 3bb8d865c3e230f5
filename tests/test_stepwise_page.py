"""docs/stepwise.md: its examples run as they stand, one after the other."""

import re
import shutil
from pathlib import Path

import numpy as np

import amct_onnx
from amct_onnx import quantize_onnx

ROOT = Path(amct_onnx.__file__).parents[1]
DIGITS = ROOT / "models" / "digits"
PAGE = (ROOT / "docs" / "stepwise.md").read_text(encoding="utf-8")


def test_the_examples_run_and_give_what_one_call_gives(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(DIGITS / "digits.onnx", "net.onnx")
    Path("dmq.cfg").write_text("batch_num: 2 common_config { dmq_balancer { migration_strength: 0.5 } }")
    images = np.load(DIGITS / "calibration.npz")["image"]
    names = {"batches": [images[:8], images[8:16]]}
    plain, again, balanced = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    for block in (plain, again, balanced):
        if block is again:  # the same scales by the other way
            amct_onnx.quantize_model("out/config.json", "net.onnx", "out/modified.onnx", "out/record.txt")
        exec(block, names)
        feeds = [{"image": batch} for batch in names["batches"]]
        assert (
            Path("out/record.txt").read_text() == quantize_onnx("net.onnx", "out/config.json", calibration=feeds).record
        )
    assert Path("out/net_deploy_model.onnx").is_file()
