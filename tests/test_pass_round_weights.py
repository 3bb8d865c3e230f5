"""round weights: rows that stand for a layer, and the rounding learned from them."""

from dataclasses import replace

import numpy as np
import pytest
from graphs import assert_close, model, rewritten, run, sqnr

from amct_onnx import AdaRound, Arq, DataError, LayerConfig, QuantConfig, quantize_onnx
from amct_onnx.passes import round_weights
from amct_onnx.passes.layers import channels_first, weight_of
from amct_onnx.passes.pipelines import PREPARE
from amct_onnx.passes.sample_rows import InputSampler, OutputSampler, matrix_shape
from amct_onnx.planning import make_plan

RNG = np.random.default_rng(3)

LAYERS = [
    ("Conv (x, w)", (6, 4, 3), (2, 4, 9)),
    ("Conv <group = 2, pads = [1, 2, 0, 1], strides = [2, 1], dilations = [1, 2]> (x, w)", (6, 2, 3, 3), (2, 4, 9, 8)),
    ("Conv <group = 4, auto_pad = \"SAME_UPPER\", strides = [2, 2]> (x, w)", (4, 1, 3, 3), (2, 4, 9, 8)),
    ("Conv <auto_pad = \"SAME_LOWER\"> (x, w)", (3, 4, 2, 4), (2, 4, 5, 6)),
    ("Conv <pads = [1, 1, 1, 1, 1, 1]> (x, w)", (3, 4, 3, 3, 3), (1, 4, 5, 4, 3)),
    ("ConvTranspose <strides = [2, 2], pads = [1, 0, 0, 1]> (x, w)", (4, 5, 3, 3), (2, 4, 5, 4)),
    ("ConvTranspose <group = 2, output_padding = [1, 1], strides = [2, 3]> (x, w)", (4, 5, 3, 3), (2, 4, 5, 4)),
    ("ConvTranspose <auto_pad = \"SAME_UPPER\", strides = [2, 2]> (x, w)", (4, 5, 3, 3), (2, 4, 5, 4)),
    ("Gemm (x, w)", (7, 5), (9, 7)),
    ("MatMul (x, w)", (7, 5), (2, 3, 7)),
]  # fmt: skip


@pytest.mark.parametrize(("call", "kernel", "shape"), LAYERS)
@pytest.mark.parametrize("limit", [20, 10000])
def test_rows_times_weights_are_the_outputs(call, kernel, shape, limit):
    weight = RNG.normal(size=kernel).astype(np.float32)
    source = model(f"g (float{list(shape)} x) => (float y) {{ [layer] y = {call} }}", {"w": weight})
    source.graph.output[0].type.tensor_type.ClearField("shape")
    state, prepared = rewritten(source, *PREPARE)
    (node,) = state.graph.nodes
    feeds = [RNG.normal(size=shape).astype(np.float32) for _ in range(3)]
    outputs = OutputSampler(node, limit)
    for feed in feeds:
        outputs.update(run(prepared, {"x": feed})["y"])
    inputs = InputSampler(node, outputs.places())
    for feed in feeds:
        inputs.update(feed)
    groups, size = matrix_shape(node)
    matrix = channels_first(node, weight_of(node)).reshape(groups, -1, size)
    found = np.matmul(inputs.rows, matrix.transpose(0, 2, 1)).transpose(1, 0, 2).reshape(len(outputs.values), -1)
    assert_close(found, outputs.values, rtol=1e-4)
    whole = sum(run(prepared, {"x": feed})["y"].size for feed in feeds) // outputs.values.shape[1]
    assert len(found) == min(limit, whole)
    assert set(outputs.places().sample) <= set(range(3 * shape[0]))
    if limit == 20:
        assert len(set(outputs.places().batch)) == 3  # all batches are drawn from


NET = """
g (float[N, 3, 8, 8] x) => (float[N, 5] y) {
    [stem] a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
    r = Relu (a)
    [deep] b = Conv <group = 16, pads = [1, 1, 1, 1]> (r, w2)
    [side] c = Conv (r, w3)
    d = Add (b, c)
    e = Sigmoid (d)
    [up] f = ConvTranspose <strides = [2, 2]> (e, w4)
    g = GlobalAveragePool (f)
    h = Flatten (g)
    [head] y = Gemm (h, w5, b5)
}
"""
SHAPES = {
    "w1": (16, 3, 3, 3), "b1": (16,), "w2": (16, 1, 3, 3), "w3": (16, 16, 1, 1), "w4": (16, 8, 3, 3), "w5": (8, 5),
    "b5": (5,),
}  # fmt: skip


@pytest.fixture(scope="module")
def net():
    rng = np.random.default_rng(0)
    weights = {name: (rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))) for name, shape in SHAPES.items()}
    return model(NET, {name: values.astype(np.float32) for name, values in weights.items()})


@pytest.fixture(scope="module")
def batches():
    rng = np.random.default_rng(1)
    return [{"x": rng.normal(size=(4, 3, 8, 8)).astype(np.float32)} for _ in range(4)]


def quantized(net, batches, weight=None, **more):
    weight = AdaRound(num_iteration=150, num_bits=8, trim=False) if weight is None else weight
    config = QuantConfig(common_config=LayerConfig(weight=weight))
    return quantize_onnx(net, config, calibration=batches, progress=False, **more)


@pytest.fixture(scope="module")
def result(net, batches):
    return quantized(net, batches)


def test_six_bits_learned_are_nearer_than_six_bits_rounded_to_nearest(net, batches):
    rng = np.random.default_rng(2)
    feed = {"x": rng.normal(size=(16, 3, 8, 8)).astype(np.float32)}
    wanted = run(net, feed)["y"]
    skipped = {"skip_layers": ["up", "head"]}
    found = [
        sqnr(wanted, run(quantized(net, batches, weight, **skipped).fake_quant_model, feed)["y"])
        for weight in (Arq(num_bits=6), AdaRound(num_iteration=300, num_bits=6, trim=False))
    ]
    assert found[1] > found[0] + 1


def test_bits_and_scales_are_those_asked_for(net, batches):
    found = quantized(
        net, batches, AdaRound(num_iteration=5, num_bits=7, channel_wise=False), skip_layers=["up", "head"]
    )
    scales = {name: params.weight for name, params in found.params.items()}
    assert {(params.num_bits, params.scale.shape) for params in scales.values()} == {(7, ())}
    wide = quantized(net, batches, AdaRound(num_iteration=5, channel_wise=True, trim=False), skip_layers=["up", "head"])
    plain = quantized(net, batches, Arq(channel_wise=True), skip_layers=["up", "head"])
    for name in wide.params:
        np.testing.assert_array_equal(wide.params[name].weight.scale, plain.params[name].weight.scale)


@pytest.mark.parametrize("kept", [0, 40_000])
def test_what_is_kept_between_stages_does_not_matter(net, batches, result, kept, monkeypatch):
    monkeypatch.setattr(round_weights, "_BYTES_KEPT", kept)
    again = quantized(net, batches)
    assert again.record == result.record
    wanted, found = (run(r.fake_quant_model, batches[0])["y"] for r in (result, again))
    np.testing.assert_allclose(found, wanted, atol=0.02 * np.abs(wanted).max())


def test_little_memory_for_rows_and_outputs_goes_through_the_float_model_more_often(net, batches, monkeypatch):
    monkeypatch.setattr(round_weights, "_BYTES_OF_ROWS", 1)
    found = quantized(net, batches)
    assert sorted(found.params) == ["deep", "head", "side", "stem", "up"]


@pytest.mark.parametrize("threads", [1, 3])
def test_the_number_of_threads_does_not_matter(net, batches, result, threads, monkeypatch):
    monkeypatch.setattr(round_weights, "available_cores", lambda: threads)
    again = quantized(net, batches)
    assert again.deploy_model.SerializeToString() == result.deploy_model.SerializeToString()


def test_data_that_can_be_read_once_are_refused(net, batches):
    with pytest.raises(DataError, match=r"only once.*ada_quantize"):
        quantized(net, iter(batches))


def test_one_sample_is_enough(net):
    rng = np.random.default_rng(2)
    found = quantized(net, [{"x": rng.normal(size=(1, 3, 8, 8)).astype(np.float32)}])
    assert len(found.params) == 5
    assert "too few" in found.plan.notes["head"][-1]


def test_a_rounding_that_is_no_better_elsewhere_is_not_kept(net, batches, monkeypatch):
    def badly(layer, parameters, *, threads):
        return np.full_like(layer.weight, layer.limits[0])

    monkeypatch.setattr(round_weights, "learn_rounding", badly)
    found = quantized(net, batches)
    plain = quantized(net, batches, Arq())
    assert run(found.fake_quant_model, batches[0])["y"] == pytest.approx(run(plain.fake_quant_model, batches[0])["y"])
    assert set(found.plan.notes) == set(found.plan.layers)
    assert all("nearest" in notes[-1] for notes in found.plan.notes.values())


def test_layers_that_do_not_wait_for_each_other_are_rounded_together(net):
    state, _ = rewritten(net, *PREPARE)
    state = replace(state, plan=make_plan(state, QuantConfig(common_config=LayerConfig(weight=AdaRound()))))
    stages = [[task.node.name for task in stage] for stage in round_weights._stages(state)]
    assert stages == [["stem"], ["deep", "side"], ["up"], ["head"]]
