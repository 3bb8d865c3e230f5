"""Odd ways to write the same network down: operator sets, where the weights stand, names, types, parts of the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from odd_graphs.build import NOT_IN_ORT, REFUSED, Net, OddGraph, odd


@odd
def base(net: Net) -> None:
    """Conv-Relu-Conv-Relu-GlobalAveragePool-Gemm, opset 13: nothing odd, the measure of the others."""
    net.classifier()


# Operator sets


def base_at_opset(version: int) -> None:
    def fill(net: Net) -> None:
        net.classifier()

    fill.__name__, fill.__doc__ = f"opset{version}", f"The base network at opset {version}."
    odd(fill, opset=version)


for _version in (9, 10, 11, 12, 16, 17, 18, 19, 20, 21, 22, 23, 24):
    base_at_opset(_version)


@odd(opset=9)
def opset9_attributes(net: Net) -> None:
    """Opset 9: Clip, Slice, Unsqueeze, Squeeze and ReduceMean with attributes that later became inputs."""
    x = net.op("Clip", net.conv(net.image()), min=0.0, max=6.0)
    x = net.op("Slice", x, axes=[2, 3], starts=[1, 1], ends=[15, 15])
    x = net.op("Squeeze", net.op("Unsqueeze", x, axes=[2]), axes=[2])
    x = net.op("ReduceMean", net.relu(net.conv(x)), axes=[2, 3], keepdims=0)
    net.output(net.gemm(x))


@odd(opset=9)
def opset9_upsample(net: Net) -> None:
    """Upsample, which only opsets 7 to 9 have."""
    x = net.relu(net.conv(net.image()))
    net.head(net.relu(net.conv(net.op("Upsample", x, net.const([1.0, 1.0, 2.0, 2.0]), mode="nearest"))))


@odd(opset=10)
def opset10_resize(net: Net) -> None:
    """Resize as opset 10 has it: two inputs, no coordinate mode."""
    x = net.relu(net.conv(net.image()))
    net.head(net.relu(net.conv(net.op("Resize", x, net.const([1.0, 1.0, 2.0, 2.0]), mode="nearest"))))


@odd(opset=11)
def opset11_softmax(net: Net) -> None:
    """Softmax over [N, C, H, W] with axis 1, which before opset 13 normalizes over C, H and W together."""
    x = net.relu(net.conv(net.image()))
    weights = net.op("Mul", net.op("Softmax", net.conv(x), axis=1), net.const(100.0))
    net.head(net.op("Mul", weights, x))


@odd(opset=20)
def opset20_gelu(net: Net) -> None:
    """Gelu, an operator since opset 20 and not before."""
    net.head(net.relu(net.conv(net.op("Gelu", net.conv(net.image())))))


@odd(opset=23)
def opset23_rms_norm(net: Net) -> None:
    """RMSNormalization, an operator since opset 23, between two MatMuls."""
    x = net.matmul(net.input(("N", 16)), 16, 32)
    net.output(net.matmul(net.op("RMSNormalization", x, net.const(np.linspace(0.5, 1.5, 32))), 32, 10))


# Where the weights stand


@odd(opset=9, ir=3)
def weights_as_inputs(net: Net) -> None:
    """IR version 3: all weights are listed as graph inputs as well."""
    net.classifier()


@odd
def weights_in_constant_nodes(net: Net) -> None:
    """All weights are Constant nodes."""
    net.classifier()
    for name, array in net.weights.items():
        tensor = numpy_helper.from_array(array, name)
        net.nodes.insert(0, helper.make_node("Constant", [], [name], name=f"{name}.constant", value=tensor))
    net.weights.clear()


@odd
def weights_in_constant_lists(net: Net) -> None:
    """Biases are Constant nodes with the attribute value_floats instead of a tensor."""
    net.classifier()
    for name in [name for name in net.weights if name.endswith("bias")]:
        values = net.weights.pop(name).tolist()
        net.nodes.insert(0, helper.make_node("Constant", [], [name], name=f"{name}.constant", value_floats=values))


@odd
def weights_through_identity(net: Net) -> None:
    """Every weight reaches its layer through an Identity node."""
    net.classifier()
    store_weights(net, "Identity")


@odd
def weights_through_identity_of_constant(net: Net) -> None:
    """Every weight is a Constant node behind an Identity node."""
    net.classifier()
    store_weights(net, "Identity")
    for name, array in net.weights.items():
        net.nodes.insert(0, helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array, name)))
    net.weights.clear()


@odd
def weights_through_cast(net: Net) -> None:
    """Every weight is stored as float16 and cast to float."""
    net.classifier()
    store_weights(net, "Cast", to=TensorProto.FLOAT)
    net.weights = {name: array.astype(np.float16) for name, array in net.weights.items()}


@odd
def weights_through_transpose(net: Net) -> None:
    """MatMul(x, Transpose(W)), and a Conv whose weight is transposed as well."""
    x = net.relu(net.conv(net.image(), weight=transposed(net, (3, 3, 3, 16), (3, 2, 0, 1))))
    x = net.op("GlobalAveragePool", x)
    x = net.op("MatMul", net.op("Flatten", x), transposed(net, (32, 16), (1, 0)), name="hidden")
    net.output(net.op("MatMul", net.relu(x), transposed(net, (10, 32), (1, 0)), name="head"))


@odd
def weights_through_reshape(net: Net) -> None:
    """A Conv weight that a Reshape and an Unsqueeze make of two-dimensional matrices."""
    x, flat = net.image(), net.weight("flat", (16, 27))
    x = net.relu(net.conv(x, weight=net.op("Reshape", flat, net.const([16, 3, 3, 3]))))
    weight = net.op("Unsqueeze", net.weight("matrix", (16, 16)), net.const([2, 3]))
    net.head(net.relu(net.conv(x, 16, 1, weight=weight)))


@odd
def weights_as_typed_data(net: Net) -> None:
    """Weights in float_data instead of raw_data."""
    net.classifier()

    def retype(model: onnx.ModelProto) -> None:
        for tensor in model.graph.initializer:
            values = numpy_helper.to_array(tensor).ravel().tolist()
            tensor.CopyFrom(helper.make_tensor(tensor.name, tensor.data_type, tensor.dims, values))

    net.afterwards(retype)


@odd
def weights_sparse(net: Net) -> None:
    """A MatMul weight, three quarters zero, stored as a sparse initializer."""
    x = net.op("Flatten", net.op("GlobalAveragePool", net.relu(net.conv(net.image()))))
    net.output(net.op("MatMul", x, "sparse", name="head"), ("N", 10))
    dense = net.rng.normal(size=(16, 10)).astype(np.float32) * (net.rng.random((16, 10)) < 0.25)
    places = np.flatnonzero(dense)
    values = numpy_helper.from_array(dense.ravel()[places], "sparse")
    indices = numpy_helper.from_array(places, "sparse.indices")
    sparse = helper.make_sparse_tensor(values, indices, dense.shape)
    net.afterwards(lambda model: model.graph.sparse_initializer.append(sparse))


@odd
def external_data(net: Net) -> None:
    """Weights to be kept in a file of their own; see save_with_external_data."""
    net.classifier()


def save_with_external_data(case: OddGraph, directory: Path) -> Path:
    """Write the model with every weight in a second file beside it; the path of the model."""
    model, path = onnx.ModelProto(), directory / f"{case.name}.onnx"
    model.CopyFrom(case.model)
    onnx.save_model(model, path, save_as_external_data=True, location=f"{case.name}.weights", size_threshold=0)
    return path


def store_weights(net: Net, op_type: str, **attributes: int) -> None:
    """Put a node of that type between each weight and the layer that uses it."""
    for name in list(net.weights):
        net.weights[f"{name}.stored"] = net.weights.pop(name)
        node = helper.make_node(op_type, [f"{name}.stored"], [name], name=f"{name}.{op_type}", **attributes)
        net.nodes.insert(0, node)


def transposed(net: Net, shape: tuple[int, ...], perm: tuple[int, ...]) -> str:
    """A weight stored with `shape` and turned by a Transpose node."""
    name, fan_in = net.fresh("stored"), np.prod([shape[axis] for axis in perm]) / shape[perm[0]]
    return net.op("Transpose", net.weight(name, shape, fan_in), perm=perm)


# Names


@odd
def names_missing(net: Net) -> None:
    """No node has a name."""
    net.classifier()
    for node in net.nodes:
        node.name = ""


@odd(entries=NOT_IN_ORT)
def names_duplicate(net: Net) -> None:
    """Two nodes of one type, and two of different types, have the same name, which onnxruntime refuses."""
    net.classifier()
    for node, name in zip(net.nodes, ("conv", "relu", "conv", "relu", "head", "flatten", "head"), strict=True):
        node.name = name


@odd
def names_duplicate_in_bodies(net: Net) -> None:
    """The convolutions in the two bodies of an If have the same name."""
    flag, x, bodies = net.input((), name="flag", dtype=np.bool_), net.relu(net.conv(net.image())), {}
    for branch in ("then_branch", "else_branch"):
        body = net.body(branch)
        body.conv(x, weight=body.weight(f"{branch}.weight", (16, 16, 3, 3)), bias=False, name="same")
        body.nodes[0].output[0] = f"{branch}.out"
        body.output(f"{branch}.out", ("N", 16, 16, 16))
        bodies[branch] = body.graph()
    net.head(net.relu(net.op("If", flag, channels=16, **bodies)))
    net.keeps_float.add("same")


@odd
def names_clash_with_numbering(net: Net) -> None:
    """An unnamed Conv beside nodes already called Conv_0, Conv_1, Conv_2."""
    net.classifier()
    names = ("", "Conv_0", "Conv_1", "Conv_2", "pool", "flatten", "Gemm_6")
    for node, name in zip(net.nodes, names, strict=True):
        node.name = name


@odd
def names_of_nodes_odd(net: Net) -> None:
    """Node names with slashes, colons, spaces, quotes, dots at both ends, line ends and letters beyond ASCII."""
    net.classifier()
    names = ("/model/conv/Conv:0", "re lu", "卷积 'two'", 'say "relu"', "..\\pool", "line\nend", "Ünïcödé {};#%")
    for node, name in zip(net.nodes, names, strict=True):
        node.name = name


@odd
def names_of_tensors_odd(net: Net) -> None:
    """Tensor names, input and output among them, of the same kind; one is like a node's, one like a file's."""
    net.classifier()
    odd_ones = ["a/b:0", "a b", "权重", "it's", '"q"', "../up", "conv1", "end\n", "x.onnx", "é", "{y}", "%s", "#"]
    odd_ones.append("输入/x:0")
    used = sorted({name for node in net.nodes for name in (*node.input, *node.output)})
    new = dict(zip(used, odd_ones, strict=True))
    net.weights = {new[name]: array for name, array in net.weights.items()}
    net.rename_ends(new)
    for node in net.nodes:
        node.input[:] = [new[name] for name in node.input]
        node.output[:] = [new[name] for name in node.output]


# Number types


@odd(dtype=np.float16)
def float16_model(net: Net) -> None:
    """Everything is float16, input and output too."""
    net.classifier()


@odd
def float16_part(net: Net) -> None:
    """One convolution in the middle works in float16 between two Casts."""
    x = net.op("Cast", net.relu(net.conv(net.image())), to=TensorProto.FLOAT16)
    x = net.relu(net.conv(x, name="half"))
    for name in ("half.weight", "half.bias"):
        net.weights[name] = net.weights[name].astype(np.float16)
    net.head(net.relu(net.conv(net.op("Cast", x, to=TensorProto.FLOAT))))


@odd
def float64_part(net: Net) -> None:
    """One MatMul in the middle works in float64, which the chip does not quantize."""
    x = net.op("Flatten", net.op("GlobalAveragePool", net.relu(net.conv(net.image()))))
    x = net.matmul(net.op("Cast", x, to=TensorProto.DOUBLE), 16, 16, name="double")
    net.weights["double.weight"] = net.weights["double.weight"].astype(np.float64)
    net.channels[x] = 16
    net.output(net.gemm(net.op("Cast", x, to=TensorProto.FLOAT)))
    net.keeps_float.add("double")


@odd(dtype=np.float64, entries=REFUSED)
def float64_model(net: Net) -> None:
    """Everything is float64: no layer that the chip quantizes."""
    x = net.relu(net.gemm(net.input(("N", 16)), 32))
    net.output(net.gemm(x))


# Other parts of the file


@odd
def documented(net: Net) -> None:
    """Metadata, doc strings, a producer and versions are present."""
    net.classifier()
    for node in net.nodes:
        node.doc_string = f"made by a test\n{node.op_type}"

    def document(model: onnx.ModelProto) -> None:
        helper.set_model_props(model, {"author": "nobody", "labels": "[0, 1]"})
        model.doc_string, model.domain = "A model.\n\nWith text.", "org.example"
        model.producer_name, model.producer_version, model.model_version = "a test", "1.0", 7
        model.graph.doc_string = model.graph.input[0].doc_string = "text"

    net.afterwards(document)


@odd(opset=18)
def lists_empty(net: Net) -> None:
    """Lists without an entry: attributes of Resize and Constant, inputs of Slice, Unsqueeze and Resize."""
    x, none = net.relu(net.conv(net.image())), net.const(np.empty(0), dtype=np.int64)
    x = net.op("Unsqueeze", net.op("Slice", x, none, none, none), none)
    x = net.op("Resize", x, "", net.const([1.0, 1.0, 2.0, 2.0]))
    net.nodes[-1].attribute.append(AttributeProto(name="axes", type=AttributeProto.INTS))
    nothing, size = net.const(np.empty(0)), net.op("Slice", net.op("Shape", x), net.const([0]), net.const([4]))
    x = net.conv(net.op("Resize", x, nothing, nothing, size))
    mean, scalar = net.op("ReduceMean", x, keepdims=0), net.op("Constant")
    net.nodes[-1].attribute.append(AttributeProto(name="value_ints", type=AttributeProto.INTS))
    net.head(net.relu(net.conv(net.op("Sub", x, net.op("Reshape", mean, scalar)))))


@odd
def inputs_left_out(net: Net) -> None:
    """Optional inputs are the empty name: Clip without a minimum, Resize without roi, Gemm with an empty bias."""
    x = net.op("Clip", net.conv(net.image()), "", net.const(1.0))
    x = net.op("Resize", x, "", net.const([1.0, 1.0, 2.0, 2.0]), mode="linear")
    x = net.op("Flatten", net.op("GlobalAveragePool", net.relu(net.conv(x))))
    net.output(net.gemm(x, bias=""))


@odd
def parts_unused(net: Net) -> None:
    """Initializers that nobody reads, and nodes, a Conv among them, that lead to no output."""
    x = net.image()
    net.const(net.rng.normal(size=(4, 4)), "unused")
    net.const([1, 2, 3], "unused_numbers")
    net.relu(net.conv(x, name="dead"))
    net.classifier(x)
    net.keeps_float.add("dead")


@odd
def value_info_complete(net: Net) -> None:
    """Every inner tensor has its type and shape written down."""
    net.classifier()
    net.afterwards(lambda model: model.CopyFrom(onnx.shape_inference.infer_shapes(model)))


@odd
def value_info_stale(net: Net) -> None:
    """The batch axis is free, the inner tensors still say 1."""
    net.classifier()

    def infer(model: onnx.ModelProto) -> None:
        for value in onnx.shape_inference.infer_shapes(model).graph.value_info:
            value.type.tensor_type.shape.dim[0].dim_value = 1
            model.graph.value_info.append(value)

    net.afterwards(infer)


@odd
def shape_of_output_missing(net: Net) -> None:
    """The graph output has a type and no axes named: a shape of unknown sizes."""
    net.classifier()

    def forget(model: onnx.ModelProto) -> None:
        for dim in model.graph.output[0].type.tensor_type.shape.dim:
            dim.Clear()

    net.afterwards(forget)


@odd(opset=17)
def local_function(net: Net) -> None:
    """Conv and LeakyRelu in a function of the model, called twice with different weights."""
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["conv"], name="conv", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("LeakyRelu", ["conv"], ["y"], name="act"),
    ]
    nodes[1].attribute.append(AttributeProto(name="alpha", type=AttributeProto.FLOAT, ref_attr_name="slope"))
    opsets = [helper.make_opsetid("", net.opset)]
    net.functions.append(helper.make_function("local", "ConvBlock", ["x", "w", "b"], ["y"], nodes, opsets, ["slope"]))
    x = net.image()
    for place, c_in in enumerate((3, 16)):
        weight = net.weight(f"block{place}.weight", (16, c_in, 3, 3))
        bias = net.const(net.rng.normal(size=16) * 0.1, f"block{place}.bias")
        x = net.op("ConvBlock", x, weight, bias, name=f"block{place}", channels=16, domain="local", slope=0.2)
    net.head(x)


@odd(entries=REFUSED)
def no_layer(net: Net) -> None:
    """Relu, MaxPool and Add: nothing to quantize."""
    x = net.relu(net.image())
    net.output(net.op("Add", net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2]), net.const(1.0)))


@odd(entries=REFUSED)
def no_node(net: Net) -> None:
    """A graph whose output is its input."""
    net.output(net.image(), ("N", 3, 16, 16))
