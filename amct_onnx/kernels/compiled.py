"""The one decorator of the numba kernels: the same options everywhere, and types that survive it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import update_wrapper
from typing import Any, TypeVar, cast

Function = TypeVar("Function", bound=Callable[..., object])

_FIRST_CALL = threading.Lock()


def compiled(function: Function) -> Function:
    """Compile `function` at its first call, outside the interpreter lock, and keep the machine code on disk.

    numba itself is imported at the first call too: it takes longer than the rest of the package.

    What a compiled function calls must stand in its own file: numba's cache does not notice edits elsewhere.
    """
    return cast(Function, _Kernel(function))


class _Kernel:
    """A function that numba sees when it is first called, from Python or from another kernel."""

    def __init__(self, function: Callable[..., object]) -> None:
        self._function = function
        self._jitted: Callable[..., object] | None = None
        update_wrapper(self, function)

    def __call__(self, *arguments: object) -> object:
        return (self._jitted or self._jit())(*arguments)

    @property
    def _numba_type_(self) -> Any:
        """What numba takes this object for inside another kernel."""
        return cast(Any, self._jitted or self._jit())._numba_type_

    def _jit(self) -> Callable[..., object]:
        with _FIRST_CALL:
            if self._jitted is None:
                try:
                    self._jitted = _jitted(self._function, cache=True)
                except RuntimeError:  # no folder for the machine code, as in a read-only container: compile every time
                    self._jitted = _jitted(self._function, cache=False)
            return self._jitted


def _jitted(function: Callable[..., object], *, cache: bool) -> Callable[..., object]:
    from numba import njit

    # Strict floating point: results must not depend on how a compiler reorders sums. Without numba's "python" error
    # model a division needs no test for zero, which would keep loops from becoming vector instructions.
    jitted = njit(cache=cache, nogil=True, fastmath=False, error_model="numpy")(function)
    return cast(Callable[..., object], jitted)
