"""DMQ: the factors, and the observer that keeps the largest magnitude of each channel."""

from __future__ import annotations

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from amct_onnx.errors import DataError
from amct_onnx.kernels.dmq import MaximaObserver, balance_factors

MAGNITUDES = st.one_of(st.sampled_from([0.0, 1e-45, 1e-38, 1e-8, 1.0, 1e30]), st.floats(0, 1e6, width=32))


def factors(activation: list[float], weight: list[float], strength: float = 0.5) -> list[float]:
    return balance_factors(np.float32(activation), np.float32(weight), strength=strength).tolist()


@settings(max_examples=200)
@given(
    pairs=st.lists(st.tuples(MAGNITUDES, MAGNITUDES), min_size=1, max_size=8),
    strength=st.sampled_from([0.2, 0.5, 0.8]),
)
def test_factors_agree_with_the_plain_twin(pairs: list[tuple[float, float]], strength: float) -> None:
    activation, weight = map(list, zip(*pairs, strict=True))
    wanted = naive.balance_factors(np.float32(activation).tolist(), np.float32(weight).tolist(), strength)
    np.testing.assert_allclose(factors(activation, weight, strength), wanted, rtol=2e-5)


def test_strength_shares_the_difficulty() -> None:
    assert factors([16.0], [1.0]) == [4.0]
    assert factors([16.0, 1.0], [1.0, 1.0], 0.25) == [2.0, 1.0]


def test_channels_without_input_or_weight() -> None:
    # the whole channel has 16^.5 / 4^.5 = 2: its weights become 8, its inputs 8
    assert factors([16, 0, 4, 0], [4, 2, 0, 0]) == [2, 4, 0.5, 1]
    assert factors([0, 0], [1, 2]) == [1, 1]
    assert factors([1, 2], [0, 0]) == [1, 1]
    assert factors([1, 0], [0, 1]) == [1, 1]  # no channel to take an example from


def test_factors_stay_within_what_a_record_takes() -> None:
    assert factors([1e30, 1.0], [1e-6, 1.0], 0.8) == [2.0**23, 1.0]
    assert factors([1e-6, 1.0], [1e30, 1.0], 0.2) == [2.0**-23, 1.0]


@settings(max_examples=60)
@given(
    array=arrays(np.float32, array_shapes(min_dims=2, max_dims=4, max_side=4), elements=st.floats(-1e9, 1e9, width=32)),
    data=st.data(),
)
def test_any_split_in_any_order_gives_the_same_maxima(array: np.ndarray, data: st.DataObject) -> None:
    axis = data.draw(st.sampled_from([1, -1]))
    cut = data.draw(st.integers(0, len(array)))
    whole, forth, back, merged = (MaximaObserver(axis=axis) for _ in range(4))
    whole.update(array)
    for part in (array[:cut], array[cut:]):
        forth.update(part)
    back.update(array[cut:])
    merged.update(array[:cut])
    merged.merge(back)
    moved = np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)
    wanted = [max(abs(float(v)) for v in channel) for channel in moved]
    for observer in (whole, forth, merged):
        assert observer.maxima().tolist() == wanted
        assert (observer.count, observer.rank, observer.finite) == (array.size, array.ndim, True)


def test_state_does_not_grow() -> None:
    observer = MaximaObserver(axis=1)
    for _ in range(3):
        observer.update(np.ones((5, 2, 7), np.float16))
    assert observer.maxima().shape == (2,)
    assert observer.maxima().dtype == np.float32


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_seen(bad: float) -> None:
    observer = MaximaObserver(axis=1)
    observer.update(np.array([[1.0, bad]], np.float32))
    observer.update(np.array([[1.0, 1.0]], np.float32))
    assert not observer.finite


def test_nothing_seen_is_an_error() -> None:
    observer = MaximaObserver(axis=1)
    observer.update(np.empty((0, 3), np.float32))
    observer.merge(MaximaObserver(axis=1))
    assert observer.count == 0
    with pytest.raises(DataError, match="no value was observed"):
        observer.maxima()


def test_other_channels_are_an_error() -> None:
    observer = MaximaObserver(axis=-1)
    observer.update(np.ones((2, 3)))
    with pytest.raises(DataError, match="3 channels in one batch, 4 in another"):
        observer.update(np.ones((2, 4)))
    with pytest.raises(ValueError, match="same axis"):
        observer.merge(MaximaObserver(axis=1))
