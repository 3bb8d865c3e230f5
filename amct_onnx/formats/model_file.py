"""Reads ONNX models, and writes a call's results so that all of them appear, or none."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from amct_onnx.errors import AmctError, ModelError, OutputError
from amct_onnx.formats.caffe.importer import read_caffe
from amct_onnx.formats.work_folder import OLD, work_folder
from amct_onnx.passes.protos import all_graphs, names_in_bodies
from amct_onnx.passes.weights import (
    LARGEST_MESSAGE,
    LightModel,
    StoredArray,
    append,
    detached,
    dtype_of,
    is_large,
    is_stub,
    stub,
)

CaffePair = tuple[str | os.PathLike[str], str | os.PathLike[str]]
"""A Caffe model: the paths of its .prototxt and of its .caffemodel."""

ModelSource = str | os.PathLike[str] | onnx.ModelProto | CaffePair
"""What users give as a model: the path of an .onnx file, a model in memory, or a Caffe model."""


def read_model(model: ModelSource | LightModel) -> LightModel:
    """The model; large external data stay in their files.

    Raises:
        ModelError: there is no such file, or it is no ONNX model, or a truncated one; or its external data are missing,
            too short, or outside of its directory; or an initializer has a negative size; or what `read_caffe` raises.
    """
    if isinstance(model, LightModel):
        return model
    proto = read_without_data(model)
    for tensor in proto.graph.initializer:
        if min(tensor.dims, default=0) < 0:
            name = str(model) if isinstance(model, (str, os.PathLike)) else "the model"
            raise ModelError(f"{name}: initializer {tensor.name!r} has the impossible shape {list(tensor.dims)}")
    if isinstance(model, (onnx.ModelProto, tuple)):
        return detached(proto)
    path = Path(model)
    try:
        stored = {tensor.name: array for tensor, array in _external(proto, path)}
        light = detached(proto)
    except AmctError:
        raise
    except Exception as error:
        raise ModelError(f"{path}: its weights cannot be read: {error}") from error
    return LightModel(proto=light.proto, weights={**light.weights, **stored})


def read_without_data(model: ModelSource) -> onnx.ModelProto:
    """The model alone: nothing is read of files that it names.

    Raises:
        ModelError: there is no such file, or it is no ONNX model, or a truncated one; or what `read_caffe` raises.
    """
    if isinstance(model, onnx.ModelProto):
        return _with_graph(model, "the model")
    if isinstance(model, tuple):
        if len(model) != 2:
            raise ModelError(f"a Caffe model is given as (prototxt, caffemodel), found {len(model)} entries")
        return read_caffe(*model)
    if not isinstance(model, (str, os.PathLike)):
        raise ModelError(
            f"the model is a {type(model).__name__}; give the path of an .onnx file, a ModelProto, or the paths of a "
            "Caffe model as (prototxt, caffemodel)"
        )
    if os.fspath(model).endswith((".prototxt", ".caffemodel")):
        raise ModelError(f"{model}: half a Caffe model; give both files: (prototxt, caffemodel), or --weights")
    return _with_graph(_parsed(Path(model)), str(model))


def _with_graph(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    if not model.HasField("graph") or not model.graph.output:
        raise ModelError(f"{name}: not an ONNX model, or an empty one: it has no graph with outputs")
    return model


def _parsed(path: Path) -> onnx.ModelProto:
    if not os.path.exists(path):  # unlike pathlib's, it takes a name that no system allows for a missing file
        raise ModelError(f"{path}: no such file")
    if not os.path.isfile(path):
        raise ModelError(f"{path}: not a file; give the path of an .onnx file")
    try:
        return onnx.load(str(path), format="protobuf", load_external_data=False)  # whatever its name ends in
    except Exception as error:
        what = "not an ONNX model, or a truncated one" if isinstance(error, DecodeError) else "cannot be read"
        raise ModelError(f"{path}: {what}: {error}") from error


def _external(model: onnx.ModelProto, path: Path) -> Iterator[tuple[TensorProto, StoredArray]]:
    """Turn the tensors whose data stand in other files into stubs, which are handed on, or read them."""
    kept = names_in_bodies(model.graph)
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL and is_large(tensor) and tensor.name not in kept:
            file, offset = _located(tensor, path)
            array = StoredArray(path=file, offset=offset, dtype=dtype_of(tensor), shape=tuple(tensor.dims))
            tensor.CopyFrom(stub(tensor.name, tensor.data_type, tensor.dims))
            yield tensor, array
    for tensor in _tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL and not is_stub(tensor):
            file, offset = _located(tensor, path)
            tensor.ClearField("data_location")
            del tensor.external_data[:]
            with file.open("rb") as stream:
                stream.seek(offset)
                tensor.raw_data = stream.read(_byte_count(tensor))


def _tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    for graph in all_graphs(model.graph):
        yield from graph.initializer
        for node in graph.node:
            for attribute in node.attribute:
                yield from (attribute.t, *attribute.tensors)


def _byte_count(tensor: TensorProto) -> int:
    """Size of its data in a file, where two values of four bits share a byte."""
    name = TensorProto.DataType.Name(tensor.data_type)
    values = math.prod(tensor.dims)
    return (values + 1) // 2 if name in ("INT4", "UINT4", "FLOAT4E2M1") else values * dtype_of(tensor).itemsize


def _located(tensor: TensorProto, model: Path) -> tuple[Path, int]:
    """The file and the offset of a tensor's data, which stand in the model's own directory or below it."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    where = f"{model}: the external data of {tensor.name!r}"
    location = entries.get("location", "")
    folder = Path(os.path.realpath(model.parent))
    file = Path(os.path.realpath(folder / location))
    if not location or os.path.isabs(location) or folder not in file.parents:
        raise ModelError(f"{where} are said to be at {location!r}, which is not inside the model's directory")
    if not file.is_file():
        raise ModelError(f"{where} are missing: there is no file {file}")
    if any(d < 0 for d in tensor.dims):
        raise ModelError(f"{where} have the impossible shape {list(tensor.dims)}")
    needed = _byte_count(tensor)
    try:
        offset, length = int(entries.get("offset") or 0), int(entries.get("length") or needed)
    except ValueError as error:
        raise ModelError(f"{where}: offset and length must be whole numbers") from error
    if offset < 0 or length != needed:
        raise ModelError(f"{where} are {length} bytes from {offset}, but shape {list(tensor.dims)} takes {needed}")
    if offset + needed > file.stat().st_size:
        raise ModelError(f"{where}: {file} ends before byte {offset + needed}")
    return file, offset


@contextmanager
def staged(directory: Path, names: list[str]) -> Iterator[Path]:
    """A folder to write files into; at the end all files in it are moved to `directory`, replacing those of `names`.

    They are moved in the order of `names`, others before them: whoever is killed meanwhile leaves whole files. Where
    anything fails, also one of the moves, nothing is left behind and `directory` is as it was.

    Raises:
        OutputError: the directory cannot be made or written to, or one of `names` is there and no file.
    """
    made: list[Path] = []
    try:
        require_place(directory, names)
        _make(directory, made)
        with work_folder(directory) as stage:
            files = stage / "new"
            files.mkdir()
            yield files
            _move(files, directory, stage, names)
        made = []
    except (OSError, ValueError) as error:
        if isinstance(error, AmctError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{directory}: cannot be written to: {reason}") from error
    finally:
        for folder in reversed(made):
            with suppress(OSError):  # somebody else has put something into it meanwhile
                folder.rmdir()


def require_place(directory: Path, names: Iterable[str]) -> None:
    """Make sure, as far as that can be seen, that files can be written there; nothing is made.

    Raises:
        OutputError: the directory is none or cannot be written to, or one of `names` is there and no file.
    """
    try:
        there = next((folder for folder in (directory, *directory.parents) if folder.exists()), directory)
        if not there.is_dir():
            raise OutputError(f"{there}: is not a directory")
        if not os.access(there, os.W_OK | os.X_OK):
            raise OutputError(f"{there}: cannot be written to: no permission, or read-only")
        for name in names:
            if (directory / name).is_dir():
                raise OutputError(f"{directory / name}: is a directory; a file of this name shall be written")
            if (directory / name).exists() and not (directory / name).is_file():
                raise OutputError(f"{directory / name}: is a device or a pipe, which a file cannot take the place of")
    except OSError as error:  # a folder that cannot be looked into, a name that is too long
        if isinstance(error, AmctError):
            raise
        raise OutputError(f"{directory}: cannot be written to: {error.strerror or error}") from error


def write_files(contents: Mapping[Path, LightModel | str]) -> None:
    """Write several files, models or texts: all of them, or none where one cannot be written. Links are followed.

    They appear in this order.

    Raises:
        OutputError: one cannot be written.
    """
    try:
        contents = {Path(os.path.realpath(path)): content for path, content in contents.items()}
    except ValueError as error:
        raise OutputError(f"a name that no file can have: {error}") from error
    with ExitStack() as stack:
        stages: dict[Path, Path] = {}
        for folder in list({path.parent: None for path in contents})[::-1]:  # who is entered last moves first
            names = [path.name for path in contents if path.parent == folder]
            stages[folder] = stack.enter_context(staged(folder, names))
        for path, content in contents.items():
            staged_path = stages[path.parent] / path.name
            if isinstance(content, LightModel):
                write_model(content, staged_path)
            else:
                staged_path.write_text(content, encoding="utf-8")


def _make(directory: Path, made: list[Path]) -> None:
    """Make the directory and its parents, and note those that were not there, outermost first."""
    for folder in [folder for folder in (directory, *directory.parents) if not folder.exists()][::-1]:
        folder.mkdir()
        made.append(folder)


def _move(files: Path, directory: Path, stage: Path, names: list[str]) -> None:
    """Move every file into place; where one cannot be, take back those before it and put back what they replaced."""
    done: list[tuple[Path, Path | None]] = []
    try:
        rank = {name: number for number, name in enumerate(names)}
        for file in sorted(files.iterdir(), key=lambda file: (rank.get(file.name, -1), file.name)):
            target = directory / file.name
            kept = None
            if target.exists():
                kept = stage / f"{OLD}{file.name}"
                _keep(target, kept)
            done.append((target, kept))
            os.replace(file, target)
    except BaseException:
        for target, kept in reversed(done):
            if kept is not None:
                os.replace(kept, target)
            else:
                target.unlink(missing_ok=True)
        raise


def _keep(file: Path, name: Path) -> None:
    """Keep a file under another name too. Where the system has no second names it is away until it is replaced."""
    try:
        os.link(file, name)
    except OSError:
        os.replace(file, name)


def write_model(model: LightModel, path: Path) -> None:
    """Write a model; where it is too large for one file, its weights go to `<name>.data` beside it, one by one."""
    if model.nbytes <= LARGEST_MESSAGE:
        path.write_bytes(model.whole().SerializeToString())
        return
    data = path.with_name(f"{path.name}.data")
    with data.open("wb") as stream:
        stored = {name: append(stream, data, weight) for name, weight in model.weights.items()}
    path.write_bytes(replace(model, weights=stored).referring().SerializeToString())
