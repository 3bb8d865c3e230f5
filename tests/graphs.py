"""Graphs as text, and how two of them are compared."""

from collections.abc import Mapping

import numpy as np
import onnx
import onnx.parser
import onnxruntime
from onnx import numpy_helper


def model(
    text: str, weights: Mapping[str, np.ndarray] | None = None, *, opset: int = 13, ir: int = 8
) -> onnx.ModelProto:
    """A model from the text of its graph, with initializers given as arrays.

    A node's name stands in brackets in front of its operator's output: `[conv] y = Conv (x, w)`.
    """
    parsed = onnx.parser.parse_model(f'<ir_version: {ir}, opset_import: ["" : {opset}]>\n{text}')
    for name, values in (weights or {}).items():
        parsed.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
    return parsed


def run(m: onnx.ModelProto, feed: Mapping[str, np.ndarray], *, optimize: bool = True) -> dict[str, np.ndarray]:
    """The outputs of a model in onnxruntime, by name."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(m.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, dict(feed)), strict=True))


def nodes_as_text(m: onnx.ModelProto) -> list[str]:
    """One line per node, attributes sorted, constants replaced by type and shape: what a rewrite test compares."""
    constants = {
        t.name: f"{onnx.TensorProto.DataType.Name(t.data_type).lower()}{list(t.dims)}" for t in m.graph.initializer
    }
    lines = []
    for node in m.graph.node:
        attributes = ", ".join(sorted(_attribute(a) for a in node.attribute))
        inputs = ", ".join(constants.get(name, name) for name in node.input)
        lines.append(
            f"[{node.name}] {', '.join(node.output)} = {node.op_type}{f'<{attributes}>' if attributes else ''}({inputs})"
        )
    return lines


def _attribute(attribute: onnx.AttributeProto) -> str:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        value = value.decode()
    if isinstance(value, float):
        value = float(np.float32(value))
    return f"{attribute.name}={list(value) if isinstance(value, (list, tuple)) else value}"


def sqnr(reference: np.ndarray, other: np.ndarray) -> float:
    """Signal to quantization noise in dB."""
    noise = float(np.sum((reference.astype(np.float64) - other.astype(np.float64)) ** 2))
    signal = float(np.sum(reference.astype(np.float64) ** 2))
    return np.inf if noise == 0 else 10 * np.log10(max(signal, 1e-300) / noise)
