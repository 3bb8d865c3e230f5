"""Layers beside their float twins: what biases that are corrected batch by batch are told.

In the graph that calibration runs, such a bias is fed, and a second node computes what the layer would give with its
float weight and bias.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from amct_onnx.kernels.bias_correction import StepwiseCorrection, WholeCorrection
from amct_onnx.kernels.grid import fake_quantized
from amct_onnx.passes.graph import Array, Graph, Node, Tensor, constant_input, set_input, unique_name
from amct_onnx.passes.layers import bias_input, channel_axis, last_node, output_channels
from amct_onnx.passes.state import QuantState

_log = logging.getLogger("amct_onnx")


@dataclass(frozen=True, slots=True, kw_only=True)
class CorrectedLayer:
    """One layer of the calibration graph.

    layer: its name.
    bias: the input of the graph that its bias is fed through.
    found, wanted: the tensors that it computes, and would compute in float.
    correction: its bias by now.
    """

    layer: str
    bias: str
    found: str
    wanted: str
    correction: StepwiseCorrection | WholeCorrection

    def update(self, values: Mapping[str, Array]) -> None:
        """Take in what a batch gave; an empty result says nothing."""
        if values[self.found].size:
            self.correction.update(values[self.found], values[self.wanted])


def add_twins(graph: Graph, state: QuantState) -> list[CorrectedLayer]:
    """Put a float twin beside every layer of a copy of the state's graph whose bias is to be corrected."""
    layers = {layer.name for layer in state.layers() if layer.correct_bias}
    names, nodes = graph.tensor_names(), graph.node_names()
    correction = WholeCorrection if state.plan.whole_bias_errors else StepwiseCorrection
    corrected = []
    for node in [node for node in graph.nodes if node.name in layers & state.bias_grids.keys()]:
        holder, index = bias_input(graph, node) or (node, 2)
        bias = constant_input(holder, index)
        if bias is None or bias.shape != (output_channels(node),):
            state.remarks[node.name] = "its bias is not corrected: it is not one number for each channel"
            continue
        found = last_node(graph, node).outputs[0]
        wanted = _twin(graph, node, holder, names, nodes)
        fed = graph.new_input(unique_name(f"{node.name}.calibration.bias", names), bias.dtype, bias.shape)
        set_input(holder, index, fed)
        start = fake_quantized(bias, state.bias_grids[node.name])
        corrected.append(
            CorrectedLayer(
                layer=node.name,
                bias=fed.name,
                found=found.name,
                wanted=wanted.name,
                correction=correction(bias=start, axis=channel_axis(node)),
            )
        )
    return corrected


def _twin(graph: Graph, node: Node, holder: Node, names: set[str], nodes: set[str]) -> Tensor:
    """Compute the result of a layer once more, of the same input; its parameters are still the float ones."""
    last, place, twins = node.outputs[0], holder, dict[str, Tensor]()
    for original in (node,) if holder is node else (node, holder):
        inputs = [twins.get(tensor.name, tensor) for tensor in original.inputs]
        name = unique_name(f"{original.name}.float", nodes)
        last = graph.new_tensor(unique_name(f"{name}.output0", names))
        place = graph.insert(original.op, name, inputs, last, dict(original.attrs), after=place)
        twins[original.outputs[0].name] = last
    return last


def bias_shifts(corrected: list[CorrectedLayer], state: QuantState) -> dict[str, Array]:
    """What became of the biases: layer -> what is added to its float bias, [C]; layers left alone are not in it."""
    nodes = {node.name: node for node in state.graph.nodes}
    found = {}
    moving = sum(isinstance(each.correction, StepwiseCorrection) and not each.correction.stopped for each in corrected)
    if moving:
        _log.info(
            "the biases of %d of %d layers had not settled at the end of the data; more batches take out more of the "
            "error, correct_biases=True all of it",
            moving,
            len(corrected),
        )
    for each in corrected:
        bias = constant_input(*(bias_input(state.graph, nodes[each.layer]) or (nodes[each.layer], 2)))
        assert bias is not None
        if np.isfinite(each.correction.bias).all():
            found[each.layer] = each.correction.bias - bias.astype(np.float32)
    return found
