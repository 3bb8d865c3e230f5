"""HFMG: AMCT's histogram over several batches, and the range that it is cut to."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numba import config

from amct_onnx.errors import DataError
from amct_onnx.kernels import hfmg
from amct_onnx.kernels.hfmg import Hfmg, HfmgObserver
from amct_onnx.kernels.quant_params import params_from_range

JIT = not config.DISABLE_JIT
EXAMPLES = settings(max_examples=100 if JIT else 15, deadline=None)
GOLDEN = Path(__file__).parent / "golden"
CASES = json.loads((GOLDEN / "ops.json").read_text())["hfmg"]
CASES = CASES if JIT else [case for case in CASES if case["x"] == "small"]
ARRAYS = np.load(GOLDEN / "ops.npz")

ordinary = st.one_of(st.floats(-8, 8, width=32), st.sampled_from([0.0, 1.0, -1.0, 2.5]))
batches = st.lists(arrays(np.float32, st.integers(1, 30), elements=ordinary), min_size=1, max_size=4)


def observed(parts: Sequence[np.ndarray], *, asymmetric: bool = True, bins: int = 1024, bits: int = 8) -> HfmgObserver:
    observer = HfmgObserver(Hfmg(num_of_bins=bins, num_bits=bits), asymmetric=asymmetric)
    for part in parts:
        observer.update(part)
    return observer


def plainly(parts: Sequence[np.ndarray], bins: int) -> tuple[float, float, list[int]]:
    """Range and counts after several batches, as the description has it."""
    low, high = float(parts[0].min()), float(parts[0].max())
    counts = naive.hfmg_count(parts[0], low, high, bins)
    for part in parts[1:]:
        old = low, high
        low, high = min(low, float(part.min())), max(high, float(part.max()))
        poured = naive.hfmg_pour(counts, old, (low, high))
        counts = [a + b for a, b in zip(naive.hfmg_count(part, low, high, bins), poured, strict=True)]
    return low, high, counts


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['x']}-{case['num_of_bins']}-{case['with_offset']}")
def test_golden(case: dict) -> None:
    counts = ARRAYS[f"hist/{case['x']}/{case['num_of_bins']}"]
    low, high = hfmg.search(counts, *case["range"], num_bits=8)
    params = params_from_range(low, high, asymmetric=case["with_offset"], num_bits=8)
    assert params.scale == pytest.approx(case["scale"], rel=3e-7)
    assert params.offset == case["offset"]
    np.testing.assert_array_equal(hfmg.bin_counts(ARRAYS["x/" + case["x"]], *case["range"], counts.size), counts)
    if case["x"] == "shifted":  # the reference was given a range that the data do not have
        return
    observer = observed([ARRAYS["x/" + case["x"]]], asymmetric=case["with_offset"], bins=counts.size)
    assert observer.params().scale == params.scale
    assert observer.params().offset == params.offset


@EXAMPLES
@given(
    counts=arrays(np.int64, st.integers(8, 70), elements=st.sampled_from([0, 0, 1, 2, 7, 1000, 250_000])),
    high=st.floats(-3, 8, width=32),
    bits=st.sampled_from([2, 4, 6]),
)
def test_search_agrees_with_the_plain_twin(counts: np.ndarray, high: float, bits: int) -> None:
    best = hfmg.search(counts, -3.0, high, num_bits=bits)
    expected = naive.hfmg_range(counts.tolist(), -3.0, high, num_bits=bits)
    if best != pytest.approx(expected):  # then the two are equally good
        width = (high + 3) / counts.size
        losses = [
            naive.hfmg_loss(counts.tolist(), round((start + 3) / width), round((end + 3) / width) - 1, bits)
            for start, end in (best, expected)
        ]
        assert losses[0] == pytest.approx(losses[1], rel=1e-9)


def test_search_on_steps_finer_than_the_bins() -> None:
    counts = np.array([1, 0, 3, 50, 70, 90, 65, 30, 4, 0, 1])
    assert hfmg.search(counts, -1, 1, num_bits=8) == pytest.approx(naive.hfmg_range(counts.tolist(), -1, 1, num_bits=8))


SHAPES = {
    "flat": np.ones(1024),
    "bell": np.exp(-(np.linspace(-3, 3, 1024) ** 2)),
    "one side": np.exp(-np.linspace(0, 20, 1024)),
    "spike": np.where(np.arange(1024) == 300, 1.0, 1e-6),
    "comb": np.arange(1024) % 37 == 0,
}


@pytest.mark.skipif(not JIT, reason="all windows of 1024 bins")
@pytest.mark.parametrize("bits", [4, 8, 16])
@pytest.mark.parametrize("size", [200, 60_000, 1e11])
@pytest.mark.parametrize("shape", list(SHAPES))
def test_search_passes_over_no_window_that_is_better(shape: str, size: float, bits: int) -> None:
    shares = SHAPES[shape] / SHAPES[shape].sum()
    counts = np.random.default_rng(0).poisson(size * shares).astype(np.float64)
    windows = np.zeros((1024, 2), np.int64)
    windows = windows[: hfmg._shrink(counts, max(1, math.ceil(counts.sum() / 100000)), 256, windows)]
    losses = np.zeros(len(windows))
    hfmg._losses(counts, windows, 1 << bits, np.zeros(1025), losses)
    left, right = windows[np.argmin(losses)]
    assert hfmg.search(counts, 0.0, 1024.0, num_bits=bits) == (left, right + 1)


@pytest.mark.parametrize("size", [1, 511, 512, 513, 1100])
@pytest.mark.parametrize("low", [-3.0, 0.5])
def test_counts_of_any_size(size: int, low: float) -> None:
    values = np.linspace(low, 2.5, size, dtype=np.float32)
    counts = hfmg.bin_counts(values, low, 2.5, 100)
    assert counts.tolist() == naive.hfmg_count(values, low, 2.5, 100)
    assert counts.dtype == np.int64


@EXAMPLES
@given(values=arrays(np.float32, st.integers(1, 40), elements=st.floats(width=32)))
def test_extent(values: np.ndarray) -> None:
    low, high = hfmg.extent(values)
    if np.isnan(values).any():
        assert math.isnan(low) or math.isnan(high)
    else:
        assert (low, high) == (values.min(), values.max())
    assert hfmg.extent(values[:0]) == (0, 0)


@EXAMPLES
@given(parts=batches, bins=st.sampled_from([16, 100]))
def test_batches_are_poured_as_the_plain_twin_pours_them(parts: list[np.ndarray], bins: int) -> None:
    low, high, counts = plainly(parts, bins)
    observer = observed([])
    object.__setattr__(observer._settings, "num_of_bins", bins)  # fewer than users may ask for, to cross more edges
    for part in parts:
        observer.update(part)
    made = observer._histogram
    assert made is not None
    assert (made.low, made.high, made.counts.tolist()) == (low, high, counts)
    assert made.counts.sum() == observer.count == sum(part.size for part in parts)


@settings(max_examples=30 if JIT else 4, deadline=None)
@given(parts=batches, asymmetric=st.booleans(), bits=st.sampled_from([4, 8, 16]))
def test_every_input_has_usable_parameters(parts: list[np.ndarray], asymmetric: bool, bits: int) -> None:
    params = observed(parts, asymmetric=asymmetric, bits=bits).params()
    assert np.isfinite(params.scale)
    assert params.scale > 0
    assert params.num_bits == bits
    assert params.q_min <= params.offset <= params.q_max


def test_merging_is_pouring_in_a_batch() -> None:
    wide, narrow = np.linspace(-3, 5, 500, dtype=np.float32), np.linspace(-1, 2, 300, dtype=np.float32)
    one, other = observed([wide]), observed([narrow])
    one.merge(other)
    assert one.count == 800
    low, high, counts = plainly([narrow, wide], 1024)
    assert one._histogram is not None
    assert (one._histogram.low, one._histogram.high, one._histogram.counts.tolist()) == (low, high, counts)
    empty = observed([])
    empty.merge(one)
    one.merge(observed([]))
    assert empty._histogram is not None
    assert empty._histogram.counts.tolist() == one._histogram.counts.tolist()
    empty.merge(other)
    assert one._histogram.counts.sum() == 800  # what was merged in is not changed later


def test_only_like_observers_merge() -> None:
    for other in (HfmgObserver(Hfmg(), asymmetric=False), HfmgObserver(Hfmg(num_bits=4), asymmetric=True)):
        with pytest.raises(ValueError, match="same parameters"):
            HfmgObserver(Hfmg(), asymmetric=True).merge(other)


@pytest.mark.parametrize(("value", "scale", "offset"), [(0.0, 1.0, -128), (2.5, 2.5 / 255, -128), (-1, 1 / 255, 127)])
def test_constant_data(value: float, scale: float, offset: int) -> None:
    params = observed([np.full(100, value, np.float32)] * 2).params()
    assert params.scale == pytest.approx(scale)
    assert params.offset == offset
    widened = observed([np.full(100, value, np.float32), np.array([value, value + 8], np.float32)])
    assert widened._histogram is not None
    assert widened._histogram.counts[0] == 101


def test_a_range_below_the_resolution_of_float32() -> None:
    tiny = np.linspace(0, 1e-9, 50, dtype=np.float32)
    assert observed([tiny, 2 * tiny]).params().scale == 1


@pytest.mark.parametrize("values", [[3.4e38, -3.4e38], [3.4e38, 0.0], [-3.4e38, 1e30]])
def test_the_largest_floats(values: list[float]) -> None:
    parts = [np.array([1.0, 2.0], np.float32), np.array(values * 10, np.float32)]
    observer = observed(parts)
    assert observer._histogram is not None
    assert observer._histogram.counts.sum() == 22
    assert np.isfinite(observer.params().scale)


def test_values_that_are_not_finite_count_for_nothing_else() -> None:
    clean = np.linspace(-1, 3, 200, dtype=np.float32)
    dirty = np.insert(clean, [0, 50, 200], [np.nan, np.inf, -np.inf])
    observer = observed([dirty])
    assert not observer.finite
    assert observer.count == 200
    assert observer.params().scale == observed([clean]).params().scale
    overflowing = observed([np.array([1e300, 1.0, 2.0])])
    assert (overflowing.finite, overflowing.count) == (False, 2)


def test_nothing_observed() -> None:
    observer = observed([np.empty((0, 3)), np.array([np.nan], np.float32)])
    assert observer.count == 0
    with pytest.raises(DataError, match="no value was observed"):
        observer.params()


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_float_types(dtype: type) -> None:
    values = np.linspace(-1, 3, 300).astype(dtype).reshape(3, 100)
    assert observed([values.T]).params().scale == observed([values.astype(np.float32)]).params().scale
