"""The one door for configurations: files told apart by content, dicts of both shapes, ready-made ones, none."""

from __future__ import annotations

import json
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from amct_onnx.config import OWN_PRESET, LayerConfig, NuqConfig, QuantConfig, TensorConfig
from amct_onnx.errors import ConfigError
from amct_onnx.formats.config_source import load_config
from amct_onnx.formats.schema import load_schema
from amct_onnx.kernels.adaround import AdaRound
from amct_onnx.kernels.arq import Arq
from amct_onnx.kernels.dmq import Dmq
from amct_onnx.kernels.hfmg import Hfmg
from amct_onnx.kernels.ifmr import Ifmr
from amct_onnx.kernels.nuq import Nuq


def complaint(source) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(source)
    return str(caught.value)


def test_nothing_asks_for_the_own_preset():
    assert load_config(None) is OWN_PRESET


def test_a_configuration_is_returned_as_it_is():
    config = QuantConfig(batch_num=3)
    assert load_config(config) is config


@pytest.mark.parametrize(
    "text",
    [
        "batch_num: 2 do_fusion: false",
        "# {\nbatch_num: 2 do_fusion: false",
        '{"batch_num": 2, "do_fusion": false}',
        ' \r\n\t{"batch_num": 2, "do_fusion": false}\n',
        '\ufeff{"batch_num": 2, "do_fusion": false}',
    ],
)
@pytest.mark.parametrize("name", ["a.cfg", "a.json", "a"])
def test_files_are_told_apart_by_content(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    expected = QuantConfig(batch_num=2, balance_batches=1, do_fusion=False, only_layers=() if '{"' in text else None)
    assert load_config(path) == expected
    assert load_config(str(path)) == expected


def test_a_comment_in_front_of_json_is_json_with_an_error(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("# mine\n{}")
    assert "a.json: line 1, column 1: Expecting value" in complaint(path)


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        (b"", ["the file is empty"]),
        (b" \n\t", ["the file is empty"]),
        (b"\xef\xbb\xbf", ["the file is empty"]),
        (b"\x08\x07\x12\x0cpytorch\x00\x00:\xb6\x03", ["not UTF-8 text", "save the file as UTF-8"]),
        (b"\x08\x01\x00", ["not a text file", "NUL"]),
        ("卷积".encode("gbk"), ["not UTF-8 text"]),
        (b"PK\x03\x04", ["line 1, column 1: unknown field 'PK'"]),
    ],
)
def test_files_that_are_no_configuration_are_named(tmp_path, data, parts):
    path = tmp_path / "q.cfg"
    path.write_bytes(data)
    message = complaint(path)
    assert str(path) in message
    for part in parts:
        assert part in message


def test_paths_that_cannot_be_read_are_named(tmp_path, monkeypatch):
    assert "none.cfg: cannot read the file: No such file" in complaint(tmp_path / "none.cfg")
    assert f"{tmp_path}: cannot read the file: Is a directory" in complaint(str(tmp_path))
    assert "cannot read the file: embedded null" in complaint("a\0b")

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert "q.cfg: cannot read the file: Permission denied" in complaint("q.cfg")


@pytest.mark.parametrize("source", [3, 2.5, b"a.cfg", ["a.cfg"], object()])
def test_other_things_are_no_configuration(source):
    assert "a configuration is a path, a dict, a QuantConfig or None; found" in complaint(source)


def test_a_dict_with_every_field_of_a_cfg():
    config = load_config(
        {
            "batch_num": 3,
            "activation_offset": False,
            "joint_quant": True,
            "do_fusion": False,
            "skip_layers": ["a"],
            "skip_layer_types": ("Conv2d",),
            "skip_fusion_layers": [],
            "fakequant_precision_mode": "FORCE_FP16_QUANT",
            "common_config": {
                "ifmr_quantize": {"search_range_start": 0.123456789, "dst_type": "INT16", "asymmetric": None},
                "ada_quantize": {"num_iteration": 5, "beta_range_end": 1},
                "dmq_balancer": {"migration_strength": 0.25},
            },
            "override_layer_types": [{"layer_type": "Gemm", "calibration_config": {"arq_quantize": {"quant_bits": 4}}}],
            "override_layer_configs": [{"layer_name": "fc", "calibration_config": {"hfmg_quantize": {}}}],
            "tensor_quantize": [{"layer_name": "add", "input_index": 1, "hfmg_quantize": {"num_of_bins": 1024}}],
            "nuq_config": {"mapping_file": "m.json"},
        }
    )
    assert config == QuantConfig(
        batch_num=3,
        activation_offset=False,
        joint_quant=True,
        do_fusion=False,
        skip_layers=("a",),
        skip_layer_types=("Conv2d",),
        fakequant_precision_mode="FORCE_FP16_QUANT",
        common_config=LayerConfig(
            activation=Ifmr(search_range=(0.123456789, 1.3), num_bits=16),
            weight=AdaRound(num_iteration=5, beta_range=(20.0, 1.0)),
            balancer=Dmq(migration_strength=0.25),
        ),
        override_layer_types={"Gemm": LayerConfig(weight=Arq(num_bits=4))},
        override_layer_configs={"fc": LayerConfig(activation=Hfmg())},
        tensor_quantize=(TensorConfig(layer_name="add", input_index=1, activation=Hfmg(num_of_bins=1024)),),
        nuq_config=NuqConfig(mapping_file="m.json", nuq=Nuq()),
    )


def test_a_dict_like_a_cfg_leaves_the_batches_to_the_caller():
    assert load_config({}) == QuantConfig(batch_num=None)
    assert load_config({"batch_num": None, "version": 1}) == QuantConfig(batch_num=None)


def test_overrides_may_map_names_to_blocks():
    as_map = {
        "override_layer_types": {"Conv": {"arq_quantize": {"channel_wise": False}}},
        "override_layer_configs": MappingProxyType({"a": {"hfmg_quantize": {}}, "b": {}}),
    }
    as_list = {
        "override_layer_types": [
            {"layer_type": "Conv", "calibration_config": {"arq_quantize": {"channel_wise": False}}}
        ],
        "override_layer_configs": [
            {"layer_name": "a", "calibration_config": {"hfmg_quantize": {}}},
            {"layer_name": "b", "calibration_config": {}},
        ],
    }
    assert load_config(as_map) == load_config(as_list)
    assert set(load_config(as_map).override_layer_configs) == {"a", "b"}


def test_enums_and_numbers_of_other_libraries():
    config = load_config(
        {
            "batch_num": np.int64(4),
            "fakequant_precision_mode": 1,
            "common_config": {"ifmr_quantize": {"dst_type": 2, "search_step": np.float64(0.02)}},
        }
    )
    assert config.batch_num == 4
    assert type(config.batch_num) is int
    assert config.fakequant_precision_mode == "FORCE_FP16_QUANT"
    assert config.common_config.activation == Ifmr(num_bits=16, search_step=0.02)


def test_a_dict_like_a_json_file(tmp_path):
    found = {
        "batch_num": 2,
        "tensor_quantize": [],
        "conv": {"quant_enable": True, "activation_quant_params": {"num_of_bins": 1024}},
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps(found))
    assert load_config(found) == load_config(path)
    assert load_config(found).only_layers == ("conv",)
    assert load_config({"conv": {"weight_quant_params": {}}}).batch_num == 1
    message = complaint({"conv": {"quant_enable": 3}})
    assert message.startswith("configuration given as a dict: layer 'conv': quant_enable")


@pytest.mark.parametrize(
    ("given_dict", "parts"),
    [
        ({"batchnum": 2}, ["unknown field 'batchnum' in AMCTConfig; did you mean 'batch_num'?", "known fields:"]),
        ({"comon_config": {"ifmr_quantize": {}}}, ["'comon_config'", "did you mean 'common_config'"]),
        ({3: 4}, ["unknown field '3'"]),
        ({"batch_num": "2"}, ["batch_num must be a whole number from 0 to 4294967295, found '2'"]),
        ({"batch_num": True}, ["batch_num", "found True"]),
        ({"batch_num": 2.0}, ["batch_num", "found 2.0"]),
        ({"batch_num": -1}, ["batch_num", "found -1"]),
        ({"batch_num": 0}, ["batch_num must be at least 1, found 0"]),
        ({"batch_num": 10**5000}, ["batch_num", "found an integer of 16610 bits"]),
        ({"do_fusion": 1}, ["do_fusion must be True or False, found 1"]),
        ({"skip_layers": "conv"}, ["skip_layers must be a list, each entry a str; found 'conv'"]),
        ({"skip_layers": [1]}, ["entry 1", "skip_layers must be a str, found 1"]),
        ({"skip_layers": ["a", "a"]}, ["skip_layers lists 'a' 2 times"]),
        ({"fakequant_precision_mode": "FP16"}, ["must be one of DEFAULT, FORCE_FP16_QUANT, found 'FP16'"]),
        ({"fakequant_precision_mode": True}, ["fakequant_precision_mode", "found True"]),
        ({"common_config": 3}, ["common_config must be a block", "found 3"]),
        ({"common_config": {"ifmr_quantize": True}}, ["common_config: ifmr_quantize", "found True"]),
        (
            {"common_config": {"ifmr_quantize": {}, "hfmg_quantize": {}}},
            ["common_config: ifmr_quantize and hfmg_quantize exclude each other"],
        ),
        (
            {"common_config": {"ifmr_quantize": {"search_step": "0.1"}}},
            ["common_config: ifmr_quantize: search_step must be a number, found '0.1'"],
        ),
        ({"common_config": {"ifmr_quantize": {"search_step": 10**400}}}, ["search_step", "ordinary size"]),
        ({"common_config": {"ifmr_quantize": {"search_step": float("nan")}}}, ["search_step", "finite", "nan"]),
        ({"common_config": {"arq_quantize": {"quant_bits": 5}}}, ["{ quant_bits: 5 }", "one of 4, 6, 7, 8"]),
        ({"override_layer_configs": 3}, ["override_layer_configs must be a list", "layer_name", "found 3"]),
        ({"override_layer_configs": {"a": 3}}, ["override_layer_configs: 'a': calibration_config", "found 3"]),
        ({"override_layer_configs": {3: {}}}, ["override_layer_configs: 3: layer_name must be a str, found 3"]),
        ({"override_layer_configs": [{"layer_name": "a"}]}, ["calibration_config is missing"]),
        ({"override_layer_types": {"Conf": {}}}, ["unknown layer type 'Conf'"]),
        ({"tensor_quantize": {"a": 1}}, ["tensor_quantize must be a list"]),
    ],
)
def test_dicts_that_are_not_allowed_are_named(given_dict, parts):
    message = complaint(given_dict)
    assert message.startswith("configuration given as a dict: ")
    for part in parts:
        assert part in message


@given(st.binary())
def test_any_file_is_a_configuration_or_one_of_our_errors(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("any") / "file"
    path.write_bytes(data)
    assert is_expected(outcome(path), str(path))


def outcome(source) -> QuantConfig | str:
    try:
        return load_config(source)
    except ConfigError as error:
        return str(error)


def is_expected(found: QuantConfig | str, start: str) -> bool:
    return isinstance(found, QuantConfig) or found.startswith(start)


FIELDS = sorted({name for fields in load_schema("calibration_config_onnx").messages.values() for name in fields})
KEYS = st.sampled_from([*FIELDS, "quant_enable", "activation_quant_params", "weight_quant_params", "conv"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.sampled_from(["Conv", "INT8"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(KEYS, VALUES))
def test_any_dict_is_a_configuration_or_one_of_our_errors(found):
    assert is_expected(outcome(found), "configuration given as a dict: ")
