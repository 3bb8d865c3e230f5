"""round weights: rows that stand for a layer, and the rounding learned from them."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import pytest
from graphs import assert_close, model, rewritten, run, sqnr
from onnx import numpy_helper

from amct_onnx import (
    AdaRound,
    Arq,
    DataError,
    LayerConfig,
    QuantConfig,
    SimulatedSession,
    convert_model,
    import_qdq,
    quantize_onnx,
)
from amct_onnx.passes import round_weights
from amct_onnx.passes.graph import Graph, constant_input
from amct_onnx.passes.layers import channels_first, weight_of
from amct_onnx.passes.pipelines import PREPARE
from amct_onnx.passes.sample_rows import InputSampler, OutputSampler, matrix_shape
from amct_onnx.passes.walk import Walk
from amct_onnx.passes.weights import detached
from amct_onnx.report.compare import exposing

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
    wanted, places = outputs.values(), outputs.places()
    found = np.matmul(inputs.rows, matrix.transpose(0, 2, 1)).transpose(1, 0, 2).reshape(len(wanted), -1)
    assert_close(found, wanted, rtol=1e-4)
    whole = sum(run(prepared, {"x": feed})["y"].size for feed in feeds) // wanted.shape[1]
    assert len(found) == min(limit, whole)
    assert set(places.sample) <= set(range(3 * shape[0]))
    assert 0 < places.learnable < len(wanted)
    if limit == 20:
        assert len(set(places.batch)) == 3  # all batches are drawn from


NET = """
g (float[N, 3, 8, 8] x) => (float[N, 5] y) {
    [stem] a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
    r = Relu (a)
    [deep] b = Conv <group = 16, pads = [1, 1, 1, 1]> (r, w2)
    [side] c = Conv (r, w3)
    d = Add (b, c)
    e = Sigmoid (d)
    [up] f = ConvTranspose <group = 2, strides = [2, 2]> (e, w4)
    g = GlobalAveragePool (f)
    h = Flatten (g)
    [head] y = Gemm (h, w5, b5)
}
"""
SHAPED = ("stem", "deep", "side", "up", "head")
SHAPES = {
    "w1": (16, 3, 3, 3), "b1": (16,), "w2": (16, 1, 3, 3), "w3": (16, 16, 1, 1), "w4": (16, 4, 3, 3), "w5": (8, 5),
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
    weight = AdaRound(num_iteration=150, num_bits=8, amct_scales=False) if weight is None else weight
    config = QuantConfig(common_config=LayerConfig(weight=weight))
    return quantize_onnx(net, config, calibration=batches, progress=False, **more)


@pytest.fixture(scope="module")
def result(net, batches):
    return quantized(net, batches)


def test_six_bits_learned_are_nearer_than_six_bits_rounded_to_nearest(net, batches):
    rng = np.random.default_rng(2)
    feed = {"x": rng.normal(size=(16, 3, 8, 8)).astype(np.float32)}

    def inner(source):
        return run(exposing(detached(source), ["d"]).whole(), feed)["d"]

    skipped = {"skip_layers": ["up", "head"]}
    found = [
        sqnr(inner(net), inner(quantized(net, batches, weight, **skipped).fake_quant_model))
        for weight in (Arq(num_bits=6), AdaRound(num_iteration=300, num_bits=6, amct_scales=False))
    ]
    assert found[1] > found[0] + 1


def test_bits_and_scales_are_those_asked_for(net, batches):
    found = quantized(
        net, batches, AdaRound(num_iteration=5, num_bits=7, channel_wise=False), skip_layers=["up", "head"]
    )
    scales = {name: params.weight for name, params in found.params.items()}
    assert {(params.num_bits, params.scale.shape) for params in scales.values()} == {(7, ())}
    wide = quantized(
        net, batches, AdaRound(num_iteration=5, channel_wise=True, amct_scales=False), skip_layers=["up", "head"]
    )
    plain = quantized(net, batches, Arq(channel_wise=True), skip_layers=["up", "head"])
    for name in wide.params:
        np.testing.assert_array_equal(wide.params[name].weight.scale, plain.params[name].weight.scale)


def same(first, second):
    return first.record == second.record and all(
        getattr(first, form).SerializeToString() == getattr(second, form).SerializeToString()
        for form in ("deploy_model", "fake_quant_model")
    )


@pytest.mark.parametrize("limit", [1, 60_000])
def test_the_memory_limit_does_not_matter(net, batches, result, limit):
    assert same(quantized(net, batches, memory_limit=limit), result)


def test_little_memory_means_more_ways_through_the_data(net, batches):
    ways = []
    for limit in (1, None):
        read = []
        quantized(net, lambda read=read: (read.append(None), iter(batches))[1], memory_limit=limit)
        ways.append(len(read))
    assert ways[0] > ways[1] + 5
    assert ways[1] == 3  # observing, the float model, the walk


def test_an_executor_does_not_matter(net, batches, result):
    with ThreadPoolExecutor(2) as executor:
        assert same(quantized(net, batches, executor=executor), result)


def test_a_source_may_reuse_its_arrays(net, batches, result):
    def reused():
        array = np.empty_like(batches[0]["x"])
        for batch in batches:
            array[:] = batch["x"]
            yield {"x": array}

    assert same(quantized(net, reused), result)


def test_progress_is_told_by_layers(net, batches, caplog):
    with caplog.at_level("INFO", "amct_onnx"):
        quantized(net, batches, AdaRound(num_iteration=5))
    assert "soften weights: 5 layers in" in caplog.text
    assert "round weights: 5 layers in" in caplog.text


def integers(quantized_model):
    """Layer -> the integers of its weight, output channels first."""
    graph = Graph.of_model(quantized_model)
    found = {}
    for node in graph.nodes:
        if node.name in SHAPED:
            values = constant_input(node, 1)
            found[node.name] = channels_first(node, values)
    return found


def test_every_form_holds_the_same_integers(net, batches, result):
    wanted = integers(result.deploy_model)
    plain = integers(quantized(net, batches, Arq()).deploy_model)
    assert sum((wanted[name] != plain[name]).sum() for name in wanted) > 100
    forms = quantized(net, batches, qdq=True)
    read = import_qdq(forms.qdq_model)
    for form in (forms.deploy_model, forms.fake_quant_model, read.deploy_model, read.fake_quant_model):
        for name, values in integers(form).items():
            np.testing.assert_array_equal(values, wanted[name], err_msg=name)
    outputs = [run(form, batches[0])["y"] for form in (forms.fake_quant_model, forms.qdq_model, read.fake_quant_model)]
    outputs.append(SimulatedSession(forms.deploy_model).run(None, batches[0])[0])
    for output in outputs[1:]:
        assert sqnr(outputs[0], output) > 40


def test_a_record_does_not_hold_the_rounding(net, batches, result, tmp_path):
    (tmp_path / "record.txt").write_text(result.record)
    converted = convert_model(net, tmp_path / "record.txt")
    plain = integers(quantized(net, batches, Arq()).deploy_model)
    for name, values in integers(converted.deploy_model).items():
        np.testing.assert_array_equal(values, plain[name], err_msg=name)


def test_the_configuration_repeats_the_run(net, batches, tmp_path):
    first = quantized(net, batches, AdaRound(num_iteration=40, beta_range=(12.0, 3.0), reg_param=0.05, warm_start=0.3))
    (tmp_path / "config.json").write_text(first.config)
    assert same(quantize_onnx(net, tmp_path / "config.json", calibration=batches), first)


@pytest.mark.parametrize(
    "changed",
    [
        {"num_iteration": 4},
        {"reg_param": 0.9},
        {"beta_range": (4.0, 1.0)},
        {"warm_start": 0.9},
        {"channel_wise": False},
    ],
)
def test_every_parameter_reaches_the_weights_from_a_configuration(net, batches, tmp_path, changed):
    parameters = {"num_iteration": 60, "reg_param": 0.01, "beta_range": (20.0, 2.0), "warm_start": 0.2}
    found = []
    for given in (parameters, {**parameters, **changed}):
        start, end = given["beta_range"]
        scalars = {name: value for name, value in given.items() if name != "beta_range"}
        text = " ".join(f"{name}: {str(value).lower()}" for name, value in scalars.items())
        cfg = tmp_path / "quant.cfg"
        ada = f"ada_quantize {{ {text} beta_range_start: {start} beta_range_end: {end} }}"
        cfg.write_text(f"common_config {{ {ada} }}")
        found.append(integers(quantize_onnx(net, cfg, calibration=batches).deploy_model))
    assert any((found[0][name] != found[1][name]).any() for name in found[0])


def test_layers_with_other_algorithms_stay_as_they_are(net, batches):
    both = QuantConfig(
        common_config=LayerConfig(weight=AdaRound(num_iteration=50)),
        override_layer_configs={"side": LayerConfig(weight=Arq()), "head": LayerConfig(weight=Arq())},
    )
    mixed = quantize_onnx(net, both, calibration=batches, progress=False)
    found, plain = (integers(r.deploy_model) for r in (mixed, quantized(net, batches, Arq())))
    assert {name for name in found if (found[name] != plain[name]).any()} == {"stem", "deep", "up"}


@pytest.mark.parametrize("threads", [1, 3])
def test_the_number_of_threads_does_not_matter(net, batches, result, threads, monkeypatch):
    monkeypatch.setattr(round_weights, "available_cores", lambda: threads)
    again = quantized(net, batches)
    assert again.deploy_model.SerializeToString() == result.deploy_model.SerializeToString()


def test_data_that_can_be_read_once_are_refused(net, batches):
    with pytest.raises(DataError, match=r"only once.*ada_quantize"):
        quantized(net, iter(batches))


@pytest.mark.parametrize(
    ("later", "message"),
    [
        (lambda b: b[:2], "hold 2 batches, but held more"),
        (lambda b: [{"x": f["x"][:1]} for f in b], "batch 0 is smaller"),
    ],
)
def test_data_that_shrink_are_an_error(net, batches, later, message):
    times = iter([batches, batches])  # observing and the float model
    with pytest.raises(DataError, match=message):
        quantized(net, lambda: next(times, None) or later(batches))


def test_weights_that_are_listed_as_inputs(net, batches, result):
    old = onnx.ModelProto()
    old.CopyFrom(net)
    old.ir_version = 3
    for tensor in old.graph.initializer:
        old.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    for name, values in integers(quantized(old, batches).deploy_model).items():
        np.testing.assert_array_equal(values, integers(result.deploy_model)[name])


def test_half_precision(net, batches):
    half = onnx.ModelProto()
    half.CopyFrom(net)
    for tensor in half.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for value in (*half.graph.input, *half.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    feeds = [{"x": feed["x"].astype(np.float16)} for feed in batches]
    for amct_scales in (True, False):
        found = quantized(half, feeds, AdaRound(num_iteration=100, amct_scales=amct_scales))
        plain = quantized(half, feeds, Arq())
        assert any(
            (a != b).any() for a, b in zip(*(integers(r.deploy_model).values() for r in (found, plain)), strict=True)
        )
        assert sqnr(run(half, feeds[0])["y"], run(found.fake_quant_model, feeds[0])["y"]) > 30


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
    walk = Walk(state.graph, SHAPED, [], 0)
    assert walk.stages == {"stem": 0, "deep": 1, "side": 1, "up": 2, "head": 3}


def test_soft_weights_are_those_that_activations_are_observed_behind(net, batches):
    few, many = (quantized(net, batches, AdaRound(num_iteration=count)) for count in (1, 2000))
    scales = [{name: float(params.activation.scale) for name, params in r.params.items()} for r in (few, many)]
    assert scales[0]["stem"] == scales[1]["stem"]
    assert scales[0]["head"] != scales[1]["head"]
