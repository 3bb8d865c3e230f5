"""Tells how far a run is: a bar on a terminal, a few lines in the log elsewhere."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

_log = logging.getLogger("amct_onnx")

T = TypeVar("T")


class Progress:
    """Reports phases, and within a phase how many batches, or other parts, are through.

    bar: draw a bar on standard error; None does so where that is a terminal.

    Attributes:
        seconds: phase, or parts that were tracked -> how long it took, all times together.
    """

    def __init__(self, bar: bool | None = None) -> None:
        self._bar = sys.stderr.isatty() if bar is None else bar
        self._started = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def so_far(self) -> dict[str, float]:
        """What took how long, and "all" since the start."""
        return {**self.seconds, "all": time.perf_counter() - self._started}

    def _note(self, name: str, started: float) -> float:
        took = time.perf_counter() - started
        self.seconds[name] = self.seconds.get(name, 0.0) + took
        return took

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """A step without countable parts."""
        started = time.perf_counter()
        yield
        _log.info("%s: %.1f s", name, self._note(name, started))

    def track(self, parts: Iterable[T], name: str, total: int | None, unit: str = "batches") -> Iterator[T]:
        """Hand the parts on, batches or what else `unit` says, and report each that is through."""
        started = time.perf_counter()
        try:
            yield from (self._draw if self._bar else self._say)(parts, name, total, unit)
        finally:
            self._note(name, started)

    def _draw(self, parts: Iterable[T], name: str, total: int | None, unit: str) -> Iterator[T]:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        started = time.perf_counter()
        with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(name, total=total, rate="")
            for done, part in enumerate(parts, 1):
                yield part
                rate = done / max(time.perf_counter() - started, 1e-9)
                bar.update(task, advance=1, rate=f"{rate:.1f} {unit}/s")

    def _say(self, parts: Iterable[T], name: str, total: int | None, unit: str) -> Iterator[T]:
        """A line every ten seconds, and one at the end."""
        started = said = time.perf_counter()
        done = 0
        for done, part in enumerate(parts, 1):
            yield part
            now = time.perf_counter()
            if now - said >= 10:
                said = now
                left = (
                    "" if total is None else f" of {total}, about {(now - started) / done * (total - done):.0f} s left"
                )
                _log.info("%s: %d %s%s", name, done, unit, left)
        _log.info("%s: %d %s in %.1f s", name, done, unit, time.perf_counter() - started)
