"""AMCT's import path of the function that its evaluator scripts read raw files with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from amct_onnx.data import Feed, InputSpec, raw_feeds
from amct_onnx.errors import DataError


def load_data(
    input_shape: Mapping[str, Sequence[int]], data_dir: Sequence[str], data_types: Sequence[str], batch_num: int
) -> Iterator[Feed]:
    """Batches of raw binary files, one file per input and batch, in the order of their names.

    Args:
        input_shape: input -> its shape.
        data_dir: a directory for each input.
        data_types: an element type of numpy for each input.
        batch_num: how many batches.

    Raises:
        DataError: there are fewer files, or they do not fit.
    """
    if not len(input_shape) == len(data_dir) == len(data_types):
        raise DataError(
            f"{len(input_shape)} inputs, {len(data_dir)} directories, {len(data_types)} types; give one of each for "
            "every input"
        )
    specs = [
        InputSpec(name=name, dtype=_dtype(kind), shape=tuple(shape))
        for (name, shape), kind in zip(input_shape.items(), data_types, strict=True)
    ]
    count = 0
    for feed in islice(raw_feeds([Path(folder) for folder in data_dir], specs), batch_num):
        yield feed
        count += 1
    if count < batch_num:
        raise DataError(f"batch_num is {batch_num}, but there are files for {count} batches only")


def _dtype(name: str) -> np.dtype[np.generic]:
    try:
        return np.dtype(name)
    except TypeError as error:
        raise DataError(f"{name!r} is no element type; write float32, int64, ...") from error
