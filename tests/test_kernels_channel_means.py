"""Means of channels: exact sums across batches, whatever the order."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amct_onnx.errors import DataError
from amct_onnx.kernels.channel_means import MeansObserver


def seen(batches, axis=1):
    observer = MeansObserver(axis=axis)
    for batch in batches:
        observer.update(batch)
    return observer


values = st.lists(
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=3), min_size=1, max_size=9
)


@given(values, st.randoms())
def test_the_order_and_the_merging_of_batches_change_no_bit(rows, random):
    batches = [np.array(row, np.float32).reshape(1, 3) for row in rows]
    wanted = seen(batches).means()
    random.shuffle(batches)
    cut = random.randrange(len(batches) + 1)
    first, second = seen(batches[:cut]), pickle.loads(pickle.dumps(seen(batches[cut:])))
    first.merge(second)
    assert first.means().tolist() == wanted.tolist()
    exact = np.array(rows, np.float64).sum(0) / len(rows)
    np.testing.assert_allclose(wanted, exact, rtol=1e-6, atol=1e-12 * np.abs(np.array(rows)).max())
    assert first.count == 3 * len(rows)


@pytest.mark.parametrize(("axis", "wanted"), [(0, [1.0, 4.0]), (1, [1.5, 2.5, 3.5]), (-1, [1.5, 2.5, 3.5])])
def test_the_channels_are_along_the_axis(axis, wanted):
    assert seen([np.arange(6, dtype=np.float32).reshape(2, 3)], axis).means().tolist() == wanted


def test_single_values_denormals_and_empty_batches():
    tiny = np.float32(2**-149)
    observer = seen([np.array([tiny]), np.zeros(0, np.float32), np.array([tiny])], 0)
    assert observer.means().tolist() == [float(tiny)]
    assert seen([np.array([3], np.float16)], -1).means().tolist() == [3.0]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_noticed(bad):
    observer = seen([np.ones((2, 2), np.float32), np.array([[1, bad]], np.float32)])
    assert not observer.finite
    other = seen([np.ones((1, 2), np.float32)])
    other.merge(observer)
    assert not other.finite


def test_what_does_not_fit_is_refused():
    with pytest.raises(DataError, match="no value was observed"):
        MeansObserver(axis=0).means()
    with pytest.raises(DataError, match="2 channels in one batch, 3 in another"):
        seen([np.ones((1, 2), np.float32), np.ones((1, 3), np.float32)])
    with pytest.raises(ValueError, match="same axis"):
        MeansObserver(axis=0).merge(MeansObserver(axis=1))
