"""Quantize the digits network and compare its accuracy before and after: `python models/digits/quantize.py`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort

from amct_onnx import quantize_onnx

HERE = Path(__file__).resolve().parent
SAVE_PATH = Path("out/digits")


def accuracy(model: str | Path) -> float:
    """The share of the test images that the model gives their label."""
    test = np.load(HERE / "test.npz")
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"image": test["image"]})
    return float((logits.argmax(axis=1) == test["label"]).mean())


def main() -> None:
    SAVE_PATH.parent.mkdir(parents=True, exist_ok=True)
    result = quantize_onnx(HERE / "digits.onnx", calibration=HERE / "calibration.npz", save_path=SAVE_PATH)
    print(f"float accuracy      {accuracy(HERE / 'digits.onnx'):.2%}")
    print(f"quantized accuracy  {accuracy(result.fake_quant_model):.2%}  {result.fake_quant_model}")
    print(f"model for the chip           {result.deploy_model}")
    print(f"all files in {SAVE_PATH.parent}/:", *sorted(path.name for path in SAVE_PATH.parent.iterdir()))


if __name__ == "__main__":
    main()
