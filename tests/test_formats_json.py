"""config.json: what is read, what is refused, and AMCT's own files written byte for byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amct_onnx.config import LayerConfig, QuantConfig, TensorConfig
from amct_onnx.errors import ConfigError
from amct_onnx.formats.amct_json import SETTINGS, config_from_json_object, format_json, parse_json, read_json
from amct_onnx.kernels.adaround import AdaRound
from amct_onnx.kernels.arq import Arq
from amct_onnx.kernels.dmq import Dmq
from amct_onnx.kernels.hfmg import Hfmg
from amct_onnx.kernels.ifmr import Ifmr
from amct_onnx.kernels.nuq import Nuq

GOLDEN = Path(__file__).parent / "golden"


def parse(found: Any) -> QuantConfig:
    return parse_json(found if isinstance(found, (str, bytes)) else json.dumps(found), "config.json")


def layer(**parameters: Any) -> LayerConfig:
    return parse({"conv1": {"quant_enable": True, **parameters}}).override_layer_configs["conv1"]


def complaint(found: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(found)
    message = str(caught.value)
    assert message.startswith("config.json: ")
    return message


def layers_of(config: QuantConfig) -> dict[str, tuple[bool, LayerConfig]]:
    return {name: (name in (config.only_layers or ()), block) for name, block in config.override_layer_configs.items()}


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("ptq/*/config.json")), ids=lambda p: p.parent.name)
def test_files_of_amct_are_written_byte_for_byte(path):
    config = read_json(path)
    assert format_json(config, layers_of(config)).encode() == path.read_bytes()


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("seeds/*.json")), ids=lambda p: p.name)
def test_examples_of_users_without_widths(path):
    config = read_json(path)
    assert config.batch_num == 2
    assert config.only_layers == tuple(config.override_layer_configs)
    activation = Hfmg(asymmetric=False) if path.name == "hfmg.json" else Ifmr(asymmetric=False)
    assert config.override_layer_configs["conv1"] == LayerConfig(activation=activation, weight=Arq(channel_wise=True))


def test_keys_of_old_files_for_caffe_are_passed_over_with_a_note(caplog):
    layer = {"quant_enable": True, "update_bn": True}
    config = parse({"update_bn": False, "bn_update_config": {"batch_num": 8}, "joint_quant": False, "conv1": layer})
    assert config == parse({"conv1": {"quant_enable": True}})
    notes = [record.getMessage() for record in caplog.records]
    assert [note.split(" is not used")[0].split(": ")[-1] for note in notes] == [
        "update_bn",
        "bn_update_config",
        "update_bn",
    ]
    assert "layer 'conv1'" in notes[2]


def test_a_layer_may_be_called_as_an_old_key(caplog):
    assert parse({"update_bn": {"quant_enable": True}}).only_layers == ("update_bn",)
    assert not caplog.records


def test_defaults_of_the_settings():
    assert parse({}) == QuantConfig(batch_num=1, balance_batches=1, only_layers=())


def test_every_setting():
    config = parse(
        {
            "version": 1,
            "batch_num": 5,
            "activation_offset": False,
            "joint_quant": True,
            "weight_offset": False,
            "do_fusion": False,
            "fakequant_precision_mode": "FORCE_FP16_QUANT",
            "skip_fusion_layers": ["a", "b"],
            "tensor_quantize": [
                {"layer_name": "add", "input_index": 1},
                {"layer_name": "add", "input_index": 0, "activation_quant_params": {"num_of_bins": 1024}},
            ],
        }
    )
    assert config == QuantConfig(
        batch_num=5,
        balance_batches=1,
        activation_offset=False,
        joint_quant=True,
        do_fusion=False,
        fakequant_precision_mode="FORCE_FP16_QUANT",
        skip_fusion_layers=("a", "b"),
        tensor_quantize=(
            TensorConfig(layer_name="add", input_index=1),
            TensorConfig(layer_name="add", input_index=0, activation=Hfmg(num_of_bins=1024)),
        ),
        only_layers=(),
    )


def test_only_layers_that_say_so_are_enabled():
    config = parse(
        {
            "on": {"quant_enable": True},
            "off": {"quant_enable": False, "activation_quant_params": {"num_of_bins": 2048}},
            "silent": {"weight_quant_params": {"channel_wise": True}},
            "empty": {},
        }
    )
    assert config.only_layers == ("on",)
    assert config.override_layer_configs == {
        "on": LayerConfig(),
        "off": LayerConfig(activation=Hfmg(num_of_bins=2048)),
        "silent": LayerConfig(weight=Arq(channel_wise=True)),
        "empty": LayerConfig(),
    }


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, Ifmr()),
        ({"asymmetric": True}, Ifmr(asymmetric=True)),
        ({"act_algo": "ifmr", "num_bits": 16}, Ifmr(num_bits=16)),
        ({"search_range": [0.5, 2], "search_step": 1}, Ifmr(search_range=(0.5, 2), search_step=1)),
        ({"max_percentile": 1, "min_percentile": 0.6}, Ifmr(max_percentile=1, min_percentile=0.6)),
        ({"act_algo": "hfmg"}, Hfmg()),
        ({"num_of_bins": 1024, "num_bits": 4}, Hfmg(num_of_bins=1024, num_bits=4)),
        ({"act_algo": "hfmg", "num_of_bins": 8192, "asymmetric": False}, Hfmg(num_of_bins=8192, asymmetric=False)),
    ],
)
def test_activations(parameters, expected):
    assert layer(activation_quant_params=parameters) == LayerConfig(activation=expected)


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, Arq()),
        ({"num_bits": 6, "channel_wise": False, "wts_algo": "arq_quantize"}, Arq(num_bits=6, channel_wise=False)),
        ({"wts_algo": "ada_quantize"}, AdaRound()),
        (
            {
                "wts_algo": "ada_quantize",
                "num_bits": 4,
                "reg_param": 0.5,
                "warm_start": 0.1,
                "num_iteration": 0,
                "beta_range": [9, 3.5],
                "channel_wise": True,
            },
            AdaRound(
                num_bits=4, reg_param=0.5, warm_start=0.1, num_iteration=0, beta_range=(9, 3.5), channel_wise=True
            ),
        ),
        ({"wts_algo": "nuq_quantize"}, Nuq()),
        (
            {"wts_algo": "nuq_quantize", "num_steps": 16, "num_of_iteration": 0, "num_bits": 8},
            Nuq(num_steps=16, num_of_iteration=0),
        ),
    ],
)
def test_weights(parameters, expected):
    assert layer(weight_quant_params=parameters) == LayerConfig(weight=expected)


def test_balancing():
    assert layer(dmq_balancer_param=0.2) == LayerConfig(balancer=Dmq(migration_strength=0.2))


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('{"a": 1,}', ["line 1, column"]),
        ("{", ["line 1, column 2"]),
        ("[]", ["the outermost value must be an object", "[]"]),
        ("3", ["must be an object", "3"]),
        ('{"batch_num": NaN}', ["NaN is not a JSON number"]),
        ('{"c": {"dmq_balancer_param": -Infinity}}', ["-Infinity is not a JSON number"]),
        ('{"batch_num": 1, "batch_num": 1}', ["'batch_num' is given twice"]),
        ('{"c": {"quant_enable": true, "quant_enable": false}}', ["'quant_enable' is given twice"]),
        ('{"c": {}, "c": {}}', ["'c' is given twice"]),
        ("[" * 100000, ["nested too deeply"]),
        ('{"batch_num": ' + "9" * 5000 + "}", ["not readable as JSON"]),
        (b'{"a": "\xff"}', ["not UTF-8 text", "position 7"]),
    ],
)
def test_what_is_not_json_is_named(text, parts):
    message = complaint(text)
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("found", "parts"),
    [
        ({"version": 2}, ["version must be one of 1, found 2"]),
        ({"version": True}, ["version must be one of 1, found True"]),
        ({"batch_num": 0}, ["batch_num must be at least 1, found 0"]),
        ({"batch_num": "2"}, ["batch_num must be an integer, found '2'"]),
        ({"batch_num": None}, ["batch_num must be an integer, found None"]),
        ({"activation_offset": 1}, ["activation_offset must be true or false, found 1"]),
        ({"joint_quant": "no"}, ["joint_quant must be true or false"]),
        ({"weight_offset": True}, ["weight_offset must be one of False, found True"]),
        ({"do_fusion": None}, ["do_fusion must be true or false"]),
        ({"fakequant_precision_mode": "FP16"}, ["fakequant_precision_mode must be one of 'DEFAULT'", "'FP16'"]),
        ({"skip_fusion_layers": "a"}, ["skip_fusion_layers must be a list of strings, found 'a'"]),
        ({"skip_fusion_layers": ["a", "a"]}, ["skip_fusion_layers lists 'a' 2 times"]),
        ({"skip_fusion_layers": [1]}, ["skip_fusion_layers", "1"]),
        ({"batchnum": 3}, ["'batchnum' is neither a setting nor the object of a layer", "did you mean 'batch_num'?"]),
        ({"conv": [1]}, ["'conv' is neither a setting nor the object of a layer", "settings are version"]),
        ({"tensor_quantize": {}}, ["tensor_quantize must be a list of objects"]),
        ({"tensor_quantize": [3]}, ["tensor_quantize, entry 1", "must be an object"]),
        ({"tensor_quantize": [{"layer_name": "a"}]}, ["entry 1", "input_index is missing"]),
        ({"tensor_quantize": [{"input_index": 0}]}, ["layer_name is missing"]),
        ({"tensor_quantize": [{"layer_name": 1, "input_index": 0}]}, ["layer_name must be a str, found 1"]),
        ({"tensor_quantize": [{"layer_name": "a", "input_index": -1}]}, ["input_index must be at least 0, found -1"]),
        ({"tensor_quantize": [{"layer_name": "a", "input_index": 0}] * 2}, ["input 0 of 'a' 2 times"]),
        ({"tensor_quantize": [{"layer_name": "a", "index": 0}]}, ["unknown key 'index'", "'input_index'"]),
    ],
)
def test_settings_that_are_not_allowed_are_named(found, parts):
    message = complaint(found)
    for part in parts:
        assert part in message


ACT, WTS = "activation_quant_params", "weight_quant_params"


@pytest.mark.parametrize(
    ("found", "parts"),
    [
        ({"quant_enabled": True}, ["unknown key 'quant_enabled'", "did you mean 'quant_enable'?", "known keys:"]),
        ({"quant_enable": 1}, ["quant_enable must be true or false, found 1"]),
        ({"quant_enable": None}, ["quant_enable must not be null"]),
        ({"dmq_balancer_param": 1}, ["dmq_balancer_param", "[0.2, 0.8]", "found 1"]),
        ({"dmq_balancer_param": 0.1}, ["dmq_balancer_param", "found 0.1"]),
        ({"dmq_balancer_param": "0.5"}, ["dmq_balancer_param", "'0.5'"]),
        ({ACT: []}, [ACT, "must be an object", "found []"]),
        ({ACT: {"num_bits": 7}}, [ACT, "num_bits of the activations must be one of 4, 8, 16, found 7"]),
        ({ACT: {"num_bits": 8.0}}, ["num_bits", "found 8.0"]),
        ({ACT: {"max_percentile": 0.5}}, ["max_percentile must lie in (0.5, 1], found 0.5"]),
        ({ACT: {"min_percentile": 1.1}}, ["min_percentile", "found 1.1"]),
        ({ACT: {"min_percentile": True}}, ["min_percentile", "found True"]),
        ({ACT: {"search_range": [0.7]}}, ["search_range must be a list of two numbers, found [0.7]"]),
        ({ACT: {"search_range": 0.7}}, ["search_range must be a list of two numbers, found 0.7"]),
        ({ACT: {"search_range": ["a", 1]}}, ["search_range must be a list of two numbers"]),
        ({ACT: {"search_range": [1, 10**400]}}, ["search_range", "ordinary size"]),
        ({ACT: {"search_range": [0, 1]}}, ["search_range start", "(0, inf)"]),
        ({ACT: {"search_range": [1.3, 0.7]}}, ["must start below its end, found [1.3, 0.7]"]),
        ({ACT: {"search_step": 0}}, ["search_step", "found 0"]),
        ({ACT: {"search_step": 0.7}}, ["search_step must not exceed"]),
        ({ACT: {"search_step": 10**400}}, ["search_step must be a number of ordinary size"]),
        ({ACT: {"act_algo": "kl"}}, ["act_algo must be one of 'ifmr', 'hfmg', found 'kl'"]),
        ({ACT: {"act_algo": []}}, ["act_algo", "found []"]),
        ({ACT: {"asymmetric": "yes"}}, ["asymmetric must be true or false, found 'yes'"]),
        ({ACT: {"asymmetric": None}}, ["asymmetric must not be null"]),
        ({ACT: {"num_of_bins": 100}}, ["num_of_bins must be one of 1024, 2048, 4096, 8192, found 100"]),
        ({ACT: {"num_of_bins": 1024, "search_step": 0.01}}, ["search_step does not belong to act_algo 'hfmg'"]),
        ({ACT: {"num_of_bins": 1024, "act_algo": "ifmr"}}, ["num_of_bins does not belong to act_algo 'ifmr'"]),
        ({ACT: {"max_percentil": 1}}, ["unknown key 'max_percentil'", "did you mean 'max_percentile'"]),
        ({WTS: 3}, [WTS, "must be an object", "found 3"]),
        ({WTS: {"num_bits": 5}}, [WTS, "num_bits of the weights must be one of 4, 6, 7, 8, found 5"]),
        ({WTS: {"channel_wise": 0}}, ["channel_wise must be true or false, found 0"]),
        ({WTS: {"wts_algo": "arq"}}, ["wts_algo must be one of 'arq_quantize', 'ada_quantize', 'nuq_quantize'"]),
        ({WTS: {"reg_param": 0.1}}, ["reg_param does not belong to wts_algo 'arq_quantize'"]),
        ({WTS: {"wts_algo": "ada_quantize", "reg_param": 1}}, ["reg_param must lie in (0, 1), found 1"]),
        ({WTS: {"wts_algo": "ada_quantize", "warm_start": 0}}, ["warm_start", "found 0"]),
        ({WTS: {"wts_algo": "ada_quantize", "num_iteration": -1}}, ["num_iteration must be at least 0, found -1"]),
        ({WTS: {"wts_algo": "ada_quantize", "beta_range": [2, 20]}}, ["beta_range must start above its end"]),
        ({WTS: {"wts_algo": "ada_quantize", "beta_range": {}}}, ["beta_range must be a list of two numbers"]),
        ({WTS: {"wts_algo": "ada_quantize", "num_steps": 16}}, ["num_steps does not belong"]),
        ({WTS: {"wts_algo": "nuq_quantize", "num_steps": 8}}, ["num_steps must be one of 16, 32, found 8"]),
        ({WTS: {"wts_algo": "nuq_quantize", "num_of_iteration": 6}}, ["num_of_iteration", "found 6"]),
        ({WTS: {"wts_algo": "nuq_quantize", "num_bits": 4}}, ["num_bits of the weights must be one of 8, found 4"]),
        ({WTS: {"wts_algo": "nuq_quantize", "channel_wise": True}}, ["channel_wise does not belong"]),
        ({WTS: {"chanel_wise": True}}, ["unknown key 'chanel_wise'", "did you mean 'channel_wise'"]),
    ],
)
def test_layers_that_are_not_allowed_are_named(found, parts):
    message = complaint({"conv 1": found})
    assert "layer 'conv 1'" in message
    for part in parts:
        assert part in message


def test_an_object_of_python_reads_like_its_text():
    found = {"c": {"quant_enable": True, ACT: {"search_range": (0.5, 1.5)}}}
    assert config_from_json_object(found, "x") == parse(found)
    with pytest.raises(ConfigError, match="x: 3 is neither"):
        config_from_json_object({3: {}}, "x")


def test_every_optional_key_stands_in_its_place():
    config = QuantConfig(
        batch_num=2,
        joint_quant=True,
        fakequant_precision_mode="FORCE_FP16_QUANT",
        skip_fusion_layers=("z",),
        tensor_quantize=(TensorConfig(layer_name="add", input_index=1),),
    )
    block = LayerConfig(activation=Hfmg(asymmetric=False), weight=Nuq(), balancer=Dmq(migration_strength=0.5))
    written = format_json(config, {"conv": (True, block)})
    found = json.loads(written)
    assert list(found) == [
        "version",
        "batch_num",
        "activation_offset",
        "joint_quant",
        "do_fusion",
        "fakequant_precision_mode",
        "skip_fusion_layers",
        "tensor_quantize",
        "conv",
    ]
    tensor = found["tensor_quantize"][0]
    assert list(tensor) == ["layer_name", "input_index", "activation_quant_params"]
    assert "asymmetric" not in tensor[ACT]
    assert list(found["conv"]) == ["quant_enable", "dmq_balancer_param", ACT, WTS]
    assert found["conv"][WTS] == {"num_steps": 32, "num_of_iteration": 1, "wts_algo": "nuq_quantize"}


def test_floats_are_written_as_floats():
    block = LayerConfig(
        activation=Ifmr(search_range=(1, 3), search_step=1, max_percentile=1, asymmetric=True),
        weight=AdaRound(beta_range=(20, 2), channel_wise=True),
    )
    written = format_json(QuantConfig(), {"c": (False, block)})
    for part in ('"search_step":1.0', '"max_percentile":1.0', "1.0,", "3.0\n", "20.0,", '"num_iteration":10000,'):
        assert part in written


@pytest.mark.parametrize(("known", "used", "written"), [(None, None, 1), (None, 7, 7), (3, None, 3), (3, 2, 2)])
def test_the_number_of_batches_in_use_is_written(known, used, written):
    assert json.loads(format_json(QuantConfig(batch_num=known), {}, batch_num=used))["batch_num"] == written


def test_what_cannot_be_written_is_named():
    whole = LayerConfig(activation=Ifmr(asymmetric=True), weight=Arq(channel_wise=True))
    with pytest.raises(ConfigError, match=r"'version'.*name of a setting"):
        format_json(QuantConfig(), {"version": (True, whole)})
    with pytest.raises(ConfigError, match="layer 'c': asymmetric is not resolved"):
        format_json(QuantConfig(), {"c": (True, LayerConfig(weight=Arq(channel_wise=True)))})
    with pytest.raises(ConfigError, match="layer 'c': channel_wise is not resolved"):
        format_json(QuantConfig(), {"c": (True, LayerConfig(activation=Ifmr(asymmetric=True)))})


def percentiles() -> st.SearchStrategy[float]:
    return st.floats(0.5, 1.0, exclude_min=True)


@st.composite
def ifmrs(draw, asymmetric):
    start = draw(st.floats(0.01, 10))
    end = start + draw(st.floats(0.01, 10))
    return Ifmr(
        search_range=(start, end),
        search_step=(end - start) * draw(st.floats(0.01, 0.99)),
        max_percentile=draw(percentiles()),
        min_percentile=draw(percentiles()),
        asymmetric=draw(asymmetric),
        num_bits=draw(st.sampled_from([4, 8, 16])),
    )


def hfmgs(asymmetric):
    bins = st.sampled_from([1024, 2048, 4096, 8192])
    return st.builds(Hfmg, num_of_bins=bins, asymmetric=asymmetric, num_bits=st.sampled_from([4, 8, 16]))


def activations(asymmetric):
    return st.one_of(ifmrs(asymmetric), hfmgs(asymmetric))


@st.composite
def weights(draw):
    common = {"channel_wise": draw(st.booleans()), "num_bits": draw(st.sampled_from([4, 6, 7, 8]))}
    end = draw(st.floats(0.01, 10))
    inside = st.floats(0, 1, exclude_min=True, exclude_max=True)
    return draw(
        st.one_of(
            st.just(Arq(**common)),
            st.builds(
                AdaRound,
                num_iteration=st.integers(0, 10**6),
                reg_param=inside,
                warm_start=inside,
                beta_range=st.just((end + draw(st.floats(0.01, 20)), end)),
                channel_wise=st.just(common["channel_wise"]),
                num_bits=st.just(common["num_bits"]),
            ),
            st.builds(Nuq, num_steps=st.sampled_from([16, 32]), num_of_iteration=st.integers(0, 5)),
        )
    )


LAYERS = st.builds(
    LayerConfig,
    activation=activations(st.booleans()),
    weight=weights(),
    balancer=st.none() | st.builds(Dmq, migration_strength=st.floats(0.2, 0.8)),
)
NAMES = st.text(min_size=1, max_size=8).filter(lambda name: name not in SETTINGS)
TENSORS = st.builds(
    TensorConfig,
    layer_name=st.text(max_size=5),
    input_index=st.integers(0, 3),
    activation=activations(st.none() | st.booleans()),
)
CONFIGS = st.builds(
    QuantConfig,
    batch_num=st.integers(1, 10**9),
    activation_offset=st.booleans(),
    joint_quant=st.booleans(),
    do_fusion=st.booleans(),
    skip_fusion_layers=st.lists(NAMES, unique=True, max_size=3),
    fakequant_precision_mode=st.sampled_from(["DEFAULT", "FORCE_FP16_QUANT"]),
    tensor_quantize=st.lists(TENSORS, max_size=2, unique_by=lambda t: (t.layer_name, t.input_index)),
)


@given(CONFIGS, st.dictionaries(NAMES, st.tuples(st.booleans(), LAYERS), max_size=3))
@settings(deadline=None)
def test_what_is_written_reads_back_equal(config, layers):
    read = parse_json(format_json(config, layers), "config.json")
    assert layers_of(read) == layers
    assert list(read.override_layer_configs) == sorted(layers)
    for name in (
        "batch_num",
        "activation_offset",
        "joint_quant",
        "do_fusion",
        "skip_fusion_layers",
        "fakequant_precision_mode",
        "tensor_quantize",
    ):
        assert getattr(read, name) == getattr(config, name)
    assert format_json(read, layers_of(read)) == format_json(config, layers)


def outcome(text: str | bytes) -> QuantConfig | str:
    try:
        return parse(text)
    except ConfigError as error:
        return str(error)


def is_expected(found: QuantConfig | str) -> bool:
    return isinstance(found, QuantConfig) or found.startswith("config.json: ")


KEYS = st.one_of(
    st.sampled_from(
        [*SETTINGS, "quant_enable", "dmq_balancer_param", ACT, WTS, "num_bits", "search_range", "act_algo"]
    ),
    st.text(max_size=4),
)
ANY_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(["hfmg", "DEFAULT"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@given(st.one_of(st.text(), st.binary(), st.dictionaries(KEYS, ANY_JSON).map(json.dumps)))
def test_any_text_is_a_configuration_or_one_of_our_errors(text):
    assert is_expected(outcome(text))


@given(st.dictionaries(KEYS, ANY_JSON))
def test_any_layer_is_a_configuration_or_one_of_our_errors(found):
    assert is_expected(outcome(json.dumps({"conv": found})))
