"""record.txt: AMCT's own files read and written byte for byte; what is incomplete or out of range is named."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st

from amct_onnx.errors import RecordError
from amct_onnx.formats.record import LayerRecord, all_shortest, format_record, parse_record, read_record, shortest
from amct_onnx.formats.schema import load_schema

GOLDEN = Path(__file__).parent / "golden"
FACTORS = "scale_d: 0.5 offset_d: 0"


def parse(text: str | bytes, *, calibrated: bool = True) -> dict[str, LayerRecord]:
    return parse_record(text, "record.txt", calibrated=calibrated)


def record(value: str) -> LayerRecord:
    return parse(f'record {{ key: "c" value {{ {value} }} }}')["c"]


def complaint(text: str | bytes) -> str:
    with pytest.raises(RecordError) as caught:
        parse(text)
    message = str(caught.value)
    assert message.startswith("record.txt: ")
    return message


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("ptq/*/record.txt")), ids=lambda p: p.parent.name)
def test_files_of_amct_are_written_byte_for_byte(path):
    assert format_record(read_record(path)).encode() == path.read_bytes()


def test_numbers_are_the_float32_of_the_file():
    first = read_record(GOLDEN / "ptq" / "mixed_default" / "record.txt")["stem"]
    assert first.scale_d == float(np.float32(0.0762821))
    assert first.offset_d == 25
    assert len(first.scale_w) == len(first.offset_w) == 8
    assert (first.act_type, first.wts_type, first.has_factors) == ("INT8", "INT8", True)


def test_every_field():
    text = """
        record {
          key: "fc:1"
          value {
            scale_d: 0.5 offset_d: -300 scale_w: [1, 2] offset_w: 0 offset_w: 0 shift_bit: 1 shift_bit: 16
            skip_fusion: true is_tensor_quantize: false tensor_balance_factor: 2.5 op_data_type: 'FLOAT16'
            dst_type: "INT4" act_type: "INT16" wts_type: "INT7" fakequant_precision_mode: "FORCE_FP16_QUANT"
            scale_h: 0.25 offset_h: 300 scale_r: 4 offset_r: 0 channels: 3 height: 224 width: 220
          }
        }
        record { key: "kv" kv_cache_value { scale: 0.02 scale: 0.5 offset: -3 offset: 127 } }
        """
    expected = {
        "fc:1": LayerRecord(
            scale_d=0.5,
            offset_d=-300,
            scale_w=(1.0, 2.0),
            offset_w=(0, 0),
            shift_bit=(1, 16),
            skip_fusion=True,
            is_tensor_quantize=False,
            tensor_balance_factor=(2.5,),
            op_data_type="FLOAT16",
            dst_type="INT4",
            act_type="INT16",
            wts_type="INT7",
            fakequant_precision_mode="FORCE_FP16_QUANT",
            scale_h=0.25,
            offset_h=300,
            scale_r=(4.0,),
            offset_r=(0,),
            channels=3,
            height=224,
            width=220,
        ),
        "kv": LayerRecord(kv_scale=(0.02, 0.5), kv_offset=(-3, 127)),
    }
    assert parse(text) == expected
    assert parse(format_record(expected)) == expected
    assert not expected["kv"].has_factors


def test_the_layout_of_every_field():
    written = format_record(
        {
            "a": LayerRecord(
                wts_type="INT8",
                act_type="INT8",
                scale_d=1,
                offset_d=0,
                tensor_balance_factor=(1.5,),
                fakequant_precision_mode="FORCE_FP16_QUANT",
                skip_fusion=False,
            ),
            "b": LayerRecord(kv_scale=(0.02,), kv_offset=(-3,)),
            "c": LayerRecord(),
        }
    )
    assert written == (
        'record {\n  key: "a"\n  value {\n    scale_d: 1.0\n    offset_d: 0\n    skip_fusion: false\n'
        '    tensor_balance_factor: 1.5\n    act_type: "INT8"\n    wts_type: "INT8"\n'
        '    fakequant_precision_mode: "FORCE_FP16_QUANT"\n  }\n}\n'
        'record {\n  key: "b"\n  kv_cache_value {\n    scale: 0.02\n    offset: -3\n  }\n}\n'
        'record {\n  key: "c"\n  value {\n  }\n}\n'
    )


def test_what_has_no_factors_may_still_say_something():
    found = parse(
        'record { key: "a" value { skip_fusion: true } }'
        'record { key: "b" value { tensor_balance_factor: 1 tensor_balance_factor: 2 } }'
        'record { key: "c" value { scale_d: 0.5 offset_d: 0 } }'
    )
    assert [entry.has_factors for entry in found.values()] == [False, False, True]
    assert found["a"].skip_fusion is True
    assert found["b"].tensor_balance_factor == (1.0, 2.0)


def test_weights_alone_are_a_record_before_calibration():
    text = 'record { key: "a" value { scale_w: 0.1 offset_w: 0 wts_type: "INT8" } }'
    assert "scale_d and offset_d are missing; calibrate" in complaint(text)
    assert parse(text, calibrated=False)["a"].scale_w == (float(np.float32(0.1)),)


def test_unknown_fields_and_pruning_are_tolerated():
    text = (
        'prune_record { producer { name: "a" attr { name: "begin" type: INT i: 0 } } }'
        f'record {{ key: "a" value {{ {FACTORS} brand_new: "x" other {{ y: 1 y: 2 }} }} later: 3 }} version: 2'
    )
    assert parse(text) == {"a": LayerRecord(scale_d=0.5, offset_d=0)}
    assert parse('prune_record { producer { name: "a" } }') == {}


def test_the_last_of_repeated_scalars_counts():
    assert record("scale_d: 0.5 scale_d: 0.25 offset_d: 0").scale_d == 0.25


@pytest.mark.parametrize("low_high", [("INT8", -128, 127), ("INT16", -32768, 32767)])
def test_offsets_fit_their_type(low_high):
    act_type, low, high = low_high
    for offset in (low, high):
        assert record(f'scale_d: 1 offset_d: {offset} act_type: "{act_type}"').offset_d == offset
    for offset in (low - 1, high + 1):
        message = complaint(f'record {{ key: "c" value {{ scale_d: 1 offset_d: {offset} act_type: "{act_type}" }} }}')
        assert f"offset_d must be in [{low}, {high}], found {offset}" in message


@pytest.mark.parametrize("values", [16, 32])
def test_clusters(values):
    lines = " ".join(f"cluster: {index - values}" for index in range(values))
    assert len(record(f"{FACTORS} {lines}").cluster) == values


@pytest.mark.parametrize("bits", ["0 shift_bit: 0", "1 shift_bit: 16"])
def test_shifts(bits):
    assert len(record(f"{FACTORS} shift_bit: {bits}").shift_bit) == 2


@pytest.mark.parametrize(
    ("value", "parts"),
    [
        ("", ["no factors"]),
        ('act_type: "INT8"', ["no factors"]),
        ("scale_d: 1", ["offset_d is missing beside scale_d"]),
        ("offset_d: 1", ["scale_d is missing beside offset_d"]),
        ("scale_d: 0 offset_d: 0", ["scale_d must be a finite number above 0, found 0.0"]),
        ("scale_d: -1 offset_d: 0", ["scale_d", "found -1.0"]),
        ("scale_d: nan offset_d: 0", ["scale_d", "found nan"]),
        ("scale_d: inf offset_d: 0", ["scale_d", "found inf"]),
        ("scale_d: 1e39 offset_d: 0", ["scale_d", "found inf"]),
        ("scale_d: 1e-60 offset_d: 0", ["scale_d", "found 0.0"]),
        ("scale_d: 1 offset_d: 128", ["offset_d must be in [-128, 127], found 128"]),
        (f"{FACTORS} scale_w: 1", ["scale_w and offset_w must be as many, found 1 and 0"]),
        (f"{FACTORS} scale_w: 1 scale_w: 0 offset_w: 0 offset_w: 0", ["scale_w", "found 0.0"]),
        (f"{FACTORS} scale_w: 1 offset_w: 1", ["offset_w must be 0, found 1"]),
        (f"{FACTORS} shift_bit: 0 shift_bit: 3", ["shift_bit", "in [1, 16], found 0"]),
        (f"{FACTORS} shift_bit: 17", ["shift_bit", "found 17"]),
        (f"{FACTORS} cluster: 1", ["cluster must have 16 or 32 values, found 1"]),
        (f"{FACTORS} " + "cluster: 200 " * 16, ["cluster must be in [-128, 127], found 200"]),
        (f"{FACTORS} tensor_balance_factor: 0", ["tensor_balance_factor must lie in [1.1920929e-07, 8388608]", "0.0"]),
        (f"{FACTORS} tensor_balance_factor: nan", ["tensor_balance_factor", "nan"]),
        (f"{FACTORS} tensor_balance_factor: 1e7", ["tensor_balance_factor", "10000000.0"]),
        (f'{FACTORS} op_data_type: "INT8"', ["op_data_type must be one of FLOAT32, FLOAT16, found 'INT8'"]),
        (f'{FACTORS} dst_type: "INT16"', ["dst_type must be one of INT8, INT4, found 'INT16'"]),
        (f'{FACTORS} act_type: "INT7"', ["act_type must be one of INT8, INT4, INT16, found 'INT7'"]),
        (f'{FACTORS} wts_type: "INT16"', ["wts_type must be one of INT8, INT4, INT6, INT7, found 'INT16'"]),
        (f'{FACTORS} fakequant_precision_mode: "FP16"', ["fakequant_precision_mode must be one of DEFAULT"]),
        (f"{FACTORS} scale_h: 1", ["offset_h is missing beside scale_h"]),
        (f"{FACTORS} scale_h: 0 offset_h: 0", ["scale_h", "found 0.0"]),
        (f"{FACTORS} scale_h: 1 offset_h: 128", ["offset_h must be in [-128, 127], found 128"]),
        (f"{FACTORS} scale_r: 1", ["scale_r and offset_r must be as many"]),
        (f"{FACTORS} scale_r: 1 offset_r: 2", ["offset_r must be 0, found 2"]),
        ("scale_h: 1 offset_h: 0", ["scale_d and offset_d are missing"]),
        ("shift_bit: 1", ["scale_d and offset_d are missing"]),
    ],
)
def test_values_that_are_missing_or_out_of_range_are_named(value, parts):
    message = complaint(f'record {{ key: "conv 1" value {{ {value} }} }}')
    assert "record of 'conv 1'" in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["no record in it"]),
        ("record { }", ["record 1 has no key"]),
        (f'record {{ key: "" value {{ {FACTORS} }} }}', ["record 1 has no key"]),
        ('record { key: "a" }', ["'a'", "it has no value"]),
        (f'record {{ key: "a" value {{ {FACTORS} }} }}' * 2, ["'a'", "a second time"]),
        ("record {", ["line 1", "not closed"]),
        ('record { key: "a" value { scale_d: x } }', ["line 1, column 36", "scale_d must be a number, found x"]),
        ('record { key: "a" value { offset_d: 1.5 } }', ["offset_d must be a whole number", "found 1.5"]),
        ('record { key: "a" value { shift_bit: -1 } }', ["shift_bit", "found -1"]),
        ("a" + "{a" * 5000, ["nested too deeply"]),
        (b"record \xff", ["not UTF-8 text"]),
        ('record { key: "a" kv_cache_value { scale: 1 } }', ["kv_scale and kv_offset must be as many"]),
        ('record { key: "a" kv_cache_value { scale: 0 offset: 0 } }', ["kv_scale", "found 0.0"]),
        ('record { key: "a" kv_cache_value { scale: 1 offset: 200 } }', ["kv_offset", "found 200"]),
        ('record { key: "a" kv_cache_value { } }', ["no factors"]),
    ],
)
def test_files_that_are_no_record_are_named(text, parts):
    message = complaint(text)
    for part in parts:
        assert part in message


def test_reading_files(tmp_path):
    path = tmp_path / "record.txt"
    with pytest.raises(RecordError, match=r"record\.txt: cannot read the file: No such file"):
        read_record(path)
    path.write_text("")
    with pytest.raises(RecordError, match="the file is empty"):
        read_record(path)


def test_a_record_that_cannot_be_is_not_made():
    with pytest.raises(RecordError, match="scale_d"):
        LayerRecord(scale_d=-1.0, offset_d=0)
    with pytest.raises(RecordError, match="cannot be written as UTF-8"):
        format_record({"\ud800": LayerRecord(scale_d=1.0, offset_d=0)})


@given(st.floats(width=32, min_value=0, exclude_min=True, allow_infinity=False))
def test_floats_are_short_and_exact(value):
    text = shortest(value)
    assert struct.unpack("f", struct.pack("f", float(text)))[0] == value
    assert len(f"{float(text):.9g}") <= len(f"{value:.9g}")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0762821, "0.0762821"), (1.0, "1.0"), (1e-5, "1e-05"), (0.1, "0.1"), (8388608.0, "8388608.0"), (1e16, "1e+16")],
)
def test_spellings_of_floats(value, text):
    assert shortest(value) == text


@given(st.lists(st.integers(0, 0x7F7FFFFF), max_size=50))
def test_many_floats_are_written_like_each_of_them(bits):
    values = np.array(bits, np.uint32).view(np.float32).tolist()
    assert all_shortest(values) == [shortest(value) for value in values]


def test_floats_around_powers_and_ties_are_written_like_each_of_them():
    powers = np.array([10.0**i for i in range(-20, 20)] + [2.0**i for i in range(-80, 80)], np.float32)
    near = (powers.view(np.int32)[:, None] + np.arange(-20, 21, dtype=np.int32)).view(np.float32)
    decimals = np.arange(1, 3000)[:, None] / 10.0 ** np.arange(12)
    dyadic = np.arange(1, 2000, 2)[:, None] / 2.0 ** np.arange(0, 30, 3)
    for values in (near, decimals, dyadic):
        listed = values.astype(np.float32).ravel().tolist()
        assert all_shortest(listed) == [shortest(value) for value in listed]


def test_a_layer_of_many_channels():
    scales = np.random.default_rng(0).random(300, np.float32).tolist()
    layer = LayerRecord(scale_d=1.0, offset_d=0, scale_w=tuple(scales), offset_w=(0,) * 300, shift_bit=(3,) * 300)
    written = format_record({"a": layer})
    lines = (
        [f"    scale_w: {shortest(scale)}" for scale in scales] + ["    offset_w: 0"] * 300 + ["    shift_bit: 3"] * 300
    )
    assert written.splitlines()[5:-2] == lines
    assert parse(written) == {"a": layer}


# Up to the largest float32 would be too far: protobuf 3.20 in pure Python reads its decimal back as infinity.
SCALES = st.floats(width=32, min_value=0, exclude_min=True, max_value=2.0**120)
KINDS = st.sampled_from


@st.composite
def layer_records(draw):
    channels = draw(st.integers(0, 4))
    recurrent = draw(st.integers(0, 2))
    given_h = draw(st.booleans())
    kv = draw(st.integers(0, 2))
    listed = lambda size, values: tuple(draw(st.lists(values, min_size=size, max_size=size)))  # noqa: E731
    return LayerRecord(
        scale_d=draw(SCALES),
        offset_d=draw(st.integers(-128, 127)),
        scale_w=listed(channels, SCALES),
        offset_w=(0,) * channels,
        shift_bit=listed(channels, st.integers(1, 16)),
        skip_fusion=draw(st.none() | st.booleans()),
        is_tensor_quantize=draw(st.none() | st.booleans()),
        tensor_balance_factor=listed(draw(st.integers(0, 3)), st.floats(2**-23, 2**23, width=32)),
        op_data_type=draw(st.none() | KINDS(["FLOAT32", "FLOAT16"])),
        dst_type=draw(st.none() | KINDS(["INT8", "INT4"])),
        act_type=draw(st.none() | KINDS(["INT8", "INT4", "INT16"])),
        wts_type=draw(st.none() | KINDS(["INT8", "INT4", "INT6", "INT7"])),
        fakequant_precision_mode=draw(st.none() | KINDS(["DEFAULT", "FORCE_FP16_QUANT"])),
        scale_h=draw(SCALES) if given_h else None,
        offset_h=draw(st.integers(-128, 127)) if given_h else None,
        scale_r=listed(recurrent, SCALES),
        offset_r=(0,) * recurrent,
        cluster=listed(draw(KINDS([0, 16])), st.integers(-128, 127)),
        channels=draw(st.none() | st.integers(0, 2**32 - 1)),
        kv_scale=listed(kv, SCALES),
        kv_offset=listed(kv, st.integers(-128, 127)),
    )


@given(st.dictionaries(st.text(min_size=1), layer_records(), min_size=1, max_size=3))
def test_what_is_written_reads_back_equal(records):
    written = format_record(records)
    assert written.isascii()
    assert parse(written) == records
    assert format_record(parse(written)) == written


@given(st.text(min_size=1))
def test_any_name_is_escaped_as_protobuf_does(name):
    message = load_schema("scale_offset_record_onnx").classes["ScaleOffsetRecord"]()
    message.record.add(key=name)
    written = format_record({name: LayerRecord()})
    assert written.splitlines()[1] == text_format.MessageToString(message, as_utf8=False).splitlines()[1]


def outcome(text: str | bytes) -> dict[str, LayerRecord] | str:
    try:
        return parse(text)
    except RecordError as error:
        return str(error)


TOKENS = st.one_of(
    st.sampled_from(
        ["record", "key", "value", "scale_d", "offset_d", "skip_fusion", "{", "}", ":", "[", "]", '"a"', "1"]
    ),
    st.text(max_size=3),
)


@given(st.one_of(st.text(), st.binary(), st.lists(TOKENS, max_size=12).map(" ".join)))
def test_any_text_is_a_record_or_one_of_our_errors(text):
    found = outcome(text)
    assert isinstance(found, dict) or found.startswith("record.txt: ")
