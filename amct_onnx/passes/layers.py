"""What the engine knows about the operators it quantizes: where weight and bias are, and what rules a node out."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from amct_onnx.kernels import arq
from amct_onnx.passes.graph import (
    Array,
    Graph,
    Node,
    constant_input,
    has_input,
    is_constant,
    is_standard,
    sole_consumer,
    type_name,
)
from amct_onnx.passes.layer_types import QUANTIZABLE, RECURRENT
from amct_onnx.passes.recurrent_layers import why_not_recurrent


def has_weight(node: Node) -> bool:
    """Whether this kind of layer has a weight, at input 1."""
    return node.op != "AveragePool" and not is_product(node)


def is_product(node: Node) -> bool:
    """Whether the node is a MatMul of two activations: neither input is an initializer."""
    return node.op == "MatMul" and not any(is_constant(tensor) for tensor in node.inputs)


def is_recurrent(node: Node) -> bool:
    """Whether the node is an LSTM or a GRU: its weights are at inputs 1 and 2, what they multiply at 0 and 5."""
    return node.op in RECURRENT


def weight_indices(node: Node) -> tuple[int, ...]:
    """Which inputs of a layer are weights."""
    return (1, 2) if is_recurrent(node) else (1,) if has_weight(node) else ()


def weight_of(node: Node, index: int = 1) -> Array:
    """A weight of a layer: Conv [Cout, Cin/g, k...], ConvTranspose [Cin, Cout/g, k...], Gemm and MatMul [K, N].

    LSTM and GRU: [1, gate rows, columns], both.
    """
    values = constant_input(node, index)
    assert values is not None, f"{node.name} has no constant weight"
    return values


@dataclass(frozen=True, slots=True)
class WeightLayout:
    """Where the output channels of a weight are."""

    axis: int
    group: int

    def channels_first(self, weight: Array) -> Array:
        """The weight with the output channels along axis 0: [Cout, ...]. ConvTranspose counts them group by group."""
        return arq.channels_first(weight, axis=self.axis, group=self.group)

    def restored(self, weight: Array) -> Array:
        """The inverse of `channels_first`: back to the layout of the operator."""
        return arq.channels_restored(weight, axis=self.axis, group=self.group)


def layout_of(node: Node) -> WeightLayout:
    """The layout of a layer's weight."""
    return WeightLayout(0 if node.op == "Conv" else 1, group_of(node) if node.op == "ConvTranspose" else 1)


def channels_first(node: Node, weight: Array) -> Array:
    """The weight of a layer with the output channels along axis 0: [Cout, ...]."""
    return layout_of(node).channels_first(weight)


def group_of(node: Node) -> int:
    """Groups of a convolution, 1 for anything else."""
    return int(node.attrs.get("group", 1))


def is_depthwise(node: Node) -> bool:
    """Whether a convolution treats every input channel by itself."""
    return node.op == "Conv" and group_of(node) > 1 and node.inputs[1].shape[1] == 1


def output_channels(node: Node) -> int:
    """Cout of a layer with a weight: the rows of all gates where it is recurrent."""
    shape = node.inputs[1].shape
    if node.op == "Conv":
        return int(shape[0])
    return int(shape[1]) * (group_of(node) if node.op == "ConvTranspose" else 1)


def input_channels(node: Node) -> int:
    """Cin of a layer with a weight."""
    shape = node.inputs[1].shape
    return int(shape[1]) * group_of(node) if node.op == "Conv" else int(shape[0])


def channel_axis(node: Node) -> int:
    """Where the channels are in what a layer reads, and in what it gives."""
    return 1 if node.op in ("Conv", "ConvTranspose", "AveragePool") else -1


def input_axis(node: Node) -> int:
    """The axis of a layer's weights that the input channels are on."""
    return 2 if is_recurrent(node) else 1 if node.op == "Conv" else 0


def along_channels(layer: Node, k: Array) -> Array:
    """`k` [Cout] in the shape that multiplies the layer's weight."""
    shape = layer.inputs[1].shape
    if layer.op == "Conv":
        return np.asarray(k.reshape(-1, *([1] * (len(shape) - 1))))
    if layer.op == "ConvTranspose":
        per_group = k.reshape(group_of(layer), 1, shape[1])
        rows = np.repeat(per_group, shape[0] // group_of(layer), axis=1).reshape(shape[0], shape[1])
        return np.asarray(rows.reshape(*rows.shape, *([1] * (len(shape) - 2))))
    return np.asarray(k.reshape(1, -1))


def spatial_axes(node: Node) -> int | None:
    """Number of spatial axes of a convolution or pooling; None for Gemm and MatMul."""
    if node.op in ("Conv", "ConvTranspose"):
        return len(node.inputs[1].shape) - 2 if is_constant(node.inputs[1]) else None
    if node.op == "AveragePool":
        return len(node.attrs["kernel_shape"])
    return None


def bias_add(graph: Graph, node: Node) -> Node | None:
    """The Add that holds the bias of a MatMul: its only consumer, with a constant [N] at input 1."""
    if node.op != "MatMul" or not is_constant(node.inputs[1]) or len(node.inputs[1].shape) != 2:
        return None
    add = sole_consumer(graph, node.outputs[0])
    if add is None or add.op != "Add" or not is_standard(add) or add.inputs[0] is not node.outputs[0]:
        return None
    bias = constant_input(add, 1)
    return add if bias is not None and bias.shape == (output_channels(node),) else None


def bias_input(graph: Graph, node: Node) -> tuple[Node, int] | None:
    """The node and input index that hold the layer's bias, or None where it has none."""
    if (add := bias_add(graph, node)) is not None:
        return add, 1
    index = 3 if is_recurrent(node) else 2
    if node.op in ("Conv", "ConvTranspose", "Gemm", *RECURRENT) and has_input(node, index):
        return node, index
    return None


def last_node(graph: Graph, node: Node) -> Node:
    """The node whose output is the layer's: the bias Add of a MatMul, or the node itself."""
    return bias_add(graph, node) or node


def why_not_16_bits(node: Node) -> str | None:
    """Why the activations of a layer cannot have 16 bits, or None where they can."""
    if is_recurrent(node):
        return None
    if node.op == "Gemm":
        return None if has_input(node, 2) else "it has no bias"
    axes = spatial_axes(node)
    if node.op not in ("Conv", "ConvTranspose") or axes not in (1, 2):
        return "only 1-D and 2-D Conv and ConvTranspose, Gemm with a bias, LSTM and GRU take 16"
    return None


def why_not_4_bits(node: Node) -> str | None:
    """Why a layer's weight cannot have 4 bits. Two input channels share a byte, and groups would need bytes apart."""
    if not has_weight(node):
        return "it has no weight"
    if group_of(node) != 1:
        return "it has groups"
    for index in weight_indices(node):
        channels = int(node.inputs[index].shape[input_axis(node)])
        if channels % 2:
            return f"its number of input channels, {channels}, is odd"
    return None


def why_not(node: Node) -> str | None:
    """Why a node cannot be quantized, as a sentence, or None where it can."""
    if not is_standard(node):
        return f"{node.domain}.{node.op} is not an operator that can be quantized"
    if node.op == "GlobalAveragePool":
        return "GlobalAveragePool is quantized only with global_pools=True, as an AveragePool"
    if node.op not in QUANTIZABLE:
        return f"{node.op} is not an operator that can be quantized"
    return _OBJECTIONS[node.op](node)


def _why_not_weight(node: Node) -> str | None:
    if not has_input(node, 1):
        return f"{node.op} has no weight"
    if not is_constant(node.inputs[1]):
        if node.op == "MatMul" and is_constant(node.inputs[0]):
            return "its constant is the first input; only a constant second input is a weight"
        return "its weight is computed at run time; only constant weights are quantized"
    if (name := type_name(node.inputs[1])) not in ("float32", "float16"):
        return f"its weight is {name}; only float32 and float16 weights are quantized"
    if math.prod(node.inputs[1].shape) == 0:
        return "its weight is empty"
    if is_constant(node.inputs[0]):
        return "its input is a constant"
    return None


def _why_not_bias(node: Node) -> str | None:
    if not has_input(node, 2):
        return None
    bias = constant_input(node, 2)
    if bias is None:
        return "its bias is computed at run time; only a constant bias is quantized"
    if bias.shape != (output_channels(node),):
        return (
            f"its bias has shape {list(bias.shape)}; Ascend takes one value for each of {output_channels(node)} outputs"
        )
    return None


def _why_not_conv(node: Node) -> str | None:
    if reason := _why_not_weight(node) or _why_not_bias(node):
        return reason
    axes = spatial_axes(node)
    if axes not in (1, 2, 3):
        return f"a {axes}-D convolution; Ascend takes 1-D, 2-D and 3-D ones"
    if axes == 3 and node.attrs.get("dilations", [1])[0] != 1:
        return "a 3-D convolution with dilation in depth, which Ascend does not quantize"
    if axes == 3 and (auto := node.attrs.get("auto_pad", "NOTSET")) not in ("NOTSET", "VALID"):
        return f"a 3-D convolution with auto_pad {auto}, which Ascend does not take; it takes pads as numbers"
    return None


def _why_not_conv_transpose(node: Node) -> str | None:
    if reason := _why_not_weight(node) or _why_not_bias(node):
        return reason
    if spatial_axes(node) not in (1, 2):
        return f"a {spatial_axes(node)}-D transposed convolution; Ascend quantizes 1-D and 2-D ones"
    if any(d != 1 for d in node.attrs.get("dilations", [])):
        return "a transposed convolution with dilation, which Ascend does not quantize"
    return None


def _why_not_gemm(node: Node) -> str | None:
    if reason := _why_not_weight(node):
        return reason
    for attribute, wanted in (("transA", 0), ("transB", 0), ("alpha", 1.0), ("beta", 1.0)):
        if node.attrs.get(attribute, wanted) != wanted:
            return f"Gemm with {attribute}={node.attrs[attribute]}, which Ascend does not quantize"
    return _why_not_bias(node)


def _why_not_matmul(node: Node) -> str | None:
    if is_product(node):
        return None
    if reason := _why_not_weight(node):
        return reason
    if len(node.inputs[1].shape) != 2:
        return f"its weight has {len(node.inputs[1].shape)} dimensions; Ascend takes 2"
    return None


def _why_not_pool(node: Node) -> str | None:
    if spatial_axes(node) != 2:
        return f"a {spatial_axes(node)}-D pooling; Ascend quantizes 2-D ones"
    if any(d != 1 for d in node.attrs.get("dilations", [])):
        return "a pooling with dilation, which Ascend does not quantize"
    return None


_OBJECTIONS = {
    "Conv": _why_not_conv,
    "ConvTranspose": _why_not_conv_transpose,
    "Gemm": _why_not_gemm,
    "MatMul": _why_not_matmul,
    "AveragePool": _why_not_pool,
    **dict.fromkeys(RECURRENT, why_not_recurrent),
}
