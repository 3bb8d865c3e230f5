"""Vitis AI's arithmetic: every golden case on arrays, and plain twins on what may come."""

import json
from pathlib import Path

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from amct_onnx.errors import ConfigError, DataError
from amct_onnx.kernels.batch_statistic import batch_statistic
from amct_onnx.kernels.cast import cast_through
from amct_onnx.kernels.clip_range import clip_by_entropy, clip_by_percentile
from amct_onnx.kernels.dpu import LayerPositions, pooling_factor, shifted_within_reach
from amct_onnx.kernels.grid import Grid, fake_quantized, grid_levels
from amct_onnx.kernels.power_of_two import position_of_least_error, position_of_range
from amct_onnx.kernels.rounding import ROUND_MODES, rounded
from amct_onnx.kernels.strategy import Fit, TensorStrategy, fit, grid_of, joined

GOLDEN = json.loads((Path(__file__).parent / "golden/vitis.json").read_text(encoding="utf-8"))["cases"]


def cases(*kinds):
    found = [case for case in GOLDEN if case["kind"] in kinds]
    assert found
    return pytest.mark.parametrize("case", found, ids=lambda case: case["id"])


def single(values):
    return np.array(values, np.float32)


def plain_grid(scale, low=-128, high=127, mode="half_even", zero=0):
    scale, zero = np.asarray(scale, np.float64), np.asarray(zero, np.int64)
    return Grid(scale=scale, zero_point=zero, low=low, high=high, round_mode=mode, num_bits=8)


@cases("round")
def test_rounding(case):
    asked = case["params"]
    grid = plain_grid(asked["scale"], asked["qmin"], asked["qmax"], asked["round_mode"], asked["zero_point"])
    assert grid_levels(single(case["input"]), grid).tolist() == case["expected"]["q"]


@cases("po2_quantize")
def test_powers_of_two(case):
    grid = plain_grid(2.0 ** -case["params"]["position"], mode=case["params"]["round_mode"])
    assert grid_levels(single(case["input"]), grid).tolist() == case["expected"]["q"]
    assert fake_quantized(single(case["input"]), grid).tolist() == case["expected"]["dequant"]


@cases("po2_position")
def test_positions(case):
    bits, mode, wanted = case["params"]["bits"], case["params"]["round_mode"], case["expected"]
    values = single(case["input"])
    assert position_of_range(values, num_bits=bits) == wanted["position_maxmin"]
    assert position_of_least_error(values, num_bits=bits, round_mode=mode) == wanted["position_diffs"]
    strategy = TensorStrategy(bit_width=bits, round_mode=mode)
    assert grid_levels(values, grid_of(fit(values, strategy), strategy)).tolist() == wanted["q_at_diffs"]


@cases("float_quantize")
def test_float_scales(case):
    asked, wanted, values = case["params"], case["expected"], single(case["input"])
    names = ("method", "symmetry", "signed", "narrow_range", "round_mode")
    strategy = TensorStrategy(bit_width=asked["bits"], scale_type="float", **{name: asked[name] for name in names})
    assert (strategy.low, strategy.high) == (asked["qmin"], asked["qmax"])
    found = fit(values, strategy)
    assert float(found.scale) == pytest.approx(wanted["scale"], rel=1e-12)
    assert int(found.zero_point) == wanted["zero_point"]
    grid = grid_of(found, strategy)
    assert grid_levels(values, grid).tolist() == wanted["q"]
    assert fake_quantized(values, grid).tolist() == wanted["dequant"]


@cases("float_per_channel", "po2_per_channel")
def test_scales_per_channel(case):
    asked, wanted, values = case["params"], case["expected"], single(case["input"])
    strategy = TensorStrategy(
        bit_width=asked["bits"], round_mode=asked["round_mode"], scale_type="float", method="maxmin"
    )
    if case["kind"] == "float_per_channel":
        assert fit(values, strategy, asked["axis"]).scale.tolist() == wanted["scale"]
        return
    for method in ("diffs", "maxmin"):
        strategy = TensorStrategy(bit_width=asked["bits"], round_mode=asked["round_mode"], method=method)
        found = fit(values, strategy, asked["axis"])
        assert (-np.log2(found.scale)).tolist() == wanted[f"position_{method}"]


def generated(case):
    text, count = case["input"]["generator"], case["input"]["n"]
    u = ((np.arange(count) * 7919) % 10007) / 10007
    values = ((2 * u - 1) ** 3 * 4.0).astype(np.float32)
    if "max(x,0)" in text:
        values = np.maximum(values, np.float32(0))
    if "x[0]=20" in text:
        values[0] = 20
    return values


@cases("histogram")
def test_ranges_from_histograms(case):
    asked, wanted, values = case["params"], case["expected"], generated(case)
    strategy = TensorStrategy(
        bit_width=asked["bits"],
        method=asked["method"],
        scale_type="float",
        round_mode="half_even",
        percentage=asked.get("percentage", 99.99),
    )
    found = fit(values, strategy)
    assert float(found.scale) * strategy.high == pytest.approx(wanted["amax"], rel=1e-7)
    assert float(found.scale) == pytest.approx(wanted["scale"], rel=1e-6)


@cases("dtype_cast")
def test_casts(case):
    values, datatype = single(case["input"]), case["params"]["datatype"]
    assert cast_through(values, datatype).tolist() == case["expected"]
    strategy = TensorStrategy(datatype=datatype)
    assert fake_quantized(values, grid_of(fit(values, strategy), strategy)).tolist() == case["expected"]


@given(arrays(np.float32, st.integers(0, 20), elements=st.floats(width=32)))
def test_a_cast_gives_the_nearest_value(values):
    with np.errstate(invalid="ignore"):  # of NaN
        for datatype, digits, least in (("float16", 11, -24), ("bfloat16", 8, -133)):
            expected = [naive.cast(float(value), digits, least) for value in values]
            largest = 65504 if datatype == "float16" else float.fromhex("0x1.fep127")
            expected = [v if not abs(v) > largest else float(np.copysign(np.inf, v)) for v in expected]
            np.testing.assert_array_equal(cast_through(values, datatype), np.array(expected, np.float32))
        np.testing.assert_array_equal(cast_through(values, "float32"), values)


@cases("batch_statistic")
def test_one_scale_from_many(case):
    method = case["params"]["calib_statistic_method"]
    strategy = TensorStrategy(scale_type="float", method="maxmin", calib_statistic_method=method)
    pairs = zip(case["input"]["scale"], case["input"]["zero_point"], strict=True)
    found = joined([Fit(scale=np.asarray(s), zero_point=np.asarray(z)) for s, z in pairs], strategy)
    assert float(found.scale) == case["expected"]["scale"]
    assert int(found.zero_point) == case["expected"]["zero_point"]


@cases("position_mode")
def test_one_position_from_many(case):
    fits = [Fit(scale=np.asarray(2.0**-p), zero_point=np.asarray(0)) for p in case["input"]]
    assert float(joined(fits, TensorStrategy()).scale) == 2.0 ** -case["expected"]["position"]


@cases("dpu_shift_adjust")
def test_shifts_of_the_dpu(case):
    given, wanted = case["input"], case["expected"]
    found = shifted_within_reach(
        LayerPositions(input=given["i"], weight=given["w"], output=given["o"], bias=given["b"])
    )
    assert (found.input, found.weight, found.bias, found.output) == tuple(wanted[k] for k in "iwbo")


@cases("avgpool_factor")
def test_pooling_of_the_dpu(case):
    assert pooling_factor(tuple(case["params"]["kernel"])) == case["expected"]["factor"]


@cases("pitfall")
def test_where_the_original_errs(case):
    if "sane_q" in case["expected"]:
        assert grid_levels(single(case["input"]), plain_grid(1.0)).tolist() == case["expected"]["sane_q"]
        return
    strategy = TensorStrategy(scale_type="float", method="maxmin", symmetry=False, per_channel=True)
    values = single(case["input"])
    grid = grid_of(fit(values, strategy, 0), strategy, 0)
    assert grid.zero_point.tolist() == case["expected"]["zero_point"]
    np.testing.assert_allclose(fake_quantized(values, grid).ravel(), case["expected"]["sane_dequant"], rtol=2e-7)


# Plain twins

numbers = st.one_of(
    st.floats(-200, 200, width=32),
    st.sampled_from([0.0, 0.5, -0.5, 1.5, 2.5, -2.5, 0.49999997, -0.49999997, 1e-45, 3.4e38, -3.4e38]),
)
tensors = arrays(np.float32, st.integers(1, 40), elements=numbers)


@pytest.mark.parametrize("mode", ROUND_MODES)
@given(tensors)
def test_rounding_is_that_of_the_plain_twin(mode, values):
    assert rounded(values, mode).tolist() == [naive.rounded(float(v), mode) for v in values]


@given(tensors, st.sampled_from([4, 8, 16]), st.sampled_from(ROUND_MODES))
@settings(max_examples=40)
def test_positions_are_those_of_the_plain_twin(values, bits, mode):
    assert position_of_range(values, num_bits=bits) == naive.position_of_range(values, bits)
    if np.abs(values).max() < 1e30:
        wanted = naive.position_of_least_error(values, bits, mode)
        assert position_of_least_error(values, num_bits=bits, round_mode=mode) == wanted


@given(
    arrays(np.float32, st.integers(1, 300), elements=st.floats(-9, 9, width=16)), st.sampled_from([50.0, 99.0, 100.0])
)
@settings(max_examples=12)
def test_ranges_are_those_of_the_plain_twin(values, percentage):
    assert clip_by_percentile(values, percentage) == naive.clip_by_percentile(values, percentage)
    assert clip_by_entropy(values, groups=8) in naive.clips_by_entropy(values, 8)


@pytest.mark.parametrize("values", [[0, 0, 0], [1e-45], [-3.3e38, 3.3e38], [7], [-7, -7]])
def test_extreme_tensors_get_usable_grids(values):
    values = single(values)
    for method in ("maxmin", "percentile", "mse", "entropy"):
        strategy = TensorStrategy(scale_type="float", method=method, round_mode="half_even")
        found = fake_quantized(values, grid_of(fit(values, strategy), strategy))
        assert np.isfinite(found).all()
        if 1e-30 < np.abs(values).max() < 1e30:
            np.testing.assert_allclose(found, values, rtol=0.3)
    for method in ("maxmin", "diffs"):
        strategy = TensorStrategy(method=method)
        assert np.isfinite(fake_quantized(values, grid_of(fit(values, strategy), strategy))).all()


def test_what_is_not_finite_or_empty_stays():
    for values in ([np.nan, 0.3], [np.inf, 0.3], []):
        assert np.array_equal(fake_quantized(single(values), plain_grid(1.0)), single(values), equal_nan=True)


def test_statistics_of_one_batch_are_its_own():
    assert {batch_statistic([0.7], method) for method in ("max", "mean", "median", "modal")} == {0.7}


def test_unsigned_integers_hold_no_negative_values():
    strategy = TensorStrategy(signed=False, scale_type="float", method="maxmin")
    assert fit(single([0, 0.5, 2.55]), strategy).scale == pytest.approx(0.01)
    with pytest.raises(DataError, match="negative values"):
        fit(single([-1, 1]), strategy)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("bit_width", 33, "from 1 to 32"),
        ("bit_width", 0, "from 1 to 32"),
        ("bit_width", True, "from 1 to 32"),
        ("bit_width", 1, "no positive integer"),
        ("method", "Maxmin", "must be one of"),
        ("round_mode", "nearest", "must be one of"),
        ("scale_type", "power_of_two", "must be one of"),
        ("symmetry", "true", "true or false"),
        ("percentage", 0.0, "percentage"),
        ("datatype", "int8", "must be one of"),
    ],
)
def test_what_is_not_allowed_is_said(field, value, said):
    with pytest.raises(ConfigError, match=said):
        TensorStrategy(**{field: value})
