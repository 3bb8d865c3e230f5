"""The one decorator of the numba kernels: the same options everywhere, and types that survive it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

from numba import njit

Function = TypeVar("Function", bound=Callable[..., object])


def compiled(function: Function) -> Function:
    """Compile `function` at its first call, outside the interpreter lock, and keep the machine code on disk.

    What a compiled function calls must stand in its own file: numba's cache does not notice edits elsewhere.
    """
    try:
        return _jit(function, cache=True)
    except RuntimeError:  # no folder to keep the machine code in, as in a read-only container: compile in every process
        return _jit(function, cache=False)


def _jit(function: Function, *, cache: bool) -> Function:
    # Strict floating point: results must not depend on how a compiler reorders sums. Without numba's "python" error
    # model a division needs no test for zero, which would keep loops from becoming vector instructions.
    return cast(Function, njit(cache=cache, nogil=True, fastmath=False, error_model="numpy")(function))
