"""Calibration data in two parts: what calibration sees, and what is held back to measure choices on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

from amct_onnx.data import CalibrationSource, Feed, Feeds, InputSpec, copy_of
from amct_onnx.report.page import counted

_EVERY, _LEAST = 4, 2
"""Where all data may be calibrated with, one batch of so many is held back, if it makes so many."""

_MOST = 16
"""Batches that are held back at most; they are kept in memory."""


class Divided:
    """Calibration data, divided.

    Where a number of batches is asked for, so many are calibrated with, and those behind them are held back. Else it is
    one of every four, from 8 batches on. Where none is held back, choices are measured on the calibration data.

    Attributes:
        held: the batches to measure on, copies; 16 at most.
        says: what they are, in words.
    """

    def __init__(
        self, source: CalibrationSource | None, specs: Sequence[InputSpec], batch_num: int | None, why: str
    ) -> None:
        """Read the data once.

        Args:
            source: representative inputs.
            specs: the inputs of the model.
            batch_num: how many batches calibration is to see; None for all that are not held back.
            why: what the data are read again for, as a message says it.

        Raises:
            DataError: the data do not fit, or can be read only once.
        """
        self._feeds, self._batch_num = Feeds(source, specs, None), batch_num
        self._feeds.require_again(why)
        self._last = _EVERY * _MOST if batch_num is None else batch_num + _MOST
        chosen = (feed for index, feed in enumerate(islice(self._feeds, self._last)) if self._is_held(index))
        self.held = [copy_of(feed) for feed in chosen]
        self.says = f"{counted(len(self.held), 'batch')} held back"
        self._divides = len(self.held) >= (_LEAST if batch_num is None else 1)
        if not self._divides:
            self.held = [copy_of(feed) for feed in islice(self._feeds, min(_MOST, batch_num or _MOST))]
            self.says = f"{counted(len(self.held), 'batch')} of the calibration data: too few to hold any back"

    @property
    def withholds(self) -> bool:
        """Whether calibration could see more than `rest`, once nothing is measured any more."""
        return self._divides and self._batch_num is None

    def all(self) -> Iterator[Feed]:
        """Every batch, those held back too."""
        return iter(self._feeds)

    def rest(self) -> Iterator[Feed]:
        """The batches to calibrate with."""
        if self._batch_num is not None:
            return islice(self._feeds, self._batch_num)
        if not self._divides:
            return iter(self._feeds)
        return (feed for index, feed in enumerate(self._feeds) if not self._is_held(index))

    def _is_held(self, index: int) -> bool:
        if self._batch_num is not None:
            return index >= self._batch_num
        return index % _EVERY == _EVERY - 1 and index < self._last
