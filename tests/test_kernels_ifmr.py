"""IFMR: AMCT's candidate from a histogram, for every split of the data the same."""

from __future__ import annotations

import json
from pathlib import Path

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numba import config

from amct_onnx.errors import DataError
from amct_onnx.kernels import ifmr
from amct_onnx.kernels.histogram import BINS
from amct_onnx.kernels.ifmr import Ifmr, IfmrObserver

JIT = not config.DISABLE_JIT
EXAMPLES = settings(max_examples=60 if JIT else 4, deadline=None)
GOLDEN = Path(__file__).parent / "golden"
CASES = json.loads((GOLDEN / "ops.json").read_text())["ifmr"]
ARRAYS = np.load(GOLDEN / "ops.npz")

finite = st.floats(-(2.0**100), 2.0**100, width=32)
ordinary = st.one_of(st.floats(-8, 8, width=32), st.sampled_from([0.0, 1.0, -1.0, 2.5]))


def observed(values: np.ndarray, *, asymmetric: bool, **settings: object) -> IfmrObserver:
    observer = IfmrObserver(Ifmr(**settings), asymmetric=asymmetric)
    observer.update(values)
    return observer


def chosen(values: np.ndarray, *, asymmetric: bool, **settings: object) -> tuple[float, int]:
    params = observed(values, asymmetric=asymmetric, **settings).params()
    assert params.scale.dtype == np.float32
    assert params.offset.dtype == np.int32
    assert params.axis is None
    return float(params.scale), int(params.offset)


def regret(values: np.ndarray, *, asymmetric: bool, **settings: object) -> float:
    """How much larger, relatively, the true loss of the chosen candidate is than the smallest one."""
    scale, offset = chosen(values, asymmetric=asymmetric, **settings)
    scales, offsets, losses = naive.ifmr_candidates(values, asymmetric=asymmetric, **settings)
    taken = int(np.argmin(np.abs(np.array(scales) - scale)))
    assert scale == pytest.approx(scales[taken], rel=1e-6)
    assert offset == offsets[taken]
    return losses[taken] / min(losses) - 1 if losses[taken] > min(losses) else 0.0


def case_name(case: dict) -> str:
    return f"{case['x']}-{'asymmetric' if case['with_offset'] else 'symmetric'}-{case['max_percentile']}"


@pytest.mark.parametrize("case", CASES, ids=case_name)
def test_golden(case: dict) -> None:
    scale, offset = chosen(
        ARRAYS["x/" + case["x"]],
        asymmetric=case["with_offset"],
        search_range=tuple(case["search_range"]),
        search_step=case["search_step"],
        max_percentile=case["max_percentile"],
        min_percentile=case["min_percentile"],
    )
    assert scale == pytest.approx(case["scale"], rel=2e-7)
    assert offset == case["offset"]


@EXAMPLES
@given(
    values=arrays(np.float32, st.integers(1, 80), elements=st.one_of(ordinary, finite)),
    asymmetric=st.booleans(),
    num_bits=st.sampled_from([4, 8, 16]),
    share=st.sampled_from([0.6, 0.9, 0.999999, 1.0]),
    step=st.sampled_from([0.02, 0.05, 0.6]),
)
def test_few_values_are_searched_like_the_plain_twin(
    values: np.ndarray, asymmetric: bool, num_bits: int, share: float, step: float
) -> None:
    settings = {"search_step": step, "max_percentile": share, "min_percentile": share, "num_bits": num_bits}
    assert regret(values, asymmetric=asymmetric, **settings) < 1e-9


def sample(kind: str, size: int) -> np.ndarray:
    random = np.random.default_rng(len(kind))
    normal = random.normal(size=size)
    kinds = {
        "normal": normal,
        "relu": np.maximum(normal, 0),
        "relu6": np.clip(4 * normal, 0, 6),
        "sparse": np.where(normal > 1.5, normal, 0),
        "silu": normal / (1 + np.exp(-normal)),
        "student": random.standard_t(3, size=size),
        "uniform": random.uniform(-3, -1, size=size),
        "pixels": (random.integers(0, 256, size) / 255 - 0.45) / 0.225,
    }
    return kinds[kind].astype(np.float32)


@pytest.mark.parametrize("asymmetric", [True, False])
@pytest.mark.parametrize("kind", ["normal", "relu", "relu6", "sparse", "silu", "student", "uniform", "pixels"])
def test_many_values_lose_no_more_than_with_the_plain_twin(kind: str, asymmetric: bool) -> None:
    values = sample(kind, 60_000 if JIT else 6000)
    assert regret(values, asymmetric=asymmetric) < 1e-3
    assert regret(values, asymmetric=asymmetric, num_bits=4) < 1e-3
    assert regret(values, asymmetric=asymmetric, max_percentile=0.99, min_percentile=0.98) < 1e-3


@pytest.mark.parametrize("asymmetric", [True, False])
@pytest.mark.skipif(not JIT, reason="16384 edges per candidate")
def test_sixteen_bits_on_many_values(asymmetric: bool) -> None:
    values = sample("normal", 200_000)
    assert regret(values, asymmetric=asymmetric, num_bits=16) < 0.05


@EXAMPLES
@given(
    counts=arrays(np.int64, 40, elements=st.sampled_from([0, 0, 1, 5, 1000])),
    inside=st.floats(0, 1, exclude_max=True),
    position=st.sampled_from([0, 1, 500, BINS - 40]),
    steps=st.lists(st.floats(0.05, 3), min_size=2, max_size=4),
    ends=st.sampled_from([0.3, 1.0, 1.4]),
)
def test_boundaries_are_summed_in_closed_form(
    counts: np.ndarray, inside: float, position: int, steps: list[float], ends: float
) -> None:
    bins, sums = np.zeros(BINS, np.int64), np.zeros(BINS, np.int64)
    bins[position : position + 40] = counts
    sums[1:] = (bins[1:] * inside * 2**23).astype(np.int64)
    table = np.zeros((4, BINS))
    ifmr._tabulate(bins, sums, table)
    levels = np.array([int(ends * (position + 40) / step) for step in steps])
    expected = np.zeros(len(steps))
    ifmr._add_excess(expected, np.array(steps), levels, table)
    expected *= steps
    found = ifmr._excess_between_edges(table, np.array(steps), levels)
    size = float(bins.sum()) * (position + 40) ** 2
    rounding = 2.0**-53 * levels.max() * size  # of the plain sum, which adds up that many terms
    np.testing.assert_allclose(found - found[0], expected - expected[0], rtol=0, atol=max(rounding, 1e-12 * size))


def test_one_side_from_points_and_the_other_from_bins() -> None:
    values = np.concatenate([sample("relu", 6000), np.full(4, -1.5, np.float32)])
    assert regret(values, asymmetric=True) < 1e-3
    assert regret(1000 * values, asymmetric=True) < 1e-3
    assert regret(1000 * values, asymmetric=False) < 1e-3


@EXAMPLES
@given(
    parts=st.lists(arrays(np.float32, st.integers(0, 30), elements=ordinary), min_size=2, max_size=5),
    asymmetric=st.booleans(),
    data=st.data(),
)
def test_any_split_order_and_merge_give_the_same_bits(
    parts: list[np.ndarray], asymmetric: bool, data: st.DataObject
) -> None:
    parts.append(sample("normal", 2500))  # so that the losses come from bins
    expected = observed(np.concatenate(parts), asymmetric=asymmetric)
    shuffled = data.draw(st.permutations(parts))
    one_by_one = IfmrObserver(Ifmr(), asymmetric=asymmetric)
    merged = IfmrObserver(Ifmr(), asymmetric=asymmetric)
    for part in shuffled:
        one_by_one.update(part)
        merged.merge(observed(part, asymmetric=asymmetric))
    for observer in (one_by_one, merged):
        assert observer.count == expected.count
        assert observer.params().scale.tobytes() == expected.params().scale.tobytes()
        assert observer.params().offset == expected.params().offset


@pytest.mark.parametrize("value", [0.3, -0.3, 1.0, 1e-3, 12345.678])
@pytest.mark.parametrize("share_of_zeros", [0.0, 0.5])
@pytest.mark.parametrize("asymmetric", [True, False])
def test_data_that_are_constant_but_for_zeros(value: float, share_of_zeros: float, asymmetric: bool) -> None:
    values = np.full(3000, value, np.float32)
    values[: int(3000 * share_of_zeros)] = 0
    assert regret(values, asymmetric=asymmetric) == 0
    scales, _, losses = naive.ifmr_candidates(values, asymmetric=asymmetric)
    assert chosen(values, asymmetric=asymmetric)[0] == pytest.approx(scales[int(np.argmin(losses))], rel=1e-6)


def test_values_that_are_not_finite_count_for_nothing_else() -> None:
    clean = sample("normal", 3000)
    dirty = np.insert(clean, [0, 700, 3000], [np.nan, np.inf, -np.inf])
    observer = observed(dirty, asymmetric=True)
    assert not observer.finite
    assert observer.count == 3000
    assert observer.params().scale == observed(clean, asymmetric=True).params().scale
    other = observed(clean, asymmetric=True)
    assert other.finite
    other.merge(observer)
    assert not other.finite


@pytest.mark.parametrize("values", [[], [np.nan, np.inf]])
def test_nothing_observed(values: list[float]) -> None:
    observer = observed(np.array(values, np.float32), asymmetric=True)
    assert observer.count == 0
    with pytest.raises(DataError, match="no value was observed"):
        observer.params()


@pytest.mark.parametrize("values", [[0.0], [-0.0, 0.0], [1e-45, -1e-40], [1e-30]])
def test_no_more_than_zeros(values: list[float]) -> None:
    assert chosen(np.array(values, np.float32), asymmetric=True) == (1.0, -128)
    assert chosen(np.array(values, np.float32), asymmetric=False) == (1.0, 0)


@pytest.mark.parametrize("values", [[3.4e38], [-3.4e38], [3.4e38, -3.4e38, 1.0]])
@pytest.mark.parametrize("asymmetric", [True, False])
def test_the_largest_floats(values: list[float], asymmetric: bool) -> None:
    for data in (values, values * 3000 if JIT else values * 400):
        scale, _ = chosen(np.array(data, np.float32), asymmetric=asymmetric)
        assert scale == pytest.approx(3.4e38 * (2 if asymmetric and len(values) > 1 else 1) / 255, rel=1.2)


def test_percentile_beyond_what_is_kept() -> None:
    values = sample("student", 400_000 if JIT else 3000)
    settings = {"max_percentile": 0.9, "min_percentile": 0.9}
    scale, _ = chosen(values, asymmetric=False, search_range=(0.5, 1.0), search_step=0.5, **settings)  # one candidate
    high, low = naive.percentile(values, 0.9), naive.percentile(-values, 0.9)
    assert 2 * scale == pytest.approx(max(high / 127, low / (128 if high < low else 127)), rel=2e-3)


def test_only_like_observers_merge() -> None:
    observer = observed(np.ones(3), asymmetric=True)
    for other in (IfmrObserver(Ifmr(), asymmetric=False), IfmrObserver(Ifmr(num_bits=4), asymmetric=True)):
        with pytest.raises(ValueError, match="same parameters"):
            observer.merge(other)
