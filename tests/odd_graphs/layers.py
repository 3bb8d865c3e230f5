"""Odd forms of the layers: convolutions, norms and activations behind them, products, pools, paddings."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from odd_graphs.build import Net, odd

# Convolutions


@odd
def conv_bare(net: Net) -> None:
    """Conv nodes without any attribute and without bias."""
    x = net.relu(net.conv(net.image(), bias=False, kernel_shape=None, pads=None, group=None))
    net.head(net.relu(net.conv(x, bias=False, kernel_shape=None, pads=None, group=None)))


@odd
def conv_auto_pad_same(net: Net) -> None:
    """auto_pad SAME_UPPER and SAME_LOWER with stride 2: the padding is not symmetric."""
    x = net.relu(net.conv(net.image(), pads=None, auto_pad="SAME_UPPER", strides=[2, 2]))
    net.head(net.relu(net.conv(x, pads=None, auto_pad="SAME_LOWER", strides=[2, 2])))


@odd
def conv_auto_pad_valid(net: Net) -> None:
    """auto_pad VALID: no padding."""
    x = net.relu(net.conv(net.image(), pads=None, auto_pad="VALID"))
    net.head(net.relu(net.conv(x, pads=None, auto_pad="VALID")))


@odd
def conv_pads_asymmetric(net: Net) -> None:
    """Another padding on each side."""
    x = net.relu(net.conv(net.image(), pads=[0, 1, 2, 3], strides=[2, 1]))
    net.head(net.relu(net.conv(x, pads=[1, 0, 0, 2])))


@odd
def conv_dilated(net: Net) -> None:
    """Dilations 2 and 3, one of them depthwise."""
    x = net.relu(net.conv(net.image(), dilations=[2, 2], pads=[2, 2, 2, 2]))
    net.head(net.relu(net.conv(x, group=16, dilations=[3, 2], pads=[3, 2, 3, 2])))


@odd
def conv_grouped(net: Net) -> None:
    """Four groups, and depthwise with two outputs per channel."""
    x = net.relu(net.conv(net.relu(net.conv(net.image())), group=4))
    net.head(net.relu(net.conv(x, 32, group=16)))


@odd
def conv_1d(net: Net) -> None:
    """One-dimensional convolutions over a sequence."""
    x = net.relu(net.conv(net.image(("N", 8, 32)), axes=1))
    net.head(net.relu(net.conv(x, kernel=5, axes=1, strides=[2])))


@odd
def conv_3d(net: Net) -> None:
    """Three-dimensional convolutions; the chip quantizes their activations symmetrically only."""
    x = net.relu(net.conv(net.image(("N", 2, 8, 8, 8)), axes=3))
    net.head(net.relu(net.conv(x, axes=3, strides=[2, 2, 2])))


@odd
def conv_weight_at_run_time(net: Net) -> None:
    """A Conv whose weight is a graph input, and one whose weight is computed from the activations."""
    x = net.relu(net.conv(net.image(("N", 3, 16, 16))))
    x = net.relu(net.conv(x, weight=net.input((16, 16, 1, 1), name="kernel"), kernel=1, name="from_input"))
    mean = net.op("ReduceMean", x, axes=[0, 2, 3], keepdims=0)
    kernel = net.op("Reshape", net.op("Concat", *[mean] * 16, axis=0), net.const([16, 16, 1, 1]))
    net.head(net.conv(net.conv(x), weight=kernel, kernel=1, name="from_activations"))
    net.keeps_float.update({"from_input", "from_activations"})


@odd
def conv_bias_at_run_time(net: Net) -> None:
    """A Conv and a Gemm whose biases are graph inputs."""
    x = net.relu(net.conv(net.image(), bias=net.input((16,), name="conv_bias"), name="biased"))
    x = net.op("Flatten", net.op("GlobalAveragePool", net.relu(net.conv(x))))
    net.output(net.gemm(x, bias=net.input((10,), name="gemm_bias"), name="biased_head"))
    net.keeps_float.update({"biased", "biased_head"})


@odd
def up_grouped(net: Net) -> None:
    """ConvTranspose with four groups."""
    x = net.relu(net.conv(net.image()))
    net.head(net.relu(net.conv_transpose(x, 32, group=4)))


@odd
def up_output_padding(net: Net) -> None:
    """ConvTranspose with unequal pads and output_padding, and one that states its output shape instead."""
    x = net.relu(net.conv(net.image()))
    x = net.relu(net.conv_transpose(x, kernel=3, pads=[1, 0, 1, 1], output_padding=[1, 1]))
    net.head(net.relu(net.conv_transpose(x, 8, pads=None, output_shape=[63, 64])))


@odd
def up_dilated(net: Net) -> None:
    """ConvTranspose with dilation 2, which the chip does not take quantized."""
    x = net.relu(net.conv(net.image()))
    net.head(net.relu(net.conv_transpose(x, kernel=3, dilations=[2, 2])))
    net.keeps_float.add("up1")


@odd
def up_1d(net: Net) -> None:
    """One-dimensional ConvTranspose without bias."""
    x = net.relu(net.conv(net.image(("N", 8, 32)), axes=1))
    net.head(net.relu(net.conv_transpose(x, axes=1, bias=False)))


# Norms and activations


@odd
def bn_after_conv(net: Net) -> None:
    """BatchNormalization behind convolutions with and without bias, depthwise and pointwise."""
    x = net.relu(net.batch_norm(net.conv(net.image(), bias=False)))
    x = net.relu(net.batch_norm(net.conv(x, group=16)))
    net.head(net.relu(net.batch_norm(net.conv(x, 32, 1))))


@odd
def bn_after_up(net: Net) -> None:
    """BatchNormalization behind ConvTranspose, plain and with two groups."""
    x = net.relu(net.batch_norm(net.conv_transpose(net.relu(net.conv(net.image(("N", 3, 8, 8)))), bias=False)))
    net.head(net.relu(net.batch_norm(net.conv_transpose(x, 24, group=2))))


@odd
def bn_after_gemm(net: Net) -> None:
    """BatchNormalization behind Gemm with transB 1 and 0, and behind MatMul."""
    x = net.relu(net.batch_norm(net.gemm(net.input(("N", 16)), 32)))
    x = net.relu(net.batch_norm(net.gemm(x, 24, transB=0, bias=False)))
    x = net.matmul(x, 24, 16)
    net.channels[x] = 16
    net.output(net.gemm(net.relu(net.batch_norm(x))))


@odd
def bn_mul_add(net: Net) -> None:
    """BatchNormalization, Mul and Add by constants per channel behind a Conv; a bare Mul and Add behind another."""
    x = net.batch_norm(net.conv(net.image()))
    x = net.op("Mul", x, net.const(net.rng.uniform(0.5, 1.5, (16, 1, 1))))
    x = net.conv(net.relu(net.op("Add", x, net.const(net.rng.normal(size=(1, 16, 1, 1)) * 0.2))))
    x = net.op("Mul", net.const(net.rng.uniform(0.5, 1.5, (1, 16, 1, 1))), x, channels=16)
    net.head(net.relu(net.op("Add", x, net.const(0.1))))


@odd
def bn_alone(net: Net) -> None:
    """BatchNormalization over the graph input and over a Concat: no layer before it to fold into."""
    x = net.batch_norm(net.image())
    x = net.op("Concat", net.relu(net.conv(x)), net.conv(x, 8), axis=1, channels=24)
    net.head(net.relu(net.conv(net.relu(net.batch_norm(x)))))


@odd
def bn_after_forked_conv(net: Net) -> None:
    """BatchNormalization behind a Conv whose raw output something else reads as well."""
    raw = net.conv(net.image())
    net.head(net.relu(net.conv(net.op("Add", net.relu(net.batch_norm(raw)), net.op("Sigmoid", raw)))))


@odd
def relu6_depthwise(net: Net) -> None:
    """Conv, Clip(0, 6) with constant nodes for limits, depthwise Conv, Clip, pointwise Conv, residual Add."""

    def relu6(x: str) -> str:
        limits = [net.op("Constant", value_float=limit) for limit in (0.0, 6.0)]
        return net.op("Clip", x, *limits)

    x = relu6(net.conv(net.image()))
    net.head(net.op("Add", net.conv(relu6(net.conv(x, group=16)), 16, 1), x))


@odd(opset=14)
def hard_swish(net: Net) -> None:
    """HardSwish, one operator since opset 14."""
    net.head(net.op("HardSwish", net.conv(net.op("HardSwish", net.conv(net.image())))))


@odd
def hard_swish_decomposed(net: Net) -> None:
    """HardSwish as Add 3, Clip(0, 6), Mul, Div 6."""
    x = net.image()
    for _ in range(2):
        x = net.conv(x)
        gate = net.op("Clip", net.op("Add", x, net.const(3.0)), net.const(0.0), net.const(6.0))
        x = net.op("Div", net.op("Mul", x, gate), net.const(6.0))
    net.head(x)


@odd
def squeeze_excite(net: Net) -> None:
    """Channel gates: GlobalAveragePool, two 1x1 Conv, HardSigmoid, and a Mul with the layer's output."""
    x = net.relu(net.conv(net.image()))
    gate = net.conv(net.relu(net.conv(net.op("GlobalAveragePool", x), 8, 1)), 16, 1)
    net.head(net.relu(net.conv(net.op("Mul", x, net.op("HardSigmoid", gate)))))


# Products


@odd
def matmul_add(net: Net) -> None:
    """MatMul and Add with the bias as second input, then as first."""
    bias = [net.const(net.rng.normal(size=size) * 0.1) for size in (32, 10)]
    x = net.relu(net.op("Add", net.matmul(net.input(("N", 16)), 16, 32), bias[0]))
    net.output(net.op("Add", bias[1], net.matmul(x, 32, 10)))


@odd
def matmul_batched(net: Net) -> None:
    """Activations [N, S, C] and [N, 4, S, C] with two-dimensional weights."""
    x = net.relu(net.op("Add", net.matmul(net.input(("N", "S", 16)), 16, 32), net.const(net.rng.normal(size=32))))
    x = net.op("Transpose", net.op("Reshape", x, net.const([0, 0, 4, 8])), perm=[0, 2, 1, 3])
    net.output(net.matmul(net.relu(net.matmul(x, 8, 16)), 16, 8))


@odd
def matmul_of_activations(net: Net) -> None:
    """Self-attention: two of the MatMuls have no constant input."""
    x = net.input(("N", "S", 16))
    query, key, value = (net.matmul(x, 16, 16, name=name) for name in ("query", "key", "value"))
    scores = net.op("MatMul", query, net.op("Transpose", key, perm=[0, 2, 1]), name="scores")
    scores = net.op("Softmax", net.op("Mul", scores, net.const(0.0625)), axis=-1)
    net.output(net.matmul(net.op("MatMul", scores, value, name="mix"), 16, 10))
    net.keeps_float.update({"scores", "mix"})


@odd
def matmul_constant_first(net: Net) -> None:
    """MatMul(W, x): the weight is the first input."""
    x = net.op("MatMul", net.weight("left", (12, 16), 16), net.input(("N", 16, 8)), name="weight_first")
    net.output(net.matmul(net.relu(x), 8, 10))
    net.keeps_float.add("weight_first")


@odd
def matmul_weight_not_2d(net: Net) -> None:
    """A weight [4, C, K], one matrix per head, and a weight [K] that is a vector."""
    x = net.op("MatMul", net.input(("N", 4, "S", 16)), net.weight("heads", (4, 16, 8), 16), name="per_head")
    x = net.matmul(net.relu(x), 8, 8)
    net.output(net.op("MatMul", x, net.weight("vector", (8,), 8), name="dot"))
    net.keeps_float.update({"per_head", "dot"})


@odd
def gemm_trans_a(net: Net) -> None:
    """Gemm with transA 1, between two others."""
    x = net.op("Transpose", net.relu(net.gemm(net.input(("N", 16)), 32)), perm=[1, 0], channels=32)
    x = net.gemm(x, 24, transA=1, name="turned")
    net.output(net.gemm(net.relu(x)))
    net.keeps_float.add("turned")


@odd
def gemm_factors(net: Net) -> None:
    """Gemm with alpha and beta other than 1, with beta 0, and with alpha and no bias."""
    x = net.relu(net.gemm(net.input(("N", 16)), 32, alpha=0.5, beta=2.0))
    x = net.relu(net.gemm(x, 24, alpha=1.5, beta=0.0))
    net.output(net.gemm(x, alpha=-2.0, bias=False))


@odd
def gemm_forms(net: Net) -> None:
    """Gemm with transB 0 and 1, with and without bias, without attributes."""
    x = net.relu(net.gemm(net.input(("N", 16)), 32, transB=0))
    x = net.relu(net.gemm(x, 24, transB=0, bias=False))
    x = net.relu(net.gemm(x, 32, transB=1, bias=False))
    net.output(net.gemm(x, transB=1))


@odd
def gemm_bias_shapes(net: Net) -> None:
    """Gemm biases of shapes [1, N], [1], [] and [1, 1]."""
    x = net.input(("N", 16))
    for place, shape in enumerate(((1, 32), (1,), (), (1, 1))):
        x = net.relu(net.gemm(x, 32, bias=net.const(net.rng.normal(size=shape) * 0.2, f"bias{place}")))
    net.output(net.gemm(x))


@odd
def gemm_bias_per_sample(net: Net) -> None:
    """A fixed batch of 2 and a constant Gemm bias [2, N] that differs between the samples."""
    x = net.relu(net.gemm(net.input((2, 16)), 32, bias=net.const(net.rng.normal(size=(2, 32))), name="per_sample"))
    net.output(net.gemm(x))
    net.keeps_float.add("per_sample")


# Average pools


@odd
def pool_pads(net: Net) -> None:
    """AveragePool with pads that count as values, then with pads that do not (the default)."""
    x = net.op("AveragePool", net.conv(net.image()), kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1)
    net.head(net.relu(net.conv(net.op("AveragePool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]))))


@odd
def pool_ceil(net: Net) -> None:
    """AveragePool with ceil_mode 1: the last windows reach beyond the image."""
    x = net.relu(net.conv(net.image(("N", 3, 15, 15))))
    x = net.op("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)
    net.head(net.relu(net.conv(x)))


@odd
def pool_auto_pad(net: Net) -> None:
    """AveragePool with auto_pad SAME_UPPER."""
    x = net.relu(net.conv(net.image(("N", 3, 15, 15))))
    x = net.op("AveragePool", x, kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER")
    net.head(net.relu(net.conv(x)))


@odd
def pool_whole_image(net: Net) -> None:
    """AveragePool whose window is the whole image, and a ReduceMean over another."""
    x = net.relu(net.conv(net.image()))
    x = net.op("Mul", x, net.op("ReduceMean", x, axes=[2, 3]))
    net.output(net.gemm(net.op("Flatten", net.op("AveragePool", x, kernel_shape=[16, 16]))))


@odd
def pool_1d(net: Net) -> None:
    """One-dimensional AveragePool."""
    x = net.op("AveragePool", net.relu(net.conv(net.image(("N", 8, 32)), axes=1)), kernel_shape=[2], strides=[2])
    net.head(net.relu(net.conv(x, axes=1)))


@odd
def pool_3d(net: Net) -> None:
    """Three-dimensional AveragePool."""
    x = net.relu(net.conv(net.image(("N", 2, 8, 8, 8)), axes=3))
    net.head(net.relu(net.conv(net.op("AveragePool", x, kernel_shape=[2, 2, 2], strides=[2, 2, 2]), axes=3)))


# Paddings


@odd(opset=10)
def pad_by_attribute(net: Net) -> None:
    """Opset 10: Pad with an attribute, before a Conv without and one with pads."""
    x = net.op("Pad", net.image(), pads=[0, 0, 0, 1, 0, 0, 2, 1], mode="constant", value=0.0)
    x = net.op("Pad", net.relu(net.conv(x, pads=None)), pads=[0, 0, 1, 1, 0, 0, 1, 1])
    net.head(net.relu(net.conv(x)))


@odd
def pad_by_input(net: Net) -> None:
    """Pad with a constant input, with and without the value, before a Conv without and one with pads."""
    x = net.op("Pad", net.image(), net.const([0, 0, 0, 1, 0, 0, 2, 1]), net.const(0.0))
    x = net.op("Pad", net.relu(net.conv(x, pads=None)), net.const([0, 0, 1, 1, 0, 0, 1, 1]))
    net.head(net.relu(net.conv(x)))


@odd(opset=18)
def pad_by_axes(net: Net) -> None:
    """Opset 18: Pad with the axes it pads, one of them negative."""
    x = net.op("Pad", net.image(), net.const([1, 0, 1, 2]), net.const(0.0), net.const([2, -1]))
    net.head(net.relu(net.conv(net.relu(net.conv(x, pads=None)))))


@odd
def pad_list_as_torch_writes_it(net: Net) -> None:
    """Pads computed from constants: zeros appended to the list, rows reversed, pairs transposed, cast."""
    x, zero = net.image(), helper.make_tensor("zero", TensorProto.INT64, [1], [0])
    for pads in ([0, 1, 0, 1], [1, 1, 1, 1]):
        zeros = net.op("ConstantOfShape", net.constant_node([4]), value=zero)
        pairs = net.op("Concat", net.constant_node(pads), zeros, axis=0)
        pairs = net.op("Reshape", pairs, net.constant_node([-1, 2]))
        start, end, axis, step = ([-1], [np.iinfo(np.int64).min + 1], [0], [-1])
        pairs = net.op("Slice", pairs, *map(net.constant_node, (start, end, axis, step)))
        flat = net.op("Reshape", net.op("Transpose", pairs, perm=[1, 0]), net.constant_node([-1]))
        padded = net.op("Pad", x, net.op("Cast", flat, to=7), net.op("Constant", value_float=0.0), mode="constant")
        x = net.relu(net.conv(padded, strides=[2, 2], pads=[0, 0, 0, 0]))
    net.head(x)


def same_pads(net: Net, x: str, kernel: int, stride: int) -> str:
    """The pads of TensorFlow's "same" for x, computed from its shape, height and width apart."""
    before, after = [], []
    for axis in (2, 3):
        size = net.op("Gather", net.op("Shape", x), net.const([axis]), axis=0)
        steps = net.op("Div", net.op("Add", size, net.const([stride - 1])), net.const([stride]))
        reach = net.op("Mul", net.op("Sub", steps, net.const([1])), net.const([stride]))
        total = net.op("Max", net.op("Sub", net.op("Add", reach, net.const([kernel])), size), net.const([0]))
        before.append(net.op("Div", total, net.const([2])))
        after.append(net.op("Sub", total, before[-1]))
    none = net.const([0, 0])
    return net.op("Concat", none, *before, none, *after, axis=0)


@odd
def pad_from_known_shape(net: Net) -> None:
    """Pads computed from the shape of activations whose height and width are known: constants in disguise."""
    x = net.image(("N", 3, 15, 16))
    for _ in range(2):
        x = net.op("Pad", x, same_pads(net, x, 3, 2), net.const(0.0))
        x = net.relu(net.conv(x, strides=[2, 2], pads=None))
    net.head(x)


@odd
def pad_from_free_shape(net: Net) -> None:
    """The same with free height and width: the Pad has to stay."""
    x = net.image(("N", 3, "H", "W"))
    for _ in range(2):
        x = net.op("Pad", x, same_pads(net, x, 3, 2), net.const(0.0))
        x = net.relu(net.conv(x, strides=[2, 2], pads=None))
    net.head(x)


@odd
def pad_reflect(net: Net) -> None:
    """Pad with mode reflect, then edge, before convolutions."""
    x = net.op("Pad", net.image(), net.const([0, 0, 1, 1, 0, 0, 1, 1]), mode="reflect")
    x = net.op("Pad", net.relu(net.conv(x, pads=None)), net.const([0, 0, 1, 1, 0, 0, 1, 1]), mode="edge")
    net.head(net.relu(net.conv(x, pads=None)))


@odd
def pad_with_ones(net: Net) -> None:
    """Pad with the value 1 before a Conv."""
    x = net.op("Pad", net.image(), net.const([0, 0, 1, 1, 0, 0, 1, 1]), net.const(1.0))
    net.head(net.relu(net.conv(net.relu(net.conv(x, pads=None)))))


@odd
def pad_of_channels(net: Net) -> None:
    """Pad that appends zero channels before a Conv, as residual shortcuts do."""
    x = net.relu(net.conv(net.image(), 8))
    x = net.op("Pad", x, net.const([0, 4, 0, 0, 0, 4, 0, 0]), net.const(0.0), channels=16)
    net.head(net.relu(net.conv(net.op("Add", net.relu(net.conv(x)), x))))


@odd
def pad_that_crops(net: Net) -> None:
    """Pad with negative entries, and one that pads one side and crops the other."""
    x = net.op("Pad", net.image(), net.const([0, 0, -1, -1, 0, 0, -1, 0]), net.const(0.0))
    x = net.op("Pad", net.relu(net.conv(x, pads=None)), net.const([0, 0, 2, 1, 0, 0, -1, 1]), net.const(0.0))
    net.head(net.relu(net.conv(x, pads=None)))


@odd
def pad_forked(net: Net) -> None:
    """A zero Pad read by two convolutions with different pads and by an Add."""
    x = net.op("Pad", net.relu(net.conv(net.image())), net.const([0, 0, 1, 1, 0, 0, 1, 1]), net.const(0.0))
    net.head(net.relu(net.op("Add", net.op("Add", net.conv(x), net.conv(x, kernel=1)), x)))


@odd
def pad_before_pool(net: Net) -> None:
    """A zero Pad before AveragePool without pads, and before one that leaves its own pads out of the count."""
    pads = net.const([0, 0, 1, 1, 0, 0, 1, 1])
    x = net.op("Pad", net.relu(net.conv(net.image())), pads, net.const(0.0))
    x = net.op("Pad", net.op("AveragePool", x, kernel_shape=[3, 3], strides=[2, 2]), pads, net.const(0.0))
    x = net.op("AveragePool", x, kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=0)
    net.head(net.relu(net.conv(x)))
