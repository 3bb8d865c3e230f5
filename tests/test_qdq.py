"""The QDQ form from end to end: what is written, that it computes the same, and the way back."""

import logging
import os
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import initializers, model, nodes_as_text, run, sqnr
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_graphs import ODD_GRAPHS
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

import amct_onnx
from amct_onnx import DataError, ModelError, OutputError, import_qdq, quantize_onnx
from amct_onnx.cli import main

DIGITS = Path(amct_onnx.__file__).parents[1] / "models" / "digits"
FILES = ("deploy_model.onnx", "fake_quant_model.onnx", "qdq_model.onnx", "record.txt", "config.json")


@pytest.fixture(scope="module", autouse=True)
def in_one_thread(one_thread):
    """Every test of this file."""


@pytest.fixture(scope="module")
def digits():
    return quantize_onnx(DIGITS / "digits.onnx", calibration=DIGITS / "calibration.npz", qdq=True)


def same_numbers(fake_quant, qdq, feed):
    """Whether both compute the same to 50 dB, with and without optimizations: what rounding of ties leaves."""
    wanted = run(fake_quant, feed, optimize=False)
    for optimize in (False, True):
        for name, values in run(qdq, feed, optimize=optimize).items():
            assert (values.dtype, values.shape) == (wanted[name].dtype, wanted[name].shape)
            if values.dtype.kind == "f":
                assert sqnr(wanted[name], values) > 50, (name, optimize)


# The QDQ model of quantize_onnx


def test_it_is_made_only_where_asked_for(digits, tmp_path):
    assert isinstance(digits.qdq_model, onnx.ModelProto)
    plain = quantize_onnx(DIGITS / "digits.onnx", calibration=DIGITS / "calibration.npz", save_path=tmp_path / "net")
    assert plain.qdq_model is None
    assert sorted(os.listdir(tmp_path)) == sorted(f"net_{name}" for name in FILES if name != "qdq_model.onnx")
    assert plain.record.read_text() == digits.record
    assert plain.deploy_model.read_bytes() == digits.deploy_model.SerializeToString(deterministic=True)


def test_it_is_written_beside_the_others(digits, tmp_path, capfd):
    arguments = ["calibration", "-q", "--model", DIGITS / "digits.onnx", "--data", DIGITS / "calibration.npz"]
    assert main([str(a) for a in (*arguments, "--save_path", tmp_path / "out" / "net", "--format", "qdq")]) == 0
    written = (*FILES, "quant.json")
    assert sorted(os.listdir(tmp_path / "out")) == sorted(f"net_{name}" for name in written)
    assert onnx.load(tmp_path / "out" / "net_qdq_model.onnx") == digits.qdq_model
    assert capfd.readouterr().out.splitlines()[-6:] == [str(tmp_path / "out" / f"net_{name}") for name in written]


def test_digits_are_told_apart_as_by_the_fake_quant_model(digits):
    images = np.load(DIGITS / "test.npz")["image"][:200]
    wanted = run(digits.fake_quant_model, {"image": images}, optimize=False)["logits"]
    for optimize in (False, True):
        found = run(digits.qdq_model, {"image": images}, optimize=optimize)["logits"]
        assert (found.argmax(1) == wanted.argmax(1)).mean() > 0.99


@pytest.mark.parametrize("build", ODD_GRAPHS, ids=lambda build: build.__name__)
def test_an_odd_model_computes_what_its_fake_quant_model_does(build):
    case = build()
    result = quantize_onnx(case.model, calibration=case.feeds[:2], qdq=True)
    onnx.checker.check_model(result.qdq_model, full_check=True)
    (opset,) = (entry.version for entry in result.qdq_model.opset_import if entry.domain in ("", "ai.onnx"))
    assert opset >= 13
    same_numbers(result.fake_quant_model, result.qdq_model, case.feeds[2])


def test_a_model_that_cannot_be_raised_is_refused_and_nothing_is_left(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("no adapter")

    source = model(
        "g (float[2, 4] x) => (float[2, 4] y) { [fc] y = MatMul(x, w) }", {"w": np.eye(4, dtype=np.float32)}, opset=11
    )
    monkeypatch.setattr("amct_onnx.passes.convert_opset.version_converter.convert_version", fail)
    data = np.ones((2, 4), np.float32)
    with pytest.raises(ModelError, match=r"the model has opset 11; .* need 13, .* converted: no adapter\. Export it"):
        quantize_onnx(source, calibration=data, save_path=tmp_path / "out" / "net", qdq=True)
    assert os.listdir(tmp_path) == []


def test_a_qdq_model_that_computes_something_else_is_not_written(tmp_path, monkeypatch):
    from amct_onnx.passes import insert_qdq

    right = insert_qdq.integer_bias
    monkeypatch.setattr(insert_qdq, "integer_bias", lambda state, node, bias: right(state, node, bias * 3))
    with pytest.raises(ModelError, match=r"output 'logits' of the QDQ model is .* dB from .*; please report the model"):
        quantize_onnx(
            DIGITS / "digits.onnx",
            calibration=DIGITS / "calibration.npz",
            save_path=tmp_path / "out" / "net",
            qdq=True,
        )
    assert os.listdir(tmp_path) == []


# The way back


def test_a_model_of_our_own_comes_back_to_the_last_bit(digits, tmp_path):
    onnx.save(digits.qdq_model, tmp_path / "net_qdq_model.onnx")
    result = import_qdq(tmp_path / "net_qdq_model.onnx", save_path=tmp_path / "net")
    assert sorted(os.listdir(tmp_path)) == sorted(f"net_{name}" for name in FILES if name != "config.json")
    assert result.config is None
    assert result.qdq_model is None
    assert result.record.read_text() == digits.record
    assert result.deploy_model.read_bytes() == digits.deploy_model.SerializeToString(deterministic=True)
    assert result.fake_quant_model.read_bytes() == digits.fake_quant_model.SerializeToString(deterministic=True)
    assert list(result.plan.layers) == list(digits.plan.layers)
    assert result.plan.skipped["stem.conv.input.quantize"] == "the input scale of 'stem.conv'"
    assert result.output_errors["logits"].sqnr > 100


def test_the_command_line_does_the_same(digits, tmp_path, capfd):
    onnx.save(digits.qdq_model, tmp_path / "qdq.onnx")
    arguments = ["convert", "-q", "--model", tmp_path / "qdq.onnx", "--save_path", tmp_path / "out" / "net"]
    assert main([str(a) for a in (*arguments, "--data", DIGITS / "calibration.npz")]) == 0
    names = ("deploy_model.onnx", "fake_quant_model.onnx", "record.txt", "quant.json")
    assert capfd.readouterr().out.splitlines()[-4:] == [str(tmp_path / "out" / f"net_{name}") for name in names]
    assert (tmp_path / "out" / "net_record.txt").read_text() == digits.record
    assert main([str(a) for a in (*arguments, "--wide_fusion")]) == 1
    assert "--wide_fusion goes with --record" in capfd.readouterr().err


REBUILT = {"opset9_attributes", "opset11_softmax", "float16_model", "float16_part", "up_grouped", "bn_after_up"}
"""Models whose deploy model is another one on the way back: of a higher opset, with casts, or with other names."""


@pytest.mark.parametrize("build", ODD_GRAPHS, ids=lambda build: build.__name__)
def test_an_odd_model_comes_back(build):
    case = build()
    there = quantize_onnx(case.model, calibration=case.feeds[:2], qdq=True)
    back = import_qdq(there.qdq_model, data=case.feeds[2:3])
    assert back.record == there.record
    if case.name not in REBUILT:
        assert nodes_as_text(back.deploy_model) == nodes_as_text(there.deploy_model)
        np.testing.assert_equal(initializers(back.deploy_model), initializers(there.deploy_model))
    assert min(error.sqnr for error in back.output_errors.values()) > 50


# Models that others quantized


class Reader(CalibrationDataReader):
    def __init__(self, feeds):
        self.feeds = iter(feeds)

    def get_next(self):
        return next(self.feeds, None)


def of_onnxruntime(name, folder, **options):
    """An odd model as onnxruntime's own tool quantizes it, and feeds for it."""
    case = next(build for build in ODD_GRAPHS if build.__name__ == name)()
    path = folder / f"{name}.onnx"
    with warnings.catch_warnings(), disabled_logging():
        warnings.simplefilter("ignore")
        quantize_static(case.model, path, Reader(case.feeds[:3]), quant_format=QuantFormat.QDQ, **options)
    return path, case.feeds[3:5]


@contextmanager
def disabled_logging():
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


INT8, UINT8, INT16 = QuantType.QInt8, QuantType.QUInt8, QuantType.QInt16


@pytest.mark.parametrize("activation", [INT8, UINT8], ids=["int8", "uint8"])
@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("base", 3),
        ("residual_chain", 7),
        ("squeeze_excite", 5),
        ("conv_grouped", 4),
        ("up_output_padding", 4),
        ("matmul_batched", 3),
        ("pool_pads", 5),
        ("pad_before_pool", 5),
        ("relu6_depthwise", 4),
        ("opset21", 3),
    ],
)
def test_a_model_of_onnxruntime(name, layers, activation, tmp_path):
    path, feeds = of_onnxruntime(name, tmp_path, activation_type=activation, weight_type=INT8)
    result = import_qdq(path, data=feeds)
    assert len(result.plan.layers) == layers
    # activations that the quantizer left to the range of the integers are there; rounding elsewhere is not
    assert min(error.sqnr for error in result.output_errors.values()) > 30
    assert not {n.op_type for n in result.deploy_model.graph.node} & {"QuantizeLinear", "DequantizeLinear"}
    assert [entry.domain for entry in result.deploy_model.opset_import] == [""]
    named = {node.name for node in onnx.load(path).graph.node}
    assert named <= {*result.plan.layers, *result.plan.skipped}, "every node is accounted for"


def test_what_the_chip_has_not_stays_float_with_a_reason(tmp_path):
    path, feeds = of_onnxruntime("base", tmp_path, activation_type=UINT8, weight_type=INT8, per_channel=True)
    result = import_qdq(path, data=feeds)
    assert list(result.plan.layers) == ["conv1", "conv2"]
    assert result.plan.skipped["head"] == "its weight has a scale for each channel; Ascend takes one for Gemm"
    assert "head" in {node.name for node in result.deploy_model.graph.node}
    assert min(error.sqnr for error in result.output_errors.values()) > 30


def test_16_bits_come_in_where_the_chip_takes_them(tmp_path):
    path, feeds = of_onnxruntime("base", tmp_path, activation_type=INT16, weight_type=INT8)
    result = import_qdq(path, data=feeds)
    assert {name: result.params[name].activation.num_bits for name in result.plan.layers} == {
        "conv1": 16,
        "conv2": 16,
        "head": 16,
    }
    assert min(error.sqnr for error in result.output_errors.values()) > 60


@pytest.mark.parametrize(("kind", "zero"), [("INT4", 0), ("UINT4", 8)])
@pytest.mark.parametrize("from_floats", [False, True], ids=["integers", "floats"])
def test_4_bit_weights_come_in_as_8_bit_ones_of_the_same_values(kind, zero, from_floats):
    text = """
    g (float[2, 6, 8, 8] x) => (float[2, 8, 8, 8] y) {
      [q] a = QuantizeLinear(x, s, z) [d] b = DequantizeLinear(a, s, z)
      [dw] wd = DequantizeLinear<axis = 0>(w, sw, zw)
      [conv] y = Conv<pads = [1, 1, 1, 1]>(b, wd)
    }
    """
    rng = np.random.default_rng(0)
    scales, levels = np.linspace(0.1, 0.3, 8, dtype=np.float32), rng.integers(-8, 8, (8, 6, 3, 3))
    weights = {"s": np.float32(0.05), "z": np.int8(3), "sw": scales}
    if from_floats:
        text = text.replace("[dw]", "[qw] w = QuantizeLinear<axis = 0>(floats, sw, zw) [dw]")
        weights["floats"] = levels.astype(np.float32) * scales.reshape(-1, 1, 1, 1)
    source = model(text, weights, opset=21, ir=10)
    number = getattr(onnx.TensorProto, kind)
    if not from_floats:
        source.graph.initializer.append(
            onnx.helper.make_tensor("w", number, levels.shape, (levels + zero).ravel().tolist())
        )
    source.graph.initializer.append(onnx.helper.make_tensor("zw", number, [8], [zero] * 8))
    result = import_qdq(source, data=[{"x": rng.normal(size=(2, 6, 8, 8)).astype(np.float32)}])
    assert result.params["conv"].weight.num_bits == 8
    np.testing.assert_array_equal(result.params["conv"].weight.scale, scales)
    stored = initializers(result.deploy_model)
    (found,) = [stored[node.input[1]] for node in result.deploy_model.graph.node if node.name == "conv"]
    np.testing.assert_array_equal(found, levels)


def test_pairs_that_no_layer_uses_are_told_of(tmp_path):
    path, feeds = of_onnxruntime("base", tmp_path, activation_type=INT8, weight_type=INT8)
    result = import_qdq(path, data=feeds)
    removed = {name: said for name, said in result.plan.skipped.items() if said.startswith("removed; not rounded")}
    assert removed
    assert any("its output is not rounded any more" in note for note in result.plan.notes["head"])


def torch_model(dynamo, path):
    """A convolution and a product with fake-quantized weights and inputs, exported; its input."""
    torch = pytest.importorskip("torch")
    functional, generator = torch.nn.functional, torch.Generator().manual_seed(0)

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(4, 5)
            for parameter in self.parameters():
                parameter.data = torch.randn(parameter.shape, generator=generator) * 0.3

        def forward(self, x):
            x = torch.fake_quantize_per_tensor_affine(x, 0.05, 10, -128, 127)
            scales = torch.tensor([0.005, 0.006, 0.007, 0.008])
            weight = torch.fake_quantize_per_channel_affine(
                self.conv.weight, scales, torch.zeros(4, dtype=torch.int32), 0, -128, 127
            )
            y = functional.relu(functional.conv2d(x, weight, self.conv.bias)).mean((2, 3))
            y = torch.fake_quantize_per_tensor_affine(y, 0.01, 0, 0, 127)
            weight = torch.fake_quantize_per_tensor_affine(self.fc.weight, 0.01, 0, -128, 127)
            return functional.linear(y, weight, self.fc.bias)

    x = torch.randn(2, 3, 8, 8, generator=generator) * 3
    with warnings.catch_warnings(), disabled_logging():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Network().eval(), (x,), path, opset_version=18 if dynamo else 17, dynamo=dynamo, input_names=["x"]
        )
    return {"x": x.numpy()}


@pytest.mark.parametrize("dynamo", [False, True], ids=["traced", "dynamo"])
def test_a_model_of_torch_trained_with_fake_quantization(dynamo, tmp_path):
    feed = torch_model(dynamo, tmp_path / "torch.onnx")
    result = import_qdq(tmp_path / "torch.onnx", data=[feed])
    conv, product = result.params.values()
    np.testing.assert_array_equal(conv.weight.scale, np.array([0.005, 0.006, 0.007, 0.008], np.float32))
    assert (conv.activation.offset, product.activation.offset) == (10, -128)
    assert "Clip" in {node.op_type for node in result.deploy_model.graph.node}, "seven bits, which the chip has not"
    assert min(error.sqnr for error in result.output_errors.values()) > 50


def qat_model():
    """Fake-quantized float weights turned so that the channels are on axis 1; BatchNormalization as it was trained."""
    rng = np.random.default_rng(5)
    text = """
    g (float[N, 4, 6, 6] x) => (float[N, 3, 6, 6] y) {
      [q] xq = QuantizeLinear(x, s, z)
      [d] xd = DequantizeLinear(xq, s, z)
      [turn] wt = Transpose<perm = [1, 0, 2, 3]>(w)
      [qw] wq = QuantizeLinear(wt, sw, zw)
      [dw] wd = DequantizeLinear(wq, sw, zw)
      [back] wb = Transpose<perm = [1, 0, 2, 3]>(wd)
      [conv] c = Conv<pads = [1, 1, 1, 1]>(xd, wb)
      [norm] y = BatchNormalization(c, gamma, beta, mean, variance)
    }
    """
    weights = {"s": 0.05, "w": rng.normal(size=(3, 4, 3, 3)), "sw": [0.01, 0.02, 0.03], "gamma": [1, -2, 3]}
    weights |= {"beta": [1, 2, 3], "mean": [0.1, 0.2, 0.3], "variance": [1, 2, 3]}
    floats = {name: np.asarray(values, np.float32) for name, values in weights.items()}
    return model(text, floats | {"z": np.int8(4), "zw": np.zeros(3, np.int8)})


def test_a_norm_behind_quantized_weights_stays():
    result = import_qdq(qat_model())
    assert result.output_errors["y"].sqnr > 100
    np.testing.assert_array_equal(result.params["conv"].weight.scale, np.array([0.01, 0.02, 0.03], np.float32))
    assert "BatchNormalization" in {node.op_type for node in result.deploy_model.graph.node}


def test_scales_of_float16_are_taken():
    rng = np.random.default_rng(5)
    text = """
    g (float16[N, 4] x) => (float16[N, 3] y) {
      [q] xq = QuantizeLinear(x, s, z)
      [d] xd = DequantizeLinear(xq, s, z)
      [dw] wd = DequantizeLinear(w, sw, zw)
      [fc] y = Gemm(xd, wd)
    }
    """
    weights = {"s": np.float16(0.05), "z": np.uint8(100), "w": rng.integers(-127, 128, (4, 3)).astype(np.int8)}
    source = model(text, weights | {"sw": np.float16(0.01), "zw": np.int8(0)}, opset=19, ir=9)
    result = import_qdq(source)
    assert result.params["fc"].activation.scale == np.float32(np.float16(0.05))
    assert result.params["fc"].activation.offset == -28
    np.testing.assert_array_equal(initializers(result.deploy_model)["w"], weights["w"])
    assert result.output_errors["y"].sqnr > 50


@settings(max_examples=20, deadline=None)
@given(
    scale=st.floats(2**-10, 2**4, width=32),
    zero=st.integers(0, 255),
    weight_scales=st.lists(st.floats(2**-12, 2**2, width=32), min_size=6, max_size=6),
    kind=st.sampled_from(["Conv", "ConvTranspose"]),
    group=st.sampled_from([1, 2]),
    is_signed=st.booleans(),
)
def test_any_scales_come_back(scale, zero, weight_scales, kind, group, is_signed):
    axis = 0 if kind == "Conv" else 1
    channels = 6 if kind == "Conv" else 6 // group
    shape = (6, 4 // group, 2, 2) if kind == "Conv" else (4, 6 // group, 2, 2)
    text = f"""
    g (float[2, 4, 5, 5] x) => (float[2, 6, P, Q] y) {{
      [q] xq = QuantizeLinear(x, s, z)
      [d] xd = DequantizeLinear(xq, s, z)
      [dw] wd = DequantizeLinear<axis = {axis}>(w, sw)
      [layer] y = {kind}<group = {group}>(xd, wd)
    }}
    """
    integers = np.random.default_rng(zero).integers(-128, 128, shape).astype(np.int8)
    scales = np.array(weight_scales[:channels], np.float32)
    point = np.int8(zero - 128) if is_signed else np.uint8(zero)
    source = model(text, {"s": np.float32(scale), "z": point, "w": integers, "sw": scales})
    result = import_qdq(source)
    found = result.params["layer"]
    assert (found.activation.scale, found.activation.offset) == (np.float32(scale), zero - 128)
    np.testing.assert_array_equal(found.weight.scale, scales if kind == "Conv" else np.tile(scales, group))
    np.testing.assert_array_equal(initializers(result.deploy_model)["w"], integers)


def test_models_of_opset_10_are_raised_and_keep_no_more_than_they_need():
    text = """
    g (float[N, 4] x) => (float[N, 3] y) {
      [q] xq = QuantizeLinear(x, s, z)
      [d] xd = DequantizeLinear(xq, s, z)
      [dw] wd = DequantizeLinear(w, s, z)
      [fc] y = MatMul(xd, wd)
    }
    """
    weights = {"s": np.float32(0.1), "z": np.int8(0), "w": np.ones((4, 3), np.int8)}
    result = import_qdq(model(text, weights, opset=10, ir=5))
    assert [node.op_type for node in result.deploy_model.graph.node] == ["AscendQuant", "MatMul", "AscendDequant"]
    assert result.deploy_model.opset_import[0].version == 11


def test_a_quantizer_with_two_dequantizers_tells_of_both():
    text = """
    g (float[N, 4] x) => (float[N, 3] y, float[N, 4] o) {
      [q] xq = QuantizeLinear(x, s, z)
      [d] xd = DequantizeLinear(xq, s, z)
      [e] xe = DequantizeLinear(xq, s, z)
      [dw] wd = DequantizeLinear(w, s, z)
      [fc] y = Gemm(xd, wd)
      [neg] o = Neg(xe)
    }
    """
    weights = {"s": np.float32(0.1), "z": np.int8(0), "w": np.ones((4, 3), np.int8)}
    result = import_qdq(model(text, weights))
    assert result.plan.skipped["q"] == "the input scale of 'fc'; removed; not rounded any more: what 'neg' takes"
    assert [node.op_type for node in result.deploy_model.graph.node].count("Clip") == 1


# What is refused


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (DIGITS / "digits.onnx", "the model has no QuantizeLinear and DequantizeLinear that say how it is quantized"),
        (DIGITS / "none.onnx", "none.onnx: no such file"),
        (DIGITS / "test.npz", "not an ONNX model"),
    ],
)
def test_other_models_are_refused(source, message, tmp_path):
    with pytest.raises(ModelError, match=message):
        import_qdq(source, save_path=tmp_path / "out" / "net")
    assert os.listdir(tmp_path) == []


def test_quantizing_such_a_model_again_is_refused(digits, tmp_path):
    with pytest.raises(
        ModelError, match=r"quantized already: node 'stem.conv.input.quantize' \(Quan.*import_qdq takes"
    ):
        quantize_onnx(digits.qdq_model, calibration=DIGITS / "calibration.npz", save_path=tmp_path / "net")


def test_data_that_do_not_fit_are_refused(digits, tmp_path):
    with pytest.raises(DataError, match="batch 0, input 'image'"):
        import_qdq(digits.qdq_model, save_path=tmp_path / "out" / "net", data=np.zeros((1, 2), np.float32))
    assert os.listdir(tmp_path) == []


def test_the_model_is_not_overwritten_and_stays_as_it_is(digits, tmp_path):
    onnx.save(digits.qdq_model, tmp_path / "net_deploy_model.onnx")
    with pytest.raises(OutputError, match="is the model that is read"):
        import_qdq(tmp_path / "net_deploy_model.onnx", save_path=tmp_path / "net")
    before = digits.qdq_model.SerializeToString(deterministic=True)
    import_qdq(digits.qdq_model)
    assert digits.qdq_model.SerializeToString(deterministic=True) == before
