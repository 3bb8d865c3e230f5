"""The activation function that AdaRound looks through."""

import numpy as np
import pytest
from graphs import model, rewritten

from amct_onnx.kernels.activations import Clipped, Gelu, Leaky, Sigmoid, Tanh
from amct_onnx.passes.fused_activation import fused_activation
from amct_onnx.passes.pipelines import PREPARE

ERF = """d = Div (t, root) e = Erf (d) a = Add (e, one) m = Mul (t, a) y = Mul (m, half)"""
ERF_HALF_FIRST = """d = Div (t, root) e = Erf (d) a = Add (one, e) h = Mul (t, half) y = Mul (h, a)"""
TANH = """p = Pow (t, three) q = Mul (p, cubic) r = Add (t, q) s = Mul (r, slope) e = Tanh (s) a = Add (e, one)
          h = Mul (t, half) y = Mul (h, a)"""
RRELU = """r = RandomUniformLike <low = 0.1, high = 0.3> (t) y = PRelu (t, r)"""
NUMBERS = {
    "root": np.sqrt(2), "one": 1, "half": 0.5, "three": 3, "cubic": 0.044715, "slope": np.sqrt(2 / np.pi),
    "zero": 0, "six": 6, "single": [0.2], "each": np.arange(4).reshape(4, 1, 1) / 10,
}  # fmt: skip


def found(body, outputs="float[1, 4, 4, 4] y", opset=13):
    weights = {name: np.asarray(value, np.float32) for name, value in NUMBERS.items() if name in body}
    weights["w"] = np.ones((4, 2, 3, 3), np.float32)
    text = f"g (float[1, 4, 6, 6] x) => ({outputs}) {{ [layer] t = Conv <group = 2> (x, w) {body} }}"
    state, _ = rewritten(model(text, weights, opset=opset), *PREPARE)
    return fused_activation(state.graph, next(node for node in state.graph.nodes if node.name == "layer"))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("y = Relu (t)", Clipped()),
        ("y = Clip (t, zero, six)", Clipped(low=0.0, high=6.0)),
        ("y = Clip (t, zero)", Clipped(low=0.0)),
        ("y = Sigmoid (t)", Sigmoid()),
        ("y = Tanh (t)", Tanh()),
        (ERF, Gelu()),
        (ERF_HALF_FIRST, Gelu()),
        (TANH, Gelu()),
        ("y = Softplus (t)", None),
        ("y = Mul (t, t)", None),
        ("a = Relu (t) b = Tanh (t) y = Add (a, b)", None),
        ("d = Div (t, root) e = Erf (d) y = Mul (t, e)", None),
    ],
)
def test_is_recognised(body, expected):
    assert found(body) == expected


@pytest.mark.parametrize(
    ("body", "slopes"),
    [
        ("y = LeakyRelu <alpha = 0.3> (t)", [0.3] * 4),
        ("y = LeakyRelu (t)", [0.01] * 4),
        ("y = PRelu (t, single)", [0.2] * 4),
        ("y = PRelu (t, each)", [0, 0.1, 0.2, 0.3]),
        (RRELU, [0.2] * 4),
    ],
)
def test_slopes(body, slopes):
    activation = found(body)
    assert isinstance(activation, Leaky)
    np.testing.assert_allclose(activation.slopes, np.reshape(slopes, (2, 1, 2)), rtol=1e-6)


@pytest.mark.parametrize("attributes", ["", '<approximate = "tanh">'])
def test_one_node_for_gelu(attributes):
    assert found(f"y = Gelu {attributes} (t)", opset=20) == Gelu()


def test_what_the_model_outputs_is_compared_as_it_is():
    assert found("y = Relu (t)", "float[1, 4, 4, 4] t, float[1, 4, 4, 4] y") is None
    assert found(ERF, "float[1, 4, 4, 4] t, float[1, 4, 4, 4] y") is None
