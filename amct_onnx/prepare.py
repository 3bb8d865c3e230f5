"""What every way to a quantized model begins and ends with: the model in normal form, and the final plan."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

import onnx

from amct_onnx.data import Feed, input_specs
from amct_onnx.errors import ModelError
from amct_onnx.passes.convert_opset import with_accepted_opset
from amct_onnx.passes.graph import Array, Graph
from amct_onnx.passes.manager import run_passes
from amct_onnx.passes.pipelines import PREPARE
from amct_onnx.passes.session import Session, open_session
from amct_onnx.passes.state import QuantPlan, QuantState
from amct_onnx.passes.weights import LightModel
from amct_onnx.report.compare import compare_outputs

_log = logging.getLogger("amct_onnx")

_ASCEND = ("AscendQuant", "AscendDequant", "AscendAntiQuant")

_QDQ = ("QuantizeLinear", "DequantizeLinear")

_SAME, _SAME_IN_HALF = 60.0, 40.0
"""SQNR in dB above which a model that was only rewritten counts as computing the same; the second for float16."""


def prepare(source: LightModel) -> tuple[QuantState, Session]:
    """The model as a graph in the engine's normal form, computing the same; and ready to run as it is.

    Raises:
        ModelError: onnxruntime does not accept the model, it is quantized already, or its opset cannot be converted.
    """
    nodes = source.proto.graph.node
    for node in nodes:
        is_ours = node.op_type == "Round" and node.name.endswith(".fakequant.round")
        if (node.op_type in _ASCEND and node.domain in ("", "ai.onnx")) or is_ours:
            raise ModelError(f"the model is quantized already: node {node.name!r} ({node.op_type})")
        if node.op_type in _QDQ and node.domain in ("", "ai.onnx", "com.microsoft"):
            raise ModelError(
                f"the model is quantized already: node {node.name!r} ({node.op_type}); import_qdq takes such models, "
                "`amct_onnx convert` on the command line"
            )
    input_specs(source.proto)
    state = QuantState(graph=Graph.of_model(with_accepted_opset(source)))
    session = open_session(runnable(source), "the model")
    kept = state.graph.node_names()
    for node in nodes:
        if node.name and node.name not in kept:
            state.gone[node.name] = f"{node.op_type} was written out in operators that ATC reads"
    run_passes(PREPARE, state)
    return state, session


def runnable(source: LightModel) -> LightModel:
    """The model itself, or one without node names where two are the same, which onnxruntime does not accept."""
    names = [node.name for node in source.proto.graph.node if node.name]
    if len(names) == len(set(names)):
        return source
    copy = onnx.ModelProto()
    copy.CopyFrom(source.proto)
    for node in copy.graph.node:
        node.name = ""
    return replace(source, proto=copy)


def final_plan(state: QuantState) -> QuantPlan:
    """The plan with what the passes found out.

    Raises:
        ModelError: no layer is left to quantize.
    """
    plan = state.plan
    skipped = {**plan.skipped, **state.gone, **state.left_float}
    notes = dict(plan.notes)
    for name, remark in state.remarks.items():
        if name in plan.layers:
            notes[name] = (*notes.get(name, ()), remark)
        elif name not in state.gone:
            skipped[name] = remark
    if not state.layers() and not state.tensors():
        listed = "; ".join(f"{name!r}: {reason}" for name, reason in list(state.left_float.items())[:5])
        raise ModelError(f"no layer is left to quantize: {listed}")
    layers = {name: layer for name, layer in plan.layers.items() if name not in state.left_float}
    unfit = {name: layer for name, layer in plan.layers.items() if name in state.left_float}
    folded = {**plan.folded, **state.folded}
    tensors = tuple(state.tensors())
    return replace(plan, layers=layers, unfit=unfit, tensors=tensors, folded=folded, skipped=skipped, notes=notes)


def warn_of_floats(state: QuantState) -> None:
    """Say which layers turned out to stay float, and why."""
    for name, reason in state.left_float.items():
        _log.warning("layer %r stays float: %s", name, reason)


def require_same(state: QuantState, expected: Mapping[str, Array], feed: Feed) -> None:
    """The rewritten float graph must still compute what the model does."""
    model = state.graph.to_light()
    is_half = any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.proto.graph.initializer)
    for name, error in compare_outputs(expected, model, feed, "the prepared model").items():
        if expected[name].dtype.kind != "f":
            continue  # an index may flip where two values are all but equal
        if error.sqnr < (_SAME_IN_HALF if is_half else _SAME) and error.largest > 1e-4:
            raise ModelError(
                f"preparing the model changed output {name!r} ({error.sqnr:.1f} dB); "
                "an operator was converted or folded wrongly, please report the model"
            )
