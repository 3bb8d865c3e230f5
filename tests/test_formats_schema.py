"""The shipped .proto files: read, built into classes, and saying the same defaults as the parameter classes."""

from __future__ import annotations

import pytest
from google.protobuf import text_format

from amct_onnx.config import QuantConfig
from amct_onnx.formats.schema import Field, load_schema, read_schema
from amct_onnx.kernels.adaround import AdaRound
from amct_onnx.kernels.arq import Arq
from amct_onnx.kernels.dmq import Dmq
from amct_onnx.kernels.hfmg import Hfmg
from amct_onnx.kernels.ifmr import Ifmr
from amct_onnx.kernels.nuq import Nuq

CALIBRATION = load_schema("calibration_config_onnx")
RECORD = load_schema("scale_offset_record_onnx")
CAFFE = load_schema("caffe")


def default(message: str, field: str) -> str | None:
    return CALIBRATION.messages[message][field].default


@pytest.mark.parametrize("schema", [CALIBRATION, RECORD, CAFFE])
def test_every_message_has_a_class_that_reads_text(schema):
    for name, fields in schema.messages.items():
        message = schema.classes[name]()
        assert message.DESCRIPTOR.name == name
        assert [f.name for f in message.DESCRIPTOR.fields] == list(fields)
        text_format.Merge("", message)


def test_numbers_are_distinct_within_each_message():
    for schema in (CALIBRATION, RECORD, CAFFE):
        for fields in schema.messages.values():
            assert len({field.number for field in fields.values()}) == len(fields)


@pytest.mark.parametrize(
    ("message", "field", "value"),
    [
        ("FMRQuantize", "search_range_start", Ifmr().search_range[0]),
        ("FMRQuantize", "search_range_end", Ifmr().search_range[1]),
        ("FMRQuantize", "search_step", Ifmr().search_step),
        ("FMRQuantize", "max_percentile", Ifmr().max_percentile),
        ("FMRQuantize", "min_percentile", Ifmr().min_percentile),
        ("HFMGQuantize", "num_of_bins", Hfmg().num_of_bins),
        ("ARQuantize", "quant_bits", Arq().num_bits),
        ("ADAquantize", "num_iteration", AdaRound().num_iteration),
        ("ADAquantize", "reg_param", AdaRound().reg_param),
        ("ADAquantize", "beta_range_start", AdaRound().beta_range[0]),
        ("ADAquantize", "beta_range_end", AdaRound().beta_range[1]),
        ("ADAquantize", "warm_start", AdaRound().warm_start),
        ("NUQuantize", "num_steps", Nuq().num_steps),
        ("NUQuantize", "num_of_iteration", Nuq().num_of_iteration),
        ("DMQBalancer", "migration_strength", Dmq().migration_strength),
    ],
)
def test_the_schema_prints_the_defaults_of_the_parameter_classes(message, field, value):
    printed = default(message, field)
    assert printed is not None
    assert float(printed) == value


def test_the_schema_prints_the_defaults_of_the_whole_model():
    config = QuantConfig()
    for name in ("activation_offset", "joint_quant", "do_fusion"):
        assert default("AMCTConfig", name) == str(getattr(config, name)).lower()
    assert default("AMCTConfig", "fakequant_precision_mode") == config.fakequant_precision_mode
    assert default("AMCTConfig", "batch_num") == "1"


def test_what_is_inherited_has_no_default():
    for message, field in [
        ("FMRQuantize", "asymmetric"),
        ("HFMGQuantize", "asymmetric"),
        ("ARQuantize", "channel_wise"),
        ("ADAquantize", "channel_wise"),
    ]:
        assert default(message, field) is None


def test_the_reader_knows_labels_oneofs_options_and_comments():
    schema = read_schema(
        """
        syntax = "proto2"; // the only one
        package p;
        enum Kind { A = 0; B = -1; }
        message M {
          required string name = 1;
          repeated Kind kinds = 2;
          oneof choice { int32 one = 3; N other = 4; }
          optional bool old = 5 [deprecated = true];
          optional Kind kind = 6 [default = B];
          enum Inner { A = 7; C = 8; }
          optional Inner inner = 7 [default = C];
          optional double wide = 8;
        }
        message N { }
        """
    )
    assert schema.enums == {"Kind": {"A": 0, "B": -1}, "Inner": {"A": 7, "C": 8}}
    fields = schema.messages["M"]
    assert fields["name"] == Field(name="name", number=1, label="required", type="string")
    assert fields["kinds"].label == "repeated"
    assert fields["one"] == Field(name="one", number=3, label="optional", type="int32", oneof="choice")
    assert fields["other"].oneof == "choice"
    assert fields["old"].oneof is None
    assert fields["old"].default is None
    assert fields["kind"].default == "B"
    message = schema.classes["M"]()
    text_format.Merge('name: "x" kinds: [A, B] one: 1 other { }', message)
    assert message.WhichOneof("choice") == "other"
    assert message.kind == -1
    assert message.inner == 8
    text_format.Merge("inner: A wide: 0.1", message)
    assert (message.inner, message.wide) == (7, 0.1)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('syntax = "proto3";', "proto2"),
        ("service S { }", "service"),
        ("message M [", "lacks '{'"),
        ("message M { optional bool b = 1 }", "lacks ';'"),
        ("package p", "lacks ';'"),
        ("message M { ? }", "unexpected '[?]'"),
    ],
)
def test_what_the_reader_does_not_know_is_refused(text, complaint):
    with pytest.raises(ValueError, match=complaint):
        read_schema(text)


def test_schemas_are_built_once():
    assert load_schema("calibration_config_onnx") is CALIBRATION
