"""Runs passes in order, and holds each to what it promises."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from amct_onnx.errors import AmctError, PassError
from amct_onnx.passes.state import Invariant, Pass, QuantState

_log = logging.getLogger("amct_onnx")


def run_passes(passes: Sequence[Pass], state: QuantState) -> None:
    """Run `passes` over `state`, which is edited in place.

    Raises:
        PassError: a pass failed, or an invariant does not hold; names the pass and those that ran before it.
        AmctError: what a pass says about the user's model is handed on as it is.
    """
    done: list[str] = []
    for step in passes:
        _check(step.requires, "requires", step, state, done)
        started = time.perf_counter()
        try:
            step.run(state)
        except AmctError:
            raise
        except Exception as error:
            raise PassError(f"pass {step.name!r} failed{_after(done)}: {type(error).__name__}: {error}") from error
        _log.debug("pass %s: %.3f s", step.name, time.perf_counter() - started)
        _check(step.ensures, "ensures", step, state, done)
        done.append(step.name)


def _check(invariants: Sequence[Invariant], word: str, step: Pass, state: QuantState, done: Sequence[str]) -> None:
    for invariant in invariants:
        if violations := invariant.check(state):
            raise PassError(f"pass {step.name!r} {word} {invariant.name!r}{_after(done)}: {'; '.join(violations[:5])}")


def _after(done: Sequence[str]) -> str:
    return f" (after {', '.join(done)})" if done else ""
