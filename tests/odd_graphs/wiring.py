"""Odd wiring and odd values: subgraphs, shared weights, inputs and outputs, axes, ranges that break quantization."""

from __future__ import annotations

import numpy as np
from onnx import AttributeProto, TensorProto, helper

from odd_graphs.build import Net, odd

# Subgraphs


@odd
def if_bodies(net: Net) -> None:
    """If with a convolution and its weights in each body; the condition follows from the image."""
    x = net.relu(net.conv(net.image()))
    bodies = {}
    for side in ("then", "else"):
        body = net.body(side)
        body.output(body.relu(body.conv(x, name=f"{side}_conv")), ("N", 16, 16, 16))
        bodies[f"{side}_branch"] = body.graph()
    net.head(net.op("If", is_bright(net), channels=16, **bodies))
    net.keeps_float.update({"then_conv", "else_conv"})


@odd
def if_reads_outer_scope(net: Net) -> None:
    """If whose bodies read weights of the outer graph, one of them a layer's of its own; the condition is an input."""
    flag = net.input((), name="flag", dtype=np.bool_)
    x = net.relu(net.conv(net.image(), name="outer"))
    y = net.relu(net.conv(x, name="shared"))
    then, other = net.body("then"), net.body("else")
    then.output(then.conv(y, weight="shared.weight", bias="shared.bias", name="then_conv"), ("N", 16, 16, 16))
    weight = net.weight("other.weight", (16, 16, 1, 1))
    other.output(other.op("Add", other.conv(y, weight=weight, kernel=1, name="else_conv"), x), ("N", 16, 16, 16))
    net.head(net.op("If", flag, channels=16, then_branch=then.graph(), else_branch=other.graph()))
    net.keeps_float.update({"then_conv", "else_conv"})


@odd
def if_reads_conv_before_norm(net: Net) -> None:
    """A body reads the output of a Conv before its BatchNormalization, so the two must not be folded."""
    raw = net.conv(net.image())
    x = net.relu(net.batch_norm(raw))
    then, other = net.body("then"), net.body("else")
    then.output(then.op("Sigmoid", raw), ("N", 16, 16, 16))
    other.output(other.op("Tanh", x), ("N", 16, 16, 16))
    gate = net.op("If", is_bright(net), channels=16, then_branch=then.graph(), else_branch=other.graph())
    net.head(net.relu(net.conv(net.op("Mul", x, gate))))


@odd
def loop_body(net: Net) -> None:
    """A Loop of three rounds over one convolution, its weight in the outer graph."""
    x, shape = net.relu(net.conv(net.image())), ("N", 16, 16, 16)
    weight = net.weight("loop.weight", (16, 16, 3, 3))
    body = net.body("body")
    body.inputs = [
        helper.make_tensor_value_info("round", TensorProto.INT64, ()),
        helper.make_tensor_value_info("go_on", TensorProto.BOOL, ()),
        helper.make_tensor_value_info("state", TensorProto.FLOAT, shape),
    ]
    net.channels["state"] = 16
    body.output(body.op("Identity", "go_on"), (), np.bool_)
    body.output(body.relu(body.conv("state", weight=weight, name="loop_conv")), shape)
    net.head(net.op("Loop", net.const(3), "", x, channels=16, body=body.graph()))
    net.keeps_float.add("loop_conv")


def is_bright(net: Net) -> str:
    """Whether the mean of the image is positive: of some feeds it is, of some not."""
    return net.op("Greater", net.op("ReduceMean", "x", keepdims=0), net.const(0.0))


# Shared weights


@odd
def shared_weight(net: Net) -> None:
    """Two convolutions with one weight and one bias, on activations of different ranges."""
    x = net.relu(net.conv(net.image(), 16))
    y = net.relu(net.conv(net.op("Mul", x, net.const(0.1)), name="first"))
    net.head(net.relu(net.conv(net.op("Add", x, y), weight="first.weight", bias="first.bias")))


@odd
def shared_weight_other_use(net: Net) -> None:
    """The weight of a Conv is read by a Mul and by a graph output as well, the weight of a Gemm by a Gather."""
    x = net.relu(net.conv(net.image(), 16, name="first"))
    x = net.op("Mul", x, net.op("ReduceMax", "first.weight", keepdims=0))
    net.output(net.op("Identity", "first.weight"))
    x = net.op("Flatten", net.op("GlobalAveragePool", net.relu(net.conv(x))))
    x = net.gemm(x, 16, name="tied")
    net.output(net.gemm(net.op("Add", x, net.op("Gather", "tied.weight", net.const(3)))))


@odd
def shared_weight_two_layouts(net: Net) -> None:
    """One weight read by a Gemm with transB 0, a Gemm with transB 1 and a MatMul."""
    weight = net.weight("tied", (16, 16))
    x = net.relu(net.gemm(net.input(("N", 16)), 16, weight=weight, transB=0))
    x = net.relu(net.gemm(x, 16, weight=weight, transB=1))
    net.output(net.op("MatMul", x, weight))


@odd
def shared_bias(net: Net) -> None:
    """One bias for two convolutions whose weights differ twentyfold in size."""
    x = net.image()
    bias = net.const(net.rng.normal(size=16) * 0.1, "bias")
    large = net.conv(x, weight=net.weight("large.weight", (16, 3, 3, 3)), bias=bias, name="large")
    small = net.const(net.weights["large.weight"][::-1] / 20, "small.weight")
    small = net.conv(x, weight=small, bias=bias, name="small")
    x = net.op("Add", net.relu(large), net.op("Mul", net.relu(small), net.const(5.0)))
    net.head(net.relu(net.conv(x)))


# Values


@odd
def bias_overflow(net: Net) -> None:
    """One channel with weights near 1e-9 and a bias near 1: the bias in steps of the scales is beyond int32."""
    x = net.relu(net.conv(net.image(), name="tiny"))
    net.weights["tiny.weight"][5] *= 1e-9
    net.weights["tiny.bias"][5] = 1.0
    net.head(net.relu(net.conv(x)))


@odd
def dead_relu(net: Net) -> None:
    """A Relu that lets nothing through feeds a Conv."""
    x = net.image()
    dead = net.relu(net.conv(x, name="negative"))
    net.weights["negative.bias"] -= 100
    net.head(net.relu(net.conv(net.op("Add", net.conv(dead), net.relu(net.conv(x))))))


@odd
def concat_ranges(net: Net) -> None:
    """A Concat of activations around 100 and around 0.01, which one scale cannot both serve, before a Conv."""
    x = net.image()
    parts = [net.op("Mul", net.relu(net.conv(x, 8)), net.const(factor)) for factor in (100.0, 0.01)]
    net.head(net.relu(net.conv(net.op("Concat", *parts, axis=1, channels=16))))


@odd
def outlier_channel(net: Net) -> None:
    """One input channel of a MatMul is five times as large as the others, its weights are as small."""
    factors = np.where(np.arange(32) == 7, 5.0, 1.0)
    x = net.op("Mul", net.relu(net.gemm(net.input(("N", 16)), 32)), net.const(factors))
    x = net.matmul(x, 32, 16, name="after")
    net.weights["after.weight"] /= factors.astype(np.float32)[:, np.newaxis]
    net.output(net.matmul(net.relu(x), 16, 10))


@odd
def zero_channel(net: Net) -> None:
    """One output channel of a Conv and one of a ConvTranspose have weights of zero."""
    x = net.relu(net.conv(net.image(), name="first"))
    x = net.relu(net.conv_transpose(x))
    net.weights["first.weight"][3] = 0
    net.weights["up1.weight"][:, 2] = 0
    net.head(net.relu(net.conv(x)))


@odd
def zero_weights(net: Net) -> None:
    """A Conv and a MatMul whose weights are all zero, each beside a layer that works."""
    x = net.relu(net.conv(net.image()))
    x = net.relu(net.op("Add", net.conv(x, name="zero"), net.conv(x)))
    x = net.op("Flatten", net.op("GlobalAveragePool", x))
    net.output(net.op("Add", net.matmul(x, 16, 10, name="zero_matmul"), net.matmul(x, 16, 10)))
    net.weights["zero.weight"][:] = net.weights["zero_matmul.weight"][:] = 0


@odd
def constant_activations(net: Net) -> None:
    """Layers whose input is everywhere 0.7 or everywhere -0.7, and a Conv over an initializer."""
    x = net.image()
    nothing = net.op("Mul", x, net.const(0.0))
    above, below = (net.conv(net.op("Add", nothing, net.const(value))) for value in (0.7, -0.7))
    net.channels["picture"] = 3
    fixed = net.conv(net.const(net.rng.normal(size=(1, 3, 16, 16)), "picture"))
    x = net.op("Sum", above, below, fixed, net.conv(x))
    net.head(net.relu(net.conv(net.relu(x))))


# Axes


@odd
def batch_fixed(net: Net) -> None:
    """The batch is 1 and nothing else."""
    net.classifier(net.image((1, 3, 16, 16)))


@odd
def batch_in_reshape(net: Net) -> None:
    """The batch is 1, and a Reshape repeats it."""
    x = net.op("GlobalAveragePool", net.relu(net.conv(net.image((1, 3, 16, 16)))))
    net.output(net.gemm(net.op("Reshape", x, net.const([1, 16]))))


@odd
def image_size_free(net: Net) -> None:
    """Batch, height and width are free, and a Resize reads the size of another tensor."""
    x = net.relu(net.conv(net.image(("N", 3, "H", "W"))))
    small = net.relu(net.conv(x, strides=[2, 2]))
    size = net.op("Slice", net.op("Shape", x), net.const([2]), net.const([4]))
    size = net.op("Concat", net.op("Slice", net.op("Shape", small), net.const([0]), net.const([2])), size, axis=0)
    net.head(net.relu(net.conv(net.op("Add", x, net.op("Resize", small, "", "", size, mode="nearest")))))


# Inputs


@odd
def input_read_by_three_layers(net: Net) -> None:
    """The graph input feeds three convolutions, the first of a chain of two among them."""
    x = net.image()
    chain = net.conv(net.relu(net.conv(x)))
    net.head(net.relu(net.op("Sum", chain, net.conv(x, kernel=1), net.conv(x, kernel=5))))


@odd
def inputs_of_two_images(net: Net) -> None:
    """Two images of different sizes and a vector; a third image that nobody reads."""
    left = net.relu(net.conv(net.image(name="left")))
    right = net.relu(net.conv(net.image(("N", 1, 32, 32), name="right"), strides=[2, 2]))
    net.image(("N", 3, 8, 8), name="ignored")
    x = net.op("Flatten", net.op("GlobalAveragePool", net.relu(net.conv(net.op("Add", left, right)))))
    vector = net.op("MatMul", net.input(("N", 8), name="vector"), net.weight("vector.weight", (8, 16), 8))
    net.output(net.gemm(net.op("Add", x, vector)))


@odd(opset=17)
def input_int64_tokens(net: Net) -> None:
    """Token numbers [N, S] and a mask: Gather from a table, MatMul, Gelu by Erf, LayerNormalization."""
    tokens = net.input(("N", "S"), name="tokens", dtype=np.int64, high=50)
    mask = net.op("Cast", net.input(("N", "S"), name="mask", dtype=np.int64), to=TensorProto.FLOAT)
    x = net.op("Gather", net.const(net.rng.normal(size=(50, 16)), "table"), tokens, axis=0)
    for _ in range(2):
        y = net.op("Add", net.matmul(x, 16, 32), net.const(net.rng.normal(size=32) * 0.1))
        cdf = net.op("Add", net.op("Erf", net.op("Div", y, net.const(np.sqrt(2)))), net.const(1.0))
        y = net.matmul(net.op("Mul", net.op("Mul", y, cdf), net.const(0.5)), 32, 16)
        scale, shift = net.const(net.rng.uniform(0.5, 1.5, 16)), net.const(net.rng.normal(size=16) * 0.1)
        x = net.op("LayerNormalization", net.op("Add", x, y), scale, shift, axis=-1)
    net.output(net.matmul(net.op("Mul", x, net.op("Unsqueeze", mask, net.const([2]))), 16, 10))


@odd
def input_int32(net: Net) -> None:
    """Bytes as int32 [N, S], cast to float and normalized, then a one-dimensional Conv."""
    x = net.op("Cast", net.input(("N", 32), dtype=np.int32, high=256), to=TensorProto.FLOAT)
    x = net.op("Unsqueeze", net.op("Div", x, net.const(255.0)), net.const([1]), channels=1)
    net.head(net.relu(net.conv(net.relu(net.conv(x, axes=1)), axes=1)))


@odd
def input_uint8(net: Net) -> None:
    """A picture of bytes, NHWC, cast, shifted and transposed inside the model."""
    x = net.op("Cast", net.input(("N", 16, 16, 3), dtype=np.uint8, high=256), to=TensorProto.FLOAT)
    x = net.op("Mul", net.op("Sub", x, net.const([127.0, 120.0, 110.0])), net.const(1 / 128))
    net.classifier(net.op("Transpose", x, perm=[0, 3, 1, 2], channels=3))


# Outputs


@odd
def output_is_input(net: Net) -> None:
    """A graph input is a graph output too, and so is an initializer."""
    x = net.image()
    net.classifier(x)
    net.output(x, ("N", 3, 16, 16))
    net.output(net.const([1.0, 2.0], "labels"), (2,))


@odd
def output_of_layer(net: Net) -> None:
    """The output of a Conv is a graph output and goes on; so is one before its BatchNormalization and its Relu."""
    x = net.conv(net.image())
    net.output(x)
    y = net.conv(net.relu(x))
    net.output(y)
    net.head(net.relu(net.batch_norm(y)))


@odd
def output_twice(net: Net) -> None:
    """One layer feeds two graph outputs through Relu and Sigmoid; the last layer's output has two names."""
    x = net.relu(net.conv(net.image()))
    y = net.conv(x)
    net.output(net.relu(y))
    net.output(net.op("Sigmoid", y))
    z = net.conv(x, 8)
    net.output(z)
    net.output(net.op("Identity", z))


@odd
def output_through_identity(net: Net) -> None:
    """Identity nodes behind the input, between the layers and before the output."""
    x = net.op("Identity", net.op("Identity", net.image()))
    x = net.op("Identity", net.relu(net.op("Identity", net.conv(x))))
    x = net.op("Flatten", net.op("GlobalAveragePool", net.relu(net.conv(x))))
    net.output(net.op("Identity", net.gemm(x)))


# Operators in between


@odd(opset=9)
def dropout_by_attribute(net: Net) -> None:
    """Dropout as opset 7 has it, behind a Conv and before the last layer."""
    x = net.relu(net.op("Dropout", net.conv(net.image()), ratio=0.5))
    x = net.op("Flatten", net.op("GlobalAveragePool", net.relu(net.conv(x))))
    net.output(net.gemm(net.op("Dropout", x, ratio=0.3)))


@odd
def dropout_by_input(net: Net) -> None:
    """Dropout as opset 12 has it, with ratio and training_mode as inputs."""
    off = net.const(False, "off", np.bool_)
    x = net.relu(net.op("Dropout", net.conv(net.image()), net.const(0.5), off))
    x = net.op("Flatten", net.op("GlobalAveragePool", net.relu(net.conv(x))))
    net.output(net.gemm(net.op("Dropout", x)))


@odd(opset=14)
def lstm_between(net: Net) -> None:
    """A one-dimensional Conv, an LSTM with lists left empty, a Gemm on its last state."""
    x = net.relu(net.conv(net.image(("N", 8, 12)), axes=1))
    x = net.op("Transpose", x, perm=[2, 0, 1])
    parts = {"W": (1, 64, 16), "R": (1, 64, 16), "B": (1, 128)}
    weights = [net.const(net.rng.normal(size=shape) * 0.2, f"lstm.{part}") for part, shape in parts.items()]
    net.op("LSTM", x, *weights, name="lstm", hidden_size=16)
    lstm = net.nodes[-1]
    lstm.output[:] = ["", "lstm.state"]
    lstm.attribute.append(AttributeProto(name="activation_alpha", type=AttributeProto.FLOATS))
    net.output(net.gemm(net.op("Squeeze", "lstm.state", net.const([0]), channels=16)))


@odd
def residual_chain(net: Net) -> None:
    """Two residual blocks and a shortcut with a strided 1x1 Conv."""
    x = net.relu(net.conv(net.image()))
    x = net.relu(net.op("Add", net.conv(net.relu(net.conv(x))), x))
    y = net.conv(net.relu(net.conv(x, 32, strides=[2, 2])), 32)
    net.head(net.relu(net.op("Add", y, net.conv(x, 32, 1, strides=[2, 2]))))


@odd
def split_and_merge(net: Net) -> None:
    """Split in two unequal parts, a layer on each, Concat, channel shuffle by Reshape and Transpose."""
    x = net.relu(net.conv(net.image(), 24))
    net.op("Split", x, net.const([8, 16]), name="split", axis=1)
    net.nodes[-1].output[:] = ["left", "right"]
    net.channels |= {"left": 8, "right": 16}
    x = net.op("Concat", net.conv(net.relu("left"), 16), net.conv("right", 16), axis=1, channels=32)
    x = net.op("Transpose", net.op("Reshape", x, net.const([0, 2, 16, 16, 16])), perm=[0, 2, 1, 3, 4])
    net.head(net.relu(net.conv(net.op("Reshape", x, net.const([0, 32, 16, 16]), channels=32))))
