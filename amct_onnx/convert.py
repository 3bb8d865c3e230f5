"""Ascend models from scales that are known already: those of a record file, or of a QDQ model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx

from amct_onnx.data import CalibrationSource, Feed, checked_feeds, input_specs, random_feeds
from amct_onnx.errors import DataError, ModelError, NotAvailableError, RecordError, located, nearest
from amct_onnx.formats.model_file import read_model
from amct_onnx.formats.record import LayerRecord, read_record
from amct_onnx.kernels.quant_params import QuantParams
from amct_onnx.passes.convert_opset import inlined
from amct_onnx.passes.graph import Array, Graph, Node, type_name
from amct_onnx.passes.layer_types import PER_CHANNEL
from amct_onnx.passes.layers import has_weight, output_channels, spatial_axes
from amct_onnx.passes.manager import run_passes
from amct_onnx.passes.pipelines import BEFORE_READING, FUSE, GIVEN
from amct_onnx.passes.protos import all_graphs
from amct_onnx.passes.read_qdq import Pair, Reading, read_qdq
from amct_onnx.passes.session import Session, open_session
from amct_onnx.passes.shapes import infer_types
from amct_onnx.passes.state import QuantPlan, QuantState
from amct_onnx.passes.weights import LightModel
from amct_onnx.planning import GivenLayer, plan_given, why_not_layer
from amct_onnx.prepare import final_plan, prepare, require_same, runnable
from amct_onnx.results import CONVERTED_FILES, QuantizeResult, Target, finish, make_results


def convert_model(
    model: str | os.PathLike[str] | onnx.ModelProto,
    record: str | os.PathLike[str],
    *,
    save_path: str | os.PathLike[str] | None = None,
    data: CalibrationSource | None = None,
    wide_fusion: bool = False,
) -> QuantizeResult:
    """Quantize a float model with the scales and offsets of a record file: nothing is calibrated.

    Args:
        model: an .onnx file, or a model in memory, which stays untouched.
        record: AMCT's record file. The layers that it gives factors for are quantized with just these, all others stay
            float; where it says `skip_fusion`, BatchNormalization stays behind the layer.
        save_path: directory and prefix of the files to write; None keeps the results in memory.
        data: inputs whose first batch the result is run on; `amct_onnx.data` lists the forms that are taken. None for
            random numbers in the shapes of the model's inputs.
        wide_fusion: fold BatchNormalization behind ConvTranspose, Gemm and MatMul too, as it was done where the record
            was made by this engine with that option on.

    Raises:
        RecordError, ModelError, DataError, OutputError, NotAvailableError: each names what was found, where, and what
            is allowed. No file is left behind.
    """
    _require_record(record)
    target = None if save_path is None else Target.of(save_path, {"model": model, "record": record}, CONVERTED_FILES)
    done = scaled_by_record(model, record, data=data, wide_fusion=wide_fusion)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaled:
    """A float graph whose scales are known, and what the model that was read makes of one feed."""

    state: QuantState
    feed: Feed
    expected: Mapping[str, Array]


def scaled_by_record(
    model: str | os.PathLike[str] | onnx.ModelProto,
    record: str | os.PathLike[str],
    *,
    data: CalibrationSource | None = None,
    wide_fusion: bool = False,
) -> Scaled:
    """What `convert_model` writes, before it is written."""
    _require_record(record)
    source = read_model(model)
    records = read_record(record)
    state, session = prepare(source)
    with located(str(record)):
        given = given_layers(state, records)
        skip_fusion = frozenset(name for name, entry in records.items() if entry.skip_fusion)
        plan = plan_given(
            state, given, {}, "the record has no factors for it", wide_fusion=wide_fusion, skip_fusion=skip_fusion
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


def given_layers(
    state: QuantState, records: Mapping[str, LayerRecord], *, is_applied: bool = False
) -> dict[str, GivenLayer]:
    """The scales of every layer that has factors, checked against the nodes of a prepared graph.

    is_applied: the weights of the graph are balanced, and rounded to the centres of NUQ, already.

    Raises:
        RecordError: a key is no layer that can be quantized, its factors do not fit the layer, or no key has any.
        NotAvailableError: a record asks for what is not carried out yet.
    """
    nodes, types = {node.name: node for node in state.graph.nodes}, infer_types(state.graph)
    given = {}
    for name, record in records.items():
        with located(f"record of {name!r}"):
            done = replace(record, tensor_balance_factor=(), cluster=()) if is_applied else record
            _refuse_unavailable(name, done, nodes)
            node = nodes.get(name)
            if node is None:
                raise RecordError(_why_unknown(state, name))
            if record.has_factors:
                if reason := why_not_layer(node, types):
                    raise RecordError(f"{node.op} cannot be quantized: {reason}")
                given[name] = _given_layer(node, record)
    if not given:
        raise RecordError("no record has factors, so there is no layer to quantize")
    return given


def _refuse_unavailable(name: str, record: LayerRecord, nodes: Mapping[str, Node]) -> None:
    is_tensor = record.is_tensor_quantize or (name not in nodes and name.rpartition(":")[0] in nodes)
    wishes = {
        "quantization of one tensor": is_tensor,
        "tensor_balance_factor (DMQ)": record.tensor_balance_factor,
        "shift_bit other than 0": any(record.shift_bit),
        "cluster (NUQ)": record.cluster,
        "scale_h or scale_r (LSTM, GRU)": record.scale_h is not None or record.scale_r,
        "kv_cache_value": record.kv_scale,
        "dst_type INT4": record.dst_type == "INT4",
        f"act_type {record.act_type}": record.act_type not in (None, "INT8"),
        "wts_type INT4": record.wts_type == "INT4",
    }
    for wish, asked in wishes.items():
        if asked:
            raise NotAvailableError(f"{wish} is not available yet; remove it from the record")


def _why_unknown(state: QuantState, name: str) -> str:
    if name in state.gone:
        return f"the node is no layer any more: {state.gone[name]}"
    return f"the model has no node of that name{nearest(name, state.graph.node_names())}"


def _given_layer(node: Node, record: LayerRecord) -> GivenLayer:
    offset = record.offset_d or 0
    if node.op == "Conv" and spatial_axes(node) == 3 and offset != 0:
        raise RecordError(f"offset_d must be 0 for a 3-D convolution, whose activations are symmetric; found {offset}")
    activation = QuantParams(scale=np.asarray(record.scale_d, np.float32), offset=np.asarray(offset, np.int32))
    if has_weight(node):
        return GivenLayer(activation=activation, weight=_given_weight(node, record))
    if record.scale_w not in ((), (1.0,)):
        raise RecordError(f"{node.op} has no weight: scale_w must be 1 or missing, found {list(record.scale_w)}")
    return GivenLayer(activation=activation, weight=None)


def _given_weight(node: Node, record: LayerRecord) -> QuantParams:
    found, channels = len(record.scale_w), output_channels(node)
    counts = {1, channels} if node.op in PER_CHANNEL else {1}
    if found not in counts:
        allowed = " or ".join(f"{count}" for count in sorted(counts))
        raise RecordError(f"the number of scale_w and offset_w must be {allowed} for {node.op}, found {found}")
    name = type_name(node.inputs[1])
    if record.op_data_type is not None and record.op_data_type.lower() != name:
        raise RecordError(f"op_data_type is {record.op_data_type}, but the weight of the layer is {name}")
    num_bits = 8 if record.dst_type or record.wts_type is None else int(record.wts_type.removeprefix("INT"))
    if num_bits < 8 and not (node.op == "Conv" and spatial_axes(node) == 2):
        raise RecordError(f"wts_type {record.wts_type} is for 2-D convolutions only; this is {node.op}")
    scale = np.array(record.scale_w, np.float32)
    if found == 1:
        scale = scale.reshape(())
    axis = None if found == 1 else 0
    return QuantParams(scale=scale, offset=np.zeros(scale.shape, np.int32), num_bits=num_bits, axis=axis)
