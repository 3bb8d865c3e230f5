"""What each pass requires is given by what ran before it: proved without a model."""

import pytest
from graphs import model

from amct_onnx.errors import ModelError, PassError
from amct_onnx.passes import invariants
from amct_onnx.passes.graph import Graph
from amct_onnx.passes.manager import run_passes
from amct_onnx.passes.pipelines import (
    DEPLOY,
    FAKE_QUANT,
    FAKE_QUANT_GRIDS,
    FUSE,
    GIVEN,
    PREPARE,
    QDQ,
    QDQ_GRIDS,
    REWRITE,
    TAKE_OVER_GRIDS,
    TRAINED,
    calibrate,
    calibrate_by_strategy,
)
from amct_onnx.passes.state import Invariant, Pass, QuantState

# Every graph consists of standard operators until the deploy pipeline inserts others, and the plan names nodes that
# it saw in the prepared graph.
AFTER_PLANNING = (invariants.STANDARD_ONLY, invariants.PLANNED)


@pytest.mark.parametrize("scales", [calibrate([]), GIVEN, TRAINED], ids=["calibrated", "given", "trained"])
@pytest.mark.parametrize("last", [DEPLOY, FAKE_QUANT, QDQ], ids=["deploy", "fake quant", "qdq"])
def test_every_requirement_is_ensured_earlier(scales, last):
    check(scales, last)


@pytest.mark.parametrize(
    "last", [FAKE_QUANT_GRIDS, QDQ_GRIDS, (*TAKE_OVER_GRIDS, *DEPLOY)], ids=["fake quant", "qdq", "deploy"]
)
def test_every_requirement_of_a_strategy_is_ensured_earlier(last):
    check((*REWRITE, *calibrate_by_strategy([])), last)


def check(scales, last):
    given = set()
    for step in PREPARE:
        assert {i.name for i in step.requires} <= given, step.name
        given |= {i.name for i in step.ensures}
    given |= {i.name for i in AFTER_PLANNING}
    for step in (*FUSE, *scales, *last):
        assert {i.name for i in step.requires} <= given, step.name
        given |= {i.name for i in step.ensures}


def state():
    return QuantState(graph=Graph.of_model(model("g (float[1] x) => (float[1] y) { y = Relu(x) }")))


def test_a_failing_pass_is_named_with_those_before_it():
    def fail(_):
        raise KeyError("lost")

    passes = [Pass(name="first", run=lambda _: None), Pass(name="second", run=fail)]
    with pytest.raises(PassError, match=r"pass 'second' failed \(after first\): KeyError: 'lost'"):
        run_passes(passes, state())


def test_a_broken_promise_is_named():
    never = Invariant(name="never holds", check=lambda _: ["it does not"])
    with pytest.raises(PassError, match="pass 'p' ensures 'never holds': it does not"):
        run_passes([Pass(name="p", run=lambda _: None, ensures=(never,))], state())
    with pytest.raises(PassError, match="pass 'p' requires 'never holds': it does not"):
        run_passes([Pass(name="p", run=lambda _: None, requires=(never,))], state())


def test_what_a_pass_says_about_the_model_is_handed_on():
    def refuse(_):
        raise ModelError("no good")

    with pytest.raises(ModelError, match=r"^no good$"):
        run_passes([Pass(name="p", run=refuse)], state())
