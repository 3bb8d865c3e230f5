"""Ascend models from scales that are known already: those of a record file, or of a QDQ model."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx

from amct_onnx.data import CalibrationSource, Feed, checked_feeds, input_specs, random_feeds
from amct_onnx.errors import DataError, ModelError, RecordError, located
from amct_onnx.formats.model_file import ModelSource, read_model
from amct_onnx.formats.record import read_record
from amct_onnx.given import given_layers, given_tensors
from amct_onnx.passes.convert_opset import inlined
from amct_onnx.passes.fix_global_pools import fix_global_pools
from amct_onnx.passes.graph import Array, Graph
from amct_onnx.passes.layers import channels_first, has_weight, is_recurrent, spatial_axes, weight_of, why_not_16_bits
from amct_onnx.passes.manager import run_passes
from amct_onnx.passes.pipelines import BEFORE_READING, FUSE, GIVEN
from amct_onnx.passes.protos import all_graphs
from amct_onnx.passes.read_qdq import Pair, Reading, read_qdq
from amct_onnx.passes.session import Session, open_session
from amct_onnx.passes.shapes import infer_types
from amct_onnx.passes.state import QuantPlan, QuantState
from amct_onnx.passes.weights import LightModel
from amct_onnx.planning import GivenLayer, plan_given, why_not_layer
from amct_onnx.prepare import final_plan, prepare, require_same, runnable, warn_of_floats
from amct_onnx.results import CONVERTED_FILES, QuantizeResult, Target, finish, make_results

_log = logging.getLogger("amct_onnx")

_HARDLY = 2.0
"""A weight of so many times what its scale reaches is none that the scale was found for."""


def convert_model(
    model: ModelSource,
    record: str | os.PathLike[str],
    *,
    save_path: str | os.PathLike[str] | None = None,
    data: CalibrationSource | None = None,
    do_fusion: bool = True,
    wide_fusion: bool = False,
) -> QuantizeResult:
    """Quantize a float model with the scales and offsets of a record file: nothing is calibrated.

    Args:
        model: an .onnx file, a Caffe model as (prototxt, caffemodel), or a model in memory, which stays untouched.
        record: AMCT's record file. The layers that it gives factors for are quantized with just these, all others stay
            float; where it says `skip_fusion`, BatchNormalization stays behind the layer.
        save_path: directory and prefix of the files to write; None keeps the results in memory.
        data: inputs whose first batch the result is run on; `amct_onnx.data` lists the forms that are taken. None for
            random numbers in the shapes of the model's inputs.
        do_fusion: fold BatchNormalization into Conv; False where the record was made with that option off.
        wide_fusion: fold BatchNormalization behind ConvTranspose, Gemm and MatMul too, as it was done where the record
            was made by this engine with that option on.

    Raises:
        RecordError, ModelError, DataError, OutputError, NotAvailableError: each names what was found, where, and what
            is allowed. No file is left behind.
    """
    _require_record(record)
    target = None if save_path is None else Target.of(save_path, {"model": model, "record": record}, CONVERTED_FILES)
    done = scaled_by_record(model, record, data=data, do_fusion=do_fusion, wide_fusion=wide_fusion)
    _warn_of_other_weights(done.state, record)
    return finish(done.state, make_results(done.state), target, done.expected, done.feed, measure_layers=False)


def import_qdq(
    model: str | os.PathLike[str] | onnx.ModelProto,
    *,
    save_path: str | os.PathLike[str] | None = None,
    data: CalibrationSource | None = None,
) -> QuantizeResult:
    """Turn a model with QuantizeLinear and DequantizeLinear into Ascend's forms, with the scales that they carry.

    What the chip has no way to carry out stays float, with the reason in `plan.skipped`: so do pairs that are not in
    front of a layer, whose rounding is lost.

    Args:
        model: an .onnx file, or a model in memory, which stays untouched.
        save_path: directory and prefix of the files to write; None keeps the results in memory.
        data: inputs whose first batch both models are run on; `amct_onnx.data` lists the forms that are taken. None for
            random numbers in the shapes of the model's inputs.

    Raises:
        ModelError, DataError, OutputError: each names what was found, where, and what is allowed. No file is left
            behind.
    """
    target = None if save_path is None else Target.of(save_path, {"model": model}, CONVERTED_FILES)
    done = scaled_by_qdq(model, data=data)
    return finish(done.state, make_results(done.state), target, done.expected, done.feed, measure_layers=False)


def _warn_of_other_weights(state: QuantState, record: str | os.PathLike[str]) -> None:
    """Say where scales cut off so much of the weights that they were hardly found for these."""
    nodes = {node.name: node for node in state.graph.nodes}
    cut = []
    for layer in state.layers():
        node, params = nodes[layer.name], state.weights.get(layer.name)
        if params is None or not has_weight(node) or is_recurrent(node):
            continue
        rows = channels_first(node, weight_of(node))
        largest = np.abs(rows.reshape(len(rows), -1)).max(axis=1, initial=0)
        if (largest > _HARDLY * -params.q_min * params.scale.reshape(-1)).any():
            cut.append(layer.name)
    if cut:
        _log.warning(
            "%s: the scales of %d of %d layers, %r first, cut off more than half of the largest weights; the record "
            "seems to be of another model, such as one whose layers were equalised or balanced and folded",
            record,
            len(cut),
            len(state.layers()),
            cut[0],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaled:
    """A float graph whose scales are known, and what the model that was read makes of one feed."""

    state: QuantState
    feed: Feed
    expected: Mapping[str, Array]


def scaled_by_record(
    model: ModelSource,
    record: str | os.PathLike[str],
    *,
    data: CalibrationSource | None = None,
    do_fusion: bool = True,
    wide_fusion: bool = False,
) -> Scaled:
    """What `convert_model` writes, before it is written."""
    _require_record(record)
    source = read_model(model)
    records = read_record(record)
    state, session = prepare(source)
    run_passes((fix_global_pools(records),), state)  # a record that names one was made with global_pools
    with located(str(record)):
        given = given_layers(state, records)
        tensors = given_tensors(state, records, given)
        if not given and not tensors:
            raise RecordError("no record has factors, so there is no layer to quantize")
        skip_fusion = frozenset(name for name, entry in records.items() if entry.skip_fusion)
        plan = plan_given(
            state,
            given,
            {},
            "the record has no factors for it",
            tensors=tensors,
            do_fusion=do_fusion,
            wide_fusion=wide_fusion,
            skip_fusion=skip_fusion,
        )
    state = replace(state, plan=plan)
    run_passes(FUSE, state)
    feed, expected = run_once(session, source, data)
    del session
    require_same(state, expected, feed)
    run_passes(GIVEN, state)
    for name, reason in state.left_float.items():
        raise RecordError(f"{record}: record of {name!r}: {reason}")
    state = replace(state, plan=final_plan(state))
    warn_of_floats(state)
    return Scaled(state=state, feed=feed, expected=expected)


def scaled_by_qdq(model: str | os.PathLike[str] | onnx.ModelProto, *, data: CalibrationSource | None = None) -> Scaled:
    """What `import_qdq` writes, before it is written."""
    source = read_model(model)
    # onnxruntime's optimizer rounds more than these models say, float weights behind rounded inputs for one
    session = open_session(runnable(source), "the model", optimize=False)
    feed, expected = run_once(session, source, data)
    plain, reading = _read(source)
    state, session = prepare(plain)
    state.gone.update(reading.gone)
    state = replace(state, plan=_plan_read(state, reading))
    require_same(state, session.run(feed, "batch 0"), feed)
    del session
    run_passes(GIVEN, state)
    plan = final_plan(state)
    warn_of_floats(state)
    for pair in reading.pairs:
        plan = _concluded(state, plan, pair)
    state = replace(state, plan=plan)
    return Scaled(state=state, feed=feed, expected=expected)


def _require_record(record: object) -> None:
    if not isinstance(record, (str, os.PathLike)):
        raise RecordError(f"the record is a {type(record).__name__}; give the path of a record file")


def _read(source: LightModel) -> tuple[LightModel, Reading]:
    """The model as a float one, and what its QuantizeLinear and DequantizeLinear said."""
    state = QuantState(graph=Graph.of_model(inlined(source)))
    run_passes(BEFORE_READING, state)
    reading = read_qdq(state.graph)
    reading.gone.update((name, reason) for name, reason in state.gone.items() if name not in reading.gone)
    plain = state.graph.to_light()
    used = {node.domain for graph in all_graphs(plain.proto.graph) for node in graph.node} | {"", "ai.onnx"}
    imports = [entry for entry in plain.proto.opset_import if entry.domain in used]
    del plain.proto.opset_import[:]
    plain.proto.opset_import.extend(imports)  # those of operators that are gone: ATC takes one set only
    return plain, reading


def _plan_read(state: QuantState, reading: Reading) -> QuantPlan:
    nodes, types = {node.name: node for node in state.graph.nodes}, infer_types(state.graph)
    given, reasons = {}, dict(reading.reasons)
    for name, activation in reading.activations.items():
        node = nodes.get(name)
        if node is None or why_not_layer(node, types):
            continue  # the plan says why
        if node.op == "Conv" and spatial_axes(node) == 3 and activation.offset != 0:
            reasons[name] = "its input has a zero point; a 3-D convolution takes symmetric activations"
            continue
        if activation.num_bits == 16 and (reason := why_not_16_bits(node)):
            reasons[name] = f"its input has 16 bits: {reason}"
            continue
        given[name] = GivenLayer(activation=activation, weight=reading.weights.get(name))
    plan = plan_given(state, given, reasons, "it is not quantized in the model that was read", do_fusion=False)
    if not given:
        listed = [f"{name!r}: {plan.skipped.get(name)}" for name in (*reasons, *reading.activations)]
        raise ModelError(f"no layer is left to quantize: {'; '.join(listed[:5]) or 'no pair is in front of one'}")
    return plan


def _concluded(state: QuantState, plan: QuantPlan, pair: Pair) -> QuantPlan:
    """The plan with what became of a pair. Its Clip goes where AscendQuant cuts off the same for all who read it."""
    skipped, notes = dict(plan.skipped), dict(plan.notes)
    layers = [name for name in pair.layers if name in plan.layers]
    others = [repr(name) if name else "an output" for name in (*pair.others, *pair.layers) if name not in layers]
    fate = f"the input scale of {', '.join(map(repr, layers))}" if layers else "removed"
    if others:
        fate += f"; not rounded any more: what {', '.join(others)} takes"
        if pair.source is not None and pair.source in plan.layers:
            remark = f"its output is not rounded any more: {pair.dequantize!r} was removed"
            notes[pair.source] = (*notes.get(pair.source, ()), remark)
    skipped[pair.dequantize] = fate
    before = [skipped[pair.quantize]] if pair.quantize in skipped else []  # of another DequantizeLinear behind it
    skipped[pair.quantize] = "; ".join(dict.fromkeys([*before, fate]))
    if not others and not pair.is_narrow:
        for clip in [node for node in state.graph.nodes if node.name == pair.clip]:
            state.graph.replace_uses(clip.outputs[0], clip.inputs[0])
            state.graph.remove([clip])
            del skipped[clip.name]
    return replace(plan, skipped=skipped, notes=notes)


def run_once(session: Session, source: LightModel, data: CalibrationSource | None) -> tuple[Feed, dict[str, Array]]:
    """A feed, and what the model that is read makes of it.

    Raises:
        DataError: the data do not fit; or there are none, and random numbers do not fit either.
        ModelError: the model does not run on the data.
    """
    specs = input_specs(source.proto)
    if data is not None:
        feed = {name: array.copy() for name, array in next(checked_feeds(data, specs, None)).items()}
        return feed, session.run(feed, "batch 0")
    reasons = []
    for feed in random_feeds(specs):
        try:
            return feed, session.run(feed, "random numbers")
        except ModelError as error:
            reasons.append(str(error))
    raise DataError(f"{reasons[0]}; give data that the model runs on")
