"""The files of training: .cfg and config.json <-> `RetrainConfig`."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amct_onnx import ConfigError, RetrainConfig, RetrainLayerConfig
from amct_onnx.formats.retrain_cfg import parse_retrain_cfg
from amct_onnx.formats.retrain_json import format_retrain_json, load_retrain_config, parse_retrain_json
from amct_onnx.retrain_config import ArqRetrain, FilterPrune, SelectivePrune, UlqActivation, UlqRetrain

GOLDEN = Path(__file__).parent / "golden" / "retrain"

QUANT = """
# all layers
retrain_data_quant_config: { ulq_quantize: { clip_max_min: { clip_max: 6.0 clip_min: -6.0 } dst_type: INT8 } }
retrain_weight_quant_config: { arq_retrain: { channel_wise: true dst_type: INT8 } }
skip_layers: "a"
skip_layers: "b"
quant_skip_types: "Conv2d"
override_layer_types : {
    layer_type: "Linear"
    retrain_weight_quant_config: { ulq_retrain: { channel_wise: false dst_type: INT4 } }
}
override_layer_configs : {
    layer_name: "c"
    retrain_data_quant_config: { ulq_quantize: { clip_max_min: { clip_max: 3.5 clip_min: -3.0 } fixed_min: false } }
}
batch_num: 4
fakequant_precision_mode: FORCE_FP16_QUANT
"""


def test_every_field_of_quantization_is_read():
    limits = UlqActivation(clip_max=6.0, clip_min=-6.0)
    assert parse_retrain_cfg(QUANT, "quant.cfg") == RetrainConfig(
        batch_num=4,
        everywhere=RetrainLayerConfig(activation=limits, weight=ArqRetrain(channel_wise=True)),
        skip_layers=("a", "b"),
        quant_skip_types=("Conv2d",),
        override_layer_types={"Linear": RetrainLayerConfig(weight=UlqRetrain(channel_wise=False, num_bits=4))},
        override_layer_configs={
            "c": RetrainLayerConfig(activation=UlqActivation(clip_max=3.5, clip_min=-3.0, fixed_min=False))
        },
        fakequant_precision_mode="FORCE_FP16_QUANT",
    )


FILTERS = "filter_pruner { balanced_l2_norm_filter_prune { prune_ratio: %s ascend_optimized: %s } }"
SINGLE = "n_out_of_m_pruner { l1_selective_prune { n_out_of_m_type: M4N2 update_freq: %s } }"


@pytest.mark.parametrize(
    ("text", "wide", "own"),
    [
        ((FILTERS % (0.3, "True"), FILTERS % (0.5, "False")), FilterPrune(prune_ratio=0.3), (0.5, False)),
        ((SINGLE % 0, SINGLE % 1), SelectivePrune(), 1),
        ((SINGLE % 2, FILTERS % (0.5, "False")), SelectivePrune(update_freq=2), (0.5, False)),
    ],
)
def test_sparsity_is_read(text, wide, own):
    ours = (
        SelectivePrune(update_freq=own)
        if isinstance(own, int)
        else FilterPrune(prune_ratio=own[0], ascend_optimized=own[1])
    )
    config = parse_retrain_cfg(
        f"""
        prune_config {{ {text[0]} }}
        regular_prune_skip_layers: "a" regular_prune_skip_types: "Linear"
        override_layer_configs: {{ layer_name: "b" prune_config: {{ {text[1]} }} }}
        """,
        "prune.cfg",
    )
    assert config == RetrainConfig(
        everywhere=RetrainLayerConfig(prune=wide),
        prune_skip_layers=("a",),
        prune_skip_types=("Linear",),
        override_layer_configs={"b": RetrainLayerConfig(prune=ours)},
    )
    assert config.prunes


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("batch_nun: 1", "unknown field 'batch_nun'"),
        ("batch_num: 0", "batch_num"),
        ("prune_config { filter_pruner { } }", "names no algorithm"),
        ("prune_config { filter_pruner { balanced_l2_norm_filter_prune { } } }", "prune_ratio is missing"),
        (f"prune_config {{ {FILTERS % (1.0, 'true')} }}", "prune_ratio"),
        ("override_layer_configs { }", "block 1: layer_name is missing"),
        ('override_layer_types { layer_type: "Linear" } override_layer_types { layer_type: "Linear" }', "second time"),
        ("retrain_data_quant_config { ulq_quantize { clip_max_min { clip_min: -1 } } }", "clip_max is missing beside"),
        ("retrain_data_quant_config { ulq_quantize { clip_max_min { } } }", "clip_max_min is empty"),
        ("retrain_data_quant_config { ulq_quantize { dst_type: INT7 } }", "dst_type must be one of INT4, INT8, INT16"),
        ("retrain_weight_quant_config { arq_retrain { dst_type: INT16 } }", "dst_type of the weights"),
        ('skip_layers: "a" skip_layers: "a"', "'a' 2 times"),
        ('quant_skip_types: "Conv9d"', "unknown layer type 'Conv9d'"),
    ],
)
def test_what_is_wrong_in_a_cfg_is_said_with_the_file(text, said):
    with pytest.raises(ConfigError, match=said) as caught:
        parse_retrain_cfg(text, "my.cfg")
    assert "my.cfg" in str(caught.value)


@pytest.mark.parametrize("case", ["qat_arq", "qat_clip_fixed", "qat_ulq_weight"])
def test_amcts_json_is_written_back_byte_for_byte(case):
    text = (GOLDEN / case / "config.json").read_text()
    config = load_retrain_config(GOLDEN / case / "config.json")
    layers = {name: (name in config.only_layers, block) for name, block in config.override_layer_configs.items()}
    assert format_retrain_json(config, layers) == text


names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8).filter(
    lambda name: name not in ("version", "batch_num", "fakequant_precision_mode")
)
blocks = st.builds(
    RetrainLayerConfig,
    activation=st.builds(UlqActivation, fixed_min=st.none() | st.booleans()),
    weight=st.builds(ArqRetrain, channel_wise=st.booleans(), num_bits=st.sampled_from([4, 8]))
    | st.builds(UlqRetrain, channel_wise=st.booleans()),
)


@given(st.dictionaries(names, st.tuples(st.booleans(), blocks), min_size=1), st.integers(1, 9))
def test_what_is_written_as_json_is_read_again(layers, batch_num):
    if not any(enabled for enabled, _ in layers.values()):
        return
    text = format_retrain_json(RetrainConfig(batch_num=batch_num), layers)
    config = parse_retrain_json(text, "config.json")
    assert config.batch_num == batch_num
    assert dict(config.override_layer_configs) == {name: block for name, (_, block) in layers.items()}
    assert set(config.only_layers) == {name for name, (enabled, _) in layers.items() if enabled}


def test_a_setting_cannot_be_a_layer():
    with pytest.raises(ConfigError, match="cannot be called 'batch_num'"):
        format_retrain_json(RetrainConfig(), {"batch_num": (True, RetrainLayerConfig())})


@pytest.mark.parametrize("source", [7, ["a"], object()])
def test_other_things_are_no_configuration(source):
    with pytest.raises(ConfigError, match="a configuration is a path, a dict, a RetrainConfig or None"):
        load_retrain_config(source)
