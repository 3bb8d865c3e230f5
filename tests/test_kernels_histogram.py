"""The histogram: exact whatever the order, and the same bits for every split of the data."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numba import config

from amct_onnx.kernels import histogram
from amct_onnx.kernels.histogram import BINS, MIN_EXPONENT, Side, SignedHistogram

JIT = not config.DISABLE_JIT
EXAMPLES = settings(max_examples=80 if JIT else 6, deadline=None)

magnitudes = st.sampled_from([0.0, 1e-45, 1e-38, 1e-12, 2.0**-3, 0.1, 1.0, 3.0, 2.0**10, 1e20, 3.4e38])
floats = st.one_of(st.floats(width=32), st.floats(-4, 4, width=32), magnitudes, magnitudes.map(lambda x: -x))
batches = st.lists(arrays(np.float32, st.integers(0, 40), elements=floats), min_size=1, max_size=6)


def filled(parts: Sequence[np.ndarray], kept: int = 8) -> SignedHistogram:
    made = SignedHistogram(kept=kept)
    for part in parts:
        made.add(part)
    return made


def assert_same(one: SignedHistogram, other: SignedHistogram) -> None:
    assert (one.count, one.finite) == (other.count, other.finite)
    for a, b in ((one.positive, other.positive), (one.negative, other.negative)):
        assert (a.size, a.width) == (b.size, b.width)
        np.testing.assert_array_equal(a.counts, b.counts)
        np.testing.assert_array_equal(a.sums, b.sums)
        np.testing.assert_array_equal(a.largest, b.largest)


def assert_holds(made: SignedHistogram, values: np.ndarray) -> None:
    """The histogram must hold `values`, of which it keeps 8 of each sign as they are."""
    finite = values[np.isfinite(values)]
    largest = float(np.abs(finite).max(initial=0))
    exponent = max(math.frexp(largest)[1], MIN_EXPONENT) if largest else MIN_EXPONENT
    assert made.count == finite.size
    assert made.finite == (finite.size == values.size)
    for side, magnitudes in ((made.positive, finite[finite > 0]), (made.negative, -finite[finite < 0])):
        assert_describes(side, magnitudes, exponent)
        np.testing.assert_array_equal(side.largest, np.sort(magnitudes)[::-1][:8])


def assert_describes(side: Side, values: np.ndarray, exponent: int) -> None:
    """`values` are positive; the histogram must hold them, counted in Python's integers and exact fractions."""
    width = 2.0**exponent / BINS
    counts, sums = [0] * BINS, [0] * BINS
    for value in values.tolist():
        position = value / width  # exact: a power of two
        counts[int(position)] += 1
        if position >= 1:
            sums[int(position)] += int(math.modf(position)[0] * 2**23)
    assert side.width == width
    assert side.counts.tolist() == counts
    assert side.sums.tolist() == sums
    assert side.size == len(values)


@given(parts=batches, more=batches, kept=st.integers(1, 12))
@settings(max_examples=40 if JIT else 4, deadline=None)
def test_what_goes_on_from_a_state_is_what_never_stopped(
    parts: list[np.ndarray], more: list[np.ndarray], kept: int
) -> None:
    resumed = SignedHistogram.of_state(filled(parts, kept).state(), kept=kept)
    assert_same(resumed, filled(parts, kept))
    for part in more:
        resumed.add(part)
    assert_same(resumed, filled([*parts, *more], kept))


@pytest.mark.parametrize("cut", [slice(0, 0), slice(0, 3), slice(0, -1), slice(1, None)])
def test_what_is_no_state_is_refused(cut: slice) -> None:
    with pytest.raises(ValueError, match="not one of a histogram"):
        SignedHistogram.of_state(filled([np.ones(5, np.float32)]).state()[cut], kept=8)


@EXAMPLES
@given(parts=batches, kept=st.sampled_from([1, 8, 1000]), data=st.data())
def test_any_split_order_and_merge_give_the_same_bits(parts: list[np.ndarray], kept: int, data: st.DataObject) -> None:
    whole = filled([np.concatenate(parts)], kept)
    assert_same(filled(parts, kept), whole)
    shuffled = data.draw(st.permutations(np.concatenate(parts).tolist()))
    assert_same(filled([np.array(shuffled, np.float32)], kept), whole)
    merged = filled(parts[:1], kept)
    for part in parts[1:]:
        shard = filled([part], kept)
        merged.merge(shard)
        assert_same(shard, filled([part], kept))
    assert_same(merged, whole)


@EXAMPLES
@given(parts=batches)
def test_counts_sums_and_extremes_are_exact(parts: list[np.ndarray]) -> None:
    assert_holds(filled(parts), np.concatenate(parts))


@pytest.mark.parametrize("blocks", [1, 2.5, 3])
@pytest.mark.parametrize("bad", [[], [0], [-1, 5], [1024], [500, 1500, -1]])
def test_more_than_a_block(blocks: float, bad: list[int]) -> None:
    values = np.random.default_rng(0).normal(size=int(blocks * histogram.BLOCK)).astype(np.float32)
    values[::5], values[3::10], values[4::10], values[6::10] = 0.0, -0.0, 1e-7, -3e-38  # zeros, and others of bin 0
    values[values.size // 2] *= 1000  # wider bins on the way
    places = [i for i in bad if i < values.size]
    values[places] = [np.nan, np.inf, -np.inf][: len(places)]
    assert_holds(filled([values]), values)
    assert_holds(filled([values, -values]), np.concatenate([values, -values]))


@pytest.mark.parametrize("exponent", [-149, -126, -41, -40, -39, 0, 1, 127])
def test_a_power_of_two_falls_into_the_upper_half(exponent: int) -> None:
    made = filled([np.array([2.0**exponent], np.float32)])
    assert_describes(made.positive, np.array([2.0**exponent]), max(exponent + 1, MIN_EXPONENT))


def test_growing_data_widen_the_bins() -> None:
    values = np.array([1.1**i * (-1) ** i for i in range(-300, 900, 1 if JIT else 12)], np.float32)
    made = filled(list(values[:, None]))
    assert_same(made, filled([values]))
    assert_describes(made.negative, -values[values < 0], math.frexp(float(np.abs(values).max()))[1])


def test_many_values_do_not_overflow_a_packed_bin(monkeypatch: pytest.MonkeyPatch) -> None:
    if not JIT:  # the real limit takes too long without the compiler
        monkeypatch.setattr(histogram, "ROUND", histogram.BLOCK)
    value = np.float32(1.9999999)  # the largest distance from its bin's edge that there is
    times = histogram.ROUND + 1000
    side = filled([np.full(times, value), np.full(999, value)]).positive
    inside, j = math.modf(float(value) / side.width)
    assert side.counts[int(j)] == side.size == times + 999
    assert side.sums[int(j)] == side.size * int(inside * 2**23)


@pytest.mark.parametrize("order", [1, -1])
def test_extremes_of_sorted_data(order: int) -> None:
    values = np.arange(1, 6000 if JIT else 2500, dtype=np.float32)[::order]
    for sign in (1, -1):
        made = filled([sign * values], kept=100)
        side = made.positive if sign == 1 else made.negative
        np.testing.assert_array_equal(side.largest, np.sort(values)[::-1][:100])


def test_extremes_fill_up_with_equal_values_and_zeros() -> None:
    values = np.concatenate([np.full(1500, 2.0), np.zeros(1000), np.full(1500, 2.0), [3.0], np.zeros(700)])
    side = filled([values.astype(np.float32)], kept=3).positive
    assert side.largest.tolist() == [3.0, 2.0, 2.0]
    assert side.width == 4.0 / BINS


@EXAMPLES
@given(values=arrays(np.float32, st.integers(1, 60), elements=st.floats(-100, 100, width=32)), kept=st.integers(1, 30))
def test_kth_largest(values: np.ndarray, kept: int) -> None:
    side = filled([values], kept).positive
    positive = np.sort(values[values > 0])[::-1]
    for k in range(1, positive.size + 1):
        if k <= kept:
            assert side.kth_largest(k) == positive[k - 1]
        else:
            assert side.kth_largest(k) == pytest.approx(positive[k - 1], abs=side.width)
            assert side.kth_largest(k) <= side.kth_largest(k - 1)
    assert side.kth_largest(positive.size + 1) == 0


def test_kth_largest_is_interpolated_beyond_what_is_kept() -> None:
    values = np.random.default_rng(0).normal(size=100_000 if JIT else 5000).astype(np.float32)
    side = filled([values], kept=10).negative
    magnitudes = np.sort(-values[values < 0])[::-1]
    for k in (11, 100, 1000, magnitudes.size - 1):
        assert side.kth_largest(k) == pytest.approx(magnitudes[k - 1], abs=side.width)


def test_points_are_known_where_values_are_few_or_alike() -> None:
    few = filled([np.array([1.0, 2.0, 2.0, -5.0, 0.0])], kept=3)
    assert [part.tolist() for part in few.positive.points() or ()] == [[1.0, 2.0], [1, 2]]
    assert [part.tolist() for part in few.negative.points() or ()] == [[5.0], [1]]
    alike = filled([np.array([0.7, 0.0] * 50, np.float32), np.array([-1.0])], kept=3)
    assert [part.tolist() for part in alike.positive.points() or ()] == [[np.float32(0.7)], [50]]
    neighbours = np.array([0.7] * 50 + [np.nextafter(np.float32(0.7), np.float32(0))], np.float32)
    assert filled([neighbours], kept=3).positive.points() is None
    assert [part.tolist() for part in filled([]).positive.points() or ()] == [[], []]


@EXAMPLES
@given(values=arrays(st.sampled_from([np.float16, np.float64, np.int32]), array_shapes(max_dims=3)))
def test_every_kind_of_array_is_taken(values: np.ndarray) -> None:
    with np.errstate(over="ignore"):
        plain = filled([values.astype(np.float32).ravel()])
    assert_same(filled([values]), plain)
    assert_same(filled([values.T, values[:0]]), plain)
    values.flags.writeable = False
    assert_same(filled([values]), plain)
