"""Brings a model to an opset that ATC accepts, by onnx's converter; never by changing the number alone.

Operators that are too new for that opset are first written out by the function that the standard defines them with.
Functions of the model itself are inlined: layers inside them count like any other.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import onnx
import onnx.inliner
from onnx import version_converter

from amct_onnx.errors import ModelError
from amct_onnx.passes.protos import all_graphs, make_dense
from amct_onnx.passes.weights import LightModel, detached

LOWEST, HIGHEST = 11, 18
"""The opsets that ATC reads."""

LOWEST_QDQ = 13
"""The opset from which on DequantizeLinear knows an axis."""

_EXPANDED = "amct_onnx.expanded"


def with_accepted_opset(model: LightModel) -> LightModel:
    """The model itself where nothing is to do, else an inlined and converted one.

    The caller compares the numbers of both: the converter is not taken at its word.

    Raises:
        ModelError: the model does not say its opset, or one of its operators cannot be converted.
    """
    opset = _opset_of(model.proto)
    model = inlined(model)
    if LOWEST <= opset <= HIGHEST:
        return model
    return detached(_converted(model.whole(), opset))


def _converted(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    target = LOWEST if opset < LOWEST else HIGHEST
    try:
        dense = onnx.ModelProto()
        dense.CopyFrom(model)
        make_dense(dense.graph)
        converted = version_converter.convert_version(_expand(dense, opset, target), target)
        _mend(converted, opset)
        return converted
    except Exception as error:
        raise ModelError(
            f"the model has opset {opset}; ATC reads {LOWEST} to {HIGHEST}, and it cannot be converted: "
            f"{_reason(error)}. "
            f"Export it with an opset from {LOWEST} to {HIGHEST}"
        ) from error


def inlined(model: LightModel) -> LightModel:
    """The model itself, or one with the bodies of its functions in their places."""
    if not model.proto.functions:
        return model
    return replace(model, proto=onnx.inliner.inline_local_functions(model.proto))


def with_qdq_opset(model: LightModel) -> LightModel:
    """The model itself where DequantizeLinear knows an axis in its opset, else one that was raised to such an opset.

    The caller compares the numbers of both: the converter is not taken at its word.

    Raises:
        ModelError: one of its operators cannot be converted.
    """
    opset = _opset_of(model.proto)
    if opset >= LOWEST_QDQ:
        return model
    try:
        return replace(model, proto=version_converter.convert_version(model.proto, LOWEST_QDQ))
    except Exception as error:
        raise ModelError(
            f"the model has opset {opset}; QuantizeLinear and DequantizeLinear need {LOWEST_QDQ}, and it cannot be "
            f"converted: {_reason(error)}. Export it with an opset from {LOWEST_QDQ} to {HIGHEST}"
        ) from error


def _reason(error: Exception) -> str:
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__


def _opset_of(model: onnx.ModelProto) -> int:
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            return int(entry.version)
    raise ModelError("the model imports no version of the ONNX operators (opset_import)")


def _expand(model: onnx.ModelProto, opset: int, target: int) -> onnx.ModelProto:
    """Write out the operators of `opset` that `target` does not have."""
    too_new = [node for node in model.graph.node if _is_too_new(node, opset, target)]
    if not too_new:
        return model
    inferred = onnx.shape_inference.infer_shapes(model)
    copy = onnx.ModelProto()
    copy.CopyFrom(inferred)
    types = {v.name: v.type for v in (*copy.graph.input, *copy.graph.value_info, *copy.graph.output)}
    for tensor in copy.graph.initializer:
        types[tensor.name] = onnx.helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
    for index, node in enumerate(copy.graph.node):
        if _is_too_new(node, opset, target) and (body := _function_of(node, opset, types)) is not None:
            op_type = node.op_type
            body.domain, body.name = _EXPANDED, f"{op_type}_{index}"
            copy.functions.append(body)
            node.domain, node.op_type = body.domain, body.name
            # The other attributes are written into the body already where it depends on them.
            given = {attribute.name: attribute for attribute in node.attribute}
            defaults = onnx.defs.get_schema(op_type, opset).attributes
            wanted = [given.get(name, defaults[name].default_value) for name in body.attribute]
            del node.attribute[:]
            node.attribute.extend(wanted)
    copy.opset_import.append(onnx.helper.make_opsetid(_EXPANDED, 1))
    inlined = onnx.inliner.inline_local_functions(copy)
    kept_imports = [entry for entry in inlined.opset_import if entry.domain != _EXPANDED]
    del inlined.opset_import[:]
    inlined.opset_import.extend(kept_imports)
    return inlined


def _mend(model: onnx.ModelProto, opset: int) -> None:
    """Put right what the converter gets wrong."""
    for node in (node for graph in all_graphs(model.graph) for node in graph.node if node.domain in ("", "ai.onnx")):
        given = {attribute.name for attribute in node.attribute}
        if node.op_type == "Resize" and opset < 11 and "coordinate_transformation_mode" not in given:
            # Before opset 11 there was one way to place the samples, which is not the default of later ones.
            node.attribute.append(onnx.helper.make_attribute("coordinate_transformation_mode", "asymmetric"))
            node.attribute.append(onnx.helper.make_attribute("nearest_mode", "floor"))
        if node.op_type == "AveragePool" and opset > HIGHEST:
            # Opset 19 gave it dilations; the default says nothing.
            kept = [a for a in node.attribute if a.name != "dilations"]
            if any(d != 1 for a in node.attribute if a.name == "dilations" for d in a.ints):
                raise ValueError(f"AveragePool {node.name!r} has dilations, which opset {HIGHEST} does not know")
            del node.attribute[:]
            node.attribute.extend(kept)


def _is_too_new(node: onnx.NodeProto, opset: int, target: int) -> bool:
    if node.domain not in ("", "ai.onnx") or not onnx.defs.has(node.op_type, max_inclusive_version=opset):
        return False
    return not onnx.defs.has(node.op_type, max_inclusive_version=target)


def _function_of(node: onnx.NodeProto, opset: int, types: dict[str, onnx.TypeProto]) -> onnx.FunctionProto | None:
    """The standard's own definition of an operator by older ones, or None where it has none."""
    schema: Any = onnx.defs.get_schema(node.op_type, opset)  # its stub lacks what functions need
    function = onnx.FunctionProto()
    if schema.has_function:
        function.CopyFrom(schema.function_body)
    elif schema.has_context_dependent_function:
        known = [types[name].SerializeToString() if name in types else b"" for name in node.input]
        function.ParseFromString(schema.get_context_dependent_function(node.SerializeToString(), known))
    else:
        return None
    return function
