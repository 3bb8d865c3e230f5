"""Writes down the kernel_shape of convolutions that leave it to their weight: ATC wants one attribute at least."""

from __future__ import annotations

from amct_onnx.passes.graph import has_input, is_constant, nodes_of
from amct_onnx.passes.invariants import LIFTED
from amct_onnx.passes.state import Pass, QuantState


def _run(state: QuantState) -> None:
    for node in nodes_of(state.graph, "Conv", "ConvTranspose"):
        if "kernel_shape" not in node.attrs and has_input(node, 1) and is_constant(node.inputs[1]):
            node.attrs["kernel_shape"] = [int(size) for size in node.inputs[1].shape[2:]]


WRITE_KERNEL_SHAPES = Pass(name="write kernel shapes", run=_run, requires=(LIFTED,))
