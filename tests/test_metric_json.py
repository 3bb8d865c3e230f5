"""Metrics written to a file come back as they were."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from amct_onnx.auto_calibration.metric_json import UnwritableError, decode, encode

KINDS = st.one_of(
    hnp.integer_dtypes(endianness="="), hnp.unsigned_integer_dtypes(endianness="="), hnp.floating_dtypes(endianness="=")
).filter(lambda kind: kind.itemsize <= 8)
ARRAYS = hnp.arrays(KINDS, hnp.array_shapes(min_dims=0, max_dims=3, max_side=3))
PLAIN = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5))
METRICS = st.recursive(
    st.one_of(PLAIN, ARRAYS, ARRAYS.filter(lambda a: a.size).map(lambda a: a.ravel()[0])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=3), inner, max_size=3),
    ),
    max_leaves=5,
)


def same(a, b):
    if isinstance(a, (np.ndarray, np.generic)):
        return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    return a == b or (a != a and b != b)


@given(METRICS)
def test_a_metric_comes_back_with_its_types(metric):
    found = decode(json.loads(json.dumps(encode(metric))))
    assert type(found) is type(metric)
    assert same(metric, found)


@pytest.mark.parametrize("metric", [object(), {1, 2}, np.array(["a"]), b"bytes", [object()], 1j])
def test_what_json_has_no_form_for_is_said(metric):
    with pytest.raises(UnwritableError):
        encode(metric)


@pytest.mark.parametrize(
    "found", [{}, {"kind": "other", "items": []}, {"kind": "array", "dtype": "f4"}, {"kind": "set"}]
)
def test_what_was_not_written_by_this_is_refused(found):
    with pytest.raises((KeyError, TypeError, ValueError)):
        decode(found)
