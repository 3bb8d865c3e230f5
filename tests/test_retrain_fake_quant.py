"""Rounding in training: equality with what the real AMCT made of arrays, forward and backward."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

torch = pytest.importorskip("torch")

from amct_onnx.kernels.quant_params import params_from_range  # noqa: E402
from amct_onnx.retrain.fake_quant import Grid, grid_of_range, quantized_activation, quantized_weight  # noqa: E402
from amct_onnx.retrain.planning import RetrainLayer, RetrainPlan  # noqa: E402
from amct_onnx.retrain.quantizers import ActivationQuantizer  # noqa: E402
from amct_onnx.retrain_config import ArqRetrain, UlqActivation  # noqa: E402

torch.set_num_threads(1)  # the tensors are small
GOLDEN = Path(__file__).parent / "golden" / "retrain"
CASES = json.loads((GOLDEN / "ops.json").read_text(encoding="utf-8"))
ARRAYS = np.load(GOLDEN / "ops.npz")


def gradient_like(y):
    return torch.cos(0.37 * torch.arange(y.numel(), dtype=torch.float32)).reshape(y.shape)


def activation_quantizer(case):
    layer = RetrainLayer(
        name="layer",
        op_type="Conv",
        activation=UlqActivation(clip_max=1.0, clip_min=-1.0),
        weight=ArqRetrain(),
        fixed_min=case["fixed_min"],
        symmetric=not case["asymmetric"],
        axis=0,
        group=1,
    )
    quantizer = ActivationQuantizer(layer, RetrainPlan())
    values = {"clip_max": "clip_max", "clip_min": "clip_min", "clip_max_before": "clip_max_pre"}
    for ours, theirs in (values | {"clip_min_before": "clip_min_pre"}).items():
        getattr(quantizer, ours).data.fill_(case[theirs])
    return quantizer


@pytest.mark.parametrize("case", CASES["ulq_act"], ids=lambda case: case["key"])
def test_activations_are_those_of_amct_forward_and_backward(case):
    x = torch.from_numpy(ARRAYS[f"x/{case['x']}"]).requires_grad_()
    quantizer = activation_quantizer(case)
    y = quantizer(x)
    y.backward(gradient_like(y))
    np.testing.assert_allclose(y.detach(), ARRAYS[f"{case['key']}/y"], rtol=1e-5)
    np.testing.assert_allclose(x.grad, ARRAYS[f"{case['key']}/gx"], rtol=1e-5, atol=1e-5)
    params = quantizer.params()
    assert float(params.scale) == pytest.approx(case["scale"], rel=1e-6)
    assert int(params.offset) == case["offset"]
    assert quantizer.clip_max.item() == pytest.approx(case["clip_max_out"])
    assert quantizer.clip_min.item() == pytest.approx(case["clip_min_out"])
    # sums of thousands of terms of both signs: relative to their size, not to what remains
    assert quantizer.clip_max.grad.item() == pytest.approx(case["grad_clip_max"], rel=1e-5, abs=1e-4)
    assert quantizer.clip_min.grad.item() == pytest.approx(case["grad_clip_min"], rel=1e-5, abs=1e-4)


@pytest.mark.parametrize("case", CASES["ulq_weight"], ids=lambda case: case["key"])
def test_learned_weights_are_those_of_amct_forward_and_backward(case):
    """All channels but number 2, which the recorded array has without its values."""
    others = [0, 1, 3, 4, 5]
    weight = torch.from_numpy(ARRAYS["w"]).requires_grad_()
    scale = torch.from_numpy(ARRAYS[f"{case['key']}/s"]).requires_grad_()
    rows = weight if case["channel_wise"] else weight[None]
    used = scale.detach().reshape(-1, *([1] * (rows.ndim - 1)))
    y = quantized_weight(rows, scale, Grid(scale=used, offset=torch.zeros_like(used), num_bits=8)).reshape(weight.shape)
    gradient = gradient_like(y)
    y.backward(gradient)
    np.testing.assert_allclose(y.detach()[others], ARRAYS[f"{case['key']}/y"][others], rtol=1e-5)
    np.testing.assert_array_equal(weight.grad, gradient)
    if case["channel_wise"]:
        np.testing.assert_allclose(scale.grad[others], ARRAYS[f"{case['key']}/gs"][others], rtol=1e-5, atol=1e-5)


finite = st.floats(-1e6, 1e6, width=32)


@given(finite, finite, st.booleans(), st.sampled_from([4, 8, 16]))
def test_the_grid_of_a_range_is_that_of_the_engine(a, b, symmetric, num_bits):
    low, high = min(a, b), max(a, b)
    grid = grid_of_range(torch.tensor(low), torch.tensor(high), num_bits=num_bits, symmetric=symmetric)
    params = params_from_range(low, high, asymmetric=not symmetric, num_bits=num_bits)
    assert grid.scale.item() == pytest.approx(float(params.scale), rel=1e-6)
    is_flat = params.scale == 1.0
    assert is_flat or abs(grid.offset.item() - int(params.offset)) <= 1  # halves may fall on either side


@given(arrays(np.float32, 12, elements=finite), st.floats(0.125, 8, width=32), st.floats(-8, 0, width=32))
def test_values_inside_the_limits_move_by_half_a_step_at_most(values, high, low):
    top, bottom = torch.tensor(high), torch.tensor(low)
    grid = grid_of_range(bottom, top, num_bits=8, symmetric=False)
    y = quantized_activation(torch.from_numpy(values), top, bottom, top, bottom, grid).numpy()
    inside = (values <= high) & (values >= low)
    step = grid.scale.item()
    assert (np.abs(y - values)[inside] <= step * 1.001).all()
    assert (y <= high + step).all()
    assert (y >= low - step).all()
