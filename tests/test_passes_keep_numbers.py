"""Preparing and fusing leaves every odd model computing the same, at its outputs and at every tensor that it keeps."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from graphs import rewritten, run
from odd_graphs import ODD_GRAPHS

from amct_onnx.config import QuantConfig
from amct_onnx.errors import ModelError
from amct_onnx.passes.convert_opset import with_accepted_opset
from amct_onnx.passes.manager import run_passes
from amct_onnx.passes.pipelines import FUSE, PREPARE
from amct_onnx.passes.weights import detached
from amct_onnx.planning import make_plan


def prepared_and_fused(source):
    state, result = rewritten(with_accepted_opset(detached(source)).whole(), *PREPARE)
    try:
        state = replace(state, plan=make_plan(state, QuantConfig(wide_fusion=True)))
    except ModelError:
        return result
    run_passes(FUSE, state)
    return state.graph.to_model()


def exposing(source, names):
    """A copy that also outputs some inner tensors."""
    copy = onnx.ModelProto()
    copy.CopyFrom(source)
    known = {value.name for value in source.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(names - known))
    return copy


def computed(source):
    return {name for node in source.graph.node for name in node.output if name}


def assert_close(found, expected, name):
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape), name
    if np.issubdtype(expected.dtype, np.floating):
        rtol = 4e-3 if expected.dtype == np.float16 else 1e-4
        span = float(np.ptp(expected)) if expected.size else 0.0
        np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol * span, err_msg=name)
    else:
        np.testing.assert_array_equal(found, expected, err_msg=name)


@pytest.mark.parametrize("build", ODD_GRAPHS, ids=lambda build: build.__name__)
def test_an_odd_model_computes_the_same(build):
    case = build()
    result = prepared_and_fused(case.model)
    for feed in case.feeds[:2]:
        expected, found = run(case.model, feed), run(result, feed)
        assert list(found) == list(expected)
        for name, values in expected.items():
            assert_close(found[name], values, name)


@pytest.mark.parametrize("build", ODD_GRAPHS, ids=lambda build: build.__name__)
def test_a_tensor_that_keeps_its_name_keeps_its_values(build):
    case = build()
    result = prepared_and_fused(case.model)
    shared = computed(case.model) & computed(result)
    expected, found = (run(exposing(m, shared), case.feeds[0], optimize=False) for m in (case.model, result))
    for name, values in expected.items():
        if isinstance(values, np.ndarray):
            assert_close(found[name], values, name)
