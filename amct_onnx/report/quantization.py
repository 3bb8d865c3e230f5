"""What a run decided, layer by layer, with ranges, errors, sizes and times: the content of the report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from amct_onnx.accuracy_target import TargetSearch
from amct_onnx.kernels.distribution import Distribution, RangeCandidate, range_of
from amct_onnx.kernels.quant_params import QuantParams
from amct_onnx.passes.state import QuantState
from amct_onnx.report.compare import Comparison, TensorError
from amct_onnx.report.json_text import json_text
from amct_onnx.report.plan_words import activation_text, weight_text


@dataclass(frozen=True, slots=True, kw_only=True)
class InputRange:
    """One quantized input.

    key: the layer, "<layer>:1" for its second input or its hidden state (LSTM, GRU), "<node>:<index>" for a tensor that
        is quantized by itself.
    num_bits, scale, offset: real = (q - offset) * scale.
    low, high: the range that was chosen: what the smallest and the largest integer stand for.
    considered: other ranges.
    distribution: of the calibration data; None where none was observed.
    """

    key: str
    num_bits: int
    scale: float
    offset: int
    low: float
    high: float
    considered: tuple[RangeCandidate, ...]
    distribution: Distribution | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerReport:
    """One quantized layer, or node of which single inputs are.

    activation, weight: algorithms and widths, in words.
    error: of what the layer gives in the whole network against the float one, on the first batch; None where there is
        no tensor to compare.
    inputs: what is quantized of it.
    notes: what was decided otherwise than asked.
    """

    name: str
    op_type: str
    activation: str
    weight: str
    error: TensorError | None
    inputs: tuple[InputRange, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FloatNode:
    """A node that is left as it is. could: it could have been quantized, as far as its operator goes."""

    name: str
    op_type: str
    reason: str
    could: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizationReport:
    """What `quantize_onnx` did.

    batches: of the calibration data.
    layers: those with the largest errors first.
    floats: nodes that are left as they are, those first that could have been quantized.
    folded: nodes that were folded into another one, which computes what they did -> that one.
    outputs: output -> difference from the float model, on the first batch.
    target: how the accuracy that was asked for was reached; None where none was.
    choices: what was tried for the whole network, and what came of it, one sentence each.
    sizes: model -> its bytes.
    seconds: what was done -> how long it took, and "all" up to this report. The only part of the report that is not the
        same when the run is repeated.
    """

    batches: int
    layers: tuple[LayerReport, ...]
    floats: tuple[FloatNode, ...]
    folded: Mapping[str, str]
    outputs: Mapping[str, TensorError]
    target: TargetSearch | None
    choices: tuple[str, ...]
    sizes: Mapping[str, int]
    seconds: Mapping[str, float]

    def to_json(self) -> str:
        """Everything as JSON text; infinity and NaN as strings. The times come last."""
        return json_text(asdict(self))


def quantization_report(
    state: QuantState,
    found: Comparison,
    *,
    batches: int,
    sizes: Mapping[str, int],
    seconds: Mapping[str, float],
    target: TargetSearch | None = None,
) -> QuantizationReport:
    """Put the report together.

    Args:
        state: of the float graph, with scales and the final plan.
        found: errors of outputs and layers.
        batches: how many were calibrated with.
        sizes: model -> bytes.
        seconds: what was done -> how long it took.
        target: how the target was reached, where there was one.
    """
    op_types = {node.name: node.op for node in state.graph.nodes}
    layers = [*_layers(state, found, op_types), *_tensors(state, op_types)]
    nodes = [
        FloatNode(name=name, op_type=op_types.get(name, ""), reason=reason, could=_could(state, op_types, name))
        for name, reason in state.plan.skipped.items()
        if name not in state.plan.folded
    ]
    return QuantizationReport(
        batches=batches,
        layers=tuple(sorted(layers, key=_harm)),
        floats=tuple(sorted(nodes, key=lambda node: not node.could)),
        folded=dict(state.plan.folded),
        outputs=dict(found.outputs),
        target=target,
        choices=tuple(state.plan.choices),
        sizes=dict(sizes),
        seconds=dict(seconds),
    )


def _layers(state: QuantState, found: Comparison, op_types: Mapping[str, str]) -> list[LayerReport]:
    reports = []
    for name, layer in state.plan.layers.items():
        inputs = [_input(state, name, state.activations[name])]
        second = f"{name}:1"
        if second in state.distributions:
            inputs.append(_input(state, second, (state.hidden if name in state.hidden else state.weights)[name]))
        reports.append(
            LayerReport(
                name=name,
                op_type=op_types[name],
                activation=activation_text(layer.activation),
                weight=weight_text(layer),
                error=found.layers.get(name),
                inputs=tuple(inputs),
                notes=tuple(state.plan.notes.get(name, ())),
            )
        )
    return reports


def _tensors(state: QuantState, op_types: Mapping[str, str]) -> list[LayerReport]:
    return [
        LayerReport(
            name=tensor.key,
            op_type=op_types[tensor.node],
            activation=activation_text(tensor.activation),
            weight="",
            error=None,
            inputs=(_input(state, tensor.key, state.activations[tensor.key]),),
            notes=("one scale with the other input" if tensor.joint else "this input alone",),
        )
        for tensor in state.plan.tensors
    ]


def _input(state: QuantState, key: str, params: QuantParams) -> InputRange:
    low, high = range_of(params)
    return InputRange(
        key=key,
        num_bits=params.num_bits,
        scale=float(params.scale),
        offset=int(params.offset),
        low=low,
        high=high,
        considered=state.considered.get(key, ()),
        distribution=state.distributions.get(key),
    )


def _could(state: QuantState, op_types: Mapping[str, str], name: str) -> bool:
    plan = state.plan
    if name in plan.disabled or name in state.left_float:
        return True
    return name in op_types and not plan.skipped[name].endswith("operator that can be quantized")


def _harm(layer: LayerReport) -> tuple[bool, float]:
    """For sorting: the worst first, then what cannot be compared."""
    sqnr = math.inf if layer.error is None else layer.error.sqnr
    return layer.error is None, -math.inf if math.isnan(sqnr) else sqnr
