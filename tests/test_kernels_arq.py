"""ARQ: the scales of weights, and their channels brought to the front."""

from __future__ import annotations

import json
from pathlib import Path

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from amct_onnx.errors import ModelError
from amct_onnx.kernels.arq import arq, channels_first, channels_restored
from amct_onnx.kernels.quant_params import dequantize, quantize

GOLDEN = Path(__file__).parent / "golden"
CASES = [case for case in json.loads((GOLDEN / "ops.json").read_text())["arq"] if not case["with_offset"]]
ARRAYS = np.load(GOLDEN / "ops.npz")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["key"])
def test_golden(case: dict) -> None:
    params = arq(ARRAYS["w"], axis=0 if case["channel_wise"] else None, num_bits=case["quant_bits"])
    assert np.atleast_1d(params.scale).tolist() == case["scale"]
    assert not params.offset.any()
    q = quantize(ARRAYS["w"], params)
    np.testing.assert_array_equal(q, ARRAYS[case["key"] + "/int"])
    np.testing.assert_array_equal(dequantize(q, params), ARRAYS[case["key"] + "/fake"])


@settings(max_examples=60)
@given(
    weight=arrays(np.float32, array_shapes(max_dims=4, max_side=4), elements=st.floats(-1e9, 1e9, width=32)),
    per_channel=st.booleans(),
    num_bits=st.sampled_from([4, 6, 7, 8]),
    data=st.data(),
)
def test_agrees_with_the_plain_twin(weight: np.ndarray, per_channel: bool, num_bits: int, data: st.DataObject) -> None:
    axis = data.draw(st.integers(-weight.ndim, weight.ndim - 1)) if per_channel else None
    params = arq(weight, axis=axis, num_bits=num_bits)
    assert np.atleast_1d(params.scale).tolist() == naive.arq(weight, axis=axis, num_bits=num_bits)
    assert params.scale.shape == (() if axis is None else (weight.shape[axis],))
    again = dequantize(quantize(weight, params), params)
    np.testing.assert_array_equal(quantize(again, params), quantize(weight, params))


def test_half_precision_is_computed_in_float32() -> None:
    weight = np.array([[1.0, -3.0], [0.1, 0.2]], np.float16)
    assert arq(weight, axis=0, num_bits=8).scale.tolist() == naive.arq(weight.astype(np.float32), axis=0, num_bits=8)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("axis", [None, 1])
def test_values_that_are_not_finite_are_refused(bad: float, axis: int | None) -> None:
    weight = np.ones((2, 3), np.float32)
    weight[1, 1] = bad
    with pytest.raises(ModelError, match="NaN or infinity"):
        arq(weight, axis=axis, num_bits=8)


def test_empty_weight_is_refused() -> None:
    with pytest.raises(ModelError, match=r"no values, its shape is \[0, 3\]"):
        arq(np.ones((0, 3), np.float32), axis=0, num_bits=8)


@pytest.mark.parametrize(
    ("shape", "axis", "group", "expected"),
    [
        ((6, 2, 3, 3), 0, 1, (6, 2, 3, 3)),
        ((6, 2, 3), 1, 1, (2, 6, 3)),
        ((6, 2, 3, 3), 1, 3, (6, 2, 3, 3)),
        ((5, 4), -1, 1, (4, 5)),
        ((3, 5, 4), 2, 1, (4, 3, 5)),
    ],
)
def test_channels_come_first_and_go_back(
    shape: tuple[int, ...], axis: int, group: int, expected: tuple[int, ...]
) -> None:
    weight = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    first = channels_first(weight, axis=axis, group=group)
    assert first.shape == expected
    np.testing.assert_array_equal(channels_restored(first, axis=axis, group=group), weight)


def test_channels_of_a_grouped_transposed_convolution() -> None:
    weight = np.arange(4 * 3 * 2, dtype=np.float32).reshape(4, 3, 2)  # 2 groups of 2 inputs and 3 outputs
    first = channels_first(weight, axis=1, group=2)
    for channel in range(6):
        group, output = divmod(channel, 3)
        np.testing.assert_array_equal(first[channel], weight[2 * group : 2 * group + 2, output])
