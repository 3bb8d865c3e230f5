"""Learned rounding: gradients, the plain twin, every option, and odd layers."""

import math

import hypothesis.extra.numpy as hnp
import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import config

from amct_onnx.kernels import adaround
from amct_onnx.kernels.activations import Clipped, Gelu, Leaky, Sigmoid, Tanh
from amct_onnx.kernels.adaround import AdaRound, Layer, learn_rounding, nearest, soft_weights

LEAKY = Leaky(slopes=np.full((1, 1, 3), 0.25, np.float32))
FUNCTIONS = {
    "none": (None, lambda y: y),
    "relu": (Clipped(), lambda y: max(y, 0.0)),
    "relu6": (Clipped(high=6.0), lambda y: min(max(y, 0.0), 6.0)),
    "leaky": (LEAKY, lambda y: y if y > 0 else 0.25 * y),
    "sigmoid": (Sigmoid(), lambda y: 1 / (1 + math.exp(-y))),
    "tanh": (Tanh(), math.tanh),
    "gelu": (Gelu(), lambda y: y * (0.5 + 0.5 * math.erf(y / math.sqrt(2)))),
}


def make(seed=0, *, groups=1, channels=3, size=5, rows=12, scale=0.1, activation=None, correlated=True):
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(groups, channels, size)).astype(np.float32)
    x = rng.normal(size=(groups, rows, size)) + (2 if correlated else 0)
    target = rng.normal(0, 2, (groups, rows, channels))
    return Layer(
        weight=weight,
        scale=np.full((groups, channels, 1), scale, np.float32),
        rows=x.astype(np.float32),
        base=rng.normal(0, 0.02, target.shape).astype(np.float32),
        target=target.astype(np.float32),
        activation=activation,
        limits=(-128, 127),
    )


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_and_slopes_of_activation_functions(name):
    activation, plain = FUNCTIONS[name]
    if activation is None:
        return
    y = np.random.default_rng(0).uniform(-7, 7, (1, 50, 3)).astype(np.float32)
    np.testing.assert_allclose(activation.value(y), np.vectorize(plain)(y.astype(float)), atol=2e-6)
    slopes = [(plain(v + 1e-4) - plain(v - 1e-4)) / 2e-4 for v in y.ravel().astype(float)]
    np.testing.assert_allclose(activation.slope(y).ravel(), slopes, atol=1e-4)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_gradient_is_that_of_the_loss(name):
    activation, plain = FUNCTIONS[name]
    layer = make(activation=activation)
    delta = np.random.default_rng(1).normal(0, 0.1, layer.weight.shape).astype(np.float32)
    by_gram = activation is None
    gradient = adaround._by_gram(layer, adaround._grams(layer)) if by_gram else adaround._by_rows(layer, 256)
    found = gradient(delta, 0)

    def loss(added):
        y = layer.base + np.matmul(layer.rows, (added).transpose(0, 2, 1)) + layer.target.astype(float)
        errors = np.vectorize(plain)(y) - np.vectorize(plain)(layer.target.astype(float))
        return (errors**2).sum() / layer.rows.shape[1]

    for place in np.ndindex(*delta.shape):
        moved = [delta.astype(float), delta.astype(float)]
        moved[0][place] -= 1e-4
        moved[1][place] += 1e-4
        assert found[place] == pytest.approx((loss(moved[1]) - loss(moved[0])) / 2e-4, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_rounds_as_the_plain_twin(name):
    activation, plain = FUNCTIONS[name]
    layer = make(3, activation=activation)
    parameters = AdaRound(num_iteration=25, reg_param=0.02)
    found = learn_rounding(layer, parameters, threads=1)
    wanted = np.array(naive.adaround(layer, parameters, plain))
    assert np.mean(found[0] == wanted) >= 14 / 15  # a weight in the middle may fall to either side


@pytest.mark.parametrize("name", ["none", "relu", "gelu"])
def test_softens_as_the_plain_twin(name):
    activation, plain = FUNCTIONS[name]
    layer = make(3, activation=activation)
    parameters = AdaRound(num_iteration=25, reg_param=0.02)
    found = soft_weights(layer, parameters, threads=1)
    soft = naive.adaround_soft(layer, parameters, plain, step=1e-3)
    lower = np.floor(layer.weight / layer.scale)
    np.testing.assert_allclose(found[0], ((lower + soft) * layer.scale)[0], atol=1e-4 * 0.1)


def test_learning_is_better_than_rounding_to_nearest():
    for activation in (None, Clipped(), Tanh()):
        layer = make(5, channels=8, size=30, rows=200, activation=activation)
        learned = learn_rounding(layer, AdaRound(num_iteration=300), threads=2)
        assert layer.error(learned) < 0.5 * layer.error(nearest(layer))
        between = learned * layer.scale - layer.weight
        assert (np.abs(between) <= layer.scale * 1.0001).all()


def test_groups_are_independent():
    layer = make(6, groups=4, channels=2, size=6, rows=50)
    whole = learn_rounding(layer, AdaRound(num_iteration=60), threads=2)
    for group in range(4):
        part = layer.part(slice(group, group + 1), slice(None))
        np.testing.assert_array_equal(learn_rounding(part, AdaRound(num_iteration=60), threads=1)[0], whole[group])


@pytest.mark.parametrize("activation", [None, Clipped()], ids=["gram", "rows"])
def test_the_result_does_not_depend_on_the_number_of_threads(activation):
    layer = make(7, channels=200, size=300, rows=700, activation=activation)  # several blocks
    steps = 1 if config.DISABLE_JIT else 20
    results = [learn_rounding(layer, AdaRound(num_iteration=steps), threads=threads) for threads in (1, 2, 5)]
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


@pytest.mark.parametrize(
    "changed", [{"num_iteration": 400}, {"reg_param": 0.9}, {"beta_range": (3.0, 0.5)}, {"warm_start": 0.9}]
)
def test_every_option_counts(changed):
    layer = make(8, channels=16, size=60, rows=90)
    plain = learn_rounding(layer, AdaRound(num_iteration=100), threads=1)
    assert (learn_rounding(layer, AdaRound(**{"num_iteration": 100, **changed}), threads=1) != plain).any()


def test_no_steps_leave_the_nearest():
    layer = make(9)
    np.testing.assert_array_equal(learn_rounding(layer, AdaRound(num_iteration=0), threads=1), nearest(layer))


def test_the_schedule_of_the_regulariser():
    parameters = AdaRound(num_iteration=100, warm_start=0.2, beta_range=(20.0, 2.0))
    assert parameters.beta(19) is None
    assert parameters.beta(20) == pytest.approx(20)
    assert parameters.beta(60) == pytest.approx(11)
    assert 2 < parameters.beta(99) < 2.1
    assert (AdaRound().step, parameters.step) == (pytest.approx(1e-3), pytest.approx(0.1))


@settings(max_examples=25, deadline=None)
@given(
    hnp.arrays(np.float32, (1, 2, 3), elements=st.floats(-3, 3, width=32)),
    hnp.arrays(np.float32, st.tuples(st.just(1), st.integers(1, 4), st.just(3)), elements=st.floats(-9, 9, width=32)),
    st.sampled_from([None, Clipped(), Sigmoid()]),
)
def test_odd_weights_and_inputs_give_one_of_the_two_next_integers(weight, rows, activation):
    outputs = np.matmul(rows, weight.transpose(0, 2, 1))
    scale = np.full((1, 2, 1), 3 / 31, np.float32)
    layer = Layer(
        weight=weight, scale=scale, rows=rows, base=np.zeros_like(outputs), target=outputs,
        activation=activation, limits=(-32, 31),
    )  # fmt: skip
    found = learn_rounding(layer, AdaRound(num_iteration=20), threads=1)
    lower = np.floor(weight / scale)
    assert ((found == np.clip(lower, -32, 31)) | (found == np.clip(lower + 1, -32, 31))).all()


def test_one_weight_one_row():
    layer = make(1, channels=1, size=1, rows=1)
    assert learn_rounding(layer, AdaRound(num_iteration=10), threads=1).shape == (1, 1, 1)


def test_what_is_not_finite_is_an_error():
    layer = make(2)
    layer.rows[0, 0, 0] = np.nan
    with pytest.raises(FloatingPointError, match="finite"), np.errstate(invalid="ignore"):
        learn_rounding(layer, AdaRound(num_iteration=5), threads=1)
