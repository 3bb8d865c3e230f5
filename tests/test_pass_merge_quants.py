"""merge AscendQuant: layers that read one tensor alike share one AscendQuant, others do not."""

from dataclasses import replace

import numpy as np
import pytest
from graphs import assert_same_numbers, calibrated, initializers, model, nodes_as_text

from amct_onnx.passes.lower_ascend import LOWER_ASCEND
from amct_onnx.passes.manager import run_passes
from amct_onnx.passes.pipelines import INTEGER
from amct_onnx.passes.state import QuantState

RNG = np.random.default_rng(7)
INSERTED, MERGE = INTEGER[:-1], INTEGER[-1:]


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def two_products(first, second, inputs=("x", "x")) -> QuantState:
    text = "g (float[2, 4] x) => (float[2, 4] y, float[2, 4] r) { [r] r = Relu(x) "
    text += f"[a] t = MatMul({inputs[0]}, v) [b] u = MatMul({inputs[1]}, w) [c] y = Add(t, u) }}"
    source = model(text, {"v": normal(4, 4), "w": normal(4, 4)})
    state = calibrated(source, {"a": first, "b": second})
    run_passes(INSERTED, state)
    return state


def test_equal_quants_of_one_tensor_become_one():
    state = two_products((0.5, 3), (0.5, 3))
    before = state.graph.to_model()
    assert [line.split(" = ")[1] for line in nodes_as_text(before) if "AscendQuant" in line] == [
        "AscendQuant<dst_type=INT8, offset=3.0, scale=2.0>(x)"
    ] * 2
    run_passes(MERGE, state)
    after = state.graph.to_model()
    lines = nodes_as_text(after)
    assert [line for line in lines if "AscendQuant" in line] == [
        "[a.quant] a.quant.output0 = AscendQuant<dst_type=INT8, offset=3.0, scale=2.0>(x)"
    ]
    assert "[b] u = MatMul(a.quant.output0, int8[4, 4])" in lines
    assert len(before.graph.node) - len(after.graph.node) == 1
    np.testing.assert_equal(initializers(after), initializers(before))
    assert (state.gone, state.remarks) == ({}, {})


@pytest.mark.parametrize(
    ("first", "second", "inputs"),
    [
        ((0.5, 3), (0.25, 3), ("x", "x")),
        ((0.5, 3), (0.5, 2), ("x", "x")),
        ((0.5, 3), (0.5, 3), ("x", "r")),
        ((0.5, 3), (float(np.nextafter(np.float32(0.5), np.float32(1))), 3), ("x", "x")),
    ],
    ids=["other scale", "other offset", "other tensor", "almost the same scale"],
)
def test_other_quants_stay(first, second, inputs):
    state = two_products(first, second, inputs)
    before = nodes_as_text(state.graph.to_model())
    run_passes(MERGE, state)
    assert nodes_as_text(state.graph.to_model()) == before


def test_many_layers_over_one_tensor_share_one():
    names = [f"n{i}" for i in range(5)]
    text = " ".join(f"[{name}] t{i} = MatMul(x, w{i})" for i, name in enumerate(names))
    source = model(
        f"g (float[2, 4] x) => (float[2, 4] y) {{ {text} [sum] y = Sum(t0, t1, t2, t3, t4) }}",
        {f"w{i}": normal(4, 4) for i in range(5)},
    )
    state = calibrated(source, {name: (0.5, 0) if i != 3 else (0.5, 1) for i, name in enumerate(names)})
    run_passes(INTEGER, state)
    quants = {
        node.name: [user.name for user in node.outputs[0].outputs]
        for node in state.graph.nodes
        if node.op == "AscendQuant"
    }
    assert quants == {"n0.quant": ["n0", "n1", "n2", "n4"], "n3.quant": ["n3"]}


def test_numbers_stay():
    """Through the standard operators that compute the same."""
    state = two_products((0.05, 3), (0.05, 3))
    apart = replace(state, graph=state.graph.copy())
    run_passes((LOWER_ASCEND,), apart)
    run_passes((*MERGE, LOWER_ASCEND), state)
    assert len(apart.graph.nodes) - len(state.graph.nodes) == 5
    assert_same_numbers(apart.graph.to_model(), state.graph.to_model(), rtol=0)
