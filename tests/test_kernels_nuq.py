"""NUQ: the best few of the 256 steps."""

from __future__ import annotations

from itertools import pairwise

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from amct_onnx.errors import ModelError
from amct_onnx.kernels.arq import arq
from amct_onnx.kernels.nuq import Nuq, nearest_centre, nuq, optimal_centres
from amct_onnx.kernels.quant_params import dequantize, quantize


def loss_of(counts: dict[int, int], centres: np.ndarray) -> int:
    return sum(n * min((v - int(c)) ** 2 for c in centres) for v, n in counts.items())


@settings(max_examples=60, deadline=None)
@given(
    counts=st.dictionaries(st.integers(-128, 127), st.integers(1, 1000), min_size=1, max_size=12),
    number=st.integers(1, 6),
)
def test_no_other_integers_lose_less(counts: dict[int, int], number: int) -> None:
    histogram = np.zeros(256, np.int64)
    for value, count in counts.items():
        histogram[value + 128] = count
    centres = optimal_centres(histogram, number)
    assert (centres.shape, centres.dtype) == ((number,), np.int8)
    assert (np.diff(centres.astype(int)) > 0).all()
    assert loss_of(counts, centres) == naive.fewest_loss(counts, number)


@pytest.mark.parametrize("value", [-128, 0, 127])
def test_one_value_is_kept(value: int) -> None:
    histogram = np.zeros(256, np.int64)
    histogram[value + 128] = 5
    centres = optimal_centres(histogram, 16)
    assert value in centres
    assert len(set(centres.tolist())) == 16


def test_large_counts_do_not_overflow() -> None:
    centres = optimal_centres(np.full(256, 2**36), 32)
    assert loss_of(dict.fromkeys(range(-128, 128), 2**36), centres) == 32 * 44 * 2**36  # 44: a run of eight steps


@settings(max_examples=60)
@given(levels=arrays(np.int8, array_shapes(max_side=5)), centres=st.sets(st.integers(-128, 127), min_size=1))
def test_levels_go_to_the_nearest_centre(levels: np.ndarray, centres: set[int]) -> None:
    found = nearest_centre(levels, np.array(sorted(centres), np.int8))
    assert (
        found.tolist() == np.vectorize(lambda v: min(sorted(centres), key=lambda c: abs(c - int(v))))(levels).tolist()
    )


def error(weight: np.ndarray, params: object, centres: np.ndarray) -> float:
    found = dequantize(nearest_centre(quantize(weight, params), centres), params)
    return float(((found.astype(np.float64) - weight) ** 2).sum())


@settings(max_examples=40, deadline=None)
@given(
    weight=arrays(np.float32, (3, 40), elements=st.floats(-4, 4, width=32)),
    axis=st.sampled_from([None, 0]),
    steps=st.sampled_from([16, 32]),
)
def test_more_rounds_lose_no_more(weight: np.ndarray, axis: int | None, steps: int) -> None:
    errors = []
    for rounds in range(6):
        params, centres = nuq(weight, Nuq(num_steps=steps, num_of_iteration=rounds), axis=axis)
        assert centres.shape == (steps,)
        assert params.scale.shape == (() if axis is None else (3,))
        assert (params.scale > 0).all()
        errors.append(error(weight, params, centres))
    assert all(b <= a * (1 + 1e-6) + 1e-9 for a, b in pairwise(errors))


def test_rounds_and_steps_change_the_result() -> None:
    weight = np.random.default_rng(0).normal(size=(4, 500)).astype(np.float32)
    plain, more = (nuq(weight, Nuq(num_steps=16, num_of_iteration=n), axis=0) for n in (0, 1))
    np.testing.assert_array_equal(plain[0].scale, arq(weight, axis=0, num_bits=8).scale)
    assert error(weight, *more) < error(weight, *plain)
    wide = nuq(weight, Nuq(num_steps=32), axis=0)
    assert error(weight, *wide) < error(weight, *more) / 2


@pytest.mark.parametrize("weight", [np.zeros((2, 3)), np.full((2, 3), 7.0), np.full((1, 1), -1e-40), np.ones((1, 1))])
def test_odd_weights(weight: np.ndarray) -> None:
    params, centres = nuq(weight.astype(np.float32), Nuq(num_steps=16), axis=0)
    assert len(set(centres.tolist())) == 16
    assert error(weight, params, centres) < 1e-12


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(ModelError, match="NaN or infinity"):
        nuq(np.array([[1, bad]], np.float32), Nuq(), axis=None)


def test_fewer_steps_beat_a_random_start() -> None:
    """Lloyd's iteration from random centres, as a search without dynamic programming would do it."""
    rng = np.random.default_rng(1)
    levels = quantize(rng.normal(size=4000).astype(np.float32), arq(rng.normal(size=4000), axis=None, num_bits=8))
    values, counts = (part.astype(int) for part in np.unique(levels, return_counts=True))
    known = dict(zip(values.tolist(), counts.tolist(), strict=True))
    best = loss_of(known, optimal_centres(np.bincount(levels.astype(int) + 128, minlength=256), 16))
    for _ in range(5):
        centres = rng.choice(values, 16, replace=False).astype(float)
        for _ in range(50):
            nearest = np.abs(values[:, None] - centres).argmin(1)
            for k in set(nearest.tolist()):
                centres[k] = np.average(values[nearest == k], weights=counts[nearest == k])
        assert best <= loss_of(known, np.rint(centres))
