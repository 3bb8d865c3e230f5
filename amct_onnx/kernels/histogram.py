"""A histogram of constant size that gives the same bits however its data were cut into batches.

Positive and negative values are counted apart, by magnitude, in bins [j*w, (j+1)*w) whose width w is a power of two
just large enough for the largest magnitude seen. When a larger one arrives, pairs of bins merge. Each bin knows how
many values it holds and, exactly, the sum of their distances from its lower edge: a float32 of at least w is a multiple
of w*2^-23, so these sums are integers, and integers do not care about order. Bin 0 of each side is the exception: its
values can be finer than that, so only their number is known. The largest magnitudes of each side are kept as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from amct_onnx.kernels.compiled import compiled

BINS = 1 << 14  # per sign
FRACTION_BITS = 23  # of a float32's significand: distances inside a bin are multiples of w * 2^-23
MIN_EXPONENT = -40  # below 2^-40 no scale depends on the data any more; keeps 1/w inside float32

BLOCK = 1024  # values that the kernel takes in or leaves together; a constant, so that its loops need no remainders
GROUP = 32  # of them are placed, then added: few enough for the processor to do both at once
SPARE = 16  # neighbours in bin 0 go to different ones of so many slots: increments of one and the same would wait
COUNT_SHIFT = 42  # a packed bin holds its count above this bit and its sum below
ROUND = 1 << (COUNT_SHIFT - FRACTION_BITS)  # values after which a packed sum could overflow

_ZERO = np.int32(0)
_SIGN = np.int32(-(1 << 31))
_MAGNITUDE = np.int32((1 << 31) - 1)
_SIGN_BITS = np.int32(31)
_ONE_VALUE = 1 << COUNT_SHIFT
_FRACTION = np.float32(1 << FRACTION_BITS)
_SLOTS = np.int32(BINS + 2 * SPARE)  # per sign: the bins, then slots for zeros, then those for the rest of bin 0
_SMALL = np.int32(SPARE)
# numba's indices are unsigned here: for others it would ask in every loop whether they count from the end
_BLOCK, _GROUP, _TWO_GROUPS = np.uint64(BLOCK), np.uint64(GROUP), np.uint64(2 * GROUP)
_NO_VALUES = np.uint32(0)


@compiled
def _collect(
    patterns: NDArray[np.int32],
    start: np.uint64,
    sign: np.int32,
    floor: np.int32,
    kept: NDArray[np.int32],
    filled: np.int64,
) -> np.int64:
    """Append to `kept` the magnitudes above `floor` of one sign in a block; return how many `kept` then holds."""
    for group in range(start, start + _BLOCK, _GROUP):
        largest = _ZERO
        for i in range(_GROUP):
            largest = max(largest, np.int32(patterns[group + i] ^ sign))
        if largest > floor:
            for i in range(_GROUP):
                magnitude = np.int32(patterns[group + i] ^ sign)
                if magnitude > floor:
                    kept[filled] = magnitude
                    filled += 1
    return filled


@compiled
def _absorb(
    values: NDArray[np.float32],
    patterns: NDArray[np.int32],
    start: int,
    per_width: np.float32,
    limit: np.int32,
    scratch: NDArray[np.uint32],
    packed: NDArray[np.int64],
    extremes: NDArray[np.int32],
    filled: NDArray[np.int64],
    floors: NDArray[np.int32],
) -> int:
    """Take in `values` [n * BLOCK], whose bit patterns are `patterns`, from index `start`; return where it stopped.

    It stops at the end, or before a block that needs room first: a magnitude of `limit` or more (also infinity and
    NaN), or no space left in `extremes`. Floats are compared as integers: magnitudes of one sign order like their bit
    patterns, and those of negative values order above all others when taken as unsigned.

    `packed` [2 * _SLOTS] is where the values are added. `scratch` [3 * GROUP] has room for distances and slots, and
    says which slot a zero takes; it is one array, which spares the compiler the question whether two overlap.
    """
    at, size = np.uint64(start), np.uint64(values.size)
    room = extremes.shape[1] - BLOCK
    while at < size:
        top, lowest = _ZERO, _NO_VALUES
        for i in range(_BLOCK):
            top = max(top, patterns[at + i])
            lowest = max(lowest, np.uint32(patterns[at + i]))
        bottom = np.int32(np.int32(lowest) ^ _SIGN)
        if max(top, bottom) >= limit or max(filled[0], filled[1]) > room:
            break
        if top > floors[0]:
            filled[0] = _collect(patterns, at, _ZERO, floors[0], extremes[0], filled[0])
        if bottom > floors[1]:
            filled[1] = _collect(patterns, at, _SIGN, floors[1], extremes[1], filled[1])
        for _ in range(BLOCK // GROUP):
            for i in range(_GROUP):
                bits = patterns[at + i]
                position = abs(values[at + i]) * per_width
                j = np.int32(position)
                scratch[i] = np.uint32(np.int32((position - np.float32(j)) * _FRACTION))
                spare = np.int32(scratch[_TWO_GROUPS + i])
                spare = np.int32(spare + _SMALL) if bits & _MAGNITUDE != _ZERO else spare
                scratch[_GROUP + i] = np.uint32((j if j > _ZERO else spare) + ((bits >> _SIGN_BITS) & _SLOTS))
            for i in range(_GROUP):
                slot = scratch[_GROUP + i]
                packed[slot] = packed[slot] + scratch[i] + _ONE_VALUE
            at += _GROUP
    return int(at)


@compiled
def _unpack(packed: NDArray[np.int64], counts: NDArray[np.int64], sums: NDArray[np.int64]) -> None:
    """Add what `_absorb` has packed to `counts` and `sums` [2, BINS], and leave zeros."""
    for side in range(counts.shape[0]):
        bins, slots = counts.shape[1], packed.size // 2
        part = packed[side * slots : (side + 1) * slots]
        for j in range(bins):
            counts[side, j] += part[j] >> COUNT_SHIFT
            sums[side, j] += part[j] & (_ONE_VALUE - 1)
        for j in range(bins + SPARE, slots):
            counts[side, 0] += part[j] >> COUNT_SHIFT
        part[:] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """The values of one sign, as magnitudes.

    size: how many there are.
    width: of a bin.
    counts: int64 [BINS], values per bin.
    sums: int64 [BINS], distances from the bin's lower edge in units of width * 2^-23; 0 for bin 0, which has none.
    largest: float32, descending: the largest magnitudes, all of them if there are no more than the histogram keeps.
    """

    size: int
    width: float
    counts: NDArray[np.int64]
    sums: NDArray[np.int64]
    largest: NDArray[np.float32]

    def kth_largest(self, k: int) -> np.float32:
        """The k-th largest magnitude, k from 1; 0 where the side has fewer values.

        Exact among the magnitudes that were kept; beyond them interpolated in its bin, so off by less than its width.
        """
        if k > self.size:
            return np.float32(0)
        if k <= self.largest.size:
            return np.float32(self.largest[k - 1])
        down_to = np.cumsum(self.counts[::-1])[::-1]  # values in a bin and above
        j = int(np.flatnonzero(down_to >= k)[-1])
        rank = k - (int(down_to[j]) - int(self.counts[j]))
        return min(np.float32((j + 1 - (rank - 0.5) / int(self.counts[j])) * self.width), self.largest[-1])

    def points(self) -> tuple[NDArray[np.float32], NDArray[np.int64]] | None:
        """The distinct magnitudes and how often each occurs, if known: when few are held, or when all are equal."""
        if self.size == self.largest.size:
            values, times = np.unique(self.largest, return_counts=True)
            return values, times.astype(np.int64)
        inside, j = math.modf(float(self.largest[0]) / self.width)
        if (
            j > 0
            and self.sums[int(j)] == self.size * int(inside * 2**FRACTION_BITS)
            and self.counts[int(j)] == self.size
        ):
            return self.largest[:1], np.array([self.size], np.int64)
        return None


class SignedHistogram:
    """Counts, sums and extremes of a stream of values; see the top of this file.

    Attributes:
        count: finite values taken in.
        finite: False once a NaN or an infinity came along; these are left out of everything else.
    """

    def __init__(self, *, kept: int) -> None:
        """Start empty; `kept` is how many of the largest magnitudes of each sign are held exactly."""
        self.count = 0
        self.finite = True
        self._kept = kept
        self._exponent = MIN_EXPONENT  # magnitudes are below 2^exponent
        self._counts = np.zeros((2, BINS), np.int64)
        self._sums = np.zeros((2, BINS), np.int64)
        self._packed = np.zeros(2 * int(_SLOTS), np.int64)  # what came since the last `_unpack`, count and sum in one
        self._pending = 0
        self._scratch = np.zeros(3 * GROUP, np.uint32)
        self._scratch[2 * GROUP :] = BINS + np.arange(GROUP) % SPARE
        self._extremes = np.zeros((2, kept + max(kept, 4 * BLOCK)), np.int32)  # as bit patterns
        self._filled = np.zeros(2, np.int64)
        self._floors = np.zeros(2, np.int32)  # no magnitude up to this one can be among the largest any more

    def add(self, array: ArrayLike) -> None:
        """Take in all values of `array`, which is of any shape and converted to float32."""
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes an infinity, and is noted as such below
            # numba would compile a second time for arrays that cannot be written to
            values = np.require(array, np.float32, ["C", "A", "W"]).reshape(-1)
        self.count += values.size
        whole = values.size - values.size % BLOCK
        for start in range(0, whole, ROUND):
            self._add_round(values[start : min(start + ROUND, whole)])
        if whole < values.size:
            last = np.zeros(BLOCK, np.float32)  # zeros belong to no side, so they can fill up a block
            last[: values.size - whole] = values[whole:]
            self._add_round(last)

    def _add_round(self, values: NDArray[np.float32]) -> None:
        """Take in `values` [n * BLOCK], no more than a round."""
        if self._pending + values.size > ROUND:
            self._unpack()
        at = 0
        while True:
            per_width = np.float32(2.0 ** -(self._exponent - BINS.bit_length() + 1))
            limit = np.int32((self._exponent + 127) << 23)  # the bit pattern of 2^exponent
            state = (self._scratch, self._packed, self._extremes, self._filled, self._floors)
            at = _absorb(values, values.view(np.int32), at, per_width, limit, *state)
            if at == values.size:
                break
            block = values[at : at + BLOCK]
            if np.isfinite(block).all():
                self._make_room(np.abs(block).max())
            else:
                finite = np.isfinite(values)
                values = np.where(finite, values, np.float32(0))
                self.count -= values.size - int(finite.sum())
                self.finite = False
        self._pending += values.size

    def _make_room(self, magnitude: np.float32) -> None:
        if magnitude > 0:
            self._widen(int(np.frexp(magnitude)[1]))
        for side in (0, 1):
            self._drop_small(side)

    def _drop_small(self, side: int) -> None:
        """Leave only the largest `kept` of the extremes."""
        surplus = int(self._filled[side]) - self._kept
        if surplus < 0:
            return
        largest = np.partition(self._extremes[side, : self._filled[side]], surplus)[surplus:]
        self._extremes[side, : self._kept] = largest
        self._filled[side] = self._kept
        self._floors[side] = largest[0]

    def _unpack(self) -> None:
        _unpack(self._packed, self._counts, self._sums)
        self._pending = 0

    def _widen(self, exponent: int) -> None:
        """Double the width until 2^exponent is the limit; a smaller exponent changes nothing."""
        if exponent <= self._exponent:
            return
        self._unpack()
        self._counts, self._sums = _widened(self._counts, self._sums, exponent - self._exponent)
        self._exponent = exponent

    def merge(self, other: SignedHistogram) -> None:
        """Take in what `other` has taken in: the same bits as if its data had been added here."""
        other._unpack()
        self._widen(other._exponent)
        counts, sums = _widened(other._counts, other._sums, self._exponent - other._exponent)
        self._counts += counts
        self._sums += sums
        self.count += other.count
        self.finite = self.finite and other.finite
        for side in (0, 1):
            self._drop_small(side)
            other._drop_small(side)
            start, more = int(self._filled[side]), int(other._filled[side])
            self._extremes[side, start : start + more] = other._extremes[side, :more]
            self._filled[side] = start + more
            self._drop_small(side)

    def state(self) -> NDArray[np.int64]:
        """Everything that was taken in, as numbers that `of_state` understands."""
        self._unpack()
        for side in (0, 1):
            self._drop_small(side)
        head = np.array([self.count, self.finite, self._exponent, *self._filled], np.int64)
        extremes = [self._extremes[side, : self._filled[side]].astype(np.int64) for side in (0, 1)]
        return np.concatenate([head, self._counts.ravel(), self._sums.ravel(), *extremes])

    @classmethod
    def of_state(cls, state: NDArray[np.int64], *, kept: int) -> SignedHistogram:
        """A histogram that goes on where another one with the same `kept` gave its `state`.

        Raises:
            ValueError: it is no such state.
        """
        head, bins = 5, 2 * BINS
        held = state[3:head]
        room = state.size - head - 2 * bins
        if room < 0 or state[2] < MIN_EXPONENT or held.min() < 0 or held.max() > kept or held.sum() != room:
            raise ValueError("the state is not one of a histogram")
        fresh = cls(kept=kept)
        fresh.count, fresh.finite, fresh._exponent = int(state[0]), bool(state[1]), int(state[2])
        counts, sums, extremes = np.split(state[head:], [bins, 2 * bins])
        fresh._counts, fresh._sums = counts.reshape(2, BINS).copy(), sums.reshape(2, BINS).copy()
        for side, values in enumerate(np.split(extremes, [int(state[3])])):
            fresh._extremes[side, : values.size] = values
            fresh._filled[side] = values.size
            fresh._drop_small(side)
        return fresh

    @property
    def positive(self) -> Side:
        """The values above zero."""
        return self._side(0)

    @property
    def negative(self) -> Side:
        """The values below zero, as magnitudes."""
        return self._side(1)

    def _side(self, side: int) -> Side:
        self._unpack()
        self._drop_small(side)
        counts = self._counts[side].copy()
        return Side(
            size=int(counts.sum()),
            width=2.0**self._exponent / BINS,
            counts=counts,
            sums=self._sums[side].copy(),
            largest=np.sort(self._extremes[side, : self._filled[side]])[::-1].view(np.float32),
        )


def _widened(
    counts: NDArray[np.int64], sums: NDArray[np.int64], doublings: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Counts and sums [2, BINS] for bins 2^doublings times as wide, as new arrays (the same ones for none).

    Exact: what does not fall into bin 0 of the new bins is a multiple of the new unit too.
    """
    if doublings >= BINS.bit_length():
        wider, total = np.zeros_like(counts), np.zeros_like(sums)
        wider[:, 0] = counts.sum(axis=1)
        return wider, total
    for _ in range(doublings):
        wider, total = np.zeros_like(counts), np.zeros_like(sums)
        low, high = slice(0, None, 2), slice(1, None, 2)
        wider[:, : BINS // 2] = counts[:, low] + counts[:, high]
        total[:, : BINS // 2] = (sums[:, low] + sums[:, high] + (counts[:, high] << FRACTION_BITS)) >> 1
        total[:, 0] = 0
        counts, sums = wider, total
    return counts, sums
