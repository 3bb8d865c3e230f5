"""Calibration data from every usual source, as an iterator of checked feeds.

A feed is one batch: {input name: array}. Sources:

* an iterable of feeds, of arrays (models with one input) or of tuples of arrays (in the order of the inputs);
* one feed; one array, which is one batch, or a stack of batches where it has one axis more than the input;
* an object with `get_next()`, as onnxruntime's CalibrationDataReader;
* a callable that returns any of these;
* a .npz file with one array per input, or with arrays named <input>_<batch>; a .npy file with one batch or a stack;
* a directory with one batch per file, in the order of their names: .npz, .npy, or raw binary (.bin, .raw, .dat).
  For models with several inputs the .npy and raw files of each input stand in a subdirectory of the input's name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol, Union, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, helper

from amct_onnx.errors import AmctError, DataError, nearest

Array = NDArray[Any]
Feed = dict[str, Array]


@runtime_checkable
class DataReader(Protocol):
    """What onnxruntime calls a CalibrationDataReader."""

    def get_next(self) -> Mapping[str, Array] | None:
        """The next feed, or None at the end."""
        ...


CalibrationSource = Union[
    str,
    "os.PathLike[str]",
    Array,
    Mapping[str, Array],
    DataReader,
    Iterable[Any],
    Callable[[], Any],
]

_RAW = (".bin", ".raw", ".dat")


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """An input of a model: name, element type, and dimensions, None where any size will do."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...] | None

    def describe(self) -> str:
        """For messages: "float32 [N, 3, 224, 224]"."""
        dims = "any shape" if self.shape is None else f"[{', '.join('N' if d is None else str(d) for d in self.shape)}]"
        return f"{self.dtype.name} {dims}"


def input_specs(model: ModelProto) -> list[InputSpec]:
    """The inputs that a caller must feed: those of the graph that no initializer gives a value."""
    given = {tensor.name for tensor in model.graph.initializer}
    specs = []
    for value in model.graph.input:
        if value.name in given:
            continue
        tensor = value.type.tensor_type
        if not value.type.HasField("tensor_type"):
            raise DataError(f"input {value.name!r} of the model is no tensor; only tensors can be fed")
        if tensor.elem_type == 0:
            raise DataError(f"input {value.name!r} of the model has no element type, so nothing can be fed to it")
        dims = tuple(d.dim_value if d.dim_value > 0 else None for d in tensor.shape.dim)
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        specs.append(InputSpec(name=value.name, dtype=dtype, shape=dims if tensor.HasField("shape") else None))
    return specs


class Feeds:
    """The batches of a source, checked against the inputs of a model; each iteration reads the source anew.

    Attributes:
        first: the first batch, read when this is made.
        total: number of batches, None where it is not known beforehand.
    """

    def __init__(self, source: CalibrationSource | None, specs: Sequence[InputSpec], batch_num: int | None) -> None:
        """Read the first batch of `source`; `batch_num` batches are used, all for None.

        Raises:
            DataError: there is none, or it does not fit.
        """
        if source is None:
            raise DataError("calibration data are needed: calibration=... takes arrays, feeds, a data reader or a path")
        self._source, self._specs, self._batch_num = source, specs, batch_num
        self._once = _is_read_once(source)
        self._begun: Iterator[Feed] | None = checked_feeds(source, specs, batch_num)
        self.first = copy_of(next(self._begun))
        self.total = len(source) if batch_num is None and isinstance(source, (list, tuple)) else batch_num

    def require_again(self, why: str) -> None:
        """Make sure that the source can be read several times.

        Raises:
            DataError: it cannot; `why` says what that is needed for.
        """
        require_again(self._source, why)

    def __iter__(self) -> Iterator[Feed]:
        """All batches.

        Raises:
            DataError: a batch does not fit, or the source can be read only once and was.
        """
        if self._begun is not None:
            begun, self._begun = self._begun, None
            return chain([self.first], begun)
        if self._once:
            raise DataError(
                "the calibration data can be read only once, but are needed again, to balance layers (DMQ) or since "
                "memory is short: give a list, a path, or a function that returns the batches, or set "
                "balance_batches=1, or raise memory_limit"
            )
        return checked_feeds(self._source, self._specs, self._batch_num)


def require_again(source: CalibrationSource | None, why: str) -> None:
    """Make sure that a source can be read several times.

    Raises:
        DataError: it cannot; `why` says what that is needed for.
    """
    if _is_read_once(source):
        raise DataError(
            f"the calibration data can be read only once, but are needed again, {why}: give a list, a path, or a "
            "function that returns the batches"
        )


def _is_read_once(source: object) -> bool:
    return isinstance(source, (Iterator, DataReader)) and not isinstance(source, type)


def copy_of(feed: Feed) -> Feed:
    """A batch that stays as it is: a source may reuse its arrays."""
    return {name: array.copy() for name, array in feed.items()}


def checked_feeds(source: CalibrationSource, specs: Sequence[InputSpec], batch_num: int | None) -> Iterator[Feed]:
    """The first `batch_num` batches of `source` (None: all), each checked against the inputs of the model.

    Raises:
        DataError: there are fewer batches, or none; a batch does not fit the model's inputs, is empty, or holds NaN
            or inf. Raised when the batch is reached.
    """
    count = 0
    for feed in _taken(source, specs, batch_num):
        yield _checked(feed, specs, f"batch {count}")
        count += 1
    if count == 0:
        raise DataError("the calibration data hold no batch")
    if batch_num is not None and count < batch_num:
        raise DataError(f"batch_num is {batch_num}, but the calibration data hold only {count} batches")


def _taken(source: CalibrationSource, specs: Sequence[InputSpec], batch_num: int | None) -> Iterator[Any]:
    """The first batches of the source; what goes wrong inside the user's own code is told as such."""
    count = 0
    try:
        for batch in islice(_batches(source, specs), batch_num):
            yield batch
            count += 1
    except AmctError:
        raise
    except Exception as error:
        raise DataError(
            f"batch {count}: the calibration data cannot be read: {type(error).__name__}: {error}"
        ) from error


def _batches(source: CalibrationSource, specs: Sequence[InputSpec]) -> Iterator[Any]:
    if isinstance(source, (str, os.PathLike)):
        if not os.fspath(source):
            raise DataError("the path of the calibration data is empty")
        return _from_path(Path(source), specs)
    if isinstance(source, DataReader) and not isinstance(source, type):
        return iter(source.get_next, None)
    if isinstance(source, Mapping):
        return iter([source])
    if isinstance(source, np.ndarray):
        return _unstacked(source, specs)
    if callable(source):
        return _batches(source(), specs)
    if isinstance(source, Iterable):
        return iter(source)
    raise DataError(
        f"calibration data of type {type(source).__name__} cannot be read; give an iterable of feeds or arrays, "
        "an object with get_next(), a callable, a .npz or .npy file, or a directory"
    )


def _unstacked(array: Array, specs: Sequence[InputSpec]) -> Iterator[Array]:
    """One batch, or each batch of a stack."""
    shape = specs[0].shape if len(specs) == 1 else None
    return iter(array) if shape is not None and array.ndim == len(shape) + 1 else iter([array])


def _from_path(path: Path, specs: Sequence[InputSpec]) -> Iterator[Any]:
    if not path.exists():
        raise DataError(f"no such file or directory: {path}")
    if path.is_dir():
        return _from_directory(path, specs)
    if path.suffix == ".npy":
        return _unstacked(_load_array(path), specs)
    if path.suffix == ".npz":
        return _from_npz(path, specs)
    raise DataError(f"{path}: calibration data in a file must be .npz or .npy; raw files stand in a directory")


def _from_npz(path: Path, specs: Sequence[InputSpec]) -> Iterator[Feed]:
    """One batch with an array per input, or the batches <input>_0, <input>_1, ..."""
    names = [spec.name for spec in specs]
    with _opened(path) as arrays:
        if all(name in arrays for name in names):
            yield {name: arrays[name] for name in names}
            return
        numbers = {int(key[len(name) + 1 :]) for name in names for key in arrays if _is_numbered(key, name)}
        if not numbers:
            raise DataError(
                f"{path}: holds {', '.join(sorted(arrays)) or 'no arrays'}; the model's inputs are {', '.join(names)} "
                "(name the arrays like the inputs, or <input>_<batch>)"
            )
        for batch in range(max(numbers) + 1):
            if batch not in numbers:
                raise DataError(f"{path}: lacks {names[0]}_{batch}, but holds arrays of batch {max(numbers)}")
            yield {name: arrays[f"{name}_{batch}"] for name in names if f"{name}_{batch}" in arrays}


def _is_numbered(key: str, name: str) -> bool:
    number = key.removeprefix(f"{name}_")
    return number != key and number.isdecimal() and str(int(number)) == number


def _from_directory(path: Path, specs: Sequence[InputSpec]) -> Iterator[Any]:
    folders = [path / spec.name for spec in specs]
    if len(specs) > 1 and all(folder.is_dir() for folder in folders):
        return raw_feeds(folders, specs)
    files = _data_files(path)
    if len(specs) > 1 and any(file.suffix != ".npz" for file in files):
        names = ", ".join(spec.name for spec in specs)
        raise DataError(f"{path}: the model has several inputs; give .npz files, or one subdirectory each for {names}")
    return (_from_file(file, specs) for file in files)


def raw_feeds(folders: Sequence[Path], specs: Sequence[InputSpec]) -> Iterator[Feed]:
    """One feed per file: the n-th file of each folder, in the order of their names, for the input of the same place."""
    files = [_data_files(folder) for folder in folders]
    counts = {len(found) for found in files}
    if len(counts) > 1:
        listed = ", ".join(f"{folder}: {len(found)}" for folder, found in zip(folders, files, strict=True))
        raise DataError(f"the inputs have different numbers of files ({listed})")
    for batch in zip(*files, strict=True):
        yield {spec.name: _array_of(file, spec) for spec, file in zip(specs, batch, strict=True)}


def _data_files(path: Path) -> list[Path]:
    if not path.is_dir():
        raise DataError(f"no such directory: {path}")
    files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    if not files:
        raise DataError(f"{path}: the directory holds no files")
    return files


def _from_file(file: Path, specs: Sequence[InputSpec]) -> Any:
    if file.suffix != ".npz":
        return {specs[0].name: _array_of(file, specs[0])}
    with _opened(file) as arrays:
        return {name: arrays[name] for name in arrays}


def _array_of(file: Path, spec: InputSpec) -> Array:
    if file.suffix == ".npy":
        return _load_array(file)
    if file.suffix == ".npz":
        raise DataError(f"{file}: one array is needed for input {spec.name!r}; give .npy or raw files here")
    return _raw_array(file, spec)


def _raw_array(file: Path, spec: InputSpec) -> Array:
    """A raw binary file as one batch; one dimension of the input may follow from the file's size."""
    if spec.shape is None or sum(d is None for d in spec.shape) > 1:
        raise DataError(f"{file}: raw data need the shape of input {spec.name!r}; the model says {spec.describe()}")
    size = file.stat().st_size
    row = int(np.prod([d for d in spec.shape if d is not None], dtype=np.int64)) * spec.dtype.itemsize
    if size == 0 or size % row or (None not in spec.shape and size != row):
        wanted = f"{row} bytes" if None not in spec.shape else f"a multiple of {row} bytes"
        raise DataError(f"{file}: {size} bytes, but {spec.describe()} of input {spec.name!r} takes {wanted}")
    return np.fromfile(file, spec.dtype).reshape([-1 if d is None else d for d in spec.shape])


def _load_array(file: Path) -> Array:
    try:
        with file.open("rb") as stream:
            loaded = np.load(stream, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return loaded
    except Exception as error:
        raise DataError(f"{file}: not a readable .npy file: {error}") from error
    raise DataError(f"{file}: is an archive of arrays; name it .npz")


@contextmanager
def _opened(file: Path) -> Iterator[Mapping[str, Array]]:
    """The arrays of a .npz file, each read when it is asked for."""
    try:
        with file.open("rb") as stream:
            loaded = np.load(stream, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                raise DataError(f"{file}: is a single array; name it .npy")
            yield loaded
    except (DataError, GeneratorExit):
        raise
    except Exception as error:
        raise DataError(f"{file}: not a readable .npz file: {error}") from error


def _checked(batch: Any, specs: Sequence[InputSpec], where: str) -> Feed:
    feed = _as_feed(batch, specs, where)
    names = [spec.name for spec in specs]
    for name in feed:
        if name not in names:
            raise DataError(
                f"{where}: the model has no input {name!r}{nearest(name, names) or ';'} its inputs: {', '.join(names)}"
            )
    for spec in specs:
        if spec.name not in feed:
            raise DataError(f"{where}: no array for input {spec.name!r} ({spec.describe()})")
        _check_array(feed[spec.name], spec, f"{where}, input {spec.name!r}")
    return feed


def _as_feed(batch: Any, specs: Sequence[InputSpec], where: str) -> Feed:
    if isinstance(batch, Mapping):
        return {str(name): _array(value, f"{where}, input {name!r}") for name, value in batch.items()}
    if isinstance(batch, (tuple, list)) and all(hasattr(item, "shape") for item in batch):
        if len(batch) != len(specs):
            raise DataError(f"{where}: {len(batch)} arrays for the model's {len(specs)} inputs")
        pairs = zip(specs, batch, strict=True)
        return {spec.name: _array(value, f"{where}, input {spec.name!r}") for spec, value in pairs}
    if not hasattr(batch, "shape"):
        raise DataError(f"{where}: a {type(batch).__name__} is no batch; give a dict, an array, or a tuple of arrays")
    if len(specs) != 1:
        names = ", ".join(spec.name for spec in specs)
        raise DataError(f"{where}: one array for a model with the inputs {names}; give a dict or a tuple of arrays")
    return {specs[0].name: _array(batch, f"{where}, input {specs[0].name!r}")}


def _array(value: Any, where: str) -> Array:
    try:
        array = np.asarray(value)
    except Exception as error:
        raise DataError(f"{where}: cannot be made an array: {error}") from error
    return array.astype(array.dtype.newbyteorder("=")) if not array.dtype.isnative else array


def _check_array(array: Array, spec: InputSpec, where: str) -> None:
    if array.dtype != spec.dtype:
        raise DataError(
            f"{where}: {array.dtype.name}, but the model takes {spec.dtype.name}; convert it with "
            f".astype(numpy.{spec.dtype.name})"
        )
    if spec.shape is not None and (
        array.ndim != len(spec.shape)
        or any(want is not None and want != have for want, have in zip(spec.shape, array.shape, strict=True))
    ):
        raise DataError(f"{where}: shape {list(array.shape)}, but the model takes {spec.describe()}")
    if array.size == 0:
        raise DataError(f"{where}: the array is empty, shape {list(array.shape)}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        kind = "NaN" if np.isnan(array).any() else "inf"
        raise DataError(f"{where}: holds {kind}; calibration data must be finite")


_FREE_SIZES = (1, 224, 64, 32, 16, 8, 2)
"""Sizes to try for the free axes behind the first one, which is taken to count the samples."""


def random_feeds(specs: Sequence[InputSpec]) -> Iterator[Feed]:
    """Feeds of random numbers that fit the inputs, always the same; each has other sizes where axes are free.

    Floats are normal numbers, integers 0 and 1, which are tokens, masks and indices of most models.

    Raises:
        DataError: an input does not say how many dimensions it has, takes neither numbers nor booleans, or is larger
            than memory.
    """
    for spec in specs:
        if spec.shape is None or spec.dtype.kind not in "fiub":
            raise DataError(f"no random data can be made for input {spec.name!r} ({spec.describe()}); give data")
    is_free = any(None in (spec.shape or ())[1:] for spec in specs)
    for size in _FREE_SIZES if is_free else (1,):
        rng = np.random.default_rng(0)
        yield {spec.name: _random(spec, size, rng) for spec in specs}


def _random(spec: InputSpec, size: int, rng: np.random.Generator) -> Array:
    free = (1, *[size] * len(spec.shape or ()))
    shape = [free[axis] if dim is None else dim for axis, dim in enumerate(spec.shape or ())]
    try:
        drawn = rng.normal(size=shape) if spec.dtype.kind == "f" else rng.integers(0, 2, shape)
        return np.asarray(drawn, spec.dtype)
    except (MemoryError, ValueError) as error:  # the latter where the size does not fit into 64 bits
        raise DataError(f"input {spec.name!r} ({spec.describe()}) is too large for random data; give data") from error
