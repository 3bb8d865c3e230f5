"""Text files read whole; everything that can go wrong becomes one sentence that names the file."""

from __future__ import annotations

import os
from pathlib import Path

from amct_onnx.errors import ConfigError, ModelError, RecordError

TextError = type[ConfigError] | type[RecordError] | type[ModelError]


def read_text(path: str | os.PathLike[str], error: TextError) -> str:
    """The text of the file at `path`.

    Raises:
        ConfigError, RecordError, ModelError: as `error` says: no such file, not readable, empty, or not UTF-8 text.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as failure:
        raise error(f"{path}: cannot read the file: {failure.strerror or failure}") from failure
    except ValueError as failure:  # a NUL inside the path
        raise error(f"{path!r}: cannot read the file: {failure}") from failure
    text = decode(data, str(path), error)
    if not text.strip():
        raise error(f"{path}: the file is empty")
    return text


def decode(data: str | bytes, source: str, error: TextError) -> str:
    """`data` as text without the byte order mark that some editors put in front.

    Raises:
        ConfigError, RecordError, ModelError: as `error` says: `data` is not UTF-8 text.
    """
    try:
        # A str can hold halves of surrogate pairs, which are no text either.
        text = (data.encode("utf-8") if isinstance(data, str) else data).decode("utf-8")
    except UnicodeError as failure:
        position = getattr(failure, "start", 0)
        found = repr(data[position : position + 1])
        raise error(f"{source}: not UTF-8 text: {found} at position {position}; save the file as UTF-8") from failure
    if "\0" in text:
        raise error(f"{source}: not a text file: it holds a NUL at position {text.index(chr(0))}")
    return text.removeprefix("\ufeff")
