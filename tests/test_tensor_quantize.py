"""tensor_quantize: single inputs of Add and MaxPool that go through integers and back."""

import numpy as np
import pytest
from graphs import model, nodes_as_text, run, sqnr

from amct_onnx import ConfigError, Hfmg, Ifmr, LayerConfig, QuantConfig, TensorConfig, convert_model, quantize_onnx
from amct_onnx.formats.record import parse_record

RNG = np.random.default_rng(2)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


NETWORK = model(
    """
    g (float[2, 4, 8, 8] x) => (float[2, 4, 7, 7] y, float[2, 8, 3] z) {
      [conv] c = Conv <pads = [1, 1, 1, 1]> (x, w)
      [norm] n = BatchNormalization (c, s, t, m, v)
      [shift] h = Add (n, k)
      [relu] r = Relu (h)
      [add] a = Add (r, x)
      [pool] y = MaxPool <kernel_shape = [2, 2]> (a)
      [rows] q = Reshape (x, shape)
      [fc] p = MatMul (q, u)
      [bias] z = Add (p, b)
    }
    """,
    {
        "w": normal(4, 4, 3, 3),
        **{name: np.abs(normal(4)) + np.float32(0.5) for name in "stmv"},
        "k": normal(4, 1, 1),
        "shape": np.array([2, 8, 32]),
        "u": normal(32, 3),
        "b": normal(3),
    },
)
FEEDS = [{"x": normal(2, 4, 8, 8)} for _ in range(3)]


def tensors(*places, activation=None):
    return [TensorConfig(layer_name=name, input_index=i, activation=activation or Ifmr()) for name, i in places]


def quantized(*places, activation=None, **options):
    return quantize_onnx(NETWORK, calibration=FEEDS, tensor_quantize=tensors(*places, activation=activation), **options)


def lines_of(result, *names, kind="deploy_model"):
    return [line for line in nodes_as_text(getattr(result, kind)) if line.startswith(tuple(f"[{n}" for n in names))]


def test_the_tensor_goes_through_integers_and_back():
    result = quantized(("add", 0), ("pool", 0))
    for name, source, key in (("add.input0", "r", "add:0"), ("pool.input0", "a", "pool:0")):
        params = result.params[key].activation
        offset, inverse = float(params.offset), float(np.float32(1) / params.scale)
        assert lines_of(result, name) == [
            f"[{name}.quant] {name}.quant.output0 = "
            f"AscendQuant<dst_type=INT8, offset={offset}, scale={inverse}>({source})",
            f"[{name}.anti_quant] {name}.anti_quant.output0 = "
            f"AscendAntiQuant<dst_type=INT8, offset={offset}, scale={float(params.scale)}>({name}.quant.output0)",
        ]
        record = parse_record(result.record, "record")[key]
        assert (record.is_tensor_quantize, record.act_type, record.scale_w) == (True, "INT8", ())
        assert (record.scale_d, record.offset_d) == (float(params.scale), int(params.offset))
    assert lines_of(result, "add]") == ["[add] a = Add(add.input0.anti_quant.output0, x)"]


@pytest.mark.parametrize("optimize", [True, False])
def test_the_fake_quant_model_computes_the_rounding_and_nothing_else(optimize):
    result = quantized(("add", 1), skip_layers=["conv", "fc"])
    assert result.plan.layers == {}
    params = result.params["add:1"].activation
    x = FEEDS[0]["x"]
    levels = np.clip(np.rint(x * (np.float32(1) / params.scale)) + params.offset, -128, 127) - params.offset
    rest = run(NETWORK, FEEDS[0])
    tail = model("g (float[2, 4, 8, 8] a) => (float[2, 4, 7, 7] y) { y = MaxPool <kernel_shape = [2, 2]> (a) }")
    relu = model(
        """
        g (float[2, 4, 8, 8] x) => (float[2, 4, 8, 8] r) {
          c = Conv <pads = [1, 1, 1, 1]> (x, w) n = BatchNormalization (c, s, t, m, v) h = Add (n, k) r = Relu (h)
        }
        """,
        {
            t.name: np.frombuffer(t.raw_data, np.float32).reshape(t.dims)
            for t in NETWORK.graph.initializer
            if t.name in "wstmvk"
        },
    )
    wanted = run(tail, {"a": run(relu, FEEDS[0])["r"] + (levels * params.scale).astype(np.float32)})["y"]
    found = run(result.fake_quant_model, FEEDS[0], optimize=optimize)
    np.testing.assert_allclose(found["y"], wanted, rtol=0, atol=1e-4)
    np.testing.assert_allclose(found["z"], rest["z"], rtol=0, atol=1e-5)
    assert sqnr(rest["y"], found["y"]) < 80


def test_algorithm_and_symmetry_count():
    found = {}
    for activation in (Ifmr(), Ifmr(asymmetric=False), Hfmg(), Ifmr(search_range=(0.3, 0.5))):
        found[activation] = float(quantized(("add", 0), activation=activation).params["add:0"].activation.scale)
    assert len(set(found.values())) == 4
    plain = quantized(("add", 0), activation_offset=False).params["add:0"].activation
    assert float(plain.scale) == found[Ifmr(asymmetric=False)]


def test_a_layer_that_reads_the_same_tensor_alike_shares_the_operator():
    result = quantized(("add", 1))
    quants = [line for line in nodes_as_text(result.deploy_model) if "= AscendQuant" in line and line.endswith("(x)")]
    assert len(quants) == 1
    run(result.fake_quant_model, FEEDS[0])


def test_a_listed_add_is_not_folded_into_the_norm_in_front():
    assert "shift" in quantize_onnx(NETWORK, calibration=FEEDS).plan.skipped
    result = quantized(("shift", 0))
    assert lines_of(result, "shift.input0.anti_quant")
    assert sqnr(run(NETWORK, FEEDS[0])["y"], run(result.fake_quant_model, FEEDS[0])["y"]) > 25


def test_a_tensor_that_is_not_finite_stays_float():
    source = model(
        """
        g (float[2, 4] x) => (float[2, 4] y, float[2, 3] z) {
          [root] s = Sqrt (x) [add] y = Add (s, x) [fc] z = Gemm (x, w)
        }
        """,
        {"w": normal(4, 3)},
    )
    feeds = [{"x": np.full((2, 4), -1, np.float32)}]
    result = quantize_onnx(source, calibration=feeds, tensor_quantize=tensors(("add", 0)))
    assert "holds NaN or inf" in result.plan.skipped["add:0"]
    assert result.plan.tensors == ()
    assert list(parse_record(result.record, "record")) == ["fc"]


def test_the_configuration_repeats_the_run(tmp_path):
    first = quantized(("add", 0), activation=Hfmg(num_of_bins=1024))
    path = tmp_path / "config.json"
    path.write_text(first.config)
    again = quantize_onnx(NETWORK, path, calibration=FEEDS, wide_fusion=True)
    assert (again.record, again.config) == (first.record, first.config)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (("ad", 0), r"'ad', but the model has no node of that name; did you mean 'add'"),
        (("relu", 0), r"input 0 of 'relu': cannot be quantized: Relu is not an operator whose inputs"),
        (("conv", 0), "Conv is not an operator whose inputs"),
        (("add", 2), r"Add has 2 input\(s\), counted from 0"),
        (("pool", 1), r"MaxPool has 1 input\(s\)"),
        (("shift", 1), "it is a constant"),
        (("bias", 0), "the node holds the bias of 'fc'"),
    ],
)
def test_what_cannot_be_quantized_is_an_error(place, message):
    with pytest.raises(ConfigError, match=message):
        quantized(place)


@pytest.mark.parametrize("num_bits", [4, 16])
def test_other_widths_are_an_error(num_bits):
    with pytest.raises(ConfigError, match=f"has 8 bits, found num_bits {num_bits}"):
        quantized(("add", 0), activation=Ifmr(num_bits=num_bits))


def test_half_precision_is_an_error():
    source = model(
        """
        g (float16[2, 4] x) => (float16[2, 4] y, float16[2, 3] z) { [add] y = Add (x, x) [fc] z = Gemm (x, w) }
        """,
        {"w": normal(4, 3).astype(np.float16)},
    )
    with pytest.raises(ConfigError, match="it is float16; only float32 tensors"):
        quantize_onnx(source, calibration=[{"x": np.ones((2, 4), np.float16)}], tensor_quantize=tensors(("add", 0)))


def test_a_node_named_like_the_entry_is_an_error():
    source = model(
        """
        g (float[2, 4] x) => (float[2, 4] y, float[2, 3] z) { ["add"] y = Add (x, x) ["fc"] z = Gemm (x, w) }
        """.replace('"', ""),
        {"w": normal(4, 3)},
    )
    source.graph.node[1].name = "add:0"
    with pytest.raises(ConfigError, match="rename that node"):
        quantize_onnx(source, calibration=[{"x": normal(2, 4)}], tensor_quantize=tensors(("add", 0)))


def test_amct_files_name_the_tensor(tmp_path):
    path = tmp_path / "quant.cfg"
    path.write_text('batch_num: 3 tensor_quantize { layer_name: "add" input_index: 0 }')
    config = QuantConfig(batch_num=3, tensor_quantize=tensors(("add", 0)), common_config=LayerConfig())
    assert (
        quantize_onnx(NETWORK, path, calibration=FEEDS).record
        == quantize_onnx(NETWORK, config, calibration=FEEDS).record
    )


def test_a_record_says_which_it_means_where_a_node_is_named_like_a_tensor(tmp_path):
    source = model(
        """
        g (float[2, 4] x) => (float[2, 4] y, float[2, 3] z) { [add] y = Add (x, x) [fc] z = Gemm (x, w) }
        """,
        {"w": normal(4, 3)},
    )
    source.graph.node[1].name = "add:0"
    scales = "scale_d: 0.1 offset_d: 3"
    for extra, layers, found in (
        ("is_tensor_quantize: true", [], ["add:0"]),
        ("scale_w: 0.1 offset_w: 0", ["add:0"], []),
    ):
        (tmp_path / "record.txt").write_text(f'record {{ key: "add:0" value {{ {scales} {extra} }} }}')
        result = convert_model(source, tmp_path / "record.txt")
        assert (list(result.plan.layers), [tensor.key for tensor in result.plan.tensors]) == (layers, found)
