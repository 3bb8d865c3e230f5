"""Scales and offsets of a range, quantization with them, and the roundings that the chip makes."""

from __future__ import annotations

import json
from pathlib import Path

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from amct_onnx.kernels.quant_params import (
    FLT_EPS,
    QuantParams,
    dequantize,
    params_from_range,
    quantize,
    round_to_fp16,
    truncate_to_s19,
)

GOLDEN = Path(__file__).parent / "golden"
CASES = json.loads((GOLDEN / "ops.json").read_text())["arq"]
ARRAYS = np.load(GOLDEN / "ops.npz")

values = st.floats(-1e6, 1e6, width=32)
anything = st.floats(allow_nan=False, allow_infinity=False, width=32)
widths = st.sampled_from([4, 6, 7, 8, 16])


def channel_range(case: dict) -> tuple[np.ndarray, np.ndarray]:
    weight = ARRAYS["w"].reshape(6 if case["channel_wise"] else 1, -1)
    return weight.min(axis=1), weight.max(axis=1)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["key"])
def test_golden_ranges_and_integers(case: dict) -> None:
    params = params_from_range(
        *channel_range(case), asymmetric=case["with_offset"], num_bits=case["quant_bits"], axis=0
    )
    assert params.scale.tolist() == case["scale"]
    assert params.offset.tolist() == case["offset"]
    q = quantize(ARRAYS["w"], params)
    np.testing.assert_array_equal(q, ARRAYS[case["key"] + "/int"])
    np.testing.assert_array_equal(dequantize(q, params), ARRAYS[case["key"] + "/fake"])


@given(low=values, high=values, asymmetric=st.booleans(), num_bits=widths)
def test_range_agrees_with_the_plain_twin(low: float, high: float, asymmetric: bool, num_bits: int) -> None:
    low, high = min(low, high), max(low, high)
    params = params_from_range(low, high, asymmetric=asymmetric, num_bits=num_bits)
    assert (params.scale, params.offset) == naive.scale_and_offset(low, high, asymmetric=asymmetric, num_bits=num_bits)
    assert params.scale.dtype == np.float32
    assert params.offset.dtype == np.int32
    assert params.scale.shape == params.offset.shape == ()


@given(low=anything, high=anything, asymmetric=st.booleans(), num_bits=widths)
def test_every_finite_range_has_usable_parameters(low: float, high: float, asymmetric: bool, num_bits: int) -> None:
    params = params_from_range(min(low, high), max(low, high), asymmetric=asymmetric, num_bits=num_bits)
    assert np.isfinite(params.scale)
    assert params.scale >= FLT_EPS
    assert params.q_min <= params.offset <= params.q_max


def test_range_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        params_from_range([0.0, np.nan], [1.0, 1.0], asymmetric=True, num_bits=8, axis=0)


def test_one_sided_ranges() -> None:
    assert params_from_range(0.5, 2.0, asymmetric=True, num_bits=8).offset == -128
    assert params_from_range(-2.0, -0.5, asymmetric=True, num_bits=8).offset == 127
    assert params_from_range(-1.0, 1.0, asymmetric=False, num_bits=8).scale == np.float32(1 / 127)
    assert params_from_range(-1.0, 0.9, asymmetric=False, num_bits=8).scale == np.float32(1 / 128)


@settings(max_examples=60)
@given(array=arrays(np.float32, (3, 4), elements=values), num_bits=widths, axis=st.sampled_from([None, 0, 1, -1]))
def test_quantize_agrees_with_the_plain_twin(array: np.ndarray, num_bits: int, axis: int | None) -> None:
    shape = () if axis is None else array.shape[axis]
    scale = np.linspace(0.3, 900.0, int(np.prod(shape)), dtype=np.float32).reshape(shape)
    offset = np.arange(scale.size, dtype=np.int32).reshape(shape) - 2
    params = QuantParams(scale=scale, offset=offset, num_bits=num_bits, axis=axis)
    q = quantize(array, params)
    assert q.dtype == (np.int16 if num_bits == 16 else np.int8)
    assert q.ravel().tolist() == naive.quantize(array, scale, offset, num_bits=num_bits, axis=axis)
    inside = (q > params.q_min) & (q < params.q_max)
    steps = np.broadcast_to(scale if axis != 0 else scale[:, None], array.shape)
    assert (np.abs(dequantize(q, params) - array) <= 0.5001 * steps + np.abs(array) * 1e-6)[inside].all()


def test_quantize_clips_what_overflows() -> None:
    params = params_from_range(-1e-5, 1e-5, asymmetric=False, num_bits=8)
    tiny = QuantParams(scale=np.float32(1e-5) * np.ones(()), offset=params.offset)
    assert quantize(np.array([3e38, -3e38, np.inf]), tiny).tolist() == [127, -128, 127]


@given(scale=st.floats(FLT_EPS, 4e9, width=32))
def test_fp16_scale_agrees_with_the_plain_twin(scale: float) -> None:
    rounded = round_to_fp16(scale)
    assert rounded == pytest.approx(naive.round_to_fp16(scale), rel=1e-6)
    assert rounded == pytest.approx(scale, rel=2.0**-10)
    assert rounded.dtype == np.float32


def test_fp16_scale_of_amct() -> None:
    assert round_to_fp16([0.0762821, 3.4e38]).tolist() == [0.0762939453125, 65504.0**2]


@given(value=st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False))
def test_s19_agrees_with_the_plain_twin(value: float) -> None:
    cut = truncate_to_s19(value)
    assert cut == naive.truncate_to_s19(value)
    assert cut.shape == ()
    assert truncate_to_s19([[value]]).shape == (1, 1)
