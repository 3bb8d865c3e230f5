"""Reads ONNX models, and writes a call's results so that all of them appear, or none."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from amct_onnx.errors import AmctError, ModelError, OutputError
from amct_onnx.passes.graph import LARGEST_MESSAGE, weight_bytes


def read_model(model: str | os.PathLike[str] | onnx.ModelProto) -> onnx.ModelProto:
    """The model, with its external data loaded.

    Raises:
        ModelError: there is no such file, or it is no ONNX model, or a truncated one, or its external data are missing.
    """
    if isinstance(model, onnx.ModelProto):
        loaded, name = model, "the model"
    elif not isinstance(model, (str, os.PathLike)):
        raise ModelError(f"the model is a {type(model).__name__}; give the path of an .onnx file, or a ModelProto")
    else:
        name = str(model)
        loaded = _load(Path(model), load_external_data=True)
    return _with_graph(loaded, name)


def read_without_data(model: str | os.PathLike[str] | onnx.ModelProto) -> onnx.ModelProto:
    """The model alone: nothing is read of files that it names.

    Raises:
        ModelError: there is no such file, or it is no ONNX model, or a truncated one.
    """
    if isinstance(model, onnx.ModelProto):
        return _with_graph(model, "the model")
    if not isinstance(model, (str, os.PathLike)):
        raise ModelError(f"the model is a {type(model).__name__}; give the path of an .onnx file, or a ModelProto")
    return _with_graph(_load(Path(model), load_external_data=False), str(model))


def _with_graph(loaded: onnx.ModelProto, name: str) -> onnx.ModelProto:
    if not loaded.HasField("graph") or not loaded.graph.output:
        raise ModelError(f"{name}: not an ONNX model, or an empty one: it has no graph with outputs")
    return loaded


def _load(path: Path, *, load_external_data: bool) -> onnx.ModelProto:
    if not os.path.exists(path):
        raise ModelError(f"{path}: no such file")
    if not os.path.isfile(path):
        raise ModelError(f"{path}: not a file; give the path of an .onnx file")
    try:
        # protobuf whatever its name ends in
        return onnx.load(str(path), format="protobuf", load_external_data=load_external_data)
    except Exception as error:
        what = "not an ONNX model, or a truncated one" if isinstance(error, DecodeError) else "cannot be read"
        raise ModelError(f"{path}: {what}: {error}") from error


@contextmanager
def staged(directory: Path, names: list[str]) -> Iterator[Path]:
    """A folder to write files into; at the end all files in it are moved to `directory`, replacing those of `names`.

    Where anything fails, also one of the moves, nothing is left behind and `directory` is as it was.

    Raises:
        OutputError: the directory cannot be made or written to, or one of `names` is a directory there.
    """
    made: list[Path] = []
    stage: Path | None = None
    try:
        _make(directory, made)
        for name in names:
            if (directory / name).is_dir():
                raise OutputError(f"{directory / name}: is a directory; a file of this name shall be written")
        stage = Path(tempfile.mkdtemp(prefix=".amct_onnx-", dir=directory))
        files = stage / "new"
        files.mkdir()
        yield files
        _move(files, directory, stage)
        made = []
    except (OSError, ValueError) as error:
        if isinstance(error, AmctError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{directory}: cannot be written to: {reason}") from error
    finally:
        if stage is not None:
            shutil.rmtree(stage, ignore_errors=True)
        for folder in reversed(made):
            with suppress(OSError):  # somebody else has put something into it meanwhile
                folder.rmdir()


def _make(directory: Path, made: list[Path]) -> None:
    """Make the directory and its parents, and note those that were not there, outermost first."""
    for folder in [folder for folder in (directory, *directory.parents) if not folder.exists()][::-1]:
        folder.mkdir()
        made.append(folder)
    if not directory.is_dir():
        raise OutputError(f"{directory}: is not a directory")


def _move(files: Path, directory: Path, stage: Path) -> None:
    """Move every file into place; where one cannot be, take back those before it and put back what they replaced."""
    done: list[tuple[Path, Path | None]] = []
    try:
        for file in sorted(files.iterdir()):
            target = directory / file.name
            kept = None
            if target.exists():
                kept = stage / f"old {file.name}"
                os.replace(target, kept)
            done.append((target, kept))
            os.replace(file, target)
    except BaseException:
        for target, kept in reversed(done):
            if kept is not None:
                os.rename(kept, target)
            else:
                target.unlink(missing_ok=True)
        raise


def write_model(model: onnx.ModelProto, path: Path) -> None:
    """Write a model; where it is too large for one file, its weights go to `<name>.data` beside it."""
    if weight_bytes(model) > LARGEST_MESSAGE:
        onnx.save_model(model, str(path), save_as_external_data=True, location=f"{path.name}.data")
        path.with_name(f"{path.name}.data").chmod(path.stat().st_mode)  # onnx would let nobody else read it
    else:
        onnx.save_model(model, str(path))
