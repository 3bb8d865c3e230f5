"""Reads ONNX models, and writes a call's results so that all of them appear, or none."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from amct_onnx.errors import ModelError, OutputError

LARGEST_MESSAGE = 2_000_000_000
"""Bytes above which a model's weights are written beside it: protobuf stops at 2 GB."""


def read_model(model: str | os.PathLike[str] | onnx.ModelProto) -> onnx.ModelProto:
    """The model, with its external data loaded.

    Raises:
        ModelError: there is no such file, or it is no ONNX model, or a truncated one, or its external data are missing.
    """
    if isinstance(model, onnx.ModelProto):
        loaded, name = model, "the model"
    else:
        name = str(model)
        loaded = _load(Path(model))
    if not loaded.HasField("graph") or not loaded.graph.output:
        raise ModelError(f"{name}: not an ONNX model, or an empty one: it has no graph with outputs")
    return loaded


def _load(path: Path) -> onnx.ModelProto:
    if not path.exists():
        raise ModelError(f"{path}: no such file")
    if not path.is_file():
        raise ModelError(f"{path}: not a file; give the path of an .onnx file")
    try:
        return onnx.load(str(path))
    except (DecodeError, UnicodeDecodeError, onnx.checker.ValidationError, OSError, ValueError) as error:
        what = "not an ONNX model, or a truncated one" if isinstance(error, DecodeError) else "cannot be read"
        raise ModelError(f"{path}: {what}: {error}") from error


@contextmanager
def staged(directory: Path, names: list[str]) -> Iterator[Path]:
    """A folder to write files into; at the end all files in it are moved to `directory`, replacing those of `names`.

    Where anything fails, nothing is left behind and nothing of `directory` is changed.

    Raises:
        OutputError: the directory cannot be made or written to, or one of `names` is a directory there.
    """
    made = _make(directory)
    stage: Path | None = None
    try:
        for name in names:
            if (directory / name).is_dir():
                raise OutputError(f"{directory / name}: is a directory; a file of this name shall be written")
        stage = Path(tempfile.mkdtemp(prefix=".amct_onnx-", dir=directory))
        yield stage
        for file in sorted(stage.iterdir()):
            os.replace(file, directory / file.name)
        made = []
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"{directory}: cannot be written to: {error.strerror or error}") from error
    finally:
        if stage is not None:
            shutil.rmtree(stage, ignore_errors=True)
        for folder in reversed(made):
            folder.rmdir()


def _make(directory: Path) -> list[Path]:
    """Make the directory and its parents; returns those that were not there, outermost first."""
    missing = [folder for folder in (directory, *directory.parents) if not folder.exists()][::-1]
    made: list[Path] = []
    try:
        for folder in missing:
            folder.mkdir()
            made.append(folder)
    except OSError as error:
        for folder in reversed(made):
            folder.rmdir()
        raise OutputError(f"{directory}: cannot be made: {error.strerror or error}") from error
    if not directory.is_dir():
        raise OutputError(f"{directory}: is not a directory")
    return made


def write_model(model: onnx.ModelProto, path: Path) -> None:
    """Write a model; where it is too large for one file, its weights go to `<name>.data` beside it."""
    if model.ByteSize() > LARGEST_MESSAGE:
        onnx.save_model(model, str(path), save_as_external_data=True, location=f"{path.name}.data")
    else:
        onnx.save_model(model, str(path))
