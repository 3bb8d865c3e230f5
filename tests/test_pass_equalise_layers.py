"""Equalisation: the same numbers, other weights."""

from dataclasses import replace

import numpy as np
import pytest
from graphs import assert_same_numbers, initializers, model, nodes_as_text, rewritten

from amct_onnx.config import QuantConfig
from amct_onnx.kernels.equalisation import equalisation_factors
from amct_onnx.passes.equalise_layers import EQUALISE_LAYERS
from amct_onnx.passes.manager import run_passes
from amct_onnx.passes.pipelines import PREPARE
from amct_onnx.planning import make_plan

RNG = np.random.default_rng(7)


def uneven(*shape, axis=0):
    size = np.exp(RNG.normal(size=shape[axis])).reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return (RNG.normal(size=shape) * size).astype(np.float32)


WEIGHTS = {
    "a": uneven(6, 4, 3, 3),
    "p": uneven(6),
    "b": uneven(5, 6, 1, 1, axis=1),
    "d": uneven(6, 1, 3, 3),
    "g": uneven(4, 3, 1, 1, axis=1),
    "t": uneven(6, 4, 2, 2),
    "u": uneven(3, 4, 2, 2, axis=1),
    "one": uneven(4, 6, 3),
}


def equalised(nodes, inputs="float[2, 4, 8, 8] x", outputs="float y", config=None, **scalars):
    weights = {**WEIGHTS, **{name: np.float32(value) for name, value in scalars.items()}}
    used = {name: v for name, v in weights.items() if f", {name})" in nodes or f", {name}," in nodes}
    source = model(f"g ({inputs}) => ({outputs}) {{ {nodes} }}", used)
    for value in source.graph.output:
        value.type.tensor_type.ClearField("shape")
    state, prepared = rewritten(source, *PREPARE)
    state = replace(state, plan=make_plan(state, config or QuantConfig(equalise_layers=True)))
    run_passes([EQUALISE_LAYERS], state)
    return prepared, state.graph.to_model()


def changed(before, after):
    old, new = initializers(before), initializers(after)
    return sorted(name for name in old if not np.array_equal(old[name], new[name]))


PAIRS = {
    "plain": ("[one] h = Conv(x, a, p) [two] y = Conv(h, b)", ["a", "b", "p"]),
    "relu": ("[one] h = Conv(x, a) [r] k = Relu(h) [two] y = Conv(k, b)", ["a", "b"]),
    "pool": (
        "[one] h = Conv(x, a) [r] k = Relu(h) [m] n = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(k) "
        "[two] y = Conv(n, b)",
        ["a", "b"],
    ),
    "depthwise": ("[one] h = Conv(x, a, p) [two] k = Conv<group = 6>(h, d) [three] y = Conv(k, b)", list("abdp")),
    "grouped": ("[one] h = Conv(x, a, p) [two] y = Conv<group = 2>(h, g)", ["a", "g", "p"]),
    "transposed": (
        "[one] h = Conv(x, a) [two] k = ConvTranspose(h, t) [r] l = Relu(k) [three] y = Conv(l, u)",
        ["a", "t", "u"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_the_numbers_stay_and_the_weights_change(name):
    nodes, wanted = PAIRS[name]
    before, after = equalised(nodes)
    assert changed(before, after) == wanted
    assert len(nodes_as_text(before)) == len(nodes_as_text(after))
    assert_same_numbers(before, after, rtol=1e-5)


def test_the_factors_are_those_of_the_kernel_and_tensors_between_get_other_names():
    before, after = equalised(PAIRS["relu"][0])
    behind = np.abs(WEIGHTS["b"]).max(axis=(0, 2, 3))
    factors = equalisation_factors(WEIGHTS["a"].reshape(6, -1), None, behind)
    np.testing.assert_allclose(initializers(after)["b"], WEIGHTS["b"] * factors.reshape(1, 6, 1, 1), rtol=1e-6)
    assert "h.equalised" in nodes_as_text(after)[0]
    assert "k.equalised" in nodes_as_text(after)[1]
    assert "h.equalised" not in nodes_as_text(before)[0]


CLIPPED = (
    "[one] h = Conv(x, a, p) [c] k = Clip(h, low, high) [m] n = MaxPool<kernel_shape = [2, 2]>(k) [two] y = Conv(n, b)"
)


@pytest.mark.parametrize("high", [6, 0.5])
def test_the_upper_bound_of_a_clip_is_divided_too(high):
    before, after = equalised(CLIPPED, low=0, high=high)
    assert [node.op_type for node in after.graph.node] == ["Conv", "Relu", "Min", "MaxPool", "Conv"]
    assert initializers(after)["c.cap.bounds"].shape == (6, 1, 1)
    assert len(set(initializers(after)["c.cap.bounds"].ravel())) > 1
    assert_same_numbers(before, after, rtol=1e-5)


@pytest.mark.parametrize("bounds", [(-1, 6), (0, np.inf), (0, 0), (1, 6)])
def test_other_clips_end_a_chain(bounds):
    assert changed(*equalised(CLIPPED, low=bounds[0], high=bounds[1])) == []


LEFT = {
    "another reader": "[one] h = Conv(x, a) [two] k = Conv(h, b) [s] y = ReduceSum<keepdims = 0>(h)",
    "an addition": "[one] h = Conv(x, a) [s] k = Add(h, h) [two] y = Conv(k, b)",
    "a clip": "[one] h = Conv(x, a) [s] k = HardSigmoid(h) [two] y = Conv(k, b)",
    "the end": "[one] h = Conv(x, a) [r] y = Relu(h)",
}


@pytest.mark.parametrize("name", LEFT)
def test_what_cannot_be_scaled_is_left(name):
    before, after = equalised(LEFT[name])
    assert nodes_as_text(before) == nodes_as_text(after)
    assert changed(before, after) == []


def test_only_layers_that_are_planned_and_asked_for():
    nodes = PAIRS["plain"][0]
    for config in (QuantConfig(), QuantConfig(equalise_layers=True, skip_layers=("two",))):
        assert changed(*equalised(nodes, config=config)) == []


def test_an_output_of_the_model_keeps_its_value():
    before, after = equalised("[one] h = Conv(x, a) [two] y = Conv(h, b)", outputs="float h, float y")
    assert changed(before, after) == []


def test_1_d_convolutions_are_left():
    before, after = equalised("[one] h = Conv(x, one) [two] y = Conv(h, one)", "float[1, 6, 9] x")
    assert changed(before, after) == []
