"""The .cfg dialect: every field, every default, every range, protobuf's freedoms of spelling, and what is refused."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amct_onnx.config import LayerConfig, NuqConfig, QuantConfig, TensorConfig
from amct_onnx.errors import ConfigError
from amct_onnx.formats.amct_cfg import parse_cfg, read_cfg
from amct_onnx.formats.schema import load_schema
from amct_onnx.kernels.adaround import AdaRound
from amct_onnx.kernels.arq import Arq
from amct_onnx.kernels.dmq import Dmq
from amct_onnx.kernels.hfmg import Hfmg
from amct_onnx.kernels.ifmr import Ifmr
from amct_onnx.kernels.nuq import Nuq

GOLDEN = Path(__file__).parent / "golden"
AMCT_DEFAULTS = QuantConfig(batch_num=1, balance_batches=1)


def parse(text: str | bytes) -> QuantConfig:
    return parse_cfg(text, "quant.cfg")


def common(block: str) -> LayerConfig:
    return parse(f"common_config {{ {block} }}").common_config


def complaint(text: str | bytes) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    message = str(caught.value)
    assert message.startswith("quant.cfg: ")
    return message


def test_an_empty_text_asks_for_amct_defaults():
    assert parse("") == AMCT_DEFAULTS
    assert parse(b"") == AMCT_DEFAULTS
    assert parse("# batch_num: 7\n") == AMCT_DEFAULTS


def test_every_global_field():
    config = parse(
        """
        batch_num: 3 activation_offset: false joint_quant: true do_fusion: false version: 1
        skip_layers: "a" skip_layers: "b" skip_layer_types: "Linear" skip_layer_types: "Conv"
        skip_fusion_layers: "c" fakequant_precision_mode: FORCE_FP16_QUANT
        common_config { hfmg_quantize { } }
        override_layer_types { layer_type: "Conv2d" calibration_config { arq_quantize { channel_wise: true } } }
        override_layer_configs { layer_name: "x:y/z" calibration_config { dmq_balancer { } } }
        tensor_quantize { layer_name: "add" input_index: 1 hfmg_quantize { num_of_bins: 1024 } }
        tensor_quantize { layer_name: "add" input_index: 0 }
        nuq_config { mapping_file: "map.json" nuq_quantize { num_steps: 16 } }
        """
    )
    assert config == QuantConfig(
        batch_num=3,
        balance_batches=1,
        activation_offset=False,
        joint_quant=True,
        do_fusion=False,
        skip_layers=("a", "b"),
        skip_layer_types=("Linear", "Conv"),
        skip_fusion_layers=("c",),
        fakequant_precision_mode="FORCE_FP16_QUANT",
        common_config=LayerConfig(activation=Hfmg()),
        override_layer_types={"Conv2d": LayerConfig(weight=Arq(channel_wise=True))},
        override_layer_configs={"x:y/z": LayerConfig(balancer=Dmq())},
        tensor_quantize=(
            TensorConfig(layer_name="add", input_index=1, activation=Hfmg(num_of_bins=1024)),
            TensorConfig(layer_name="add", input_index=0),
        ),
        nuq_config=NuqConfig(mapping_file="map.json", nuq=Nuq(num_steps=16)),
    )


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ("", LayerConfig()),
        ("arq_quantize { }", LayerConfig(weight=Arq())),
        ("arq_quantize { channel_wise: true quant_bits: 4 }", LayerConfig(weight=Arq(channel_wise=True, num_bits=4))),
        ("arq_quantize { channel_wise: false }", LayerConfig(weight=Arq(channel_wise=False))),
        ("ada_quantize { }", LayerConfig(weight=AdaRound())),
        (
            "ada_quantize { num_iteration: 0 reg_param: 0.3 beta_range_start: 9 beta_range_end: 0.1 warm_start: 0.7"
            " channel_wise: false }",
            LayerConfig(
                weight=AdaRound(
                    num_iteration=0, reg_param=0.3, beta_range=(9.0, 0.1), warm_start=0.7, channel_wise=False
                )
            ),
        ),
        ("nuq_quantize { }", LayerConfig(weight=Nuq())),
        (
            "nuq_quantize { num_steps: 16 num_of_iteration: 5 }",
            LayerConfig(weight=Nuq(num_steps=16, num_of_iteration=5)),
        ),
        ("ifmr_quantize { }", LayerConfig(activation=Ifmr())),
        (
            "ifmr_quantize { search_range_start: 0.8 search_range_end: 1.2 search_step: 0.02 max_percentile: 1"
            " min_percentile: 0.51 asymmetric: false dst_type: INT16 }",
            LayerConfig(
                activation=Ifmr(
                    search_range=(0.8, 1.2),
                    search_step=0.02,
                    max_percentile=1.0,
                    min_percentile=0.51,
                    asymmetric=False,
                    num_bits=16,
                )
            ),
        ),
        ("hfmg_quantize { }", LayerConfig(activation=Hfmg())),
        (
            "hfmg_quantize { num_of_bins: 8192 asymmetric: true dst_type: INT8 }",
            LayerConfig(activation=Hfmg(num_of_bins=8192, asymmetric=True, num_bits=8)),
        ),
        ("dmq_balancer { }", LayerConfig(balancer=Dmq())),
        ("dmq_balancer { migration_strength: 0.8 }", LayerConfig(balancer=Dmq(migration_strength=0.8))),
    ],
)
def test_every_algorithm(block, expected):
    assert common(block) == expected


@pytest.mark.parametrize("bits", [4, 6, 7, 8])
def test_widths_of_weights(bits):
    assert common(f"arq_quantize {{ quant_bits: {bits} }}").weight == Arq(num_bits=bits)


@pytest.mark.parametrize("bins", [1024, 2048, 4096, 8192])
def test_numbers_of_bins(bins):
    assert common(f"hfmg_quantize {{ num_of_bins: {bins} }}").activation == Hfmg(num_of_bins=bins)


@pytest.mark.parametrize(("kind", "bits"), [("INT8", 8), ("1", 8), ("INT16", 16), ("2", 16), ("0x2", 16)])
def test_an_enum_goes_by_name_or_number(kind, bits):
    assert common(f"ifmr_quantize {{ dst_type: {kind} }}").activation.num_bits == bits


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("FORCE_FP16_QUANT", "FORCE_FP16_QUANT"),
        ("1", "FORCE_FP16_QUANT"),
        ("DEFAULT", "DEFAULT"),
        ("0", "DEFAULT"),
    ],
)
def test_precision_modes(mode, expected):
    assert parse(f"fakequant_precision_mode: {mode}").fakequant_precision_mode == expected


@pytest.mark.parametrize(
    ("spelling", "expected"),
    [("true", True), ("True", True), ("t", True), ("1", True), ("false", False), ("False", False), ("0", False)],
)
def test_spellings_of_truth(spelling, expected):
    assert common(f"arq_quantize {{ channel_wise: {spelling} }}").weight == Arq(channel_wise=expected)


@pytest.mark.parametrize(
    "text",
    [
        'common_config: { hfmg_quantize: { } } skip_layers: "a" skip_layers: "bc"',
        "common_config < hfmg_quantize < > > skip_layers: 'a' skip_layers: 'b' \"c\"",
        'common_config{hfmg_quantize{},};skip_layers:"a",skip_layers:"b"\n"c";',
        'skip_layers: ["a", "bc"] # two\r\n#nothing\r\ncommon_config {\r\n hfmg_quantize: { }\r\n}\r\n',
        '\ufeffcommon_config { hfmg_quantize { } } skip_layers: "\\141" skip_layers: "\\x62c"',
    ],
)
def test_freedoms_of_the_text_format(text):
    expected = QuantConfig(
        batch_num=1,
        balance_batches=1,
        skip_layers=("a", "bc"),
        common_config=LayerConfig(activation=Hfmg()),
    )
    assert parse(text) == expected
    assert parse(text.encode()) == expected


def test_names_may_be_in_any_script():
    assert parse('skip_layers: "卷积_1" skip_layers: "\\345\\215\\267"'.encode()).skip_layers == ("卷积_1", "卷")


def test_the_last_of_repeated_scalars_counts():
    assert parse("batch_num: 1 batch_num: 5").batch_num == 5


def test_the_last_algorithm_of_a_kind_counts():
    block = common("hfmg_quantize { num_of_bins: 1024 } ada_quantize { } ifmr_quantize { } arq_quantize { }")
    assert block == LayerConfig(activation=Ifmr(), weight=Arq())


def test_repeated_blocks_merge_field_by_field():
    config = parse(
        "common_config { ifmr_quantize { search_step: 0.02 max_percentile: 0.9 } }"
        "common_config { ifmr_quantize { search_step: 0.05 } arq_quantize { channel_wise: true } }"
    )
    assert config.common_config == LayerConfig(
        activation=Ifmr(search_step=0.05, max_percentile=0.9), weight=Arq(channel_wise=True)
    )


def test_an_algorithm_that_comes_back_starts_anew():
    block = common("ifmr_quantize { search_step: 0.02 } hfmg_quantize { } ifmr_quantize { max_percentile: 0.9 }")
    assert block.activation == Ifmr(max_percentile=0.9)


def test_an_override_does_not_inherit_the_common_block():
    config = parse(
        "common_config { ifmr_quantize { search_step: 0.02 asymmetric: true } }"
        'override_layer_configs { layer_name: "a" calibration_config { arq_quantize { } } }'
    )
    assert config.override_layer_configs["a"] == LayerConfig()


@pytest.mark.parametrize("text", ["0.7", "0.70000", "7e-1", ".7", "0.7f", "0.69999999"])
def test_floats_are_the_shortest_decimal_of_their_float32(text):
    activation = common(f"ifmr_quantize {{ search_range_start: {text} }}").activation
    assert activation == Ifmr(search_range=(0.7, 1.3))


@given(st.floats(0.625, 1.0, width=32))
def test_floats_keep_their_float32(value):
    read = common(f"ifmr_quantize {{ max_percentile: {value!r} }}").activation.max_percentile
    assert np.float32(read) == np.float32(value)
    assert len(repr(read)) <= len(repr(value))


DEPRECATED = (
    "conv_calibration_config { hfmg_quantize { } } fc_calibration_config { hfmg_quantize { num_of_bins: 1024 } }"
)
FC = LayerConfig(activation=Hfmg(num_of_bins=1024))


def test_deprecated_blocks_stand_in_for_their_successors(caplog):
    with caplog.at_level(logging.WARNING, "amct_onnx"):
        config = parse(DEPRECATED)
    assert config.common_config == LayerConfig(activation=Hfmg())
    assert config.override_layer_types == {"AveragePool": FC, "Gemm": FC, "MatMul": FC}
    assert "deprecated" in caplog.text


def test_one_deprecated_block_may_stand_alone():
    assert parse("conv_calibration_config { hfmg_quantize { } }") == QuantConfig(
        batch_num=1, balance_batches=1, common_config=LayerConfig(activation=Hfmg())
    )
    only_fc = parse("fc_calibration_config { arq_quantize { channel_wise: false } }")
    assert only_fc.common_config == LayerConfig()
    assert set(only_fc.override_layer_types) == {"AveragePool", "Gemm", "MatMul"}


@pytest.mark.parametrize(
    "successor",
    ["common_config { }", 'override_layer_types { layer_type: "Conv" calibration_config { } }'],
)
def test_deprecated_blocks_beside_their_successors_are_ignored(successor, caplog):
    with caplog.at_level(logging.WARNING, "amct_onnx"):
        config = parse(DEPRECATED + successor)
    assert config == parse(successor)
    assert "ignored" in caplog.text
    assert "conv_calibration_config and fc_calibration_config" in caplog.text


def test_deprecated_blocks_hold_beside_single_layers():
    config = parse(DEPRECATED + 'override_layer_configs { layer_name: "a" calibration_config { } }')
    assert config.common_config == LayerConfig(activation=Hfmg())
    assert config.override_layer_configs == {"a": LayerConfig()}


def test_the_deprecated_block_for_gemm_has_one_scale_per_weight():
    message = complaint("fc_calibration_config { arq_quantize { channel_wise: true } }")
    assert "fc_calibration_config" in message
    assert "channel_wise must be false" in message


def test_what_only_concerns_tensorflow_is_ignored_aloud(caplog):
    with caplog.at_level(logging.WARNING, "amct_onnx"):
        assert parse('skip_approximation_layers: "a"') == AMCT_DEFAULTS
    assert "skip_approximation_layers" in caplog.text


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("batch_nums: 2", ["line 1, column 1", "batch_nums", "AMCTConfig", "did you mean 'batch_num'?", "do_fusion"]),
        (
            "\n common_config { ifmr_quantize { serch_step: 1 } }",
            ["line 2, column 34", "'serch_step'", "FMRQuantize", "did you mean 'search_step'", "max_percentile"],
        ),
        ("common_config { zzz: 1 }", ["unknown field 'zzz' in CalibrationConfig; known fields: arq_quantize"]),
        ("batch_num: two", ["line 1, column 12", "batch_num must be a whole number from 0", "found two"]),
        ("batch_num: -1", ["batch_num", "from 0 to 4294967295", "found -1"]),
        ("batch_num: 1.5", ["batch_num", "whole number", "found 1.5"]),
        ("batch_num: 4294967296", ["batch_num", "found 4294967296"]),
        ("batch_num: " + "9" * 5000, ["batch_num", "(5000 characters)"]),
        ("batch_num: 0", ["batch_num must be at least 1, found 0"]),
        ("batch_num 2", ["batch_num lacks its colon", "found 2"]),
        ("batch_num:", ["batch_num", "found the end of the text"]),
        ("do_fusion: yes", ["do_fusion must be true or false, found yes"]),
        ("common_config: 3", ["common_config must be a block", "ifmr_quantize", "found 3"]),
        ("skip_layers: a", ["skip_layers must be a quoted text, found a"]),
        ('skip_layers: "a', ["skip_layers must be a quoted text", "line 1, column 14"]),
        ('skip_layers: "a\n"', ["skip_layers", "line 1, column 14"]),
        ('skip_layers: ["a" "b"', ["line 1"]),
        ('skip_layers: "\\xff"', ["line 1", "utf-8"]),
        ('skip_layers: "a" skip_layers: "a"', ["skip_layers lists 'a' 2 times"]),
        ('skip_layer_types: "Conf"', ["skip_layer_types", "'Conf'", "'Conv'"]),
        ('skip_fusion_layers: "a" skip_fusion_layers: "a"', ["skip_fusion_layers lists 'a' 2 times"]),
        ("fakequant_precision_mode: FP16", ["fakequant_precision_mode must be one of DEFAULT, FORCE_FP16_QUANT"]),
        ("fakequant_precision_mode: 2", ["found 2"]),
        ("common_config { arq_quantize {", ["the block is not closed"]),
        ("}", ["line 1, column 1"]),
        ('{"batch_num": 1}', ["line 1, column 1", "cannot read on at {"]),
        ("[a.b]: 1", ["line 1"]),
        (b"batch_num: \xff", ["not UTF-8 text", "\\xff", "position 11", "save the file as UTF-8"]),
        ("batch_num: \0", ["NUL"]),
        ("batch_num: 1 \ud800", ["not UTF-8 text"]),
        ("common_config{" * 3000, ["line 1"]),
    ],
)
def test_what_cannot_be_read_is_named(text, parts):
    message = complaint(text)
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("block", "parts"),
    [
        ("arq_quantize { quant_bits: 5 }", ["{ quant_bits: 5 }", "one of 4, 6, 7, 8, found 5"]),
        ("ada_quantize { reg_param: 0 }", ["ada_quantize", "reg_param", "(0, 1)", "0.0"]),
        ("ada_quantize { reg_param: 1 }", ["reg_param", "(0, 1)"]),
        ("ada_quantize { warm_start: 0 }", ["warm_start", "(0, 1)"]),
        ("ada_quantize { warm_start: 1 }", ["warm_start", "(0, 1)"]),
        (
            "ada_quantize { beta_range_start: 2 }",
            ["{ beta_range_start: 2.0 }", "must start above its end", "[2.0, 2.0]"],
        ),
        ("ada_quantize { beta_range_end: 0 }", ["beta_range end", "(0, inf)"]),
        ("nuq_quantize { num_steps: 8 }", ["num_steps must be one of 16, 32, found 8"]),
        ("nuq_quantize { num_of_iteration: 6 }", ["num_of_iteration", "found 6"]),
        ("ifmr_quantize { search_range_start: 0 }", ["search_range start", "(0, inf)"]),
        ("ifmr_quantize { search_range_start: -0.5 }", ["search_range start", "found -0.5"]),
        ("ifmr_quantize { search_range_end: 0.7 }", ["must start below its end, found [0.7, 0.7]"]),
        ("ifmr_quantize { search_step: 0 }", ["search_step", "(0, inf)"]),
        ("ifmr_quantize { search_step: 0.61 }", ["search_step must not exceed the range [0.7, 1.3], found 0.61"]),
        ("ifmr_quantize { search_step: nan }", ["search_step", "finite", "nan"]),
        ("ifmr_quantize { search_step: 1e39 }", ["search_step", "finite", "inf"]),
        ("ifmr_quantize { max_percentile: 0.5 }", ["max_percentile must lie in (0.5, 1], found 0.5"]),
        ("ifmr_quantize { max_percentile: 1.01 }", ["max_percentile", "found 1.01"]),
        ("ifmr_quantize { min_percentile: 0.5 }", ["min_percentile", "found 0.5"]),
        ("ifmr_quantize { min_percentile: 2 }", ["min_percentile", "found 2.0"]),
        ("hfmg_quantize { num_of_bins: 1000 }", ["num_of_bins must be one of 1024, 2048, 4096, 8192, found 1000"]),
        ("dmq_balancer { migration_strength: 0.19 }", ["migration_strength must lie in [0.2, 0.8], found 0.19"]),
        ("dmq_balancer { migration_strength: 0.81 }", ["migration_strength", "found 0.81"]),
        ("ifmr_quantize { dst_type: INT4 }", ["dst_type must be one of INT8, INT16, found INT4"]),
        ("hfmg_quantize { dst_type: 0 }", ["dst_type must be one of INT8, INT16, found 0"]),
    ],
)
def test_values_out_of_range_are_named(block, parts):
    for text, place in [
        (f"common_config {{ {block} }}", "common_config"),
        (
            f'override_layer_types {{ layer_type: "Gemm" calibration_config {{ {block} }} }}',
            "override_layer_types of 'Gemm'",
        ),
        (
            f'override_layer_configs {{ layer_name: "fc 1" calibration_config {{ {block} }} }}',
            "override_layer_configs of 'fc 1'",
        ),
    ]:
        message = complaint(text)
        assert place in message or "line 1" in message
        for part in parts:
            assert part in message


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("override_layer_types { }", ["override_layer_types, block 1", "layer_type is missing"]),
        (
            'override_layer_types { layer_type: "Conv" calibration_config { } } override_layer_types { }',
            ["override_layer_types, block 2"],
        ),
        ("override_layer_configs { calibration_config { } }", ["override_layer_configs", "layer_name is missing"]),
        ('override_layer_configs { layer_name: "" calibration_config { } }', ["layer_name is an empty text"]),
        ('override_layer_configs { layer_name: "a" }', ["'a'", "calibration_config is missing"]),
        ("tensor_quantize { input_index: 0 }", ["tensor_quantize, block 1", "layer_name is missing"]),
        ('tensor_quantize { layer_name: "a" }', ["input_index is missing"]),
        ('tensor_quantize { layer_name: "a" input_index: -1 }', ["input_index", "found -1"]),
        ("nuq_config { }", ["nuq_config", "mapping_file is missing"]),
    ],
)
def test_what_is_required_and_missing_is_named(text, parts):
    message = complaint(text)
    for part in parts:
        assert part in message


def test_overriding_twice_is_refused():
    layer = 'override_layer_configs { layer_name: "a" calibration_config { } }'
    assert "'a' is overridden a second time" in complaint(layer + layer)
    kind = 'override_layer_types { layer_type: "Conv" calibration_config { } }'
    assert "'Conv' is overridden a second time" in complaint(kind + kind)
    tensor = 'tensor_quantize { layer_name: "a" input_index: 1 }'
    assert "input 1 of 'a' 2 times" in complaint(tensor + tensor)


def test_reading_files(tmp_path):
    path = tmp_path / "q.cfg"
    path.write_bytes(b"batch_num: 2")
    assert read_cfg(path) == QuantConfig(batch_num=2, balance_batches=1)
    path.write_bytes(b" \n")
    with pytest.raises(ConfigError, match=r"q\.cfg: the file is empty"):
        read_cfg(str(path))
    with pytest.raises(ConfigError, match=r"none\.cfg: cannot read the file: No such file"):
        read_cfg(tmp_path / "none.cfg")


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("ptq/*/quant.cfg")), ids=lambda p: p.parent.name)
def test_configurations_that_amct_took(path):
    config = read_cfg(path)
    text = path.read_text()
    assert config.batch_num == int(text.split("batch_num : ")[1][0])
    assert ("ada_quantize" in text) == isinstance(config.common_config.weight, AdaRound)
    assert ("dmq_balancer" in text) == (config.common_config.balancer is not None)


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("seeds/*.cfg")), ids=lambda p: p.name)
def test_examples_of_users(path):
    text = path.read_text()
    if "Optype" in text:  # stands for a type in the examples, and is none
        with pytest.raises(ConfigError, match="unknown layer type 'Optype'"):
            read_cfg(path)
    config = parse(text.replace('"Optype"', '"Conv2d"'))
    if path.name == "uniform.cfg":
        assert config.common_config == LayerConfig(
            activation=Ifmr(asymmetric=True), weight=Arq(channel_wise=True, num_bits=7), balancer=Dmq()
        )
        assert config.override_layer_types["Conv2d"].weight == Arq(channel_wise=False, num_bits=6)
        assert config.override_layer_configs["Opname"].activation.search_step == 0.02
    elif path.name == "ada_round.cfg":
        assert config == QuantConfig(
            batch_num=1,
            balance_batches=1,
            common_config=LayerConfig(weight=AdaRound(channel_wise=False, beta_range=(20.0, 2.0))),
        )
    elif path.name == "hfmg.cfg":
        assert config == QuantConfig(
            batch_num=2, balance_batches=1, common_config=LayerConfig(activation=Hfmg(asymmetric=False))
        )
    else:
        assert config.common_config.balancer == Dmq(migration_strength=0.5)


def outcome(text: str | bytes) -> QuantConfig | str:
    try:
        return parse(text)
    except ConfigError as error:
        return str(error)


def is_expected(found: QuantConfig | str) -> bool:
    return isinstance(found, QuantConfig) or found.startswith("quant.cfg: ")


FIELD_NAMES = sorted({name for fields in load_schema("calibration_config_onnx").messages.values() for name in fields})
TOKENS = st.one_of(
    st.sampled_from([*FIELD_NAMES, *"{}<>[]:;,#", "\n", '"', "'", "true", "INT8", "1", "-1", "0.5", "nan", '"Conv"']),
    st.text(max_size=3),
)


@given(st.one_of(st.text(), st.binary(), st.lists(TOKENS, max_size=12).map(" ".join)))
def test_any_text_is_a_configuration_or_one_of_our_errors(text):
    assert is_expected(outcome(text))


@given(st.data())
def test_broken_files_are_configurations_or_one_of_our_errors(data):
    text = (GOLDEN / "seeds" / "uniform.cfg").read_bytes().replace(b"Optype", b"Conv")
    at = data.draw(st.integers(0, len(text)))
    until = data.draw(st.integers(at, min(len(text), at + 40)))
    assert is_expected(outcome(text[:at] + data.draw(st.binary(max_size=8)) + text[until:]))
