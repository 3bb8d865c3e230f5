"""NUQ from the configuration to the models: which layers, which integers, and the mapping file."""

import json

import numpy as np
import pytest
from graphs import initializers, model, run, sqnr

from amct_onnx import ConfigError, LayerConfig, Nuq, NuqConfig, quantize_onnx
from amct_onnx.formats.record import parse_record

RNG = np.random.default_rng(4)
NUQ16 = LayerConfig(weight=Nuq(num_steps=16))


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


NETWORK = model(
    """
    g (float[2, 4, 8, 8] x) => (float[2, 8, 1, 1] m, float[2, 5] y, float[2, 4] z) {
      [conv] c = Conv <pads = [1, 1, 1, 1]> (x, w)
      [dilated] d = Conv <dilations = [2, 2], pads = [2, 2, 2, 2]> (c, v)
      [pool] p = AveragePool <kernel_shape = [2, 2]> (d)
      [mean] m = GlobalAveragePool (p)
      [flat] f = Flatten (m)
      [gemm] y = Gemm (f, u)
      [matmul] z = MatMul (f, t)
    }
    """,
    {"w": normal(8, 4, 3, 3), "v": normal(8, 8, 3, 3), "u": normal(8, 5), "t": normal(8, 4)},
)
FEEDS = [{"x": normal(2, 4, 8, 8)} for _ in range(3)]


def stored(result, layer, kind="deploy_model"):
    found = getattr(result, kind)
    node = next(node for node in found.graph.node if node.name == layer)
    return initializers(found)[node.input[1]]


def test_common_nuq_applies_where_the_chip_can_and_tells_of_the_rest():
    result = quantize_onnx(NETWORK, calibration=FEEDS, common_config=NUQ16)
    weights = {name: layer.weight for name, layer in result.plan.layers.items()}
    assert {name for name, weight in weights.items() if isinstance(weight, Nuq)} == {"conv", "gemm"}
    assert set(result.plan.notes) == {"dilated", "matmul"}
    assert "nuq_quantize" in result.plan.notes["dilated"][0]
    records = parse_record(result.record, "record")
    for name in ("conv", "gemm"):
        cluster = records[name].cluster
        assert len(set(cluster)) == 16
        assert set(stored(result, name).ravel().tolist()) <= set(cluster)
    assert records["matmul"].cluster == ()
    assert '"wts_algo":"nuq_quantize"' in result.config


@pytest.mark.parametrize("layer", ["dilated", "matmul", "pool"])
def test_an_override_that_cannot_be_honoured_is_an_error(layer):
    with pytest.raises(ConfigError, match=f"layer '{layer}': nuq_quantize is not possible"):
        quantize_onnx(NETWORK, calibration=FEEDS, override_layer_configs={layer: NUQ16})


def test_fewer_integers_cost_accuracy_and_each_parameter_counts():
    wanted = run(NETWORK, FEEDS[0])["y"]
    errors = []
    for weight in (
        Nuq(num_steps=16, num_of_iteration=0),
        Nuq(num_steps=16, num_of_iteration=5),
        Nuq(num_steps=32),
        None,
    ):
        common = LayerConfig() if weight is None else LayerConfig(weight=weight)
        result = quantize_onnx(NETWORK, calibration=FEEDS, common_config=common)
        errors.append((sqnr(wanted, run(result.fake_quant_model, FEEDS[0])["y"]), result.record))
    assert errors[0][0] < errors[2][0] < errors[3][0]
    assert len({record for _, record in errors}) == 4


def test_the_fake_quant_model_holds_the_same_integers():
    result = quantize_onnx(NETWORK, calibration=FEEDS, common_config=NUQ16)
    for name in ("conv", "gemm"):
        np.testing.assert_array_equal(stored(result, name, "fake_quant_model"), stored(result, name))


# The mapping file


def flagged(name, value, origins=()):
    attributes = [{"key": "fe_weight_compress", "value": value}] if value is not None else []
    if origins:
        attributes.append(
            {"key": "_datadump_original_op_names", "value": {"list": {"val_type": 1, "s": list(origins)}}}
        )
    return {"name": name, "type": "Conv2D", "attr": attributes}


def mapping(folder, *ops):
    path = folder / "fused.json"
    path.write_text(json.dumps({"name": "net", "graph": [{"name": "g", "op": list(ops)}]}))
    return NuqConfig(mapping_file=str(path), nuq=Nuq(num_steps=16))


def nuq_layers(**options):
    result = quantize_onnx(NETWORK, calibration=FEEDS, **options)
    return {name for name, layer in result.plan.layers.items() if isinstance(layer.weight, Nuq)}


def test_a_mapping_file_names_the_layers(tmp_path):
    config = mapping(
        tmp_path,
        flagged("conv", {"b": True}),
        flagged("gemm", {"b": False}),
        flagged("dilated", {"i": 1}),
        {"name": "z"},
    )
    assert nuq_layers(nuq_config=config) == {"conv"}
    assert nuq_layers(nuq_config=mapping(tmp_path, flagged("fused", {"i": 1}, ["gemm", "relu"]))) == {"gemm"}


def test_an_override_of_the_layer_goes_before_the_mapping_file(tmp_path):
    config = mapping(tmp_path, flagged("conv", {"b": True}), flagged("gemm", {"b": True}))
    assert nuq_layers(nuq_config=config, override_layer_configs={"conv": LayerConfig()}) == {"gemm"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "fused.json"),
        ("{", "not readable as JSON"),
        ("[]", "no fused graph of ATC"),
        ('{"graph": {}}', "no fused graph of ATC"),
        ('{"graph": [{"op": 3}]}', "flags no layer of this model"),
        ('{"graph": [{"op": [{"name": 3, "attr": [{"key": []}, 4]}]}]}', "flags no layer of this model"),
    ],
)
def test_a_bad_mapping_file_is_an_error_that_names_it(tmp_path, text, message):
    path = tmp_path / "fused.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        quantize_onnx(NETWORK, calibration=FEEDS, nuq_config=NuqConfig(mapping_file=str(path)))
    assert "nuq_config" in str(caught.value)
    assert "fused.json" in str(caught.value)
