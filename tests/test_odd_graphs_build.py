"""The odd graphs themselves: each builds, is legal, runs in onnxruntime and gives finite outputs."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from odd_graphs import NOT_IN_ORT, ODD_GRAPHS, REFUSED, Builder, save_with_external_data
from odd_graphs.build import FEEDS

NOT_INFERABLE = {"weights_sparse"}
"""Legal, but onnx's strict shape inference fails on them: it does not see sparse initializers."""
EVERY = [*ODD_GRAPHS, *REFUSED, *NOT_IN_ORT]


def session(model: bytes | str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def node_names(graph: onnx.GraphProto) -> set[str]:
    bodies = [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
    return {node.name for node in graph.node}.union(*map(node_names, bodies))


@pytest.mark.parametrize("build", EVERY, ids=lambda build: build.__name__)
def test_builds_and_runs(build: Builder) -> None:
    case = build()
    onnx.checker.check_model(case.model, full_check=case.name not in NOT_INFERABLE)
    if build in NOT_IN_ORT:
        with pytest.raises(Exception, match="same node name"):
            session(case.model.SerializeToString())
        for node in case.model.graph.node:
            node.name = ""
    runner = session(case.model.SerializeToString())
    assert len(case.feeds) == FEEDS
    for feed in case.feeds:
        for output in runner.run(None, feed):
            assert np.isfinite(output).all()
    assert case.keeps_float <= node_names(case.model.graph)
    assert build.__doc__


def test_names_are_unique() -> None:
    names = [build.__name__ for build in EVERY]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("build", EVERY[:3], ids=lambda build: build.__name__)
def test_same_at_each_build(build: Builder) -> None:
    first, second = build(), build()
    assert first.model == second.model
    for one, other in zip(first.feeds, second.feeds, strict=True):
        np.testing.assert_equal(one, other)


def test_external_data(tmp_path) -> None:
    case = next(build() for build in ODD_GRAPHS if build.__name__ == "external_data")
    path = save_with_external_data(case, tmp_path)
    assert (tmp_path / "external_data.weights").stat().st_size > 10_000
    expected = session(case.model.SerializeToString()).run(None, case.feeds[0])
    np.testing.assert_equal(session(str(path)).run(None, case.feeds[0]), expected)
