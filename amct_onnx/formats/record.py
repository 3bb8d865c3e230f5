"""AMCT's record file: the quantization factors of each layer. Protobuf text <-> `LayerRecord`."""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from amct_onnx.errors import RecordError, located
from amct_onnx.formats.message_text import parse_message
from amct_onnx.formats.schema import load_schema
from amct_onnx.formats.text_file import read_text

_FLT_EPS = 2.0**-23
_ENUMS: Mapping[str, tuple[str, ...]] = {
    "op_data_type": ("FLOAT32", "FLOAT16"),
    "dst_type": ("INT8", "INT4"),
    "act_type": ("INT8", "INT4", "INT16"),
    "wts_type": ("INT8", "INT4", "INT6", "INT7"),
    "fakequant_precision_mode": ("DEFAULT", "FORCE_FP16_QUANT"),
}
_FACTORS = ("scale_d", "offset_d", "scale_w", "offset_w", "scale_h", "offset_h", "scale_r", "offset_r", "cluster")
_KV_CACHE = {"kv_scale": "scale", "kv_offset": "offset"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRecord:
    """What the record file says about one layer; None and () stand for fields it does not have.

    Numbers are AMCT's: real = (q - offset) * scale; scales are float32 values and are rounded to it when made.

    scale_d, offset_d: activation, per tensor.
    scale_w, offset_w: weight, one value or one per output channel; offsets are zeros.
    shift_bit: right shift of the accumulator per channel, all 0 or all in [1, 16].
    skip_fusion: whether BatchNormalization behind this layer stays.
    is_tensor_quantize: the key is "<node>:<input index>" and means that tensor alone.
    tensor_balance_factor: DMQ's factor per input channel.
    op_data_type: float type of the layer.
    dst_type: width of activation and weight together.
    act_type, wts_type: width of the activation and of the weight.
    fakequant_precision_mode: how exactly `scale_d` is kept.
    scale_h, offset_h: hidden state of LSTM and GRU.
    scale_r, offset_r: recurrent weight of LSTM and GRU.
    cluster: the 16 or 32 integers that NUQ leaves to the weight.
    channels, height, width: shape of the activation, in files made for Caffe.
    kv_scale, kv_offset: factors of a KV cache, per tensor or per channel.
    """

    scale_d: float | None = None
    offset_d: int | None = None
    scale_w: tuple[float, ...] = ()
    offset_w: tuple[int, ...] = ()
    shift_bit: tuple[int, ...] = ()
    skip_fusion: bool | None = None
    is_tensor_quantize: bool | None = None
    tensor_balance_factor: tuple[float, ...] = ()
    op_data_type: str | None = None
    dst_type: str | None = None
    act_type: str | None = None
    wts_type: str | None = None
    fakequant_precision_mode: str | None = None
    scale_h: float | None = None
    offset_h: int | None = None
    scale_r: tuple[float, ...] = ()
    offset_r: tuple[int, ...] = ()
    cluster: tuple[int, ...] = ()
    channels: int | None = None
    height: int | None = None
    width: int | None = None
    kv_scale: tuple[float, ...] = ()
    kv_offset: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("scale_d", "scale_h"):
            value = getattr(self, name)
            object.__setattr__(self, name, None if value is None else _float32(value))
        for name in ("scale_w", "scale_r", "tensor_balance_factor", "kv_scale"):
            object.__setattr__(self, name, tuple(_float32(value) for value in getattr(self, name)))
        for name in ("offset_w", "offset_r", "shift_bit", "cluster", "kv_offset"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name, allowed in _ENUMS.items():
            _require_choice(name, getattr(self, name), allowed)
        self._check_activations()
        self._check_weights()
        self._check_others()

    @property
    def has_factors(self) -> bool:
        """Whether there is anything to quantize with; an entry may also only say `skip_fusion` or balance."""
        return any(getattr(self, name) not in (None, ()) for name in _FACTORS)

    def _check_activations(self) -> None:
        wide = self.act_type == "INT16"
        for scale, offset in (("scale_d", "offset_d"), ("scale_h", "offset_h")):
            _require_together(scale, getattr(self, scale), offset, getattr(self, offset))
            _require_scales(scale, _listed(getattr(self, scale)))
            _require_range(offset, _listed(getattr(self, offset)), -32768 if wide else -128, 32767 if wide else 127)

    def _check_weights(self) -> None:
        for scale, offset in (("scale_w", "offset_w"), ("scale_r", "offset_r")):
            _require_same_length(scale, getattr(self, scale), offset, getattr(self, offset))
            _require_scales(scale, getattr(self, scale))
            _require_range(offset, getattr(self, offset), 0, 0)
        if any(self.shift_bit):
            _require_range("shift_bit (unless all are 0)", self.shift_bit, 1, 16)
        if self.cluster and len(self.cluster) not in (16, 32):
            raise RecordError(f"cluster must have 16 or 32 values, found {len(self.cluster)}")
        _require_range("cluster", self.cluster, -128, 127)

    def _check_others(self) -> None:
        for factor in self.tensor_balance_factor:
            if not _FLT_EPS <= factor <= 1 / _FLT_EPS:
                allowed = f"[{_FLT_EPS:.9g}, {1 / _FLT_EPS:.9g}]"
                raise RecordError(f"tensor_balance_factor must lie in {allowed}, found {factor}")
        _require_same_length("kv_scale", self.kv_scale, "kv_offset", self.kv_offset)
        _require_scales("kv_scale", self.kv_scale)
        _require_range("kv_offset", self.kv_offset, -128, 127)
        for name in ("channels", "height", "width"):
            _require_range(name, _listed(getattr(self, name)), 0, 2**32 - 1)


def read_record(path: str | os.PathLike[str], *, calibrated: bool = True) -> dict[str, LayerRecord]:
    """The layers in the record file at `path`.

    Raises:
        RecordError: the file cannot be read or is empty, or what `parse_record` raises.
    """
    return parse_record(read_text(path, RecordError), str(path), calibrated=calibrated)


def parse_record(text: str | bytes, source: str, *, calibrated: bool = True) -> dict[str, LayerRecord]:
    """The layers that `text` writes, under their keys and in their order.

    Entries without factors that carry `skip_fusion` or `tensor_balance_factor` are legal: see `has_factors`. Fields
    unknown to the schema are skipped, pruning records too.

    Args:
        text: the content of a record file.
        source: what to call it in errors.
        calibrated: whether factors must include `scale_d`; a file written between weights and calibration lacks it.

    Raises:
        RecordError: not protobuf text, no entry at all, a key missing or given twice, factors missing, or a value
            out of its range. The message names the file and the layer.
    """
    schema = load_schema("scale_offset_record_onnx")
    message: Any = parse_message(text, source, schema, "ScaleOffsetRecord", RecordError, allow_unknown=True)
    layers: dict[str, LayerRecord] = {}
    with located(source):
        if not message.record and not message.prune_record:
            raise RecordError("no record in it, so there is no layer to quantize")
        for number, entry in enumerate(message.record, 1):
            if not entry.key:
                raise RecordError(f"record {number} has no key; a key must name the layer")
            with located(f"record of {entry.key!r}"):
                if entry.key in layers:
                    raise RecordError("the key is given a second time; keep one record for each layer")
                layers[entry.key] = _layer_record(entry, calibrated)
    return layers


def _layer_record(entry: Any, calibrated: bool) -> LayerRecord:
    if not entry.HasField("value") and not entry.HasField("kv_cache_value"):
        raise RecordError("it has no value")
    found = {field.name: value for field, value in entry.value.ListFields()}
    kept = {name: getattr(entry.kv_cache_value, field) for name, field in _KV_CACHE.items()}
    record = LayerRecord(**found, **kept)
    factors = record.has_factors or record.shift_bit
    if not factors and not record.kv_scale and record.skip_fusion is None and not record.tensor_balance_factor:
        raise RecordError("no factors in it: scale_d and offset_d, and for a layer with weights scale_w and offset_w")
    if factors and record.scale_d is None and calibrated:
        raise RecordError("scale_d and offset_d are missing; calibrate the layer first")
    return record


def format_record(records: Mapping[str, LayerRecord]) -> str:
    """The text of a record file, laid out as AMCT does, whichever protobuf is installed.

    Raises:
        RecordError: a key cannot be written, since it is no text.
    """
    return "".join(_entry(key, record) for key, record in records.items())


def _entry(key: str, record: LayerRecord) -> str:
    names = [field.name for field in fields(LayerRecord)]
    value = _field_lines(record, {name: name for name in names if name not in _KV_CACHE})
    kv_cache = _field_lines(record, _KV_CACHE)
    blocks = f"  value {{\n{value}  }}\n" if value or not kv_cache else ""
    blocks += f"  kv_cache_value {{\n{kv_cache}  }}\n" if kv_cache else ""
    return f"record {{\n  key: {quoted(key)}\n{blocks}}}\n"


def _field_lines(record: LayerRecord, names: Mapping[str, str]) -> str:
    lines = ""
    for name, written in names.items():
        value = getattr(record, name)
        texts = _texts(value if isinstance(value, tuple) else _listed(value))
        lines += f"\n    {written}: ".join(["", *texts])
    return lines[1:] + "\n" if lines else ""


def _texts(values: Sequence[Any]) -> list[str]:
    """How `values`, all of one type, are written."""
    if len(values) < 16:  # not worth an array
        return [_scalar(value) for value in values]
    return all_shortest(values) if isinstance(values[0], float) else list(map(str, values))


def _scalar(value: bool | int | float | str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return quoted(value)
    return shortest(value) if isinstance(value, float) else str(value)


def shortest(value: float) -> str:
    """The finite `value` in the fewest digits, from 6 on, that give it back as float32: protobuf's own rule."""
    exact = _float32(value)
    texts = (float(f"{exact:.{digits}g}") for digits in range(6, 10))
    return str(next(number for number in texts if _float32(number) == exact))


def all_shortest(values: Sequence[float]) -> list[str]:
    """`shortest` of each of `values`, which are at least 0."""
    exact = np.array(values, np.float32).astype(np.float64)
    exponents = np.searchsorted(_TENS, exact, side="right") - 1 + _LOWEST
    numbers, settled = exact.copy(), (exponents >= _LOWEST) & (exponents <= 5)
    for digits in (9, 8, 7, 6):
        power = _POWERS[np.where(settled, digits - 1 - exponents, 0)]
        scaled = exact * power
        whole = np.rint(scaled)
        rounded = whole / power  # both are exact, so this is the double that is nearest to the decimal
        numbers = np.where(rounded.astype(np.float32) == exact, rounded, numbers)
        settled &= np.abs(np.abs(scaled - whole) - 0.5) > 1e-6  # else the product's rounding may have decided
    # 9 digits are all that a number has by now, and are found faster than by str, which allows for 17
    texts = ("%.9g " * len(values) % tuple(numbers.tolist())).split()
    texts = [text if "." in text or "e" in text else text + ".0" for text in texts]
    for i in np.flatnonzero(~settled).tolist():
        texts[i] = shortest(values[i])
    return texts


_LOWEST = -13  # of the exponents for which all powers of ten that are needed are exact
_TENS = np.array([float(f"1e{exponent}") for exponent in range(_LOWEST, 7)])
_POWERS = np.array([float(f"1e{exponent}") for exponent in range(8 - _LOWEST + 1)])


def quoted(text: str) -> str:
    """A protobuf string literal.

    Raises:
        RecordError: the text cannot be written.
    """
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError as failure:
        raise RecordError(f"the layer name {text!r} cannot be written as UTF-8") from failure
    return '"' + "".join(_ESCAPES.get(byte) or chr(byte) for byte in data) + '"'


_ESCAPES = {byte: f"\\{byte:03o}" for byte in (*range(32), *range(127, 256))} | {
    ord("\t"): r"\t",
    ord("\n"): r"\n",
    ord("\r"): r"\r",
    ord('"'): r"\"",
    ord("'"): r"\'",
    ord("\\"): r"\\",
}


def _float32(value: float) -> float:
    return ctypes.c_float(value).value


def _listed(value: Any) -> tuple[Any, ...]:
    return () if value is None else (value,)


def _require_choice(name: str, value: str | None, allowed: Collection[str]) -> None:
    if value is not None and value not in allowed:
        raise RecordError(f"{name} must be one of {', '.join(allowed)}, found {value!r}")


def _require_together(scale: str, scale_value: object, offset: str, offset_value: object) -> None:
    if (scale_value is None) != (offset_value is None):
        given, missing = (scale, offset) if offset_value is None else (offset, scale)
        raise RecordError(f"{missing} is missing beside {given}")


def _require_same_length(scale: str, scales: Sequence[float], offset: str, offsets: Sequence[int]) -> None:
    if len(scales) != len(offsets):
        raise RecordError(f"{scale} and {offset} must be as many, found {len(scales)} and {len(offsets)}")


def _require_scales(name: str, values: Sequence[float]) -> None:
    for value in values:
        if not (math.isfinite(value) and value > 0):
            raise RecordError(f"{name} must be a finite number above 0, found {value}")


def _require_range(name: str, values: Sequence[int], low: int, high: int) -> None:
    for value in values:
        if not low <= value <= high:
            allowed = f"{low}" if low == high else f"in [{low}, {high}]"
            raise RecordError(f"{name} must be {allowed}, found {value}")
