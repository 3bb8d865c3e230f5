"""Caffe models for tests: written byte by byte as protobuf lays them out, not by the code that reads them."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from graphs import run

from amct_onnx.formats.caffe.importer import read_caffe

Arrays = Mapping[str, Sequence[np.ndarray]]


def varint(number: int) -> bytes:
    number &= 2**64 - 1
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def field(number: int, content: bytes | int) -> bytes:
    """One field: a number as a varint, anything else with its length in front."""
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def blob(array: np.ndarray, form: str = "new") -> bytes:
    """A BlobProto: new, old (four axes), unpacked (a tag for each value) or double."""
    values = np.asarray(array, np.float64 if form == "double" else np.float32)
    if form == "old":
        dims = (*[1] * (4 - values.ndim), *values.shape)
        shape = b"".join(field(number, size) for number, size in enumerate(dims, 1))
    else:
        shape = field(7, field(1, b"".join(map(varint, values.shape))))
    if form == "unpacked":
        return shape + b"".join(varint(5 << 3 | 5) + struct.pack("<f", value) for value in values.ravel())
    return shape + field(8 if form == "double" else 5, values.tobytes())


def caffemodel(weights: Arrays, *, form: str = "new", old_layers: bool = False) -> bytes:
    """A NetParameter with its layers as LayerParameter or V1LayerParameter, with what else stands there."""
    net = [field(1, b"net")]
    for name, arrays in weights.items():
        blobs = [blob(array, form) + field(6, b"\0" * 4) for array in arrays]
        if old_layers:
            layer = [field(2, b"data"), field(4, name.encode()), field(5, 4), *(field(6, b) for b in blobs)]
        else:
            layer = [field(1, name.encode()), field(2, b"Type"), field(3, b"data"), *(field(7, b) for b in blobs)]
        net.append(field(2 if old_layers else 100, b"".join(layer)))
    return b"".join(net)


def written(folder: Path, text: str, weights: Arrays, **options: object) -> tuple[Path, Path]:
    """The paths of a .prototxt and a .caffemodel with this content."""
    pair = folder / "net.prototxt", folder / "net.caffemodel"
    pair[0].write_text(text, encoding="utf-8")
    pair[1].write_bytes(caffemodel(weights or {"other": [np.zeros(1)]}, **options))
    return pair


def imported(text: str, weights: Arrays | None = None, **options: object) -> onnx.ModelProto:
    with tempfile.TemporaryDirectory() as folder:
        model = read_caffe(*written(Path(folder), text, weights or {}, **options))
    onnx.checker.check_model(model, full_check=True)
    return model


def net(inputs: Mapping[str, Sequence[int]], *layers: str) -> str:
    """A network of Input layers and others."""
    heads = [
        f'layer {{ name: "{name}" type: "Input" top: "{name}" input_param {{ shape {{ {dims(shape)} }} }} }}'
        for name, shape in inputs.items()
    ]
    return "\n".join([*heads, *layers])


def dims(shape: Sequence[int]) -> str:
    return " ".join(f"dim: {size}" for size in shape)


def layer(kind: str, params: str = "", bottoms: str = "x", tops: str = "y", name: str = "l") -> str:
    ends = "".join(f' bottom: "{b}"' for b in bottoms.split()) + "".join(f' top: "{t}"' for t in tops.split())
    return f'layer {{ name: "{name}" type: "{kind}"{ends} {params} }}'


def outputs(
    kind: str, params: str, inputs: Mapping[str, np.ndarray], weights: Sequence[np.ndarray] = (), tops: str = "y"
) -> dict[str, np.ndarray]:
    """What the import of a net of one layer, called l, makes of the inputs, in the shapes that it declares."""
    text = net({name: value.shape for name, value in inputs.items()}, layer(kind, params, " ".join(inputs), tops))
    model = imported(text, {"l": weights} if weights else None)
    read = {value.name for value in model.graph.input}
    found = run(model, {name: value for name, value in inputs.items() if name in read})
    for value in model.graph.output:
        declared = [d.dim_value for d in value.type.tensor_type.shape.dim]
        assert declared == list(found[value.name].shape)
    assert "l" in [node.name for node in model.graph.node]
    return found
