"""Strategy files: what the real tool accepts and makes of it, and errors that say where."""

import json
from pathlib import Path

import pytest

from amct_onnx.errors import ConfigError, NotAvailableError
from amct_onnx.formats.vitis_json import is_strategy, parse_strategy, strategy_from_object
from amct_onnx.kernels.strategy import TensorStrategy
from amct_onnx.strategy_config import StrategyConfig

GOLDEN = json.loads((Path(__file__).parent / "golden/vitis.json").read_text(encoding="utf-8"))["cases"]
CONFIGS = [case for case in GOLDEN if case["id"].startswith("cfg_")]

DIFFERENT = {
    "cfg_bad_device": "target_device must be one of",
    "cfg_relu6_str": "convert_relu6_to_relu must be true or false",
    "cfg_bw1": "leaves no positive integer",
    "cfg_layer_neither": "layer_type or layer_name is missing",
    "cfg_layer_tensor_not_in_qdt": "does not list",
}
"""What the original accepts and cannot carry out, or quietly ignores."""

NOT_CRASHING = ("cfg_dpu_layer_no_act",)
"""What the original breaks on."""

NAMES = {"round_method": "round_mode", "quant_max": "high", "quant_min": "low"}


def assert_same(found, wanted):
    for name, value in wanted.items():
        if name == "symmetric_mode":
            assert found.symmetry == (value == "symmetric")
        elif name == "granularity":
            assert found.per_channel == (value == "per_channel")
        elif name != "percentage":
            assert getattr(found, NAMES.get(name, name)) == value, name


@pytest.mark.parametrize("case", CONFIGS, ids=lambda case: case["id"])
def test_what_the_real_tool_accepts(case):
    if case["id"] in DIFFERENT:
        with pytest.raises(ConfigError, match=DIFFERENT[case["id"]]):
            strategy_from_object(case["input"], "file")
        return
    if not case["expected"]["accepted"] and case["id"] not in NOT_CRASHING:
        with pytest.raises(ConfigError, match=r"^file: "):
            strategy_from_object(case["input"], "file")
        return
    found = strategy_from_object(case["input"], "file")
    for kind in case["expected"].get("effective", {}):
        assert_same(found.kinds[kind], case["expected"]["effective"][kind])


@pytest.mark.parametrize("case", [c for c in CONFIGS if "layer_type" in c["expected"]], ids=lambda case: case["id"])
def test_layers_inherit_as_in_the_real_tool(case):
    if case["id"] in DIFFERENT:
        return
    found = strategy_from_object(case["input"], "file").layer_types
    wanted = case["expected"]["layer_type"]
    assert found.keys() == wanted.keys()
    for layer, kinds in wanted.items():
        assert sorted(found[layer]) == sorted(kinds["quantizable_data_type"])
        for kind in found[layer]:
            assert_same(found[layer][kind], kinds[kind])


FLOAT = {
    "bit_width": 8,
    "method": "maxmin",
    "round_mode": "half_even",
    "symmetry": True,
    "scale_type": "float",
    "calib_statistic_method": "max",
}
CPU = {"target_device": "CPU", "overall_quantize_config": FLOAT}


def test_a_percentage_stays_where_a_later_section_does_not_mention_it():
    overall = {**FLOAT, "method": "percentile", "percentage": 99.9}
    sections = {"tensor_quantize_config": {"activation": {"round_mode": "half_up"}, "weights": {"method": "maxmin"}}}
    found = strategy_from_object({**CPU, "overall_quantize_config": overall, **sections}, "file")
    assert found.kinds["activation"].percentage == 99.9


def test_what_the_user_guide_prints_is_read():
    found = strategy_from_object(
        {"target_device": "DPU", "overall_quantize_config": {"scale_type": "power_of_two"}}, "file"
    )
    assert found.kinds["bias"].scale_type == "poweroftwo"


def test_the_dpus_rounding_may_be_written_out():
    said = {
        "overall_quantize_config": {"round_mode": "std_round"},
        "tensor_quantize_config": {"activation": {"round_mode": "half_up"}},
    }
    found = strategy_from_object({"target_device": "DPU", **said}, "file")
    assert found == strategy_from_object({"target_device": "DPU"}, "file")


def test_the_last_entry_for_a_layer_counts_and_a_type_goes_before_a_name():
    layers = [
        {"layer_type": "torch.nn.Conv2d", "layer_name": "x", "quantizable_data_type": ["weights"]},
        {"layer_name": "y", "quantizable_data_type": ["bias"], "overall_quantize_config": {"bit_width": 6}},
        {"layer_name": "y", "quantizable_data_type": ["bias"], "overall_quantize_config": {"bit_width": 5}},
    ]
    found = strategy_from_object({**CPU, "layer_quantize_config": layers}, "file")
    assert list(found.layer_types) == ["Conv2d"]
    assert found.layer_names["y"]["bias"].bit_width == 5
    assert list(found.layer_names["y"]) == ["bias"]


BAD = [
    ('{"target_device": "DPU", "target_device": "CPU"}', "given twice"),
    ("[1]", "must be an object"),
    ("{", "line 1"),
    ('{"target_device": "DPU", "inclde_cle": true}', "did you mean 'include_cle'"),
    ('{"target_device": "DPU", "include_cle": 1}', "include_cle must be true or false"),
    ('{"target_device": "DPU", "onnx_opset_version": "13"}', "onnx_opset_version must be an integer"),
    ('{"target_device": "DPU", "layer_quantize_config": {}}', "layer_quantize_config must be a list"),
    ('{"target_device": "DPU", "layer_quantize_config": [3]}', "entry 1: must be an object"),
    ('{"target_device": "DPU", "layer_quantize_config": [{"layer_type": 3}]}', "layer_type must be a string"),
    ('{"target_device": "DPU", "tensor_quantize_config": {"weight": {}}}', "did you mean 'weights'"),
    ('{"target_device": "DPU", "tensor_quantize_config": {"weights": {"bit_width": "8"}}}', "weights: bit_width"),
    ('{"target_device": "DPU", "tensor_quantize_config": {"bias": {"datatype": "int8"}}}', "datatype must be one of"),
    ('{"target_device": "DPU", "layer_quantize_config": [{"layer_type": "Conv2d", "quantizable_data_type": ["bias"], '
     '"tensor_quantize_config": true}]}', "entry 1: tensor_quantize_config: must be an object"),
    ('{"target_device": "DPU", "layer_quantize_config": [{"layer_type": "Conv2d", "layer_name": [], '
     '"quantizable_data_type": ["bias"]}]}', "entry 1: layer_name must be a string or null"),
    ('{"target_device": "DPU", "quantizable_data_type": ["bias", "all"]}', "must be one of 'input'"),
    ('{"target_device": "CPU", "overall_quantize_config": {"percentage": 0}}', "percentage must lie in"),
    ('{"target_device": "DPU", "overall_quantize_config": {"bit_width": 4}, '
     '"tensor_quantize_config": {"bias": {"bit_width": 8}}}', "one bit_width for activation and bias"),
    ('{"target_device": "DPU", "overall_quantize_config": {"round_mode": "std_round"}}',
     "kind 'activation': .*'half_up' here, found 'std_round'; no overall round_mode fits all kinds.*leave it out"),
    ('{"target_device": "DPU", "overall_quantize_config": {"round_mode": "half_up"}}',
     "kind 'input': .*'std_round' here, found 'half_up'; no overall round_mode"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "said"), BAD, ids=[said for _, said in BAD])
def test_errors_say_where_and_what(text, said):
    with pytest.raises(ConfigError, match="file: .*" + said):
        parse_strategy(text, "file")


def test_what_is_not_carried_out_is_said():
    with pytest.raises(NotAvailableError, match="not available"):
        strategy_from_object({"target_device": "DPU", "convert_silu_to_hswish": True}, "file")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"kinds": {"weight": TensorStrategy()}}, "a key of kinds must be one of 'input', 'weights'"),
        ({"kinds": {"weights": {"bit_width": 4}}}, "must be a TensorStrategy, found {'bit_width': 4}"),
        ({"kinds": [1]}, "kinds must map kinds of tensors"),
        ({"layer_types": ["Conv2d"]}, "layer_types must map names"),
        ({"layer_names": {"c": {"bias": None}}}, r"layer_names\['c'\]\['bias'\] must be a TensorStrategy"),
    ],
)
def test_a_strategy_made_in_python_is_checked_too(fields, said):
    with pytest.raises(ConfigError, match=said):
        StrategyConfig(target_device="CPU", **fields)


def test_conflicts_are_those_of_integers():
    odd = {"datatype": "bfloat16", "symmetry": False, "method": "entropy", "bit_width": 5, "round_mode": "half_down"}
    found = strategy_from_object({"target_device": "DPU", "tensor_quantize_config": {"bias": odd}}, "file")
    assert found.kinds["bias"].datatype == "bfloat16"
    assert found.datatypes() == {"int", "bfloat16"}


def test_strategies_are_told_from_other_dialects():
    assert is_strategy({"target_device": "DPU"})
    assert is_strategy({"overall_quantize_config": {}})
    assert not is_strategy({"version": 1, "conv": {"quant_enable": True}})
    assert not is_strategy([])
