"""save_model: from the model that observed, and the record that it filled in, to the files that are deployed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from amct_onnx.convert import run_once
from amct_onnx.data import Feed
from amct_onnx.errors import DataError, ModelError, RecordError, located
from amct_onnx.formats.model_file import read_model
from amct_onnx.formats.record import LayerRecord
from amct_onnx.given import given_layers, given_tensors
from amct_onnx.kernels.dmq import Dmq
from amct_onnx.passes.fit_biases import FIT_BIASES
from amct_onnx.passes.graph import Array
from amct_onnx.passes.manager import run_passes
from amct_onnx.passes.state import QuantState
from amct_onnx.passes.take_given import TAKE_GIVEN
from amct_onnx.planning import plan_given
from amct_onnx.prepare import final_plan, prepare, warn_of_floats
from amct_onnx.results import Target, make_results, write_verified
from amct_onnx.stepwise.arguments import path_of, require_type
from amct_onnx.stepwise.observing_nodes import without_observers
from amct_onnx.stepwise.quant_json import format_quant_json
from amct_onnx.stepwise.record_state import CALIBRATION, read_complete

SAVED_FILES = ("deploy_model.onnx", "fake_quant_model.onnx", "quant.json")
"""What the names of the files that AMCT saves end in."""


def save_model(
    modified_onnx_file: str | os.PathLike[str], record_file: str | os.PathLike[str], save_path: str | os.PathLike[str]
) -> None:
    """Write <save_path>_deploy_model.onnx, _fake_quant_model.onnx and _quant.json; existing ones are replaced.

    A layer that the record file has no entry for stays float, with the weights that it was calibrated with.

    Args:
        modified_onnx_file: what `quantize_model` wrote.
        record_file: the factors; all batches must have passed.
        save_path: directory and prefix of the files; the directory is made where it is not there.

    Raises:
        ArgumentError: an argument has the wrong type.
        RecordError: fewer batches have passed than the configuration asks for, or the factors do not fit the model.
        ModelError, OutputError, NotAvailableError: each names what was found, where, and what is allowed. Nothing is
            written then.
    """
    modified, record = path_of("modified_onnx_file", modified_onnx_file), path_of("record_file", record_file)
    target = target_of(save_path, {"modified_onnx_file": modified, "record_file": record})
    source, observations = without_observers(read_model(modified), modified)
    if isinstance(observations[0].algorithm, Dmq):
        raise ModelError(f"{modified}: was written by quantize_preprocess; go on with quantize_model")
    records = _read_record(record, observations[0].record_file)
    state, session = prepare(source)
    with located(str(record)):
        layers = given_layers(state, records)
        given = {name: replace(layer, factors=()) for name, layer in layers.items()}  # the weights are balanced
        tensors = given_tensors(state, records, given)
        if not given and not tensors:
            raise RecordError("no record has factors, so there is no layer to quantize")
    reason = "the record has no factors for it"
    plan = plan_given(state, given, {}, reason, tensors=tensors, do_fusion=False)
    state = replace(state, plan=replace(plan, folded=observations[0].folded))
    feed: Feed | None = None
    expected: Mapping[str, Array] = {}
    with suppress(DataError):  # random numbers may not fit; the result is only made ready to run then
        feed, expected = run_once(session, source, None)
    del session
    run_passes((TAKE_GIVEN, FIT_BIASES), state)
    state = replace(state, plan=final_plan(state))
    warn_of_floats(state)
    write_saved(state, target, expected, feed)


def _read_record(record: Path, noted: Path) -> dict[str, LayerRecord]:
    """The factors. `noted`: where the model writes them, which is another file where files were moved."""
    try:
        return read_complete(record, CALIBRATION)
    except RecordError as error:
        if os.path.realpath(record) == os.path.realpath(noted):
            raise
        raise RecordError(f"{error}; the model was made to write its factors to {noted}") from error


def target_of(save_path: object, sources: Mapping[str, Path]) -> Target:
    """Where AMCT's files go."""
    require_type("save_path", save_path, (str, os.PathLike), "a directory and a prefix, such as out/net")
    return Target.of(save_path, sources, SAVED_FILES)  # type: ignore[arg-type]


def write_saved(state: QuantState, target: Target, expected: Mapping[str, Array], feed: Feed | None) -> None:
    """Write AMCT's files of a graph whose scales are known.

    Args:
        state: the graph.
        target: where they go.
        expected: what the model that was read makes of `feed`.
        feed: one batch; None where there is none.
    """
    results = make_results(state)
    assert results.deploy is not None
    contents = (results.deploy, results.fake_quant, format_quant_json(results.deploy.proto, state.plan))
    write_verified(state, dict(zip(SAVED_FILES, contents, strict=True)), target, expected, feed)
