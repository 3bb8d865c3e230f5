"""Other widths than 8 bits: 16-bit activations and 4-bit weights, from the configuration to the models."""

from dataclasses import replace

import naive
import numpy as np
import pytest
from graphs import initializers, model, nodes_as_text, run, sqnr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from amct_onnx import Arq, ConfigError, Hfmg, Ifmr, LayerConfig, NotAvailableError, quantize_onnx
from amct_onnx.formats.record import parse_record
from amct_onnx.kernels.int4 import packed

RNG = np.random.default_rng(9)
WIDE = LayerConfig(activation=Ifmr(num_bits=16))
NARROW = LayerConfig(weight=Arq(num_bits=4))


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


NETWORK = model(
    """
    g (float[2, 4, 8] line, float[2, 4, 8, 8] x, float[2, 4, 8, 8, 8] block)
      => (float[2, 6, 6] a, float[2, 4, 6, 6, 6] c, float[2, 5] y, float[2, 4] z) {
      [conv1d] a = Conv (line, w1)
      [conv] d = Conv <pads = [1, 1, 1, 1]> (x, w2, b2)
      [conv3d] c = Conv (block, w3)
      [grouped] e = Conv <group = 2, pads = [1, 1, 1, 1]> (d, wg)
      [up] f = ConvTranspose (e, wt)
      [pool] p = AveragePool <kernel_shape = [2, 2]> (f)
      [mean] m = GlobalAveragePool (p)
      [flat] r = Flatten (m)
      [gemm] y = Gemm (r, u, v)
      [matmul] z = MatMul (r, t)
    }
    """,
    {
        "w1": normal(6, 4, 3),
        "w2": normal(8, 4, 3, 3),
        "b2": normal(8),
        "w3": normal(4, 4, 3, 3, 3),
        "wg": normal(8, 4, 3, 3),
        "wt": normal(8, 6, 3, 3),
        "u": normal(6, 5),
        "v": normal(5),
        "t": normal(6, 4),
    },
)
FEEDS = [{"line": normal(2, 4, 8), "x": normal(2, 4, 8, 8), "block": normal(2, 4, 8, 8, 8)} for _ in range(2)]
LAYERS = ("conv1d", "conv", "conv3d", "grouped", "up", "pool", "gemm", "matmul")


def quantized(config, **options):
    return quantize_onnx(NETWORK, calibration=FEEDS, common_config=config, correct_biases=False, **options)


def stored(result, layer, kind="deploy_model"):
    found = getattr(result, kind)
    node = next(node for node in found.graph.node if node.name == layer)
    return initializers(found)[node.input[1]]


def noise(result):
    wanted, found = run(NETWORK, FEEDS[0]), run(result.fake_quant_model, FEEDS[0])
    return {name: sqnr(values, found[name]) for name, values in wanted.items()}


@pytest.fixture(scope="module")
def plain():
    return quantized(LayerConfig())


@pytest.fixture(scope="module")
def wide():
    return quantized(WIDE)


@pytest.fixture(scope="module")
def narrow():
    return quantized(NARROW)


# 16-bit activations


def test_16_bit_activations_where_the_chip_has_them(wide):
    records = parse_record(wide.record, "record")
    kinds = {name: records[name].act_type for name in LAYERS}
    eight = {"conv3d", "pool", "matmul"}
    assert kinds == {name: "INT8" if name in eight else "INT16" for name in LAYERS}
    assert set(wide.plan.notes) == eight
    assert all("dst_type INT16" in notes[0] for notes in wide.plan.notes.values())
    assert {record.wts_type for name, record in records.items() if name != "pool"} == {"INT8"}


def test_the_operator_names_its_type_and_keeps_the_offset_in_16_bits(wide):
    quants = [line for line in nodes_as_text(wide.deploy_model) if "= AscendQuant" in line]
    assert sum("dst_type=INT16" in line for line in quants) == 5
    line = next(line for line in quants if line.startswith("[conv.quant]"))
    params = wide.params["conv"].activation
    assert f"offset={float(params.offset)}" in line
    assert abs(int(params.offset)) < 32768
    clip = initializers(wide.fake_quant_model)
    assert (clip["conv.quant.fakequant.min_val"], clip["conv.quant.fakequant.max_val"]) == (-32768, 32767)


def test_biases_are_on_the_finer_scale(plain, wide):
    ratio = float(plain.params["conv"].activation.scale / wide.params["conv"].activation.scale)
    assert 200 < ratio < 300
    node = next(node for node in wide.deploy_model.graph.node if node.name == "conv")
    bias = initializers(wide.deploy_model)[node.input[2]]
    scale = wide.params["conv"].activation.scale * wide.params["conv"].weight.scale
    assert bias.dtype == np.int32
    np.testing.assert_array_equal(bias, np.rint(initializers(NETWORK)["b2"] / scale))


def test_16_bit_activations_lose_less(plain, wide):
    before, after = noise(plain), noise(wide)
    for name in ("a", "y"):
        assert after[name] > before[name]
    assert abs(after["c"] - before["c"]) < 0.1


@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("make", [Ifmr, Hfmg])
def test_either_algorithm_finds_16_bit_scales(make, asymmetric):
    source = model(
        "g (float[4, 8] x) => (float[4, 5] y) { [fc] y = Gemm (x, w, b) }", {"w": normal(8, 5), "b": normal(5)}
    )
    feeds = [{"x": np.abs(normal(4, 8)) if asymmetric else normal(4, 8)} for _ in range(50)]
    activation = make(num_bits=16, asymmetric=asymmetric)
    result = quantize_onnx(source, calibration=feeds, common_config=LayerConfig(activation=activation))
    params = result.params["fc"].activation
    values = np.concatenate([feed["x"] for feed in feeds])
    levels = np.clip(np.rint(values / params.scale) + params.offset, -32768, 32767) - params.offset
    assert sqnr(values, levels * params.scale) > 60
    assert f'"num_bits":{params.num_bits}' in result.config


@pytest.mark.parametrize("layer", ["conv3d", "pool", "matmul"])
def test_an_override_that_asks_for_16_bits_in_vain_is_an_error(layer):
    with pytest.raises(ConfigError, match=f"layer '{layer}': dst_type INT16 is not possible"):
        quantized(LayerConfig(), override_layer_configs={layer: WIDE})


def test_a_gemm_without_a_bias_keeps_8_bits():
    source = model("g (float[4, 8] x) => (float[4, 5] y) { [fc] y = Gemm (x, w) }", {"w": normal(8, 5)})
    result = quantize_onnx(source, calibration=[{"x": normal(4, 8)}], common_config=WIDE)
    assert result.params["fc"].activation.num_bits == 8
    assert "it has no bias, so its activations have 8 bits" in result.plan.notes["fc"][0]


# 4-bit weights


def test_4_bit_weights_are_packed_along_the_input_channels(plain, narrow):
    records = parse_record(narrow.record, "record")
    for name in ("conv1d", "conv", "conv3d", "up", "gemm", "matmul"):
        axis = 1 if name.startswith("conv") else 0
        levels, found = stored(narrow, name, "fake_quant_model"), stored(narrow, name)
        assert records[name].wts_type == "INT4"
        assert np.abs(levels + 0.5).max() <= 7.5
        assert found.dtype == np.int8
        assert found.shape[axis] * 2 == stored(plain, name).shape[axis]
        first = np.moveaxis(levels, axis, -1)[(0,) * (levels.ndim - 1)].astype(int).tolist()
        assert np.moveaxis(found, axis, -1)[(0,) * (levels.ndim - 1)].tolist() == naive.packed(first)


def test_layers_with_groups_keep_8_bits(narrow):
    assert parse_record(narrow.record, "record")["grouped"].wts_type == "INT8"
    assert narrow.plan.notes == {
        "grouped": (
            "quant_bits: 4 of common_config is not possible for a 2-D Conv; it has groups, so its weights have 8 bits",
        )
    }
    assert stored(narrow, "grouped").shape == (8, 4, 3, 3)


def test_4_bit_weights_cost_accuracy(plain, narrow):
    before, after = noise(plain), noise(narrow)
    for name in before:
        assert after[name] < before[name] - 10


def test_an_odd_number_of_input_channels_keeps_8_bits():
    source = model("g (float[4, 5] x) => (float[4, 4] y) { [fc] y = Gemm (x, w) }", {"w": normal(5, 4)})
    feeds = [{"x": normal(4, 5)}]
    result = quantize_onnx(source, calibration=feeds, common_config=NARROW)
    assert "its number of input channels, 5, is odd" in result.plan.notes["fc"][0]
    with pytest.raises(ConfigError, match=r"layer 'fc': quant_bits: 4 is not possible for Gemm; its number of input"):
        quantize_onnx(source, calibration=feeds, override_layer_configs={"fc": NARROW})


def test_4_bit_weights_do_not_go_with_16_bit_activations():
    config = replace(WIDE, weight=Arq(num_bits=4))
    result = quantized(config)
    records = parse_record(result.record, "record")
    assert {name: (records[name].act_type, records[name].wts_type) for name in ("conv", "matmul")} == {
        "conv": ("INT16", "INT8"),
        "matmul": ("INT8", "INT4"),
    }


def test_4_bit_activations_say_that_they_are_not_available():
    with pytest.raises(NotAvailableError, match="4-bit activations are not available yet"):
        quantized(LayerConfig(activation=Ifmr(num_bits=4)))


@given(
    levels=arrays(np.int8, array_shapes(max_side=6), elements=st.integers(-8, 7)),
    data=st.data(),
)
def test_packing_agrees_with_the_plain_twin(levels: np.ndarray, data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, levels.ndim - 1))
    if levels.shape[axis] % 2:
        with pytest.raises(ValueError, match="cannot be put into pairs"):
            packed(levels, axis=axis)
        return
    found = np.moveaxis(packed(levels, axis=axis), axis, -1).reshape(-1, levels.shape[axis] // 2)
    rows = np.moveaxis(levels, axis, -1).reshape(-1, levels.shape[axis])
    assert found.tolist() == [naive.packed(row) for row in rows.tolist()]


def test_integers_of_more_than_4_bits_are_refused() -> None:
    for value in (-9, 8):
        with pytest.raises(ValueError, match="4 bits hold no integer outside"):
            packed(np.array([0, value], np.int8), axis=0)
