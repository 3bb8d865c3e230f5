"""ONNX models from Caffe's, for whoever wants the float model itself."""

from __future__ import annotations

import os
from pathlib import Path

import onnx

from amct_onnx.errors import OutputError
from amct_onnx.formats.caffe.importer import read_caffe
from amct_onnx.formats.model_file import staged, write_model
from amct_onnx.passes.weights import detached


def import_caffe(
    prototxt: str | os.PathLike[str],
    caffemodel: str | os.PathLike[str],
    save_path: str | os.PathLike[str] | None = None,
) -> onnx.ModelProto:
    """Turn a Caffe model, as it is at test phase, into an ONNX model of the same names and numbers.

    The functions of this package take `(prototxt, caffemodel)` as a model too, and do this by themselves.

    Args:
        prototxt: the description of the network, as it is deployed: with the shapes of its inputs.
        caffemodel: its weights, in binary form.
        save_path: the .onnx file to write, replacing one that is there; None writes nothing.

    Returns:
        The model, of opset 13: docs/caffe.md says what its nodes and tensors are called.

    Raises:
        ModelError: a file cannot be read, or a layer is not supported or does not fit its input or its weights; the
            message names the layer.
        OutputError: the file cannot be written, or is one of those that are read.
    """
    model = read_caffe(prototxt, caffemodel)
    if save_path is not None:
        target = _target(save_path, {os.path.realpath(prototxt), os.path.realpath(caffemodel)})
        with staged(target.parent, [target.name]) as folder:
            write_model(detached(model), folder / target.name)
    return model


def _target(save_path: str | os.PathLike[str], read: set[str]) -> Path:
    """The file to write: where there is a link, what it leads to."""
    if not isinstance(save_path, (str, os.PathLike)) or not os.path.basename(save_path):
        raise OutputError(f"save_path is {save_path!r}; give the path of an .onnx file")
    try:
        path = os.path.realpath(save_path)
    except ValueError as error:
        raise OutputError(f"save_path {save_path!r} is a name that no file can have: {error}") from error
    if path in read:
        raise OutputError(f"{save_path}: is read; choose another save_path")
    return Path(path)
