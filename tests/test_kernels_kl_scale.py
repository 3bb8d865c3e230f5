"""The search for the scales of AdaRound."""

import hypothesis.extra.numpy as hnp
import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amct_onnx.errors import ModelError
from amct_onnx.kernels.kl_scale import kl_scale

WEIGHTS = hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(-8, 8, width=32))


@settings(max_examples=40, deadline=None)
@given(WEIGHTS, st.sampled_from([6, 7, 8]))
def test_is_the_plain_search(weight, num_bits):
    found = kl_scale(weight, axis=None, num_bits=num_bits)
    wanted = naive.kl_scale(weight, num_bits=num_bits)
    assert found.scale == pytest.approx(wanted if wanted >= naive.FLT_EPS else 1, rel=1e-6)
    assert (found.scale.shape, found.offset.shape, found.axis, found.num_bits) == ((), (), None, num_bits)


def test_every_channel_is_searched_by_itself():
    weight = np.random.default_rng(0).normal(size=(5, 7, 3, 3)).astype(np.float32)
    found = kl_scale(weight, axis=0, num_bits=8)
    np.testing.assert_allclose(found.scale, [naive.kl_scale(channel, num_bits=8) for channel in weight], rtol=1e-6)
    assert len(set(found.scale / np.abs(weight).reshape(5, -1).max(axis=1))) > 1  # some are trimmed


@pytest.mark.parametrize("weight", [np.zeros((2, 3)), np.zeros((2, 1))])
def test_zeros_have_the_scale_1(weight):
    np.testing.assert_array_equal(kl_scale(weight, axis=0, num_bits=8).scale, [1, 1])


def test_a_constant_reaches_the_end_of_the_range():
    assert kl_scale(np.full((1, 9), -3.0), axis=0, num_bits=8).scale == pytest.approx([3 / 128])


@pytest.mark.parametrize(("weight", "what"), [([np.nan, 1], "NaN"), ([np.inf, 1], "inf"), ([], "no values")])
def test_what_is_no_weight_is_refused(weight, what):
    with pytest.raises(ModelError, match=what):
        kl_scale(np.array(weight), axis=None, num_bits=8)
