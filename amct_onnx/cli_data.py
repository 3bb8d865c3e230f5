"""The data that options of the command line name."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np

from amct_onnx.data import CalibrationSource, InputSpec, raw_feeds
from amct_onnx.errors import ConfigError, DataError

DTYPES = (
    *("float64", "float32", "float16", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    "bool",
)
"""Element types of raw files."""


def require_batch_num(options: argparse.Namespace) -> None:
    """Make sure that --batch_num is a number of batches.

    Raises:
        ConfigError: it is none.
    """
    if options.batch_num is not None and options.batch_num < 1:
        raise ConfigError(f"--batch_num must be at least 1, found {options.batch_num}")


def data_source(options: argparse.Namespace) -> tuple[CalibrationSource, int | None]:
    """The data that the options name, and how many batches to take: AMCT's form takes 1 unless told otherwise."""
    require_batch_num(options)
    three = {"--data_dir": options.data_dir, "--data_types": options.data_types, "--input_shape": options.input_shape}
    if options.data is not None:
        if given := [name for name, value in three.items() if value is not None]:
            raise ConfigError(f"--data excludes {', '.join(given)}")
        return options.data, options.batch_num
    if missing := [name for name, value in three.items() if value is None]:
        raise ConfigError(
            f"give --data, or all of --data_dir, --data_types and --input_shape (missing: {', '.join(missing)})"
        )
    return _raw_source(options), options.batch_num or 1


def _raw_source(options: argparse.Namespace) -> CalibrationSource:
    shapes = [_shape_of(part) for part in options.input_shape.split(";") if part]
    folders = [Path(part) for part in options.data_dir.split(";") if part]
    types = [part.strip() for part in options.data_types.split(";") if part]
    if not len(shapes) == len(folders) == len(types):
        raise ConfigError(
            f"--input_shape names {len(shapes)} inputs, --data_dir {len(folders)} directories, --data_types "
            f"{len(types)} types; give one of each per input"
        )
    for name in types:
        if name not in DTYPES:
            raise DataError(f"--data_types: {name!r} is not one of {', '.join(DTYPES)}")
    names = [name for name, _ in shapes]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"--input_shape names the input {twice[0]!r} twice")
    specs = [
        InputSpec(name=name, dtype=np.dtype(dtype), shape=shape)
        for (name, shape), dtype in zip(shapes, types, strict=True)
    ]
    return partial(raw_feeds, folders, specs)  # a function: these can be read again


def _shape_of(part: str) -> tuple[str, tuple[int, ...]]:
    """One entry of --input_shape: the last colon separates the dimensions, since names may hold colons."""
    name, colon, dims = part.rpartition(":")
    try:
        shape = tuple(int(d) for d in dims.split(","))
    except ValueError:
        shape = ()
    if not colon or not name or not shape or min(shape) < 1:
        raise ConfigError(f"--input_shape: {part!r} is not of the form name:n,c,h,w with positive numbers")
    return name, shape
