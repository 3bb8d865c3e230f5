"""Factors between two layers, against the plain twin and Vitis AI's."""

import json
from pathlib import Path

import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amct_onnx.kernels.equalisation import equalisation_factors

GOLDEN = json.loads((Path(__file__).parent / "golden/vitis.json").read_text(encoding="utf-8"))["cases"]
CASES = [case for case in GOLDEN if case["kind"] == "cle_scale"]


def single(values):
    return np.array(values, np.float32)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_factors_are_those_of_vitis_ai(case):
    given, wanted = case["input"], case["expected"]
    rows, bias, behind = single(given["W0_rows"]), single(given["b0"]), single(given["W1_out_by_in"])
    factors = equalisation_factors(rows, bias, np.abs(behind).max(0))
    np.testing.assert_allclose(factors, wanted["scale"], rtol=2e-7)
    np.testing.assert_allclose(rows / factors[:, None], wanted["W0_new"], rtol=3e-7)
    np.testing.assert_allclose(bias / factors, wanted["b0_new"], rtol=3e-7)
    np.testing.assert_allclose(behind * factors, wanted["W1_new"], rtol=3e-7)


weights = st.floats(-4, 4, width=16)


@given(st.lists(st.tuples(weights, weights, st.floats(-50, 50, width=16), st.floats(0, 4, width=16)), min_size=1))
def test_factors_are_those_of_the_plain_twin(channels):
    rows, bias, behind = [c[:2] for c in channels], [c[2] for c in channels], [c[3] for c in channels]
    for given_bias in (bias, None):
        found = equalisation_factors(single(rows), None if given_bias is None else single(given_bias), single(behind))
        np.testing.assert_allclose(found, naive.equalisation_factors(rows, given_bias, behind), rtol=1e-4)


@pytest.mark.parametrize("size", [0.0, 1e-45, 1e38])
def test_extreme_weights_give_usable_factors(size):
    rows = single([[size, -size], [1, 2]])
    factors = equalisation_factors(rows, single([size, 0]), single([1, 1]))
    assert np.isfinite(factors).all()
    assert (factors > 0).all()
