"""How far a record file is: a comment in its first line counts the batches, until the factors are there.

# calibration: 3 of 8 batches have passed
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from amct_onnx.errors import RecordError
from amct_onnx.formats.model_file import write_files
from amct_onnx.formats.record import LayerRecord, format_record, parse_record
from amct_onnx.formats.text_file import read_text
from amct_onnx.passes.observe import Scales
from amct_onnx.results import tensor_record

CALIBRATION, BALANCING = "calibration", "balancing"
"""What a record waits for; the second is DMQ's."""

_PROGRESS = re.compile(rf"# ({CALIBRATION}|{BALANCING}): (\d+) of (\d+) batches have passed\n")
_FAILURE = re.compile(rf"# ({CALIBRATION}|{BALANCING}) failed: ([^\n]*)\n")


def begun(records: Mapping[str, LayerRecord], phase: str, batch_num: int) -> str:
    """The text of a record file of which no batch has passed yet."""
    return _progress(phase, 0, batch_num) + format_record(records)


def note_progress(path: Path, phase: str, passed: int, batch_num: int) -> None:
    """Count the batches in a record file; one that has its factors already stays as it is."""
    text = read_text(path, RecordError)
    found = _PROGRESS.match(text) or _FAILURE.match(text)
    if found is not None:
        write_files({path: _progress(phase, passed, batch_num) + text[found.end() :]})


def note_failure(path: Path, phase: str, reason: str) -> None:
    """Write down why the factors cannot be found; it is raised by who reads the record."""
    text = read_text(path, RecordError)
    found = _PROGRESS.match(text) or _FAILURE.match(text)
    rest = text[found.end() :] if found is not None else text
    write_files({path: _failure(phase, reason) + rest})


def write_scales(path: Path, scales: Scales, tensors: Sequence[str]) -> None:
    """Add what was found of the activations; the entry of what stays float is taken out.

    tensors: what is no layer, and has had no entry so far.
    """
    records = dict(parse_record(read_text(path, RecordError), str(path), calibrated=False))
    for name, found in scales.activations.items():
        if name in records:  # else somebody took it out, or it is a tensor
            scale, offset = float(found.scale), int(found.offset)
            records[name] = replace(records[name], scale_d=scale, offset_d=offset, act_type=f"INT{found.num_bits}")
    for name, found in scales.seconds.items():
        if name in records:
            weight = (float(found.scale),)
            records[name] = replace(records[name], scale_w=weight, offset_w=(0,), wts_type=f"INT{found.num_bits}")
    for name in scales.left_float:
        records.pop(name, None)
    records |= {name: tensor_record(scales.activations[name]) for name in tensors if name not in scales.left_float}
    _write(path, CALIBRATION, records)


def write_balances(path: Path, factors: Mapping[str, NDArray[np.float32]]) -> None:
    """Write a record file of DMQ's factors."""
    records = {name: LayerRecord(tensor_balance_factor=tuple(map(float, found))) for name, found in factors.items()}
    _write(path, BALANCING, records)


def _write(path: Path, phase: str, records: Mapping[str, LayerRecord]) -> None:
    nothing = _failure(phase, "no layer has an input that anything could be found from: all are NaN, inf or empty")
    write_files({path: format_record(records) or nothing})


def _failure(phase: str, reason: str) -> str:
    return f"# {phase} failed: {' '.join(reason.split())}\n"


def read_complete(path: Path, phase: str) -> dict[str, LayerRecord]:
    """The entries of a record file.

    phase: what must have been done.

    Raises:
        RecordError: not all batches have passed; the message says how many. Or the file cannot be read.
    """
    text = read_text(path, RecordError)
    failure = _FAILURE.match(text)
    if failure is not None and failure[1] == phase:
        raise RecordError(f"{path}: {failure[1]} failed: {failure[2]}")
    progress = _PROGRESS.match(text)
    if progress is not None and progress[1] == phase:
        raise RecordError(
            f"{path}: {progress[2]} of {progress[3]} {phase} batches have passed; run the model on "
            f"{progress[3]} in one session first"
        )
    return parse_record(text, str(path), calibrated=phase == CALIBRATION)


def _progress(phase: str, passed: int, batch_num: int) -> str:
    return f"# {phase}: {passed} of {batch_num} batches have passed\n"
