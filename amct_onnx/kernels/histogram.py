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

BLOCK = 256  # values per round of the kernel: small enough for the fastest cache
SPARE = 16  # slots that take what is not counted
COUNT_SHIFT = 42  # a packed bin holds its count above this bit and its sum below
ROUND = 1 << (COUNT_SHIFT - FRACTION_BITS)  # values after which a packed sum could overflow

_ZERO = np.int32(0)
_SIGN = np.int32(-(1 << 31))
_ONE_VALUE = 1 << COUNT_SHIFT
_FRACTION = np.float32(1 << FRACTION_BITS)


@compiled
def _collect(
    bits: NDArray[np.int32], sign: np.int32, floor: np.int32, kept: NDArray[np.int32], filled: np.int64
) -> np.int64:
    """Append to `kept` the magnitudes above `floor` of one sign; return how many `kept` then holds."""
    for i in range(bits.size):
        magnitude = np.int32(bits[i] ^ sign)
        if magnitude > floor:
            kept[filled] = magnitude
            filled += 1
    return filled


@compiled
def _absorb(
    values: NDArray[np.float32],
    patterns: NDArray[np.int32],
    at: int,
    per_width: np.float32,
    limit: np.int32,
    scratch: NDArray[np.uint32],
    packed: NDArray[np.int64],
    extremes: NDArray[np.int32],
    filled: NDArray[np.int64],
    floors: NDArray[np.int32],
    seen: NDArray[np.int64],
) -> int:
    """Take in `values`, whose bit patterns are `patterns`, from index `at`, block by block; return where it stopped.

    It stops at the end, or before a block that needs room first: a magnitude of `limit` or more (also infinity and
    NaN), or no space left in `extremes`. Floats are compared as integers: magnitudes of one sign order like their bit
    patterns, and flipping the sign bit makes the negative values the positive ones.
    """
    bins = np.int32((packed.size - SPARE) // 2)
    room = extremes.shape[1] - BLOCK
    slots, inside, spare = scratch[0], scratch[1], scratch[2]
    while at < values.size:
        block = values[at : at + BLOCK]
        bits = patterns[at : at + BLOCK]
        top, bottom = _ZERO, _ZERO  # (one chained assignment would keep this loop from becoming vector instructions)
        positive, negative = 0, 0
        for i in range(bits.size):
            flipped = np.int32(bits[i] ^ _SIGN)
            top = max(top, bits[i])
            bottom = max(bottom, flipped)
            positive += int(bits[i] > _ZERO)
            negative += int(flipped > _ZERO)
        if max(top, bottom) >= limit or max(filled[0], filled[1]) > room:
            return at
        if top > floors[0]:
            filled[0] = _collect(bits, _ZERO, floors[0], extremes[0], filled[0])
        if bottom > floors[1]:
            filled[1] = _collect(bits, _SIGN, floors[1], extremes[1], filled[1])
        seen[0] += positive
        seen[1] += negative
        for i in range(block.size):
            position = abs(block[i]) * per_width
            j = np.int32(position)
            inside[i] = np.uint32(np.int32((position - np.float32(j)) * _FRACTION))
            side = bins if bits[i] < _ZERO else _ZERO
            slots[i] = np.uint32(j + side) if j > _ZERO else spare[i]
        for i in range(block.size):
            slot = slots[i]
            packed[slot] = packed[slot] + inside[i] + _ONE_VALUE
        at += block.size
    return at


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
        self._packed = np.zeros(2 * BINS + SPARE, np.int64)  # what came since the last `_unpack`, count and sum in one
        self._pending = 0
        # two rows for the kernel, and the slots of values that are not counted: neighbours go to different ones, since
        # increments of one and the same would wait for each other
        self._scratch = np.zeros((3, BLOCK), np.uint32)
        self._scratch[2] = 2 * BINS + np.arange(BLOCK) % SPARE
        self._seen = np.zeros(2, np.int64)  # how many positive, how many negative
        self._extremes = np.zeros((2, kept + max(kept, 4 * BLOCK)), np.int32)  # as bit patterns
        self._filled = np.zeros(2, np.int64)
        self._floors = np.zeros(2, np.int32)  # no magnitude up to this one can be among the largest any more

    def add(self, array: ArrayLike) -> None:
        """Take in all values of `array`, which is of any shape and converted to float32."""
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes an infinity, and is noted as such below
            # numba would compile a second time for arrays that cannot be written to
            values = np.require(array, np.float32, ["C", "A", "W"]).reshape(-1)
        for start in range(0, values.size, ROUND):
            self._add_round(values[start : start + ROUND])

    def _add_round(self, values: NDArray[np.float32]) -> None:
        size = values.size
        if self._pending + size > ROUND:
            self._unpack()
        self.count += size
        at = 0
        while True:
            per_width = np.float32(2.0 ** -(self._exponent - BINS.bit_length() + 1))
            limit = np.int32((self._exponent + 127) << 23)  # the bit pattern of 2^exponent
            state = (self._scratch, self._packed, self._extremes, self._filled, self._floors, self._seen)
            at = _absorb(values, values.view(np.int32), at, per_width, limit, *state)
            if at == values.size:
                break
            rest = values[at:]
            if np.isfinite(rest[:BLOCK]).all():
                self._make_room(np.abs(rest[:BLOCK]).max())
            else:
                values, at = rest[np.isfinite(rest)], 0
                self.count -= rest.size - values.size
                self.finite = False
        self._pending += size

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
        packed = self._packed[: 2 * BINS].reshape(2, BINS)
        self._counts += packed >> COUNT_SHIFT
        self._sums += packed & ((1 << COUNT_SHIFT) - 1)
        self._packed[:] = 0
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
        self._seen += other._seen
        self.count += other.count
        self.finite = self.finite and other.finite
        for side in (0, 1):
            self._drop_small(side)
            other._drop_small(side)
            start, more = int(self._filled[side]), int(other._filled[side])
            self._extremes[side, start : start + more] = other._extremes[side, :more]
            self._filled[side] = start + more
            self._drop_small(side)

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
        counts[0] = self._seen[side] - counts.sum()
        return Side(
            size=int(self._seen[side]),
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
        return np.zeros_like(counts), np.zeros_like(sums)
    for _ in range(doublings):
        wider, total = np.zeros_like(counts), np.zeros_like(sums)
        low, high = slice(2, None, 2), slice(3, None, 2)  # bins 0 and 1 become bin 0, whose content is not kept
        wider[:, 1 : BINS // 2] = counts[:, low] + counts[:, high]
        total[:, 1 : BINS // 2] = (sums[:, low] + sums[:, high] + (counts[:, high] << FRACTION_BITS)) >> 1
        counts, sums = wider, total
    return counts, sums
