"""The errors that users see.

AmctError
├── ArgumentError       a function is called with an argument of the wrong type (also a TypeError)
├── ConfigError         a configuration asks for something that is not allowed (also a ValueError)
├── ModelError          the model cannot be read or holds what the engine cannot work on (also a ValueError)
├── DataError           the calibration data do not fit the model (also a ValueError)
├── RecordError         a record file cannot be read or does not fit the model (also a ValueError)
├── OutputError         a result cannot be written (also an OSError)
├── EvaluatorError      code of the user's own, called for accuracy, failed (also a RuntimeError)
├── PassError           a rewrite failed or broke an invariant; always a fault of the engine (also a RuntimeError)
└── NotAvailableError   a valid request that this version does not carry out (also a NotImplementedError)

Each message says what was found, where, and what would be right.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class AmctError(Exception):
    """Root of all errors raised on purpose."""


class ArgumentError(AmctError, TypeError):
    """A function is called with an argument of the wrong type."""


class ConfigError(AmctError, ValueError):
    """A configuration asks for something that is not allowed."""


class ModelError(AmctError, ValueError):
    """The model cannot be read, or holds what the engine cannot work on."""


class DataError(AmctError, ValueError):
    """The calibration data do not fit the model."""


class RecordError(AmctError, ValueError):
    """A record file cannot be read, or does not fit the model."""


class OutputError(AmctError, OSError):
    """A result cannot be written."""


class EvaluatorError(AmctError, RuntimeError):
    """An evaluator, a strategy or a sensitivity of the user's own failed, or gave what cannot be used."""


class PassError(AmctError, RuntimeError):
    """A rewrite failed or broke an invariant: a fault of the engine, never of the input."""


class NotAvailableError(AmctError, NotImplementedError):
    """A valid request that this version does not carry out."""


@contextmanager
def located(where: str) -> Iterator[None]:
    """Prefix the place (file, layer, field) to the errors of ours raised inside the block."""
    try:
        yield
    except (ConfigError, RecordError, DataError, NotAvailableError) as error:
        raise type(error)(f"{where}: {error}") from error


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint "; did you mean ...?" with the known names closest to `name`, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
