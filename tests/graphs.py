"""Graphs as text, and how two of them are compared."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx
import onnx.parser
import onnxruntime
from onnx import numpy_helper

from amct_onnx.config import QuantConfig
from amct_onnx.kernels.quant_params import QuantParams
from amct_onnx.passes.graph import Graph
from amct_onnx.passes.manager import run_passes
from amct_onnx.passes.pipelines import PREPARE
from amct_onnx.passes.quantize_weights import FIND_WEIGHT_SCALES
from amct_onnx.passes.state import Pass, QuantPlan, QuantState
from amct_onnx.planning import make_plan


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
        shown = f"<{attributes}>" if attributes else ""
        lines.append(f"[{node.name}] {', '.join(node.output)} = {node.op_type}{shown}({inputs})")
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


def rewritten(m: onnx.ModelProto, *passes: Pass, plan: QuantPlan | None = None) -> tuple[QuantState, onnx.ModelProto]:
    """The state and the model after some passes; the manager checks what they require and ensure."""
    state = QuantState(graph=Graph.of_model(m), plan=plan or QuantPlan())
    run_passes(passes, state)
    return state, state.graph.to_model()


def calibrated(m: onnx.ModelProto, scales: Mapping[str, tuple[float, int]], config: QuantConfig | None = None):
    """A prepared and planned state with weight scales found and the activation scale and offset of each layer given."""
    state, _ = rewritten(m, *PREPARE)
    state = replace(state, plan=make_plan(state, config or QuantConfig()))
    run_passes((FIND_WEIGHT_SCALES,), state)
    for name, (scale, offset) in scales.items():
        params = QuantParams(scale=np.asarray(scale, np.float32), offset=np.asarray(offset, np.int32))
        state.activations[name] = params
    return state


def random_feed(m: onnx.ModelProto, seed: int = 0) -> dict[str, np.ndarray]:
    """Normal numbers for every input; free axes get the size 2."""
    rng = np.random.default_rng(seed)
    feed = {}
    for value in m.graph.input:
        shape = [dim.dim_value or 2 for dim in value.type.tensor_type.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        feed[value.name] = rng.normal(size=shape).astype(dtype)
    return feed


def initializers(m: onnx.ModelProto) -> dict[str, np.ndarray]:
    """The initializers by name."""
    return {t.name: numpy_helper.to_array(t) for t in m.graph.initializer}


def assert_same_numbers(
    before: onnx.ModelProto, after: onnx.ModelProto, feed: Mapping[str, np.ndarray] | None = None, *, rtol: float
) -> None:
    """Same outputs in onnxruntime, with and without optimizations, within `rtol` of the largest value; 0 is equal."""
    feed = random_feed(before) if feed is None else feed
    for optimize in (False, True):
        expected, found = (run(m, feed, optimize=optimize) for m in (before, after))
        assert list(found) == list(expected)
        for name, values in expected.items():
            assert_close(found[name], values, rtol=rtol)


def assert_close(found: np.ndarray, expected: np.ndarray, *, rtol: float) -> None:
    """Same type and shape, and values within `rtol` of the largest one; 0 is equal."""
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    if rtol == 0 or not np.issubdtype(expected.dtype, np.floating):
        np.testing.assert_array_equal(found, expected)
    else:
        largest = float(np.abs(expected).max(initial=0))
        np.testing.assert_allclose(found, expected, rtol=rtol, atol=rtol * largest)
