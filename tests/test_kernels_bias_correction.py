"""Biases that follow the mean error of their layer's output, against a plain twin and what the real tool gave."""

import json
from pathlib import Path

import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amct_onnx.kernels.bias_correction import StepwiseCorrection, WholeCorrection

GOLDEN = json.loads((Path(__file__).parent / "golden/vitis.json").read_text(encoding="utf-8"))["cases"]
CASES = [case for case in GOLDEN if case["kind"] == "bias_corr_statistic"]
assert CASES


def single(values):
    return np.array(values, np.float32)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_the_statistic_is_that_of_the_real_tool(case):
    for given_arrays, wanted in zip(case["input"], case["expected"], strict=True):
        found, target = single(given_arrays["quantized"]), single(given_arrays["float"])
        correction = StepwiseCorrection(bias=np.zeros(len(found), np.float32), axis=-1)
        correction.update(found, target)
        assert correction.stopped == wanted["stop"]
        for name in ("efficiency", "deviation", "rate"):
            assert getattr(correction, name) == pytest.approx(wanted[name], rel=1e-6)


values = st.floats(-4, 4, width=16)
batch = st.tuples(*[st.lists(st.lists(values, min_size=3, max_size=3), min_size=2, max_size=2)] * 2)


def batch_like(found, wanted):
    """[C, n] -> [n, C], as a Gemm has it."""
    return single(found).T, single(wanted).T


@given(st.lists(batch, min_size=1, max_size=6), st.booleans())
def test_the_bias_is_that_of_the_plain_twin(batches, near):
    if near:  # small errors, as those of 8 bits
        batches = [(found, (np.array(found) + np.array(off) / 64).tolist()) for found, off in batches]
    correction = StepwiseCorrection(bias=single([1, -2]), axis=-1)
    for found, wanted in batches:
        correction.update(*batch_like(found, wanted))
    expected = naive.stepwise_bias([1.0, -2.0], batches)
    np.testing.assert_allclose(correction.bias, expected, rtol=1e-5, atol=1e-6)


def test_it_is_slower_when_near_and_stops_when_near_enough():
    wanted = single(np.ones((1, 2, 50)))
    correction = StepwiseCorrection(bias=np.zeros(2, np.float32), axis=1)
    rates = []
    for number in range(40):
        correction.update(wanted + single(2e-4 * (1 + number % 3)), wanted)
        rates.append(correction.rate)
        if correction.stopped:
            break
    assert 0.05 in rates
    assert rates[-1] == 0.025
    assert correction.efficiency > 4
    before = correction.bias
    correction.update(wanted + 1, wanted)
    assert correction.bias is before


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0, 3e38])
def test_the_bias_stays_finite(bad):
    for kind in (StepwiseCorrection, WholeCorrection):
        correction = kind(bias=np.zeros(2, np.float32), axis=1)
        with np.errstate(invalid="ignore", over="ignore"):
            correction.update(single([[bad, 1]]), single([[0, 0]]))
            correction.update(single([[-bad, 1]]), single([[bad, 1]]))
        assert np.isfinite(correction.bias).all()


def test_the_whole_error_goes_at_once():
    correction = WholeCorrection(bias=single([1, 2]), axis=1)
    assert correction.bias.tolist() == [1, 2]
    correction.update(single([[[1], [5]]]), single([[[0], [1]]]))
    assert correction.bias.tolist() == [0, -2]
    correction.update(single([[[-1, -1], [-3, -3]]]), single([[[1, 3], [0, 0]]]))
    assert correction.bias.tolist() == [2, 0]
