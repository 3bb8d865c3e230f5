"""Checks of what AMCT's functions are called with, and the one place where they read a model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from amct_onnx.errors import ArgumentError, ConfigError, ModelError, OutputError
from amct_onnx.formats.model_file import read_model
from amct_onnx.passes.weights import LightModel
from amct_onnx.stepwise.observing_nodes import DOMAIN, HALF_DOMAIN


def require_type(name: str, value: object, allowed: type | tuple[type, ...], what: str) -> None:
    """`value` must be of a type.

    Raises:
        ArgumentError: it is not.
    """
    if not isinstance(value, allowed):
        raise ArgumentError(f"{name} must be {what}, found {type(value).__name__} {value!r:.60}")


def path_of(name: str, value: object) -> Path:
    """The path of a file that an argument gives.

    Raises:
        ArgumentError: it is no path.
        ConfigError: it is empty, or that of a directory.
    """
    require_type(name, value, (str, os.PathLike), "the path of a file")
    text = os.fspath(value)  # type: ignore[call-overload]
    if not isinstance(text, str):
        raise ArgumentError(f"{name} must be a path in text, found bytes {text!r:.60}")
    if not text or text.endswith(("/", os.sep)) or "\0" in text:
        raise ConfigError(f"{name} must be the path of a file, found {text!r}")
    return Path(text)


def require_apart(written: Mapping[str, Path], read: Mapping[str, Path]) -> None:
    """No file may be written that is read, nor may two files be written in one place.

    Raises:
        OutputError: it would be.
    """
    taken = {os.path.realpath(path): name for name, path in read.items()}
    for name, path in written.items():
        place = os.path.realpath(path)
        if place in taken:
            raise OutputError(f"{path}: is given as {taken[place]} and as {name}; choose another {name}")
        taken[place] = name


def read_source(model_file: object, weights_file: object = None) -> LightModel:
    """The float model: an .onnx file, or Caffe's two.

    Raises:
        ArgumentError: one of the two is no path.
        ModelError: a file is not there, or no model, or the one that `quantize_model` wrote.
    """
    path = path_of("model_file", model_file)
    model = read_model(path if weights_file is None else (path, path_of("weights_file", weights_file)))
    if any(node.domain in (DOMAIN, HALF_DOMAIN) for node in model.proto.graph.node):
        raise ModelError(f"{path}: is a model to calibrate with (quantize_model writes such); give the float model")
    return model
