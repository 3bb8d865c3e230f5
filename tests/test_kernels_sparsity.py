"""What is taken away: equality with what the real AMCT chose, and with a plain version."""

import json
from pathlib import Path

import naive
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from amct_onnx.kernels.sparsity import balanced_choice, filter_norms, pruned_count, selective_mask

GOLDEN = Path(__file__).parent / "golden" / "retrain"
CASES = json.loads((GOLDEN / "prune_ops.json").read_text(encoding="utf-8"))
ARRAYS = np.load(GOLDEN / "prune_ops.npz")


@pytest.mark.parametrize("case", CASES["selective"], ids=lambda case: case["w"])
def test_masks_are_those_of_amct(case):
    mask = selective_mask(ARRAYS[case["w"]], case["axis"])
    np.testing.assert_array_equal(mask, ARRAYS[f"{case['w']}/mask"])


@pytest.mark.parametrize("case", CASES["filter_prune"], ids=lambda c: f"{c['w']} {c['prune_ratio']} {c['group']}")
def test_filters_are_those_of_amct(case):
    weight = ARRAYS[case["w"]]
    ratio, group = case["prune_ratio"], case["group"]
    count = pruned_count(len(weight), ratio, ascend_optimized=case["ascend_optimized"], group=group)
    gone = balanced_choice(filter_norms(weight), count, group)
    assert [i for i in range(len(weight)) if i not in gone] == case["kept"]


@pytest.mark.parametrize(
    ("channels", "ratio", "ascend_optimized", "group", "pruned"),
    [
        (32, 0.3, True, 1, 0),
        (40, 0.3, True, 1, 8),
        (64, 0.3, True, 1, 16),
        (32, 0.3, False, 1, 10),
        (40, 0.3, False, 1, 12),
        (64, 0.3, False, 1, 19),
        (32, 0.5, False, 4, 16),
        (32, 0.7, True, 4, 16),
        (20, 0.25, True, 1, 4),
        (10, 0.25, False, 1, 2),
        (16, 0.9, True, 1, 0),
        (24, 0.3, True, 1, 0),
        (4, 0.9, False, 4, 0),
    ],
)
def test_how_many_go(channels, ratio, ascend_optimized, group, pruned):
    assert pruned_count(channels, ratio, ascend_optimized=ascend_optimized, group=group) == pruned


FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True, allow_subnormal=True)


@pytest.mark.parametrize("infinite", [np.inf, -np.inf, np.nan])
def test_of_infinite_weights_the_earlier_stay(infinite):
    weight = np.array([1, infinite, np.nan, np.inf, 3e38, 2, 1], np.float32)
    np.testing.assert_array_equal(selective_mask(weight, 0), [0, 1, 1, 0, 1, 1, 0])


@given(arrays(np.float32, array_shapes(min_dims=1, max_dims=3, max_side=9), elements=FLOATS), st.data())
def test_masks_are_those_of_the_plain_version(weight, data):
    axis = data.draw(st.integers(0, weight.ndim - 1))
    np.testing.assert_array_equal(selective_mask(weight, axis), naive.selective_mask(weight, axis))


@given(st.integers(1, 12).map(lambda cin: (cin, {1: 1, 2: 2, 3: 2}.get(cin % 4, 0) + 2 * (cin // 4))))
def test_how_many_weights_stay_along_the_input_channels(counts):
    cin, stay = counts
    assert selective_mask(np.ones((3, cin), np.float32), 1).sum(1).tolist() == [stay] * 3


def test_filters_of_one_norm_have_no_nan():
    assert filter_norms(np.ones((4, 2, 3))).tolist() == [0, 0, 0, 0]


@given(arrays(np.float64, st.sampled_from([4, 8, 12]), elements=st.floats(0, 1)), st.integers(0, 3))
def test_each_block_loses_as_many(scores, count):
    gone = balanced_choice(scores, 2 * min(count, len(scores) // 2), 2)
    half = len(scores) // 2
    assert (gone < half).sum() == (gone >= half).sum() == min(count, half)
    for block in (range(half), range(half, 2 * half)):
        kept = [i for i in block if i not in gone]
        assert all(scores[i] <= scores[j] for i in block if i in gone for j in kept)
