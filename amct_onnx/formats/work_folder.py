"""Hidden folders beside the results, in which these are made; and an end to those of processes that were killed.

A living process holds a lock on a file in its folder. The system lets go of it however the process ends, on other
machines and in other containers too, so whoever gets the lock has found a folder that nobody needs.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: folders are neither locked nor taken for abandoned
    fcntl = None  # type: ignore[assignment]

_PREFIX, _LOCK = ".amct_onnx-", "lock"

OLD = "old "
"""What the name of a file begins with that is kept in such a folder while it is replaced."""


@contextmanager
def work_folder(directory: Path) -> Iterator[Path]:
    """A new folder in a directory, which is removed in the end; and so are those that killed processes left there.

    Raises:
        OSError: it cannot be made.
    """
    with suppress(OSError):
        for folder in directory.glob(f"{_PREFIX}*"):
            _clear(folder)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=directory))
    lock = _locked(folder)
    try:
        yield folder
    finally:
        _remove(folder)
        if lock is not None:
            os.close(lock)


def _locked(folder: Path) -> int | None:
    """A lock on the folder, which appears in it only when it is held; None where the system has none."""
    if fcntl is None:
        return None
    unfinished = folder / f"{_LOCK}.new"
    lock = os.open(unfinished, os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        unfinished.unlink()
        return None
    unfinished.rename(folder / _LOCK)
    return lock


def _clear(folder: Path) -> None:
    """Remove a folder whose process is dead, unless it holds the only copy of a file."""
    if fcntl is None:
        return
    with suppress(OSError):
        lock = os.open(folder / _LOCK, os.O_RDWR)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if all((folder.parent / kept.name.removeprefix(OLD)).exists() for kept in folder.glob(f"{OLD}*")):
                _remove(folder)
        finally:
            os.close(lock)


def _remove(folder: Path) -> None:
    """Remove a folder, its lock last: who is killed meanwhile leaves one that the next call removes."""
    with suppress(OSError):
        for entry in folder.iterdir():
            if entry.name == _LOCK:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
